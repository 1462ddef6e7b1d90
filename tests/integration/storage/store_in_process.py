"""
Runs the transfer operator in a process of its own, which a test may kill, limit or measure.

Usage: python -m tests.integration.storage.store_in_process FILE, where FILE holds the operator's arguments as JSON.
Prints one line of JSON: the manifest, or the error's class and message, and by how many kB the process has grown.

Two more arguments: ``max_file_size`` limits each file of the process, in bytes. ``warm_up`` is another destination for
the first song, which is stored before the process is measured: a process grows by the modules that it imports.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    arguments = json.loads(Path(sys.argv[1]).read_text())
    max_file_size, warm_up = arguments.pop("max_file_size", None), arguments.pop("warm_up", None)

    import psutil
    from airflow.providers.common.compat.sdk import AirflowException

    from airflow_provider_whisul.transfers.whisul_to_object_storage import WhisulToObjectStorageOperator
    from tests.support.airflow import TaskContext

    def transfer(**changed: Any) -> Any:
        return TaskContext().run(WhisulToObjectStorageOperator(task_id="keep", **{**arguments, **changed}))

    if warm_up is not None:
        transfer(destination=warm_up, songs=arguments["songs"].pop(0))
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = before

    def measure() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        outcome = {"manifest": transfer()}
    except AirflowException as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    ended.set()
    thread.join()
    outcome["grown_kb"] = (peak - before) // 1000
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
