"""The record of a task instance as small files in a folder: one file for each key."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_whisul.clock import SYSTEM_CLOCK, Clock
from airflow_provider_whisul.state.retention import RECORDS, sweep_daily
from airflow_provider_whisul.state.unreadable import unreadable_record
from airflow_provider_whisul.storage.documents import DocumentFolder
from airflow_provider_whisul.version_compat import region

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskInstanceKey:
    """
    What names a task instance, whichever of its tries runs.

    :param dag_id: The DAG.
    :param run_id: The DAG run.
    :param task_id: The task.
    :param map_index: The index of a mapped task, -1 for a task that is not mapped.
    :param region: The iteration of a loop (Airflow 3.4 and later), None outside of loops.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    region: str | None = None

    @classmethod
    def from_context(cls, context: Context) -> TaskInstanceKey:
        """
        Return the key of the running task instance.

        :param context: The task's context.
        """
        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return cls(str(ti.dag_id), str(ti.run_id), str(ti.task_id), map_index, region(ti))

    def as_dict(self) -> dict[str, object]:
        """Return the names as a file holds them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def digest(self) -> str:
        """A name for files: the names themselves may hold any character, and be longer than a file name may be."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class FolderStateStore:
    """
    Keeps values in files of a folder, which every machine that can reach the folder reads.

    :param folder: The folder.
    :param task: The task instance that the values belong to.
    :param notice: Logged when the first value of a task instance is written, None for nothing.
    :param clock: The clock.
    """

    folder: DocumentFolder
    task: TaskInstanceKey
    notice: str | None = None
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False)

    def get(self, key: str) -> object:
        data = self.folder.read(self._name(key))
        if data is None:
            return None
        self.notice = None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise unreadable_record(self.location(key), "it is not JSON") from None
        match document:
            case {"value": dict(value), **names}:
                if names == self.task.as_dict():
                    return value
                raise unreadable_record(self.location(key), "it is the record of another task")
        raise unreadable_record(self.location(key), "it holds no record")

    def set(self, key: str, value: Mapping[str, object]) -> None:
        document = {**self.task.as_dict(), "value": value}
        self.folder.write(self._name(key), json.dumps(document, allow_nan=False).encode())
        if self.notice is not None:
            log.info(self.notice)
            self.notice = None
        sweep_daily(self.folder, self.clock.time())

    def delete(self, key: str) -> None:
        self.folder.delete(self._name(key))

    def location(self, key: str) -> str:
        return f"{self.folder.url}/{self._name(key)}"

    def _name(self, key: str) -> str:
        if not re.fullmatch(r"\w{1,80}", key, re.ASCII):
            raise ValueError(f"{key!r} is no key: it names a file.")
        return f"{RECORDS}/{self.task.digest}.{key}.json"
