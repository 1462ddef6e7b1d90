"""
Submits songs as KubernetesExecutor's pods do, each from a process with folders of its own.

``python -m tests.cluster.pods COUNT FOLDER`` forks the processes at once, so that all of them ask for the same second,
and prints a line of JSON for each that has submitted its song.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from airflow_provider_whisul.hooks.whisul import WhisulHook


def submit(number: int, home: Path) -> None:
    """Submit one song from this process."""
    home.mkdir(parents=True)
    os.environ["AIRFLOW_HOME"] = os.environ["TMPDIR"] = str(home)
    # The folder that the process before the fork has found.
    tempfile.tempdir = None
    began = time.monotonic()
    job_id = WhisulHook().generate(f"pod {number}")
    line = json.dumps({"pod": number, "job_id": job_id, "seconds": round(time.monotonic() - began, 1)})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def main(count: int, folder: Path) -> int:
    """Run the processes and return 1 if one of them has failed."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                submit(number, folder / f"pod-{number}")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
