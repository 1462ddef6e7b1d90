"""Ask a person before a large batch is paid for. For Airflow 3.1 and later."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.common.compat.sdk import dag, task

from airflow_provider_whisul.api.price import count_songs
from airflow_provider_whisul.operators.whisul_batch import WhisulGenerateBatchOperator
from airflow_provider_whisul.version_compat import HAS_REQUIRED_ACTIONS


@dag(
    dag_id="whisul_ask_before_paying",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["whisul", "example"],
    doc_md="""
### Ask before a large batch is paid for

Where there are more prompts than the Airflow variable `whisul_ask_above` says (100), `ask` waits until somebody
approves in the tab *Required Actions*. A rejection ends the run, and so do twelve hours without an answer: `songs` is
skipped, and nothing is paid. While `ask` waits it holds no worker. Fewer songs are made without a question.

The run's configuration says how many songs there are, such as `{"songs": 50}`; 1,200 unless set. The question names the
sum where the Airflow connection has a `price_per_song`.
""",
)
def ask_before_paying() -> None:
    """Define the tasks."""
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    @task(doc_md="Makes the prompts.")
    def prompts(count: str) -> list[str]:
        """Return the prompts."""
        return [f"a jingle for door number {number}" for number in range(1, int(count) + 1)]

    @task.branch(doc_md="Decides whether a person is asked.")
    def is_large(prompts: list[str], ask_above: str) -> str:
        """Return the task that comes next."""
        return "cost" if len(prompts) > int(ask_above) else "songs"

    @task(doc_md="Says how many songs there will be, and what they cost.")
    def cost(prompts: list[str]) -> str:
        """Return such as ``1,200 songs (96.00 USD)``."""
        from airflow_provider_whisul.hooks.whisul import WhisulHook

        return count_songs(len(prompts), WhisulHook().settings.price_per_song)

    ask = ApprovalOperator(
        task_id="ask",
        subject="Make and pay for {{ ti.xcom_pull(task_ids='cost') }}?",
        body="**Approve** submits the prompts. **Reject** submits none, and costs nothing. A song whose job fails is"
        " submitted again, and paid for again.",
        # No answer is a rejection.
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(hours=12),
        doc_md="Asks a person whether the songs are made.",
    )

    made = prompts("{{ (dag_run.conf or {}).get('songs', 1200) }}")
    songs = WhisulGenerateBatchOperator(
        task_id="songs",
        prompts=made,
        # After a small batch `ask` is skipped. After a rejection `ask` itself has skipped this task.
        trigger_rule="none_failed_min_one_success",
        retries=2,
        doc_md="Makes the songs.",
    )
    decision = is_large(made, "{{ var.value.get('whisul_ask_above', '100') }}")
    decision >> cost(made) >> ask >> songs
    decision >> songs


# Before Airflow 3.1 no task can ask a person: there this file defines no DAG.
if HAS_REQUIRED_ACTIONS:
    ask_before_paying()
