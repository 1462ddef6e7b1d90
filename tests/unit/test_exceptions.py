"""The errors: the class of each, and that pickling, copying and an event keep them whole."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_provider_whisul import exceptions
from airflow_provider_whisul.exceptions import (
    MAX_PROMPT,
    TaskRetry,
    WhisulAmbiguousSubmitError,
    WhisulAmbiguousSubmitFinalError,
    WhisulBudgetExceededError,
    WhisulConfigurationError,
    WhisulConnectionError,
    WhisulError,
    WhisulFileExistsError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobFailedFinalError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulMediaError,
    WhisulMediaExpiredError,
    WhisulMediaUnsafeError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulSongMissingError,
    WhisulStateError,
    WhisulStateUnreadableError,
    WhisulStorageError,
    WhisulTLSError,
    WhisulUnauthorizedError,
    error_from_dict,
)

# class: (parent, ends Airflow's retries, the same request may succeed later)
HIERARCHY: dict[type[WhisulError], tuple[type[Exception], bool, bool]] = {
    WhisulError: (AirflowException, False, False),
    WhisulConfigurationError: (WhisulError, True, False),
    WhisulInvalidInputError: (WhisulError, True, False),
    WhisulUnauthorizedError: (WhisulError, True, False),
    WhisulJobNotFoundError: (WhisulError, True, False),
    WhisulOutOfCreditsError: (WhisulError, True, False),
    WhisulRateLimitError: (WhisulError, False, True),
    WhisulServerError: (WhisulError, False, True),
    WhisulConnectionError: (WhisulError, False, True),
    WhisulTLSError: (WhisulConnectionError, False, False),
    WhisulResponseError: (WhisulError, False, True),
    WhisulAmbiguousSubmitError: (WhisulError, False, False),
    WhisulAmbiguousSubmitFinalError: (WhisulAmbiguousSubmitError, True, False),
    WhisulJobFailedError: (WhisulError, False, False),
    WhisulJobFailedFinalError: (WhisulJobFailedError, True, False),
    WhisulJobTimeoutError: (WhisulError, False, False),
    WhisulSongMissingError: (WhisulError, False, False),
    WhisulMediaError: (WhisulError, False, True),
    WhisulMediaExpiredError: (WhisulMediaError, True, False),
    WhisulMediaUnsafeError: (WhisulMediaError, True, False),
    WhisulStateError: (WhisulError, False, False),
    WhisulStateUnreadableError: (WhisulStateError, True, False),
    WhisulBudgetExceededError: (WhisulError, True, False),
    WhisulStorageError: (WhisulError, False, False),
    WhisulFileExistsError: (WhisulStorageError, True, False),
}

ERRORS = [
    *(cls("what happened", job_id="j-1", http_status=418) for cls in HIERARCHY),
    *(cls("without a job") for cls in HIERARCHY),
    WhisulRateLimitError("slow down", job_id="j-1", http_status=429, retry_after=7.5),
    WhisulRateLimitError("not permitted", cooldown=12.5),
    WhisulConnectionError("refused", job_id="j-1", request_sent=False),
    WhisulTLSError("bad certificate", request_sent=False),
]


def _name(error: object) -> str:
    return f"{type(error).__name__}-{error}"


def test_every_error_of_the_module_is_in_the_table() -> None:
    defined = {value for value in vars(exceptions).values() if isinstance(value, type)}
    assert {cls for cls in defined if issubclass(cls, WhisulError)} == set(HIERARCHY)


@pytest.mark.parametrize("cls", HIERARCHY, ids=lambda cls: cls.__name__)
def test_a_class_has_its_parent_and_its_retry_behaviour(cls: type[WhisulError]) -> None:
    parent, final, transient = HIERARCHY[cls]
    assert parent in cls.__bases__
    assert issubclass(cls, AirflowException)
    assert issubclass(cls, AirflowFailException) is final
    assert cls.transient is transient
    assert (cls.task_retry is TaskRetry.NEVER) is final


@pytest.mark.parametrize("cls", HIERARCHY, ids=lambda cls: cls.__name__)
def test_attributes_default_to_unknown(cls: type[WhisulError]) -> None:
    error = cls("what happened")
    assert (str(error), error.job_id, error.http_status, error.prompt) == ("what happened", None, None, None)


def test_a_connection_error_counts_as_sent_and_a_rate_limit_has_no_waits_by_default() -> None:
    assert WhisulConnectionError("reset").request_sent is True
    limited = WhisulRateLimitError("slow down")
    assert (limited.retry_after, limited.cooldown) == (None, None)


@pytest.mark.parametrize("error", ERRORS, ids=_name)
def test_as_dict_and_back_through_json_keeps_type_message_job_and_status(error: WhisulError) -> None:
    again = error_from_dict(json.loads(json.dumps(error.as_dict(), allow_nan=False)))
    assert type(again) is type(error)
    assert (str(again), again.job_id, again.http_status) == (str(error), error.job_id, error.http_status)


@pytest.mark.parametrize("error", ERRORS, ids=_name)
def test_an_event_has_the_beginning_of_the_prompt(error: WhisulError) -> None:
    error = copy.copy(error)
    error.prompt = "la " * 1_000
    again = error_from_dict(json.loads(json.dumps(error.as_dict(), allow_nan=False)))
    assert again.prompt == error.prompt[:MAX_PROMPT]


@pytest.mark.parametrize("prompt", [1, ["a song"], {}])
def test_a_prompt_that_is_no_text_is_none(prompt: object) -> None:
    error = error_from_dict(
        {"type": "WhisulError", "message": "m", "job_id": "j-1", "http_status": 500, "prompt": prompt}
    )  # type: ignore[typeddict-item]
    assert error.prompt is None


@pytest.mark.parametrize("name", ["WhisulErrorOfTheFuture", "KeyError", "object", ""])
def test_an_error_type_of_another_version_becomes_the_base_error(name: str) -> None:
    error = error_from_dict({"type": name, "message": "m", "job_id": "j-1", "http_status": 500})
    assert type(error) is WhisulError
    assert (str(error), error.job_id, error.http_status) == ("m", "j-1", 500)


@pytest.mark.parametrize("error", ERRORS, ids=_name)
def test_pickle_and_copy_keep_all_attributes(error: WhisulError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_airflow_s_own_serialization_keeps_type_and_message() -> None:
    for error in ERRORS:
        again = BaseSerialization.deserialize(BaseSerialization.serialize(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
