"""The provider's metadata, which Airflow reads without importing the rest of the package."""

from __future__ import annotations

from typing import Any

#: The provider's own fields of the connection form, kept in the connection's extra.
CONN_FIELDS: dict[str, Any] = {
    "timeout": {
        "label": "Request timeout (s)",
        "description": "Seconds that one request may take.",
        "schema": {"type": ["number", "null"], "default": 30},
    },
    "max_requests_per_second": {
        "label": "Most requests per second",
        "description": "The account's rate limit, if you know it. If not, it is found out.",
        "schema": {"type": ["number", "null"]},
    },
    "max_submissions_per_day": {
        "label": "Most submissions per day",
        "description": "How many prompts may be submitted in a day (UTC), over all DAGs. Blank for no ceiling.",
        "schema": {"type": ["integer", "null"]},
    },
    "price_per_song": {
        "label": "Price per song",
        "description": "What one song costs, such as 0.08 USD or 1 credit. Logs and the Tracks tab count it.",
        "schema": {"type": ["string", "null"]},
    },
    "rate_limit_conn_id": {
        "label": "Redis for the rate limiter",
        "description": "An Airflow connection of type redis. All machines that name it share one rate limiter.",
        "schema": {"type": ["string", "null"]},
    },
    "verify": {
        "label": "Verify TLS",
        "description": "true, false, or the path of a CA file on the workers and the triggerer.",
        "schema": {"type": ["string", "null"], "default": "true"},
    },
}

#: How the connection form labels, hides and explains its standard fields.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {
        "host": "https://whisul.com/api",
        "schema": "https",
        "port": "443, for the Test button",
        "timeout": "30",
        "price_per_song": "0.08 USD",
        "rate_limit_conn_id": "redis_default",
        "verify": "true, false or a CA file",
    },
}

#: The provider's section of Airflow's configuration.
CONFIG: dict[str, Any] = {
    "whisul": {
        "description": "Options of the Whisul provider.",
        "options": {
            "tracks_tab": {
                "description": (
                    "Whether Airflow's UI (3.1 and later) has the Tracks tab and the page Songs. The API server reads "
                    "it when it starts."
                ),
                "version_added": None,
                "type": "boolean",
                "example": None,
                "default": "True",
            },
            "stored_songs_url": {
                "description": (
                    "Where browsers can reach the folders that WhisulToObjectStorageOperator stores songs in: a JSON "
                    "object of folders (without a connection) and their http(s) URLs, which need no login. The Tracks "
                    "tab plays a stored song from there where Whisul's own URL of it no longer works. Workers read it."
                ),
                "version_added": None,
                "type": "string",
                "example": '{"s3://bucket/songs": "https://songs.example.com"}',
                "default": None,
            },
            "state_path": {
                "description": (
                    "The folder in which the provider keeps which songs were submitted, so that no retry pays twice: "
                    "any ObjectStoragePath, or the absolute path of a folder that all workers share. It must exist. "
                    "Where it is not set: Airflow's task state store from Airflow 3.3 on, and a folder under "
                    "AIRFLOW_HOME."
                ),
                "version_added": None,
                "type": "string",
                "example": "s3://my_aws_connection@bucket/whisul",
                "default": None,
            },
            "rate_limit_conn_id": {
                "description": (
                    "The id of an Airflow connection of type redis. All machines that reach this Redis share one rate "
                    "limiter per API key. The extra rate_limit_conn_id of a Whisul connection comes before it. Where "
                    "neither is set, each machine has a rate limiter of its own. Needs "
                    "airflow-provider-whisul[redis]."
                ),
                "version_added": None,
                "type": "string",
                "example": "redis_default",
                "default": None,
            },
        },
    }
}

_NAME = "Whisul"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as Airflow's ``provider_info`` schema has it."""
    return {
        "package-name": "airflow-provider-whisul",
        "name": _NAME,
        "description": "`Whisul <https://docs.whisul.com>`__, an asynchronous music-generation API.",
        "integrations": [
            {
                "integration-name": _NAME,
                "external-doc-url": "https://docs.whisul.com",
                "how-to-guide": [
                    "/docs/generate.md",
                    "/docs/sensor.md",
                    "/docs/batch.md",
                    "/docs/decorators.md",
                    "/docs/hook.md",
                ],
                "logo": "/docs/integration-logos/whisul.svg",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    "airflow_provider_whisul.hooks.whisul",
                    "airflow_provider_whisul.hooks.whisul_async",
                ],
            }
        ],
        "operators": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    "airflow_provider_whisul.operators.whisul",
                    "airflow_provider_whisul.operators.whisul_batch",
                ],
            }
        ],
        "task-decorators": [
            {"name": "whisul", "class-name": "airflow_provider_whisul.decorators.whisul.whisul_task"},
            {"name": "whisul_batch", "class-name": "airflow_provider_whisul.decorators.whisul_batch.whisul_batch_task"},
        ],
        "sensors": [{"integration-name": _NAME, "python-modules": ["airflow_provider_whisul.sensors.whisul"]}],
        "triggers": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    "airflow_provider_whisul.triggers.whisul",
                    "airflow_provider_whisul.triggers.whisul_batch",
                ],
            }
        ],
        "transfers": [
            {
                "source-integration-name": _NAME,
                "target-integration-name": "Object Storage",
                "how-to-guide": "/docs/storage.md",
                "python-module": "airflow_provider_whisul.transfers.whisul_to_object_storage",
            }
        ],
        "config": CONFIG,
        "extra-links": ["airflow_provider_whisul.links.whisul.WhisulSongLink"],
        "connection-types": [
            {
                "connection-type": "whisul",
                "hook-class-name": "airflow_provider_whisul.hooks.whisul.WhisulHook",
                "hook-name": _NAME,
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
    }
