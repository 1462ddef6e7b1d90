"""What the arguments of the operators mean that may be left out, and which are refused, and when."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.configuration import AIRFLOW_CONFIG
from airflow.providers.common.compat.sdk import AirflowSkipException, conf

from airflow_provider_whisul.api.messages import generate_request
from airflow_provider_whisul.exceptions import WhisulBudgetExceededError, WhisulInvalidInputError
from airflow_provider_whisul.operators.run_date import check_skip_if_older_than
from airflow_provider_whisul.polling import check_poll_interval, check_timeout
from airflow_provider_whisul.state.song_state import check_on_ambiguous_submit
from airflow_provider_whisul.text import excerpt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: By the argument's name: returns the argument as the task keeps it, or raises a ``ValueError`` that says why not.
ArgumentChecks = Mapping[str, Callable[[Any], Any]]

#: What a batch without prompts does: fail, skip itself, or succeed with an empty list.
OnEmpty = Literal["fail", "skip", "succeed"]


def check_deferrable(value: bool | None) -> bool:
    """
    Return whether a task waits in the triggerer.

    Where its author does not say, ``[operators] default_deferrable`` of Airflow's configuration does, if a user has set
    it in ``airflow.cfg`` or in the environment. Its built-in default, False, does not count, nor does the file that
    Airflow fills with its defaults: a wait in the triggerer holds no worker slot.

    :param value: The argument.
    :raises ValueError: It is neither a boolean nor None.
    :raises AirflowConfigException: The configuration's value is no boolean.
    """
    if value is None:
        return conf.getboolean("operators", "default_deferrable") if _default_deferrable_is_set() else True
    if not isinstance(value, bool):
        raise ValueError(
            f"deferrable is {value!r}; it must be True, False, or None for what Airflow's configuration says."
        )
    return value


def _default_deferrable_is_set() -> bool:
    """Return whether a user has set ``[operators] default_deferrable``."""
    variable = "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"
    if variable in os.environ:
        return True
    # The configuration's own has_option finds built-in defaults too.
    if not ConfigParser.has_option(conf, "operators", "default_deferrable"):
        return False
    if conf.getboolean("operators", "default_deferrable"):
        return True
    # Where there is no airflow.cfg Airflow writes one, with all its defaults, and above each the name of its variable.
    try:
        return f"# Variable: {variable}\n" not in Path(AIRFLOW_CONFIG).read_text(errors="replace")
    except OSError:
        # It was read from elsewhere.
        return True


def check_attempts(value: int) -> int:
    """
    Return how often a batch may submit a song.

    :param value: The argument.
    :raises ValueError: It is not an integer of 1 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"attempts is {value!r}; it must be an integer, 1 or more.")
    return value


def check_max_submissions(value: int | None) -> int | None:
    """
    Return how often a batch may submit in all of its tries, None for no limit.

    :param value: The argument.
    :raises ValueError: It is not an integer of 1 or more.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"max_submissions is {value!r}; it must be an integer, 1 or more, or None for no limit.")
    return value


def check_max_failures(value: float) -> float:
    """
    Return how many songs of a batch may fail.

    :param value: The argument.
    :raises ValueError: It is neither an integer of 0 or more nor a share between 0 and 1.
    """
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_count and not (isinstance(value, float) and 0 <= value < 1):
        raise ValueError(
            f"max_failures is {value!r}; it must be a number of songs, 0 or more, or as a float a share of the prompts "
            "of less than 1, such as 0.05."
        )
    return value


def allowed_failures(max_failures: float, songs: int) -> int:
    """
    Return how many songs of a batch may fail.

    :param max_failures: The operator's argument.
    :param songs: How many songs the batch has.
    """
    if isinstance(max_failures, int):
        return max_failures
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(max_failures * songs + 1e-9)


def check_on_empty(value: OnEmpty) -> OnEmpty:
    """
    Return what a batch without prompts does.

    :param value: The argument.
    :raises ValueError: It is another word.
    """
    if value not in ("fail", "skip", "succeed"):
        raise ValueError(f'on_empty is {value!r}; it must be "fail", "skip" or "succeed".')
    return value


def checked_prompts(prompts: object) -> list[str]:
    """
    Return the prompts of a batch. One that is refused must not cost the others: nothing is submitted then.

    :param prompts: The operator's argument, as it is rendered.
    :raises WhisulInvalidInputError: They are no list, or one of them is refused.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise WhisulInvalidInputError(
            f"prompts must be a list of texts, not {type(prompts).__name__}, or the name of a .prompts.jsonl file. "
            "Nothing was sent."
        )
    for index, prompt in enumerate(prompts):
        try:
            generate_request(prompt)
        except WhisulInvalidInputError as error:
            raise WhisulInvalidInputError(
                f"prompts[{index}], {excerpt(repr(prompt))}, is refused, so that no prompt is submitted. {error}"
            ) from None
    return list(prompts)


