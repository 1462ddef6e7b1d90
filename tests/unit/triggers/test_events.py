"""The event of the batch's trigger: packing the jobs that have ended, and reading an event that is not trusted."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import zlib
from base64 import b64encode
from typing import Any

import pytest
from airflow.serialization.serialized_objects import BaseSerialization
from airflow.triggers.base import TriggerEvent
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError
from airflow_provider_whisul.state.batch_state import MAX_POLLED_JOBS
from airflow_provider_whisul.triggers.events import ChunkPacker, LoggedEvent, chunk_from_event, unpack_chunk

ERROR = WhisulJobFailedError("It failed.", job_id="some-job").as_dict()


def packed(text: bytes) -> str:
    return b64encode(zlib.compress(text)).decode()


def chunk_with(completed: Any) -> dict[str, Any]:
    return {
        "completed": completed,
        "failed": {"b": "It failed."},
        "not_found": {"c": "404"},
        "timed_out": {"d": "It had not ended."},
    }


VALUES = st.none() | st.text() | st.floats(allow_nan=False) | st.lists(st.text(), max_size=3)


@given(st.dictionaries(st.text(), st.none() | st.dictionaries(st.text(), VALUES, max_size=3), max_size=20))
def test_a_chunk_is_unpacked_as_it_was_packed(songs: dict[str, dict[str, object] | None]) -> None:
    packer = ChunkPacker()
    packer.failed["b"] = "It failed."
    for job_id, song in songs.items():
        # Measuring changes nothing.
        assert packer.size() == len(json.dumps(packer.packed()))
        packer.add_completed(job_id, song)
    assert packer.songs == len(songs)
    chunk = unpack_chunk(json.loads(json.dumps(packer.packed())))
    assert chunk == {"completed": songs, "failed": {"b": "It failed."}, "not_found": {}, "timed_out": {}}


def test_one_chunk_may_hold_all_jobs_that_a_trigger_polls() -> None:
    packer = ChunkPacker()
    songs = {f"{number:0>40}": {"title": "t" * 1_187} for number in range(MAX_POLLED_JOBS)}
    for job_id, song in songs.items():
        packer.add_completed(job_id, song)
    assert unpack_chunk(packer.packed())["completed"] == songs


def test_a_chunk_event() -> None:
    event = {"status": "chunk", "chunk": chunk_with(packed(b'["a", {"title": "A"}]\n'))}
    assert chunk_from_event(event) == (chunk_with({"a": {"title": "A"}}), None)


def test_a_chunk_event_with_the_error_that_ended_the_wait() -> None:
    chunk, error = chunk_from_event({"status": "error", "chunk": chunk_with(packed(b'["a", null]')), "error": ERROR})
    assert chunk == chunk_with({"a": None})
    assert isinstance(error, WhisulJobFailedError)


MALFORMED = [
    None,
    7,
    {},
    "",
    "not base64!",
    "音",
    "bm90IGNvbXByZXNzZWQ=",
    b64encode(zlib.compress(b'["a", null]')[:-1]).decode(),
    packed(b"not JSON"),
    packed(b"\xff"),
    packed(b'{"a": null}'),
    packed(b'["a", "no song"]'),
    packed(b'["a", null]\n["b"]'),
    packed(b"[7, null]"),
    packed(b"[" * 100_000),
]


@pytest.mark.parametrize("completed", MALFORMED)
@pytest.mark.parametrize("status", [{"status": "chunk"}, {"status": "error", "error": ERROR}])
def test_a_malformed_event_is_refused(status: dict[str, Any], completed: Any) -> None:
    with pytest.raises(WhisulError, match="not one of this provider") as caught:
        chunk_from_event({**status, "chunk": chunk_with(completed)})
    assert type(caught.value) is WhisulError
    assert len(str(caught.value)) < 600


def test_an_event_that_decompresses_to_much_more_is_refused_without_filling_the_memory() -> None:
    compressor = zlib.compressobj()
    bomb = b"".join(compressor.compress(b" " * 2**20) for _ in range(64)) + compressor.flush()
    event = {"status": "chunk", "chunk": chunk_with(b64encode(bomb).decode())}
    tracemalloc.start()
    try:
        with pytest.raises(WhisulError, match="not one of this provider"):
            chunk_from_event(event)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_the_event_of_a_batch_is_short_in_a_log_and_whole_elsewhere() -> None:
    packer = ChunkPacker()
    for number in range(300):
        packer.add_completed(f"job-{number}", {"title": f"title {number}"})
    packer.failed["b"] = "It failed."
    plain = {"status": "chunk", "chunk": packer.packed()}
    event = TriggerEvent(LoggedEvent(plain, packer.summary()))
    # Airflow 3 logs the repr, Airflow 2 the text.
    assert repr(event) == "TriggerEvent<<300 completed, 1 failed>>"
    assert len(str(event)) < 60
    assert event.payload == plain
    assert json.loads(json.dumps(event.payload)) == plain
    # As Airflow passes it on: between its processes, and to its database.
    stored = BaseSerialization.deserialize(BaseSerialization.serialize(event.payload))
    assert stored == plain
    assert type(stored) is dict
    if hasattr(event, "model_dump"):
        assert event.model_dump()["payload"] == plain
        assert json.loads(event.model_dump_json())["payload"] == plain
    assert pickle.loads(pickle.dumps(event.payload)) == plain
