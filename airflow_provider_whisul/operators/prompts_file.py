"""The prompts of a batch from a file beside the DAG, one a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateNotFound

from airflow_provider_whisul.exceptions import WhisulError, WhisulInvalidInputError
from airflow_provider_whisul.text import excerpt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from jinja2 import Environment


class PromptsFileMixin:
    """
    A task whose ``prompts`` may be the name of a file; a mixin before Airflow's own base class.

    The file is found as Airflow finds templates: beside the DAG, or in its ``template_searchpath``. It is read when the
    task runs, also where the task is mapped. Each line is parsed first, and each prompt is a template of its own then:
    what a template renders to can make no second prompt of one, nor break the file.
    """

    template_ext: Sequence[str] = (".prompts.jsonl",)

    _file_error: WhisulError | None = None

    def resolve_template_files(self) -> None:
        """Read no file yet: Airflow would render the whole of it as one template."""

    def render_template(
        self, content: Any, context: Context, jinja_env: Environment | None = None, seen_oids: set[int] | None = None
    ) -> Any:
        """
        Render a value, or the prompts in the file that it names.

        :param content: The value.
        :param context: The task's context.
        :param jinja_env: Where templates are found.
        :param seen_oids: The ids of the objects that are not rendered, such as what another task has returned.
        """
        is_file = isinstance(content, str) and content.endswith(tuple(self.template_ext))
        if is_file and id(content) not in (seen_oids or ()):
            environment: Environment = jinja_env or self.get_template_env()  # type: ignore[attr-defined]
            try:
                content = parse_prompts(_read(environment, content), content)
            except WhisulError as error:
                # Not raised yet: a file that is edited while the task waits must not end a try that has paid.
                self._file_error = error
                return content
        return super().render_template(content, context, jinja_env, seen_oids)  # type: ignore[misc]

    def check_file(self) -> None:
        """
        Refuse a file that cannot be used. Nothing was sent.

        :raises WhisulInvalidInputError: A line is no prompt.
        :raises WhisulError: There is no such file, or it cannot be read.
        """
        if self._file_error is not None:
            raise self._file_error


def _read(environment: Environment, file: str) -> str:
    try:
        if environment.loader is None:
            raise TemplateNotFound(file)
        return environment.loader.get_source(environment, file)[0]
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is none of that name" if isinstance(error, TemplateNotFound) else type(error).__name__
    # Not WhisulInvalidInputError, which no retry follows: the file may be on its way to this machine.
    raise WhisulError(
        f"The file {excerpt(file)} cannot be read: {reason}. Nothing was sent. Airflow looks for it beside the DAG and "
        "in the DAG's template_searchpath."
    )


def parse_prompts(text: str, file: str) -> list[str]:
    """
    Return the prompts of a file: each line that is not blank is a JSON string, or an object with a ``prompt``.

    :param text: The file's content.
    :param file: Its name, for the message.
    :raises WhisulInvalidInputError: A line is anything else, or its prompt is empty.
    """
    # Not splitlines(): a JSON string may hold line separators of Unicode as they are.
    lines = text.removeprefix("\ufeff").split("\n")
    return [_parse_line(line, file, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_line(line: str, file: str, number: int) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str) or not prompt.strip():
        raise WhisulInvalidInputError(
            f"Line {number} of {excerpt(file)} is no prompt: {excerpt(line)} Nothing was sent. A line is a JSON string "
            'such as "a trap song", or a JSON object with a text in its field prompt. It must not be empty.'
        )
    return prompt
