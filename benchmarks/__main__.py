"""``python -m benchmarks``: every benchmark that needs no running Airflow, one after the other."""

from __future__ import annotations

import sys

from benchmarks import growth, polling

if __name__ == "__main__":
    sys.exit(polling.main([]) or polling.main(["--https", "--rounds", "2"]) or growth.main([]))
