"""S3, as moto's server on this machine has it, with an Airflow connection that leads there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.s3 import list_objects, list_uploads

# boto3 and moto are imported by the fixtures: in the other environments this module is collected, and not run.


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of S3, with an empty bucket."""
    import boto3

    extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SONGS_STORE", json.dumps(connection))
    credentials = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **credentials)
    client.create_bucket(Bucket="songs")
    yield client
    for key in list_objects(client):
        client.delete_object(Bucket="songs", Key=key)
    for upload in list_uploads(client):
        client.abort_multipart_upload(Bucket="songs", Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_bucket(Bucket="songs")
