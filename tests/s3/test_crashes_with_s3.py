"""Crashes, with the tasks' records in S3, at moto's server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.crash.cases import CrashTests
from tests.e2e.crash.stage import Stage, crashes
from tests.s3.moto_process import moto_server

# The first test also waits for Airflow and for all the songs.
pytestmark = pytest.mark.timeout(1800)

CONNECTION = "AIRFLOW_CONN_WHISUL_STATE"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with moto_server() as endpoint, pytest.MonkeyPatch.context() as monkeypatch:
        import boto3

        client = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **client).create_bucket(Bucket="whisul")
        extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        connection = json.dumps({"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra})
        # For this process too, which reads the ledger.
        monkeypatch.setenv(CONNECTION, connection)
        env = {CONNECTION: connection, "AIRFLOW__WHISUL__STATE_PATH": "s3://whisul_state@whisul/songs"}
        with crashes(env) as stage:
            yield stage


class TestWithS3(CrashTests):
    pass
