"""``python -m airflow_provider_whisul.sandbox``: serve a local Whisul until SIGINT or SIGTERM."""

# ruff: noqa: T201 - printing is what a command line is for

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from airflow_provider_whisul.sandbox.directives import DIRECTIVES
from airflow_provider_whisul.sandbox.options import FAULTS, SandboxOptions
from airflow_provider_whisul.sandbox.server import Sandbox
from airflow_provider_whisul.sandbox.state import LoggedRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    :param argv: the arguments; None for those of the process.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        on_request: Callable[[LoggedRequest], None] | None = None
        try:
            if arguments.request_log is not None:
                log = stack.enter_context(arguments.request_log.open("a", encoding="utf-8", buffering=1))

                def on_request(entry: LoggedRequest) -> None:
                    log.write(json.dumps(asdict(entry)) + "\n")

            sandbox = Sandbox(_options(arguments), arguments.port, host=arguments.host, on_request=on_request)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        try:
            asyncio.run(_serve(sandbox))
        except OSError as error:
            print(f"Cannot listen on {arguments.host}:{arguments.port}: {error.strerror or error}.", file=sys.stderr)
            return 1
    return 0


async def _serve(sandbox: Sandbox) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with sandbox.serve():
        print(f"Whisul sandbox: {sandbox.base_url}")
        print(f"export AIRFLOW_CONN_WHISUL_DEFAULT={shlex.quote(sandbox.connection)}", flush=True)
        await stop.wait()


def _parser() -> argparse.ArgumentParser:
    default = SandboxOptions()
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_whisul.sandbox",
        description="A local stand-in of the Whisul API, on loopback only: no key, no cost.",
        epilog=f"Faults: {', '.join(FAULTS)}. A prompt decides its own fate with directives such as "
        f"[sandbox:fail=1], [sandbox:seconds=5] or [sandbox:get-500=2]: {', '.join(DIRECTIVES)}, and every fault.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="loopback address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="port to listen on (default: a free one)")
    add("--request-log", type=Path, metavar="FILE", help="append each request to this file, as a line of JSON")
    add("--api-key", default=default.api_key, help="the key that requests must carry (default: %(default)s)")
    low, high = default.job_seconds
    add(
        "--job-seconds",
        type=float,
        nargs=2,
        default=default.job_seconds,
        metavar=("SHORTEST", "LONGEST"),
        help=f"how long jobs take, in seconds (default: {low:g} {high:g})",
    )
    add("--seed", type=int, default=default.seed, help="decides every random draw (default: %(default)s)")
    add("--rate-limit", type=int, default=default.rate_limit, help="requests per window (default: no limit)")
    add("--rate-window", type=float, default=default.rate_window, help="the window, in seconds (default: %(default)s)")
    add(
        "--block-seconds",
        type=float,
        default=default.block_seconds,
        help="seconds without a request that end the block of a key over the limit (default: %(default)s)",
    )
    add(
        "--retry-after",
        nargs="?",
        const="seconds",
        choices=("seconds", "date"),
        help="answer 429 with a Retry-After header, in seconds or as a date (default: without)",
    )
    add(
        "--expire-seconds",
        type=float,
        default=default.expire_seconds,
        help="seconds after its end from which a job is 404 (default: never)",
    )
    add(
        "--fault-rates",
        nargs="+",
        action="extend",
        type=_rate,
        default=[],
        metavar="FAULT=P",
        help="probability of a fault per request, 0 to 1, such as get-500=0.1",
    )
    add(
        "--slow-seconds",
        type=float,
        default=default.slow_seconds,
        help="delay of slow faults that do not say their own, in seconds (default: %(default)s)",
    )
    return parser


def _options(arguments: argparse.Namespace) -> SandboxOptions:
    return SandboxOptions(
        api_key=arguments.api_key,
        job_seconds=(arguments.job_seconds[0], arguments.job_seconds[1]),
        seed=arguments.seed,
        rate_limit=arguments.rate_limit,
        rate_window=arguments.rate_window,
        block_seconds=arguments.block_seconds,
        retry_after="date" if arguments.retry_after == "date" else arguments.retry_after is not None,
        expire_seconds=arguments.expire_seconds,
        fault_rates=dict(arguments.fault_rates),
        slow_seconds=arguments.slow_seconds,
    )


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    try:
        return name, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FAULT=P, such as get-500=0.1") from None


if __name__ == "__main__":
    sys.exit(main())
