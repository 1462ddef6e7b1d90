"""
How many songs a task has submitted, as the Tracks tab counts it, and what they cost, where the price is known.

The tab reads it from an XCom's key, as it reads how many songs there are: it asks for no connection, and for no XCom of
its own per task. The key is ``whisul_submitted_<songs>``, or ``whisul_submitted_<songs>_<price>_<unit>``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote as percent_encode

from airflow_provider_whisul.api.price import Price, count_songs

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_whisul.hooks.whisul import WhisulHook

log = logging.getLogger(__name__)

SUBMITTED_PREFIX = "whisul_submitted_"


def push_submitted(context: Context, songs: int, hook: WhisulHook) -> None:
    """
    Have the Tracks tab count what a task has submitted, in place of what was pushed before. Never raises.

    :param context: The task's context.
    :param songs: How many songs the task has submitted in all its tries, each as often as it was submitted.
    :param hook: The hook that they were submitted with.
    """
    if not songs:
        return
    try:
        price = hook.settings.price_per_song
        context["ti"].xcom_push(key=submitted_key(songs, price), value=count_songs(songs, price))
    except Exception:
        # Any error at all: a count is not worth a task, which a retry might pay for again.
        log.warning("The Tracks tab will not count what this task has submitted. The task continues.", exc_info=True)


def submitted_key(songs: int, price: Price | None) -> str:
    """
    Return the key of the XCom.

    :param songs: How many songs were submitted.
    :param price: What one of them costs, None where that is not known.
    """
    if price is None:
        return f"{SUBMITTED_PREFIX}{songs}"
    # Some versions of Airflow put a key into a URL as it is, where a percent sign would begin a character.
    unit = percent_encode(price.unit, safe="").replace("%", "-")
    return f"{SUBMITTED_PREFIX}{songs}_{price.amount:f}_{unit}"
