"""``python -m airflow_provider_whisul.sandbox``."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from airflow_provider_whisul.sandbox import Sandbox, SandboxOptions
from airflow_provider_whisul.sandbox.__main__ import _options, _parser, main


@contextmanager
def running(*arguments):
    """Run the command; yield its process, its base URL and the connection that it prints."""
    command = [sys.executable, "-m", "airflow_provider_whisul.sandbox", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().removeprefix("Whisul sandbox: ").strip()
            name, _, connection = shlex.split(process.stdout.readline())[1].partition("=")
            assert name == "AIRFLOW_CONN_WHISUL_DEFAULT"
            yield process, url, json.loads(connection)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_gets_a_signal(anonymous, tmp_path, number):
    log = tmp_path / "requests.jsonl"
    with running("--api-key", "key-of-the-test", "--request-log", str(log)) as (process, url, connection):
        assert connection == {"conn_type": "whisul", "password": "key-of-the-test", "host": url}
        headers = {"Authorization": "Bearer key-of-the-test"}
        made = anonymous.post(f"{url}/generate", json={"prompt": "a song"}, headers=headers, timeout=30)
        anonymous.get(f"{url}/jobs/x", timeout=30)
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert [(entry["method"], entry["status"], entry["authorization"]) for entry in entries] == [
        ("POST", 202, "ok"),
        ("GET", 401, "missing"),
    ]
    assert entries[0]["job_id"] == made.json()["job_id"]


def test_every_option_has_its_flag():
    arguments = _parser().parse_args(
        shlex.split(
            "--api-key k --job-seconds 1 2.5 --seed 3 --rate-limit 4 --rate-window 5 --block-seconds 6"
            " --retry-after date --expire-seconds 7 --fault-rates get-500=0.1 post-drop=0.2"
            " --fault-rates get-404=0.3 --slow-seconds 8"
        )
    )
    wanted = SandboxOptions(
        api_key="k",
        job_seconds=(1.0, 2.5),
        seed=3,
        rate_limit=4,
        rate_window=5.0,
        block_seconds=6.0,
        retry_after="date",
        expire_seconds=7.0,
        fault_rates={"get-500": 0.1, "post-drop": 0.2, "get-404": 0.3},
        slow_seconds=8.0,
    )
    assert _options(arguments) == wanted
    default = SandboxOptions()
    for field in dataclasses.fields(SandboxOptions):
        assert getattr(wanted, field.name) != getattr(default, field.name), field.name


def test_without_flags_the_options_are_the_defaults():
    assert _options(_parser().parse_args([])) == SandboxOptions()
    assert _options(_parser().parse_args(["--retry-after"])).retry_after is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "loopback only"),
        (["--rate-limit", "0"], "rate_limit must be at least 1"),
        (["--fault-rates", "get-500"], "is not FAULT=P"),
        (["--fault-rates", "get-501=1"], "unknown fault 'get-501'"),
        (["--request-log", "/no/such/folder/log"], "No such file"),
    ],
)
def test_the_error_names_a_wrong_argument(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_error_names_a_busy_port(capsys):
    with Sandbox() as other:
        port = other.base_url.split(":")[2].split("/")[0]
        assert main(["--port", port]) == 1
    assert f"Cannot listen on 127.0.0.1:{port}: " in capsys.readouterr().err
