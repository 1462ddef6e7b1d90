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
        "timeout": "30",
        "verify": "true, false or a CA file",
    },
}

_NAME = "Whisul"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as Airflow's ``provider_info`` schema has it."""
    return {
        "package-name": "airflow-provider-whisul",
        "name": _NAME,
        "description": "`Whisul <https://docs.whisul.com>`__, an asynchronous music-generation API.",
        "integrations": [
            {"integration-name": _NAME, "external-doc-url": "https://docs.whisul.com", "tags": ["service"]}
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
                "python-module": "airflow_provider_whisul.transfers.whisul_to_object_storage",
            }
        ],
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
