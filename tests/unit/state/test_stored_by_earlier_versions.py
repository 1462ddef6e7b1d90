"""
This version reads what each earlier one has stored: records, the ledger, triggers and their events.

``stored_by_VERSION.json`` has what a release has written. Once there is one of a release, it is not changed any more: a
form that changes is a new file, and the old one must still be read.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from airflow_provider_whisul import __version__
from airflow_provider_whisul.ledger.entries import Entry
from airflow_provider_whisul.ledger.submission_id import SubmissionId
from airflow_provider_whisul.state.batch_state import BatchState
from airflow_provider_whisul.state.song_state import SongRecord, SongState, Submission
from airflow_provider_whisul.storage.songs import read_songs
from airflow_provider_whisul.triggers.events import ChunkPacker, chunk_from_event, song_from_event
from airflow_provider_whisul.triggers.whisul import WhisulJobTrigger
from airflow_provider_whisul.triggers.whisul_batch import WhisulBatchTrigger
from tests.support.airflow import TaskStore

FILES = sorted(Path(__file__).parent.glob("stored_by_*.json"))
NOW = 1_764_158_400.0
PROMPT, OTHER = "lo-fi for 2026-11-26", "a waltz"
SONG: Any = {
    "job_id": "job-1",
    "prompt": PROMPT,
    "title": "Midnight Grid",
    "bpm": 140,
    "duration_seconds": 167,
    "song_url": "https://media.example.com/1.mp3",
    "image_url": "https://media.example.com/1.jpg",
    "tags": ["trap", "dark"],
    "started_at": "2026-11-26T12:00:00+00:00",
    "finished_at": "2026-11-26T12:02:24+00:00",
}
FIELDS = {name: value for name, value in SONG.items() if name not in ("job_id", "prompt")}
SUBMISSION = SubmissionId("nightly", "song", "scheduled__2026-11-26", -1, 0)
JOB_TRIGGER = WhisulJobTrigger("job-1", "whisul_default", 10.0, NOW + 3600, submitted_at=NOW, dag_id="nightly")
BATCH_TRIGGER = WhisulBatchTrigger(
    ["job-1", "job-2"], "whisul_default", 10.0, NOW + 3600, submitted_at=NOW, total=2, dag_id="nightly"
)


def song_record() -> TaskStore:
    store = TaskStore()
    state = SongState(store, PROMPT, 0, lambda: "account")
    state.record_intent(NOW)
    state.record_submission(Submission("job-1", NOW), delivered=False)
    return store


def batch_record() -> TaskStore:
    store = TaskStore()
    state = BatchState.load([PROMPT, OTHER], store, 0, "account")
    state.begin_try(NOW)
    state.record_intent(0)
    state.set_job(0, "job-1")
    state.save([0])
    return store


def chunk() -> dict[str, Any]:
    packer = ChunkPacker()
    packer.add_completed("job-1", FIELDS)
    packer.failed["job-2"] = "The song failed."
    return {"status": "chunk", "chunk": packer.packed()}


def stored_now() -> dict[str, Any]:
    """Return what this version writes."""
    entry = Entry.of(SUBMISSION, PROMPT, conn_id="whisul_default", attempt="word", api_key="a-key").accepted("job-1")
    return json.loads(
        json.dumps(
            {
                "song record": song_record(),
                "batch record": batch_record(),
                "ledger": entry.to_bytes().decode(),
                "job trigger": JOB_TRIGGER.serialize(),
                "batch trigger": BATCH_TRIGGER.serialize(),
                "completed event": {"status": "completed", "job_id": "job-1", "song": SONG},
                "chunk event": chunk(),
                "xcom": SONG,
            }
        )
    )


def unpacked(value: Any) -> Any:
    """Return what is stored without its compression, which is another one on another machine."""
    if isinstance(value, dict):
        return {
            key: zlib.decompress(b64decode(item)) if key in ("completed", "prompts") else unpacked(item)
            for key, item in value.items()
        }
    return value


def version_of(file: Path) -> Version:
    return Version(file.stem.removeprefix("stored_by_").replace("_", "."))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a release has stored."""
    found: dict[str, Any] = json.loads(request.param.read_text())
    return found


def test_the_record_of_a_song_is_read(stored: dict[str, Any]) -> None:
    record = SongRecord.read(TaskStore(**stored["song record"]))
    assert record is not None
    assert (record.status, record.submission) == ("running", Submission("job-1", NOW))


def test_the_record_of_a_batch_is_read(stored: dict[str, Any]) -> None:
    state = BatchState.resume(TaskStore(**stored["batch record"]), 0)
    assert state is not None
    assert [(song.prompt, song.status, song.job_id) for song in state.songs] == [
        (PROMPT, "running", "job-1"),
        (OTHER, "new", None),
    ]


def test_the_ledger_is_read(stored: dict[str, Any]) -> None:
    entry = Entry.from_bytes(stored["ledger"].encode(), "the file")
    assert (entry.submission, entry.prompt, entry.job_id) == (SUBMISSION, PROMPT, "job-1")


@pytest.mark.parametrize(
    ("name", "trigger"), [("job trigger", JOB_TRIGGER), ("batch trigger", BATCH_TRIGGER)], ids=["job", "batch"]
)
def test_a_trigger_is_made_anew(
    stored: dict[str, Any], name: str, trigger: WhisulJobTrigger | WhisulBatchTrigger
) -> None:
    classpath, arguments = stored[name]
    assert classpath == f"{type(trigger).__module__}.{type(trigger).__qualname__}"
    assert type(trigger)(**arguments).serialize() == trigger.serialize()


def test_an_event_is_read(stored: dict[str, Any]) -> None:
    assert song_from_event(stored["completed event"], "job-1") == SONG
    result, error = chunk_from_event(stored["chunk event"])
    assert error is None
    assert result["completed"] == {"job-1": FIELDS}
    assert result["failed"] == {"job-2": "The song failed."}


def test_a_song_in_an_xcom_can_be_stored(stored: dict[str, Any]) -> None:
    songs, skipped = read_songs([stored["xcom"]])
    assert [song["job_id"] for song in songs] == ["job-1"]
    assert skipped == []


def test_what_this_version_writes_is_in_the_file_of_the_newest_release() -> None:
    """Where this fails, the form of something stored has changed: see the docstring of this file."""
    newest = max(FILES, key=version_of)
    assert version_of(newest) <= Version(__version__)
    assert unpacked(stored_now()) == unpacked(json.loads(newest.read_text()))
