"""In which store a task keeps its record, and what stores do that fail or forget."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_whisul.exceptions import (
    TaskRetry,
    WhisulConfigurationError,
    WhisulStateError,
    WhisulStateUnreadableError,
)
from airflow_provider_whisul.state import state_store
from airflow_provider_whisul.state.folder_state_store import FolderStateStore
from airflow_provider_whisul.state.state_path import machine_folder, state_folder
from airflow_provider_whisul.state.state_store import (
    AirflowStateStore,
    MirroredStateStore,
    NoStateStore,
    XComStateStore,
    read_versioned,
    task_state_store,
    total_deadline,
    unreadable,
    versioned,
)
from airflow_provider_whisul.storage import documents
from tests.support.airflow import TaskContext, TaskStore

SetVersion = Callable[[str], None]


@pytest.fixture
def state_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the configuration names."""
    path = tmp_path / "shared"
    path.mkdir()
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", str(path))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def is_airflow(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a clear empty Airflow's store as in 3.4, or not."""

    def is_airflow(version: str) -> None:
        monkeypatch.setattr(state_store, "CLEARING_EMPTIES_TASK_STATE", version == "3.4")

    return is_airflow


class Away(TaskStore):
    """Airflow's store while no API server responds."""

    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no response")

    set = delete = get  # type: ignore[assignment]


# --- the decision


@pytest.mark.parametrize("version", ["2.11", "3.3", "3.4"])
def test_a_configured_folder_is_used_on_every_airflow(
    version: str, state_path: Path, home: Path, is_airflow: SetVersion
) -> None:
    is_airflow(version)
    airflows = TaskStore()
    context = TaskContext() if version == "2.11" else TaskContext(task_state_store=airflows)
    store = task_state_store(context)
    assert isinstance(store, FolderStateStore)
    assert store.notice is None
    store.set("whisul_song", versioned({}))
    assert len(list((state_path / "records").iterdir())) == 1
    assert airflows == {}
    assert not home.exists()


def test_without_a_configured_folder_it_is_airflows_store_on_3_3(home: Path, is_airflow: SetVersion) -> None:
    is_airflow("3.3")
    airflows = TaskStore()
    store = task_state_store(TaskContext(task_state_store=airflows))
    assert isinstance(store, AirflowStateStore)
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert airflows == {"whisul_song": {"version": 1, "job_id": "job-1"}}
    assert store.get("whisul_song") == {"version": 1, "job_id": "job-1"}
    store.delete("whisul_song")
    assert airflows == {}
    assert not home.exists()


def test_from_3_4_on_a_copy_is_kept_on_the_machine(home: Path, is_airflow: SetVersion) -> None:
    is_airflow("3.4")
    airflows = TaskStore()
    context = TaskContext(task_state_store=airflows)
    store = task_state_store(context)
    assert isinstance(store, MirroredStateStore)
    store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert list(airflows) == ["whisul_song"]
    # A user clears the task.
    airflows.clear()
    again = task_state_store(context)
    assert again is not None
    assert read_versioned(again, "whisul_song") == {"version": 1, "job_id": "job-1"}


def test_before_3_3_it_is_a_folder_of_the_machine_which_is_said_once(
    home: Path, is_airflow: SetVersion, caplog: pytest.LogCaptureFixture
) -> None:
    is_airflow("2.11")
    caplog.set_level(logging.INFO, "airflow_provider_whisul")
    store = task_state_store(TaskContext())
    assert store is not None
    store.get("whisul_song")
    assert not caplog.records
    store.set("whisul_song", versioned({}))
    store.set("whisul_song", versioned({}))
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"file://{home}/whisul_state" in line
    assert "set [whisul] state_path" in line


def test_a_machine_whose_folder_cannot_be_made_has_none_and_warns(
    monkeypatch: pytest.MonkeyPatch, is_airflow: SetVersion, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/proc/no-home")
    is_airflow("2.11")
    assert task_state_store(TaskContext()) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "/proc/no-home/whisul_state cannot be made" in line
    assert "a retry submits, and pays, again" in line
    is_airflow("3.4")
    assert isinstance(task_state_store(TaskContext(task_state_store=TaskStore())), AirflowStateStore)


def test_a_task_that_is_not_durable_has_none(state_path: Path) -> None:
    assert task_state_store(TaskContext(task_state_store=TaskStore()), durable=False) is None


# --- the folder


def test_a_configured_folder_must_exist_as_an_unmounted_disk_knows_of_no_song(state_path: Path) -> None:
    state_path.rmdir()
    with pytest.raises(WhisulStateError, match="does not exist on this machine. Nothing was sent") as caught:
        task_state_store(TaskContext())
    assert caught.value.task_retry is TaskRetry.TASK_DEFAULT
    assert not state_path.exists()
    state_path.mkdir()
    assert isinstance(task_state_store(TaskContext()), FolderStateStore)


def test_a_configured_path_that_is_a_file_is_said_to_be_one(state_path: Path) -> None:
    state_path.rmdir()
    state_path.touch()
    with pytest.raises(WhisulStateError, match="is a file. Nothing was sent. Name a folder."):
        state_folder()


def test_a_store_without_its_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "s4://bucket/whisul")
    with pytest.raises(WhisulStateError, match="no installed package knows s4:// addresses. Check how it is spelt"):
        state_folder()


