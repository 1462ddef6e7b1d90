"""
Lands songs in a process of its own, which a test may kill, limit or measure.

Usage: python -m tests.land_songs FILE, where FILE holds the operator's arguments as JSON. Prints the
manifest, or the error's class and message, and by how many kB the process has grown at the most, as a line of JSON.
``first`` is another destination, to land the first song in before it is measured: a process grows by what it loads.
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
    largest_file, first = arguments.pop("largest_file", None), arguments.pop("first", None)

    import psutil
    from airflow.providers.common.compat.sdk import AirflowException

    from airflow_provider_whisul.operators.whisul_storage import WhisulToObjectStorageOperator
    from tests.support import TaskContext

    def land(**changed: Any) -> Any:
        return TaskContext().run(WhisulToObjectStorageOperator(task_id="keep", **{**arguments, **changed}))

    if first is not None:
        land(destination=first, songs=arguments["songs"].pop(0))
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    process, over = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    most = [before]

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        outcome = {"manifest": land()}
    except AirflowException as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    over.set()
    watching.join()
    outcome["grown"] = (most[0] - before) // 1000
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
