"""Which date a DAG run is for, and whether its songs are still submitted: a date in the past may be nobody's wish."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_whisul.clock import utc
from airflow_provider_whisul.text import count

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)

#: A run that Airflow makes by itself for a date further back than this is told in the log.
RECENT = timedelta(days=1)

#: What stops the runs that Airflow makes by itself, by their type.
_REMEDIES = {
    "scheduled": "catchup=False on the DAG lets Airflow make no runs for the past",
    "backfill": "cancelling the backfill stops the runs that have not begun",
}


def check_skip_if_older_than(value: timedelta | None) -> timedelta | None:
    """
    Return how far back the date of a run may be whose songs are submitted.

    :param value: The argument.
    :raises ValueError: It is neither None nor a ``timedelta`` of more than 0.
    """
    if value is not None and (not isinstance(value, timedelta) or value <= timedelta(0)):
        raise ValueError(
            f"skip_if_older_than is {value!r}; it must be a timedelta of more than 0, such as timedelta(days=2)."
        )
    return value


def run_date(context: Context) -> datetime | None:
    """
    Return the date that a DAG run is for, None where it has none.

    That is the end of the data interval of a scheduled run and of a backfill's, since a weekly run that is on time
    began its interval a week ago. A run for a partition has no interval (3.2 and later), but a time at which it was
    due. For any other run it is the logical date. A run that was triggered without one, or by an asset, has no date.

    :param context: The context of a task of the run.
    """
    if _run_type(context) not in _REMEDIES:
        return context.get("logical_date")
    return context.get("data_interval_end") or getattr(context["dag_run"], "run_after", None)


def check_run_date(context: Context, skip_if_older_than: timedelta | None, now: float) -> None:
    """
    Skip a task whose run is for a date too far back, or warn where nobody may have meant to pay for it.

    To be called before anything is submitted, and not where an earlier try has submitted something.

    :param context: The task's context.
    :param skip_if_older_than: The operator's argument.
    :param now: The time, in Unix seconds.
    :raises AirflowSkipException: The date is further back than the argument says.
    """
    date = run_date(context)
    if date is None:
        return
    age = datetime.fromtimestamp(now, UTC) - date
    told = f"{utc(date.timestamp())}, {_duration(age)} ago"
    if skip_if_older_than is not None:
        if age > skip_if_older_than:
            raise AirflowSkipException(
                f"Skipped, since this run is for {told}, and skip_if_older_than is {_duration(skip_if_older_than)}. "
                "Nothing was submitted, and nothing was paid."
            )
    elif age > RECENT and _is_unattended(context):
        run_type = _run_type(context)
        log.warning(
            "This run is for %s, and its songs are about to be submitted: Airflow makes it as a %s run. Each such run "
            "pays for its songs. To stop that: %s; skip_if_older_than=timedelta(days=1) on this task skips it in runs "
            "for older dates.",
            told,
            "backfill" if run_type == "backfill" else "catch-up",
            _REMEDIES[run_type],
        )


def _run_type(context: Context) -> str:
    """The run's type, a member of an enumeration of texts on some versions; blank where the context has no run."""
    run_type = getattr(context.get("dag_run"), "run_type", "")
    return str(getattr(run_type, "value", run_type))


def _is_unattended(context: Context) -> bool:
    """Whether Airflow makes one run after the other for the past. Without catchup there is one late run at most."""
    run_type = _run_type(context)
    return run_type == "backfill" or (run_type == "scheduled" and getattr(context.get("dag"), "catchup", True))


def _duration(delta: timedelta) -> str:
    """Return a duration in its two largest units that are not 0, rounded down."""
    seconds = int(delta.total_seconds())
    parts = []
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        number, seconds = divmod(seconds, length)
        if number:
            parts.append(count(number, unit))
    return " and ".join(parts[:2]) or "less than a second"
