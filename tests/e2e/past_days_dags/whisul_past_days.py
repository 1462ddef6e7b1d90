"""A song for each of ten past days, of which the account's ceiling allows five."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_whisul.operators.whisul import WhisulGenerateOperator

DAYS = 10

# The schedule has ended, so that no run is made but those of the past days.
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
OPTIONS: dict[str, Any] = {
    "schedule": "@daily",
    "start_date": TODAY - timedelta(days=DAYS + 1),
    "end_date": TODAY - timedelta(days=2),
    "default_args": {"retries": 2, "retry_delay": timedelta(seconds=1)},
    "max_active_runs": DAYS,
}

for dag_id, catchup in (("whisul_backfill", False), ("whisul_catchup", True)):
    with DAG(dag_id, catchup=catchup, **OPTIONS):
        WhisulGenerateOperator(
            task_id="song",
            prompt="[sandbox:seconds=8] the song of {{ ds }}",
            whisul_conn_id="whisul_capped",
            wait_for_completion=True,
            poll_interval=5,
        )
