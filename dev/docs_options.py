"""Writes docs/reference/configuration.md from the options and connection fields that the provider declares."""

from __future__ import annotations

import sys
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
            _table(("option", "type", "default", "example", "what it is"), map(_option, content["options"].items())),
        ]
    parts += [
        "## The extra of a connection\n",
        "A connection of type `whisul` has the API key as its password, and these fields in its extra. None has to be "
        "set.\n",
        _table(("field", "label in the UI", "type", "example", "what it is"), map(_field, CONN_FIELDS.items())),
    ]
    return "\n".join(parts)


def _option(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, option = item
    return f"`{name}`", option["type"], _code(option["default"]), _code(option["example"]), option["description"]


def _field(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    name, field = item
    example = UI_FIELD_BEHAVIOUR["placeholders"].get(name)
    return f"`{name}`", field["label"], field["schema"]["type"][0], _code(example), field["description"]


def _code(value: str | None) -> str:
    return f"`{value}`" if value else ""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
