"""One wait of a batch for its jobs, in the triggerer or on the worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_whisul.api.connection import ConnectionSettings, read_connection
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger

if TYPE_CHECKING:
    from airflow_provider_whisul.hooks.whisul import WhisulHook
    from airflow_provider_whisul.rate_limit.redis_connection import RedisSettings


class TrySoFar(NamedTuple):
    """What a try of a batch hands on from one of its waits to the next."""

    #: When waiting ends, in Unix seconds; None before the first wait.
    deadline: float | None = None
    #: When the last line of progress was logged, in Unix seconds; None for never.
    progress_logged_at: float | None = None
    #: How many submissions of this try, the last ones, were ambiguous.
    ambiguous_in_a_row: int = 0


@dataclass(frozen=True)
class BatchWait:
    """
    One wait of a batch, until some of its jobs have ended.

    :param trigger: What waits.
    :param so_far: What the try hands on to what follows the wait.
    :param timeout: After which time Airflow ends the deferral, if the task defers.
    """

    trigger: WhisulBatchTrigger
    so_far: TrySoFar
    timeout: timedelta

    def on_worker(self, hook: WhisulHook) -> tuple[object, TrySoFar]:
        """
        Run the trigger in this process, in one event loop, and return its event and what the try hands on.

        :param hook: The worker's client, whose way to look up connections and whose clock the trigger uses.
        """

        def look_up() -> tuple[ConnectionSettings, RedisSettings | None]:
            # Here, so that reading a DAG file does not load it.
            from airflow_provider_whisul.rate_limit.store_choice import find_redis

            settings = read_connection(hook.whisul_conn_id, hook.get_connection)
            return settings, find_redis(settings, hook.get_connection)

        trigger = self.trigger
        trigger.clock, trigger.look_up = hook.clock, look_up
        event = hook.clock.run(_event_of(trigger))
        # What the trigger has logged need not be logged again.
        return event, self.so_far._replace(progress_logged_at=trigger.progress_logged_at)


async def _event_of(trigger: WhisulBatchTrigger) -> object:
    (event,) = [event.payload async for event in trigger.run()]
    return event
