"""The contexts that Airflow itself gives to a task in runs of each type, on the version that is installed."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import DAG, BaseOperator

AIRFLOW_2 = airflow_version.startswith("2.")

_numbers = itertools.count()


class Nothing(BaseOperator):
    """A task that does nothing, in whose place the context of a run is made."""

    def execute(self, context: Any) -> None: ...


def run_context(
    run_type: str,
    *,
    logical_date: datetime | None,
    interval: tuple[datetime, datetime] | None = None,
    run_after: datetime | None = None,
    catchup: bool = False,
) -> dict[str, Any]:
    """
    Return what Airflow says about a run in the context of one of its tasks.

    :param run_type: The run's type, as Airflow's API has it.
    :param logical_date: Its logical date; None from Airflow 3.0 on only.
    :param interval: Its data interval. Airflow 2 makes one up where a run has none.
    :param run_after: When it was due (Airflow 3); the end of the interval or the logical date unless given.
    :param catchup: The argument of the DAG.
    """
    with DAG(
        f"dated_{next(_numbers)}", schedule="@daily", start_date=datetime(2020, 1, 1, tzinfo=UTC), catchup=catchup
    ) as dag:
        task = Nothing(task_id="song")
    make = _context_of_airflow_2 if AIRFLOW_2 else _context_of_airflow_3
    context = make(dag, task, run_type, logical_date, interval, run_after)
    names = ("dag", "dag_run", "run_id", "logical_date", "data_interval_start", "data_interval_end")
    return {name: context[name] for name in names if name in context}


def _context_of_airflow_2(dag: Any, task: Any, run_type: str, logical_date: Any, interval: Any, run_after: Any) -> Any:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunType

    dag.create_dagrun(
        run_type=DagRunType(run_type),
        execution_date=logical_date,
        data_interval=interval,
        state=DagRunState.RUNNING,
        start_date=datetime.now(UTC),
        external_trigger=run_type == "manual",
    )
    run_id = DagRunType(run_type).generate_run_id(logical_date)
    return TaskInstance(task, run_id=run_id).get_template_context()


def _context_of_airflow_3(dag: Any, task: Any, run_type: str, logical_date: Any, interval: Any, run_after: Any) -> Any:
    from airflow.sdk.api.datamodels import _generated as api
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    start, end = interval or (None, None)
    fields = {
        "dag_id": dag.dag_id,
        "run_id": f"{run_type}__1",
        "logical_date": logical_date,
        "data_interval_start": start,
        "data_interval_end": end,
        "run_after": run_after or end or logical_date or datetime.now(UTC),
        "start_date": datetime.now(UTC),
        "end_date": None,
        "run_type": run_type,
        "state": "running",
        "consumed_asset_events": [],
        "partition_key": None,
    }
    run = api.DagRun(**{name: value for name, value in fields.items() if name in api.DagRun.model_fields})
    ti = RuntimeTaskInstance.model_construct(
        id=uuid4(),
        task_id="song",
        dag_id=dag.dag_id,
        run_id=run.run_id,
        try_number=1,
        map_index=-1,
        task=task,
        _ti_context_from_server=SimpleNamespace(
            dag_run=run, task_reschedule_count=0, upstream_map_indexes=None, max_tries=0
        ),
    )
    return ti.get_template_context()