def check_not_empty(prompts: Sequence[str], on_empty: OnEmpty) -> None:
    """
    Do what a batch without prompts does.

    :param prompts: The prompts.
    :param on_empty: What to do where there is none.
    :raises WhisulInvalidInputError: There is none, and ``on_empty`` is ``"fail"``.
    :raises AirflowSkipException: There is none, and ``on_empty`` is ``"skip"``.
    """
    if not prompts and on_empty == "skip":
        raise AirflowSkipException('Skipped, since prompts is an empty list and on_empty is "skip".')
    if not prompts and on_empty == "fail":
        raise WhisulInvalidInputError(
            'prompts is an empty list. Nothing was sent. on_empty="skip" skips such a task, and on_empty="succeed" '
            "lets it return an empty list."
        )


def check_new_takes(prompts: int, submitted: int, max_submissions: int | None) -> None:
    """
    Refuse new songs to a batch that had its songs and was cleared, where it could submit only some of them.

    :param prompts: How many prompts it has.
    :param submitted: How often it has submitted before.
    :param max_submissions: The operator's argument.
    :raises WhisulBudgetExceededError: ``max_submissions`` does not suffice for one song of each prompt.
    """
    if max_submissions is not None and submitted + prompts > max_submissions:
        raise WhisulBudgetExceededError(
            f"This task has had its songs, and was cleared since. New ones take {prompts} submissions beside the "
            f"{submitted} that were made, and max_submissions={max_submissions} permits fewer. Nothing was submitted, "
            f"and nothing was paid. If you do want new songs, set max_submissions to {submitted + prompts} or more, "
            "and clear the task."
        )


@contextmanager
def no_songs_where_skipped(context: Context) -> Iterator[None]:
    """
    Push an empty list as the result of a batch that is skipped.

    A transfer with ``trigger_rule="all_done"`` would take no result at all for songs that failed.

    :param context: The task's context.
    """
    try:
        yield
    except AirflowSkipException:
        context["ti"].xcom_push(key="return_value", value=[])
        raise


#: The checks of the operator for one song, and of the batch.
SONG_CHECKS: ArgumentChecks = {
    "poll_interval": partial(check_poll_interval, name="poll_interval"),
    "timeout": check_timeout,
    "deferrable": check_deferrable,
    "on_ambiguous_submit": check_on_ambiguous_submit,
    "skip_if_older_than": check_skip_if_older_than,
}
BATCH_CHECKS: ArgumentChecks = {
    **SONG_CHECKS,
    "attempts": check_attempts,
    "max_submissions": check_max_submissions,
    "max_failures": check_max_failures,
    "on_empty": check_on_empty,
}

#: The checks of the sensor.
SENSOR_CHECKS: ArgumentChecks = {
    "poke_interval": partial(check_poll_interval, name="poke_interval"),
    "timeout": check_timeout,
    "deferrable": check_deferrable,
}
