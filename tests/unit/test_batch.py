"""What an event of the batch's trigger carries, and what is made of it."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_whisul.batch import MOST_WATCHED, PartPacker, unpack_part
from airflow_provider_whisul.exceptions import WhisulError, WhisulJobFailedError
from airflow_provider_whisul.triggers.whisul_batch import part_from_event

ERROR = WhisulJobFailedError("It failed.", job_id="some-job").as_dict()


def packed(text: bytes) -> str:
    return b64encode(zlib.compress(text)).decode()


def part_of(completed: Any) -> dict[str, Any]:
    return {"completed": completed, "failed": {"b": "It failed."}, "gone": {"c": "404"}, "late": {"d": "Not over."}}


VALUES = st.none() | st.text() | st.floats(allow_nan=False) | st.lists(st.text(), max_size=3)


@given(st.dictionaries(st.text(), st.none() | st.dictionaries(st.text(), VALUES, max_size=3), max_size=20))
def test_what_is_packed_comes_out_as_it_was(songs: dict[str, dict[str, object] | None]) -> None:
    packer = PartPacker()
    packer.failed["b"] = "It failed."
    for job_id, song in songs.items():
        # Measuring changes nothing.
        assert packer.size() == len(json.dumps(packer.packed()))
        packer.add(job_id, song)
    assert packer.songs == len(songs)
    part = unpack_part(json.loads(json.dumps(packer.packed())))
    assert part == {"completed": songs, "failed": {"b": "It failed."}, "gone": {}, "late": {}}


def test_all_that_a_trigger_looks_at_may_be_in_one_part() -> None:
    packer = PartPacker()
    songs = {f"{number:0>40}": {"title": "t" * 1_187} for number in range(MOST_WATCHED)}
    for job_id, song in songs.items():
        packer.add(job_id, song)
    assert unpack_part(packer.packed())["completed"] == songs


def test_a_part() -> None:
    event = {"status": "part", "part": part_of(packed(b'["a", {"title": "A"}]\n'))}
    assert part_from_event(event) == (part_of({"a": {"title": "A"}}), None)


def test_a_part_with_the_error_that_ended_the_wait() -> None:
    part, error = part_from_event({"status": "error", "part": part_of(packed(b'["a", null]')), "error": ERROR})
    assert part == part_of({"a": None})
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
@pytest.mark.parametrize("status", [{"status": "part"}, {"status": "error", "error": ERROR}])
def test_an_event_that_is_none_of_ours(status: dict[str, Any], completed: Any) -> None:
    with pytest.raises(WhisulError, match="no event of it") as caught:
        part_from_event({**status, "part": part_of(completed)})
    assert type(caught.value) is WhisulError
    assert len(str(caught.value)) < 600


def test_an_event_cannot_fill_the_memory() -> None:
    compressor = zlib.compressobj()
    bomb = b"".join(compressor.compress(b" " * 2**20) for _ in range(64)) + compressor.flush()
    event = {"status": "part", "part": part_of(b64encode(bomb).decode())}
    tracemalloc.start()
    try:
        with pytest.raises(WhisulError, match="no event of it"):
            part_from_event(event)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
