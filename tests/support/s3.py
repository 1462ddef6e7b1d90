"""What is in the bucket of the tests."""

from __future__ import annotations

from typing import Any


def list_objects(s3: Any) -> dict[str, int]:
    return {entry["Key"]: entry["Size"] for entry in s3.list_objects_v2(Bucket="songs").get("Contents", ())}


def list_uploads(s3: Any) -> list[Any]:
    return list(s3.list_multipart_uploads(Bucket="songs").get("Uploads", ()))
