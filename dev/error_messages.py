"""Finds the messages of the errors in the source of the package, so that a page can list each of them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from airflow_provider_whisul.api.outcomes import POLL_RULES, SUBMISSION_RULES
from airflow_provider_whisul.exceptions import WhisulAmbiguousSubmitError, all_errors

PACKAGE = Path(__file__).resolve().parents[1] / "airflow_provider_whisul"

#: Stands for what differs from one message to the next.
HOLE = "…"

#: A message is shown up to the end of a sentence, and up to so many characters.
MAX_CHARACTERS = 108

#: A sentence of fewer letters is followed by the next one, and a message of fewer letters is none.
_ENOUGH_LETTERS = 14
_LEAST_LETTERS = 8

#: Where a ValueError is about a field of an Airflow connection, and how the message begins into which it is put.
_CONNECTIONS = {
    "api/connection.py": "Airflow connection … cannot be used: ",
    "rate_limit/redis_connection.py": "The Airflow connection …, which rate_limit_conn_id names, cannot be used: ",
}

#: Where an argument of an operator is refused, which is when Airflow reads the DAG file.
_ARGUMENTS = ("decorators", "operators", "polling.py", "sensors", "state/song_state.py", "transfers")


@dataclass
class Source:
    """A file of the package."""

    name: str
    tree: ast.Module

    def __post_init__(self) -> None:
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        self._functions = {function.name: function for function in functions}
        self._around = {id(node): function for function in functions for node in ast.walk(function)}

    def values(self, node: ast.expr, depth: int = 3) -> list[ast.expr]:
        """Return what an expression may be: the choices, what a name was set to, and what a function returns."""
        if not depth:
            return [node]
        if isinstance(node, ast.IfExp):
            return [value for choice in (node.body, node.orelse) for value in self.values(choice, depth - 1)]
        if isinstance(node, ast.Name) and id(node) in self._around:
            assigned = [
                statement.value
                for statement in ast.walk(self._around[id(node)])
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == node.id
            ]
            return [value for found in assigned for value in self.values(found, depth - 1)] or [node]
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            returned = [
                statement.value
                for statement in ast.walk(self._functions.get(called, ast.Pass()))
                if isinstance(statement, ast.Return) and statement.value is not None
            ]
            return [value for found in returned for value in self.values(found, depth - 1)] or [node]
        return [node]

    def raised(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each exception that is made with a text, and the text with holes."""
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args:
                names = [value.id for value in self.values(call.func) if isinstance(value, ast.Name)]
                for text in self._texts(call.args[0]):
                    yield from ((name, text) for name in names)

    def warnings(self) -> Iterator[str]:
        """Yield the text of each warning in the log."""
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "warning":
                yield re.sub(r"%[.\d]*[a-z]", HOLE, _text(call.args[0]))

    def _texts(self, node: ast.expr) -> list[str]:
        """Return the texts that an expression may be. What differs is a hole, but for a text that begins one."""
        found = []
        for value in self.values(node):
            if isinstance(value, ast.JoinedStr):
                first, *others = value.values
                rest = "".join(map(_text, others))
                begins = self.values(first.value) if _is_plain(first) else [first]
                found += [f"{_text(begin)}{rest}" for begin in begins]
            else:
                found.append(_text(value))
        return found


def _is_plain(node: ast.expr) -> TypeGuard[ast.FormattedValue]:
    return isinstance(node, ast.FormattedValue) and node.format_spec is None and node.conversion < 0


def _text(node: ast.expr) -> str:
    """Return a text of the source, with a hole for what it does not say."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else HOLE


def beginning(text: str) -> str:
    """
    Return the beginning of a message: whole sentences, or as many words as there is room for.

    :param text: The message with holes.
    """
    text = re.sub(rf"{HOLE}([^\w\s]?{HOLE})+", HOLE, " ".join(text.replace("`", "'").split()))
    found = ""
    for sentence in re.split(r"(?<=[.?]) (?=[A-Z])", text):
        found = f"{found} {sentence}".strip()
        if sum(map(str.isalpha, found)) >= _ENOUGH_LETTERS:
            break
    if len(found) > MAX_CHARACTERS:
        found = f"{found[: MAX_CHARACTERS - 2].rpartition(' ')[0].rstrip(',;:(')} {HOLE}"
    return found if sum(map(str.isalpha, found)) >= _LEAST_LETTERS else ""


def _sources() -> list[Source]:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "sandbox" not in path.parts]
    return [Source(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())) for path in paths]


def messages() -> dict[str, list[str]]:
    """Return the beginnings of the messages of each error, by the name of its class."""
    found: dict[str, set[str]] = defaultdict(set)
    errors = set(all_errors())
    for source in _sources():
        for name, text in source.raised():
            if name in errors:
                found[name].add(beginning(text))
            elif name == "ValueError" and source.name in _CONNECTIONS:
                found["WhisulConfigurationError"].add(beginning(f"{_CONNECTIONS[source.name]}{text}"))
    for rule in (*SUBMISSION_RULES, *POLL_RULES):
        ambiguous = rule.error is WhisulAmbiguousSubmitError
        before = "The prompt may have become a job and may have been paid for: " if ambiguous else ""
        found[rule.error.__name__].add(beginning(f"{before}{rule.gist}: Whisul answered {HOLE}"))
    return {name: _without_prefixes(texts) for name, texts in found.items()}


def refused_arguments() -> list[str]:
    """Return the beginnings of the messages with which the operators refuse their arguments."""
    texts = {
        beginning(text)
        for source in _sources()
        if source.name.startswith(_ARGUMENTS)
        for name, text in source.raised()
        if name in ("ValueError", "TypeError")
    }
    return _without_prefixes(texts)


def warnings() -> list[str]:
    """
    Return the beginnings of the warnings that a task writes into its log and goes on.

    Those that begin with an error's message are left out: that is listed with the error.
    """
    texts = {beginning(text) for source in _sources() for text in source.warnings()}
    return _without_prefixes({text for text in texts if not re.match(rf"{HOLE} [A-Z]", text)})


def _without_prefixes(texts: set[str]) -> list[str]:
    """Return texts in order, without those that only begin as others do."""
    return sorted(
        text
        for text in texts
        if text and not any(other != text and other.startswith(text.rstrip(f"{HOLE}.")) for other in texts)
    )
