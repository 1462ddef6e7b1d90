"""Which media URLs may be downloaded, and how a message shows a URL. No I/O."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from airflow_provider_whisul.api.connection import is_loopback
from airflow_provider_whisul.exceptions import WhisulMediaUnsafeError
from airflow_provider_whisul.text import quote


def require_https(url: str, job_id: str, *, redirected_from: str | None = None) -> str:
    """
    Return the absolute URL to download from. It must be https, or http to this machine (the sandbox).

    :param url: The URL, or the ``Location`` of a redirect, which may be relative.
    :param job_id: The song's job, for the message.
    :param redirected_from: The URL that redirected to this one, None for the song's own URL.
    :raises WhisulMediaUnsafeError: The URL is malformed, holds a user name or password, or has another scheme.
    """
    subject = "The media URL" if redirected_from is None else f"The redirect from {redact_url(redirected_from)}"
    try:
        absolute = urljoin(redirected_from or "", url)
        parts = urlsplit(absolute)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        absolute, parts, host = "", urlsplit(""), ""
    malformed = any(character.isspace() or not character.isprintable() or character == "\\" for character in url)
    if not host or malformed or parts.username is not None or parts.password is not None:
        raise WhisulMediaUnsafeError(
            f"{subject} of job {job_id} is malformed, so nothing was downloaded. Contact Whisul's support.",
            job_id=job_id,
        )
    # A redirect from another machine must not lead to plain http on this one.
    from_loopback = redirected_from is None or is_loopback(urlsplit(redirected_from).hostname or "")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host) and from_loopback):
        return absolute
    raise WhisulMediaUnsafeError(
        f"{subject} of job {job_id} leads to {redact_url(absolute)}, which is not https, so nothing was downloaded "
        "from there. Plain http is accepted only to this machine (the sandbox). Contact Whisul's support.",
        job_id=job_id,
    )


def redact_url(url: str) -> str:
    """
    Return a URL as a message may show it: without user, query and fragment, which may hold a signature.

    :param url: The URL.
    """
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "(malformed URL)"
    return quote(f"{parts.scheme}://{host}{parts.path}")
