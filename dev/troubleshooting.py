"""Writes the errors of docs/troubleshooting.md from the code, so that no error and no message is without advice."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path

from airflow_provider_whisul.exceptions import WhisulError, all_errors
from dev.error_messages import messages, refused_arguments, warnings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"

#: Characters of a line of Markdown.
WIDTH = 120

_RETRIES = "Airflow's retries try again, if the task has `retries`."

#: What to do about each error, by its class.
ACTIONS = {
    "WhisulAmbiguousSubmitError": "Look at your Whisul dashboard if in doubt. A retry submits again, and perhaps pays "
    'twice; `on_ambiguous_submit="fail"` leaves that to you.',
    "WhisulAmbiguousSubmitFinalError": "Look at your Whisul dashboard. If the song is not there, clear the task, which "
    "submits again.",
    "WhisulBudgetExceededError": "Find out in the [ledger](ledger.md) what has submitted so much. Wait until the day "
    "ends (UTC), or raise what the message names, and clear the task.",
    "WhisulConfigurationError": "Correct what the message names in the Airflow connection, and clear the task.",
    "WhisulConnectionError": "Check that the machine reaches the address in the message: name, proxy, firewall. "
    + _RETRIES,
    "WhisulFileExistsError": "Use another `destination`, such as one that ends in `{{ run_id }}`, or `overwrite=True`.",
    "WhisulSongMissingError": "Nothing: a retry waits again for the same job, where it is recorded. If it "
    "stays so, contact Whisul's support.",
    "WhisulOutOfCreditsError": "Top up the account, and clear the task.",
    "WhisulInvalidInputError": "Correct the prompt or the job's id. Where it is a template, look at the task's "
    "rendered fields.",
    "WhisulJobFailedError": "Read the reason. If it is about the prompt, change the prompt. A retry submits the prompt "
    "again, and pays again. Without retries left, clear the task.",
    "WhisulJobFailedFinalError": "Clear the task that submitted the prompt and this one. That pays again.",
    "WhisulJobNotFoundError": "Check the job's id, and that the connection has the key of the account that submitted "
    "it. A song that has expired can only be submitted anew.",
    "WhisulJobTimeoutError": "Raise `timeout`. A retry, or clearing the task, waits for the same job.",
    "WhisulMediaError": _RETRIES + " Songs that are stored are not downloaded again.",
    "WhisulMediaExpiredError": "Submit the song anew, or set `max_failures`. Store songs soon after they were made.",
    "WhisulMediaUnsafeError": "Contact Whisul's support: the message names the URL. For a media host of your own "
    "`allow_private_media=True`, for larger songs `max_audio_bytes`.",
    "WhisulRateLimitError": "Nothing: it is sent again later. If it persists, something else uses the key: see "
    "[rate limits](rate_limits.md).",
    "WhisulResponseError": "Check the host of the Airflow connection: a proxy or another server may have answered. "
    + _RETRIES,
    "WhisulServerError": _RETRIES + " If it persists, contact Whisul's support.",
    "WhisulStateError": "Check the folder that the message names, and its connection. " + _RETRIES,
    "WhisulStateUnreadableError": "See the file or key that the message names, and your Whisul dashboard: the song may "
    "be paid for. To submit it, remove the file and clear the task.",
    "WhisulStorageError": "Free space, or correct the store's connection or its permissions, and clear the task.",
    "WhisulTLSError": "Behind a proxy with a CA of its own, name the CA file in the connection's extra `verify`, or in "
    "`REQUESTS_CA_BUNDLE` for downloads.",
    "WhisulUnauthorizedError": "Put a valid key into the Airflow connection, and clear the task. Then "
    "it continues with the same job, and nothing is paid twice.",
}


#: What to do about an error that has no class of its own.
_BASE_ACTION = "Do what the message says, and clear the task."


def _meaning(error: type[WhisulError]) -> str:
    """Return the first paragraph of a class's docstring, on one line."""
    if error is WhisulError:
        return "Something that no other class stands for."
    paragraph = re.split(r"\n\s*\n|\n:param", inspect.getdoc(error) or "")[0]
    return re.sub(r"``([^`]*)``", r"`\1`", " ".join(paragraph.split()))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _listed(texts: list[str]) -> str:
    return "".join(f"- `{text}`\n" for text in texts)


def _section(name: str, error: type[WhisulError], texts: list[str]) -> str:
    action = ACTIONS.get(name, _BASE_ACTION)
    return (
        f"### {name}\n\n{_wrapped(_meaning(error))}\n\n{_wrapped(f'**What to do:** {action}')}\n\n"
        f"**Airflow's retry:** {error.task_retry.value}.\n\n{_listed(texts)}"
    )


def sections() -> str:
    """Return what each error means, what to do about it, and what its messages begin with, as Markdown."""
    texts = messages()
    return "\n".join(_section(name, error, texts[name]) for name, error in sorted(all_errors().items()))


def page() -> str:
    """Return docs/troubleshooting.md with what is made from the code as it should be."""
    text = PAGE.read_text()
    for name, content in (
        ("errors", sections()),
        ("warnings", _listed(warnings())),
        ("arguments", _listed(refused_arguments())),
    ):
        begin, end = f"<!-- the {name}: make docs -->\n", f"<!-- end of the {name} -->\n"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