@pytest.mark.parametrize("path", ["records", "s3://", "s3://key:secret@bucket/x", "file://../up"])
def test_a_path_that_names_no_folder_is_an_error_of_the_configuration(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", path)
    with pytest.raises(WhisulConfigurationError, match=r"\[whisul\] state_path cannot be used.*Nothing was sent") as e:
        state_folder()
    assert "secret" not in str(e.value)
    assert "download" not in str(e.value)
    assert "destination" not in str(e.value)


def test_a_blank_path_is_none(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "  ")
    folder = state_folder()
    assert folder == machine_folder()
    assert folder is not None
    assert folder.url == f"file://{home}/whisul_state"


def test_a_folder_of_this_machine_that_is_out_of_reach_is_an_error_and_not_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    (home / "whisul_state").mkdir(parents=True)
    # The tests may run as root, who may do anything.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(WhisulStateError, match=rf"{home}/whisul_state is there, .* Nothing was sent\. .*state_path"):
        state_folder()


def test_a_forked_process_makes_a_client_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WHISUL__STATE_PATH", "memory://state")
    monkeypatch.setattr(documents, "filesystem", lambda protocol, conn_id: MemoryFileSystem())
    first = state_folder()
    assert state_folder() is first
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert state_folder() is not first


# --- stores that fail or forget


def test_an_airflow_that_does_not_respond_is_an_error_of_ours_and_final_for_nobody() -> None:
    store = AirflowStateStore(Away())
    for act in (lambda: store.get("a"), lambda: store.set("a", {}), lambda: store.delete("a")):
        with pytest.raises(WhisulStateError, match=r"no response \(ConnectionError\)") as caught:
            act()
        assert caught.value.task_retry is TaskRetry.TASK_DEFAULT


def test_xcoms_that_airflow_does_not_take_are_an_error_of_ours_too() -> None:
    class Refusing(TaskContext):
        def xcom_push(self, *_: object, **__: object) -> None:
            raise RuntimeError("no\nresponse")

        xcom_pull = xcom_push

    store = XComStateStore(Refusing())  # type: ignore[arg-type]
    for act in (lambda: store.get("a"), lambda: store.set("a", {}), lambda: store.delete("a")):
        with pytest.raises(WhisulStateError, match=r"record in Airflow's XComs: no response \(RuntimeError\)"):
            act()


def test_what_is_unreadable_in_airflows_store_is_named_by_its_key() -> None:
    store = AirflowStateStore(TaskStore(whisul_song={"job_id": "job-1"}))
    with pytest.raises(WhisulStateUnreadableError, match="the key whisul_song in Airflow's task state store"):
        read_versioned(store, "whisul_song")


def test_a_copy_is_written_also_where_the_first_store_is_away() -> None:
    second = AirflowStateStore(TaskStore())
    store = MirroredStateStore(AirflowStateStore(Away()), second)
    with pytest.raises(WhisulStateError):
        store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert second.get("whisul_song") == {"version": 1, "job_id": "job-1"}
    # What the first one holds is not known, so the second one is not believed.
    with pytest.raises(WhisulStateError):
        store.get("whisul_song")


def test_a_mirror_whose_second_store_is_away_is_an_error_where_only_that_could_tell() -> None:
    first = AirflowStateStore(TaskStore())
    store = MirroredStateStore(first, AirflowStateStore(Away()))
    with pytest.raises(WhisulStateError):
        store.get("whisul_song")
    with pytest.raises(WhisulStateError):
        store.set("whisul_song", versioned({"job_id": "job-1"}))
    assert store.get("whisul_song") == {"version": 1, "job_id": "job-1"}


def test_a_mirror_reads_the_first_store_and_removes_from_both() -> None:
    first, second = TaskStore(whisul_song={"number": 2}), TaskStore(whisul_song={"number": 1})
    store = MirroredStateStore(AirflowStateStore(first), AirflowStateStore(second))
    assert store.get("whisul_song") == {"number": 2}
    store.delete("whisul_song")
    assert (store.get("whisul_song"), first, second) == (None, {}, {})


@pytest.mark.parametrize("store", [NoStateStore(), XComStateStore(TaskContext())])  # type: ignore[arg-type]
def test_the_other_stores_say_where_a_value_is(store: Any) -> None:
    assert read_versioned(store, "whisul_song") is None
    assert store.location("whisul_song") in str(unreadable(store, "whisul_song"))


# --- the deadline of all tries


def with_retries(store: TaskStore) -> Any:
    context = TaskContext(task_state_store=store)
    context["task"] = SimpleNamespace(retries=2)
    return context


def test_the_deadline_of_the_first_try_holds_for_all(is_airflow: SetVersion) -> None:
    is_airflow("3.3")
    store = TaskStore()
    assert [total_deadline(with_retries(store), deadline) for deadline in (100.0, 200.0)] == [100.0, 100.0]
    assert store["whisul_deadline"]["version"] == 1


def test_a_deadline_that_cannot_be_read_is_an_error(is_airflow: SetVersion) -> None:
    is_airflow("3.3")
    for stored in ({"deadline": 1.0}, versioned({"deadline": "soon"})):
        with pytest.raises(WhisulStateUnreadableError, match="whisul_deadline"):
            total_deadline(with_retries(TaskStore(whisul_deadline=stored)), 100.0)
