"""``python -m airflow_provider_whisul.limiter``: print what is known of an API key's rate limit, or forget it."""

from __future__ import annotations

import sys
from typing import TextIO

from airflow_provider_whisul.command_line.report import with_report_alone


def run(out: TextIO) -> int:
    """Run the command line with the arguments of the process, and return the exit status."""
    from airflow_provider_whisul.rate_limit.command_line import main

    return main(out=out)


if __name__ == "__main__":
    sys.exit(with_report_alone(run))
