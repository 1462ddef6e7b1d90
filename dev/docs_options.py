"""Writes docs/reference/configuration.md from the options and connection fields that the provider declares."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from airflow_provider_whisul.get_provider_info import CONFIG, CONN_FIELDS, UI_FIELD_BEHAVIOUR

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "configuration.md"


def page() -> str:
    """Return docs/reference/configuration.md as it should be."""
    parts = ["<!-- made from the code: make docs -->\n", "# Options and connection fields\n"]
    for section, content in CONFIG.items():
        parts += [
            f"## The section `[{section}]` of `airflow.cfg`\n",
            f"Each option can be an environment variable: `AIRFLOW__{section.upper()}__` and the name in capitals.\n",
            *(_entry(name, option["description"], **_option(option)) for name, option in content["options"].items()),
        ]
    parts += [
        "## The extra of a connection\n",
        "A connection of type `whisul` has the API key as its password, and these fields in its extra. None has to be "
        "set.\n",
        *(_entry(name, field["description"], **_field(name, field)) for name, field in CONN_FIELDS.items()),
    ]
    return "\n".join(parts)


def _entry(name: str, description: str, **facts: str | None) -> str:
    """Return what the page says of an option or a field."""
    lines = [f"- {fact.replace('_', ' ')}: {value}" for fact, value in facts.items() if value]
    return "\n".join([f"### `{name}`\n", *textwrap.wrap(description, 120, break_long_words=False), "", *lines, ""])


def _option(option: dict[str, Any]) -> dict[str, str | None]:
    return {"type": option["type"], "default": _code(option["default"]), "example": _code(option["example"])}


def _field(name: str, field: dict[str, Any]) -> dict[str, str | None]:
    example = UI_FIELD_BEHAVIOUR["placeholders"].get(name)
    if example and " or " in example:
        # It says what may be there, as the description does.
        example = None
    return {"type": field["schema"]["type"][0], "example": _code(example), "label_in_the_UI": field["label"]}


def _code(value: str | None) -> str | None:
    return value and f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
