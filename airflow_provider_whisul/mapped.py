"""What our operators and sensors have in common where they are mapped."""

from __future__ import annotations

from typing import Any

from airflow_provider_whisul.pace import check_poll_interval


class RefusesFastPolling:
    """
    Refuses a poll interval that is too short when the DAG file is read.

    Airflow makes a mapped task's operator only when it runs, so that what ``__init__`` refuses would come too late.
    """

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Take the arguments that all mapped tasks share."""
        for name in ("poll_interval", "poke_interval"):
            if name in kwargs:
                check_poll_interval(kwargs[name], name)
        return super().partial(**kwargs)  # type: ignore[misc]
