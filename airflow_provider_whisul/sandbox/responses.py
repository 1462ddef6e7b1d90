"""The responses that the sandbox gives, as data: honest ones and spoiled ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Literal

#: Length of a body that never ends.
_ENDLESS = 10**15

_PAGE = b"<!DOCTYPE html>\n<html><head><title>%b</title></head><body><h1>%b</h1><p>sandbox</p></body></html>\n"
_SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert("sandbox")</script></svg>'


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response and how it is sent.

    :param status: HTTP status.
    :param body: the whole body.
    :param content_type: value of ``Content-Type``.
    :param headers: further headers.
    :param delay: seconds to wait before it is sent.
    :param silence: bytes that follow the body, all alike. They are never held in memory together.
    :param sent: how much of it arrives: all; all, in chunks without a length; half, then the end of the connection;
        half, then nothing more; all, but of a body that is said to be longer; no byte; or a header that never ends, a
        byte per second.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    silence: int = 0
    sent: Literal["whole", "chunks", "half", "stall", "short", "nothing", "drip"] = "whole"

    @property
    def size(self) -> int:
        """How long body and silence are, in bytes."""
        return len(self.body) + self.silence

    def part(self, start: int, end: int) -> Response:
        """Return the response with only these bytes of body and silence."""
        body = self.body[start:end]
        return replace(self, body=body, silence=max(0, end - start) - len(body))


def of_json(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(status, json.dumps(body).encode(), headers=headers or {})


def of_error(status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the one shape that the API documents, the 400's."""
    return of_json(status, {"error": error, "message": message}, headers)


def page(status: int, title: str) -> Response:
    """Return an HTML page, as a CDN in front of the API would."""
    text = title.encode()
    return Response(status, _PAGE % (text, text), "text/html; charset=utf-8")


def moved(status: int, location: str) -> Response:
    """Return a redirect."""
    return replace(page(status, "Moved"), headers={"Location": location})


def accepted(job_id: str) -> Response:
    """Return the response to a POST that made a job."""
    return of_json(202, {"message": "Composition task received.", "job_id": job_id, "poll_url": f"/jobs/{job_id}"})


def invalid(message: str = "The 'prompt' field is required and must not be empty.") -> Response:
    """Return the response to a POST that cannot make a job."""
    return of_error(400, "Invalid input", message)


def unauthorized() -> Response:
    """Return the response to a request without the right key."""
    return of_error(401, "Unauthorized", "The API key is missing, malformed, revoked or expired.")


def media_refused(status: int) -> Response:
    """Return the response to a request for a song or a cover whose URL does not work."""
    body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    return Response(status, body, "application/xml")


def not_found() -> Response:
    """Return the response for a job that does not exist, or no longer."""
    return of_error(404, "Not found", "There is no job with this id, or it has expired.")


def wrong_method(allowed: str) -> Response:
    """Return the response to a request with a method that the path does not take."""
    return of_error(405, "Method not allowed", f"This path takes {allowed}.", {"Allow": allowed})


def too_large() -> Response:
    """Return the response to a request whose body is too large."""
    return of_error(413, "Payload too large", "The request body is larger than 16 MiB.")


def foreign_host() -> Response:
    """Return the response to a request that names another host than this machine."""
    return of_error(421, "Misdirected request", "The Host header must be localhost or a loopback address.")


def foreign_origin() -> Response:
    """Return the response to a page of another site that asks for the sandbox's own functions."""
    return of_error(403, "Forbidden", "Pages of other sites may not use the sandbox's own functions.")


def rate_limited(headers: Mapping[str, str]) -> Response:
    """Return the response to a request too many."""
    return of_error(429, "Too many requests", "Rate limit exceeded. Wait before you ask again.", headers)


def retry_after(wanted: bool | Literal["date"], seconds: float, now: float) -> dict[str, str]:
    """Return the ``Retry-After`` header, if wanted.

    :param wanted: as in the options.
    :param seconds: the wait in seconds; rounded up, as a client that comes too early would prolong its block.
    :param now: Unix seconds, for the date.
    """
    if wanted is False:
        return {}
    if wanted == "date":
        return {"Retry-After": formatdate(math.ceil(now + seconds), usegmt=True)}
    return {"Retry-After": str(math.ceil(seconds))}


def spoil(fault: str, honest: Response, *, delay: float, elsewhere: str, retry: Mapping[str, str]) -> Response:
    """Return what a fault makes of a response.

    :param fault: name of the fault, as in the options.
    :param honest: the response without it.
    :param delay: seconds that a slow response takes.
    :param elsewhere: where a redirect leads.
    :param retry: headers of a 429.
    :raises ValueError: there is no such fault.
    """
    method, _, kind = fault.partition("-")
    match kind:
        case "500":
            return of_error(500, "Internal server error", "An unexpected error occurred. Try again later.")
        case "502-html":
            return page(502, "502 Bad Gateway")
        case "429":
            return rate_limited(retry)
        case "401":
            return unauthorized()
        case "403":
            return media_refused(403)
        case "404":
            return not_found()
        case "402":
            return of_error(402, "Payment required", "The account has no credits left.")
        case "no-credits":
            return of_error(429, "insufficient_quota", "You are out of credits.")
        case "403-html":
            return page(403, "Attention Required!")
        case "410":
            return of_error(410, "Gone", "The job has expired.")
        case "413":
            return page(413, "Payload Too Large")
        case "422":
            return of_error(422, "Unprocessable", "This prompt cannot be processed.")
        case "html-200":
            return page(200, "Just a moment...")
        case "html-202":
            return page(202, "Just a moment...")
        case "drop" | "drop-before":
            return replace(honest, sent="nothing")
        case "truncated" | "cut":
            return replace(honest, sent="half")
        case "stall":
            return replace(honest, sent="stall")
        case "slow":
            return replace(honest, delay=delay)
        case "html":
            return page(200, "Just a moment...")
        case "disguised":
            document = _SVG if honest.content_type.startswith("image/") else page(200, "Sign in").body.decode()
            return replace(honest, status=200, body=document.encode("utf-16"), silence=0)
        case "empty":
            return replace(honest, status=200, body=b"", silence=0)
        case "wrong-length":
            return replace(honest, sent="short")
        case "endless":
            return replace(honest, silence=_ENDLESS)
        case "endless-chunks":
            return replace(honest, silence=_ENDLESS, sent="chunks")
        case "drip":
            return replace(honest, sent="drip")
        case "no-range":
            return honest
        case "redirect-file":
            return moved(302, "file:///etc/passwd")
        case "redirect-http":
            return moved(302, "http://media.example/song")
        case "redirect":
            # 307 is the one that makes a client that follows it send the POST, and maybe the key, again.
            return moved(307 if method == "post" else 302, elsewhere)
        case "no-id":
            return of_json(202, {"message": "Composition task received."})
        case "303":
            return replace(page(303, "See Other"), headers={"Location": elsewhere})
        case "201":
            return replace(honest, status=201)
        case "int-id":
            return of_json(202, {"message": "Composition task received.", "job_id": int(_job_id(honest))})
        case "poll-url":
            return of_json(202, {"message": "Composition task received.", "poll_url": f"/jobs/{_job_id(honest)}"})
        case "bad-id":
            return accepted("../x?y")
    raise ValueError(f"unknown fault {fault!r}")


def _job_id(accepted: Response) -> str:
    return str(json.loads(accepted.body)["job_id"])
