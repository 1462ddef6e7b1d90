"""The simulated service: keys, rate limit, jobs, faults and the request log. No I/O; the time is passed in."""

from __future__ import annotations

import json
import random
import re
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote

from airflow_provider_whisul.sandbox import directives, media, responses
from airflow_provider_whisul.sandbox.directives import Hit
from airflow_provider_whisul.sandbox.jobs import SandboxJob, make_job
from airflow_provider_whisul.sandbox.options import (
    GET_FAULTS,
    JOB_MAKING_FAULTS,
    MEDIA_FAULTS,
    POST_FAULTS,
    SandboxOptions,
    check_key,
)
from airflow_provider_whisul.sandbox.responses import Response

API = "/api"
MEDIA = "/media"
ELSEWHERE = "/elsewhere"

_SHORT_KEY = 8
_HIDDEN = "***"
_SIGNATURE = re.compile(r"[?&]signature=(\d{1,9})")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

Authorization = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came in.

    :param method: HTTP method.
    :param target: path and query, as sent.
    :param headers: names and values of the headers.
    :param body: the body; empty if it was too large to be read.
    :param connection: number of the TCP connection.
    :param too_large: whether the body was too large.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    connection: int
    too_large: bool = False

    def header(self, name: str) -> str | None:
        """Return the value of the first header of this name, if there is one."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request that the sandbox has answered, or dropped. Where the key would stand, it says ``***``.

    :param at: when it came, Unix seconds of the sandbox's clock.
    :param method: HTTP method.
    :param path: path and query, as sent.
    :param status: HTTP status of the response; None if the connection was dropped instead.
    :param job_id: the job that was asked for, or that was made (the client may not know it).
    :param prompt: the prompt of a POST.
    :param authorization: what the Authorization header was.
    :param key_elsewhere: whether the key stood anywhere but in the Authorization header of a request to the API.
    :param user_agent: the header of this name; empty if there was none.
    :param fault: name of the fault that was injected, if one was.
    :param connection: number of the TCP connection, from 1 on.
    """

    at: float
    method: str
    path: str
    status: int | None
    job_id: str | None
    prompt: str | None
    authorization: Authorization
    key_elsewhere: bool
    user_agent: str
    fault: str | None
    connection: int


class RateLimit:
    """The limit of one key: a sliding window, and a block that every request made during it prolongs.

    :param requests: how many are allowed per window.
    :param window: length of the window in seconds.
    :param block: seconds without a request after which a block ends.
    """

    def __init__(self, requests: int, window: float, block: float) -> None:
        self._requests = requests
        self._window = window
        self._block = block
        self._recent: deque[float] = deque()
        self._blocked_until: float | None = None

    def allows(self, now: float) -> bool:
        """Count a request made at ``now`` (Unix seconds) and tell whether it is to be served."""
        if self._blocked_until is not None and now < self._blocked_until:
            self._blocked_until = now + self._block
            return False
        self._blocked_until = None
        while self._recent and now - self._recent[0] >= self._window:
            self._recent.popleft()
        if len(self._recent) < self._requests:
            self._recent.append(now)
            return True
        self._recent.clear()
        self._blocked_until = now + self._block
        return False


@dataclass(slots=True)
class _LogEntry:
    """What a response adds to the log."""

    job_id: str | None = None
    prompt: str | None = None
    fault: str | None = None


class SandboxState:
    """Everything that a sandbox knows. Not thread-safe: its owner guards it.

    :param options: how it behaves.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.jobs: dict[str, SandboxJob] = {}
        self.requests: list[LoggedRequest] = []
        self.key = options.api_key
        self._revoked = False
        self._keys = {options.api_key}
        self._key_pattern = _pattern(self._keys)
        self._limits: dict[str, RateLimit] = {}
        self._posts: Counter[str] = Counter()
        self._gets: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._media_gets: Counter[str] = Counter()
        self._signed: Counter[str] = Counter()

    def revoke_key(self) -> None:
        """Make the key invalid from now on."""
        self._revoked = True

    def restore_key(self, key: str) -> None:
        """Make ``key`` the valid one, and the only one. Raises ValueError if it cannot be a key."""
        check_key(key)
        self.key = key
        self._revoked = False
        self._keys.add(key)
        self._key_pattern = _pattern(self._keys)

    def handle(self, call: Call, now: float, origin: str) -> Response:
        """Response a request, and log it.

        :param call: the request.
        :param now: Unix seconds.
        :param origin: scheme, host and port of the sandbox, for the URLs that it gives out.
        """
        path = call.target.partition("?")[0]
        entry = _LogEntry()
        authorization = self._authorization(call)
        to_api = path.startswith(f"{API}/")
        if call.too_large:
            response = responses.too_large()
        elif to_api:
            response = self._api(call, path, authorization, entry, now, origin)
        elif path.startswith(f"{MEDIA}/"):
            response = self._media(call, path, entry, now, origin)
            job = self.jobs.get(entry.job_id or "")
            if job is not None and not job.directives.media_no_cors:
                response = replace(response, headers={**response.headers, "Access-Control-Allow-Origin": "*"})
        elif path.startswith(ELSEWHERE):
            response = responses.page(200, "A redirect was followed")
        else:
            response = responses.not_found()
        self.requests.append(
            LoggedRequest(
                at=now,
                method=call.method,
                path=self._hide_in_url(call.target),
                status=None if response.sent == "nothing" else response.status,
                job_id=entry.job_id and self._hide(entry.job_id),
                prompt=entry.prompt and self._hide(entry.prompt),
                authorization=authorization,
                key_elsewhere=self._key_elsewhere(call) or (not to_api and authorization != "missing"),
                user_agent=self._hide(call.header("User-Agent") or ""),
                fault=entry.fault,
                connection=call.connection,
            )
        )
        return response

    def _authorization(self, call: Call) -> Authorization:
        value = call.header("Authorization")
        if value is None:
            return "missing"
        scheme, _, key = value.partition(" ")
        return "ok" if scheme.lower() == "bearer" and key == self.key and not self._revoked else "wrong"

    def _api(
        self, call: Call, path: str, authorization: Authorization, entry: _LogEntry, now: float, origin: str
    ) -> Response:
        resource = path.removeprefix(API)
        is_post = resource == "/generate"
        is_get = resource.startswith("/jobs/") and "/" not in resource.removeprefix("/jobs/")
        # Read before any refusal, so that the log names the job and the prompt of refused requests too.
        prompt: str | Response = ""
        if is_post and call.method == "POST":
            prompt = _prompt(call)
            entry.prompt = prompt if isinstance(prompt, str) else None
        elif is_get:
            entry.job_id = unquote(resource.removeprefix("/jobs/"))
        if authorization != "ok":
            return responses.unauthorized()
        retry = responses.retry_after(self.options.retry_after, self.options.block_seconds, now)
        if not self._within_limit(now):
            return responses.rate_limited(retry)
        if not is_post and not is_get:
            return responses.of_error(404, "Not found", "There is nothing at this path.")
        if call.method != ("POST" if is_post else "GET"):
            return responses.wrong_method("POST" if is_post else "GET")
        if isinstance(prompt, Response):
            return prompt
        honest, hit = self._generate(prompt, entry, now) if is_post else self._job(entry.job_id or "", now, origin)
        if hit is None:
            return honest
        entry.fault = hit.fault
        delay = self.options.slow_seconds if hit.delay is None else hit.delay
        return responses.spoil(hit.fault, honest, delay=delay, elsewhere=f"{origin}{ELSEWHERE}{path}", retry=retry)

    def _generate(self, prompt: str, entry: _LogEntry, now: float) -> tuple[Response, Hit | None]:
        try:
            asked = directives.parse(prompt)
        except ValueError as error:
            return responses.invalid(str(error)), None
        index = self._posts[prompt]
        self._posts[prompt] += 1
        hit = asked.fault_at(POST_FAULTS, index) or self._chance(POST_FAULTS, prompt, index)
        if hit is not None and hit.fault not in JOB_MAKING_FAULTS:
            return responses.accepted(""), hit
        # Random, not seeded: after a restart, the id of an earlier sandbox's job must not name a new one.
        unique = uuid.uuid4()
        job_id = str(unique.int if hit is not None and hit.fault == "post-int-id" else unique)
        self.jobs[job_id] = make_job(job_id, prompt, self._made[prompt], asked, self.options, now)
        self._made[prompt] += 1
        entry.job_id = job_id
        return responses.accepted(job_id), hit

    def _job(self, job_id: str, now: float, origin: str) -> tuple[Response, Hit | None]:
        job = self.jobs.get(job_id)
        index = self._gets[job_id]
        self._gets[job_id] += 1
        hit = job.directives.fault_at(GET_FAULTS, index) if job else None
        hit = hit or self._chance(GET_FAULTS, job.prompt if job else "", index)
        if job is None or job.is_expired(now):
            return responses.not_found(), hit
        signature = ""
        if job.directives.media_expired and job.is_over(now):
            self._signed[job_id] += 1
            signature = f"?signature={self._signed[job_id]}"
        return responses.of_json(200, job.body(now, f"{origin}{MEDIA}", signature)), hit

    def _chance(self, names: Sequence[str], about: str, index: int) -> Hit | None:
        if not self.options.fault_rates:
            return None
        left = random.Random(f"fault:{self.options.seed}:{names[0]}:{index}:{about}").random()  # noqa: S311
        for name in names:
            left -= self.options.fault_rates.get(name, 0.0)
            if left < 0:
                return Hit(name)
        return None

    def _within_limit(self, now: float) -> bool:
        if self.options.rate_limit is None:
            return True
        limit = self._limits.get(self.key)
        if limit is None:
            limit = RateLimit(self.options.rate_limit, self.options.rate_window, self.options.block_seconds)
            self._limits[self.key] = limit
        return limit.allows(now)

    def _media(self, call: Call, path: str, entry: _LogEntry, now: float, origin: str) -> Response:
        folder, _, name = path.removeprefix(f"{MEDIA}/").partition("/")
        job_id, _, kind = name.partition(".")
        job = self.jobs.get(job_id)
        if job is None or not job.is_over(now) or job.ending == "failed":
            return responses.not_found()
        entry.job_id = job_id
        if call.method not in ("GET", "HEAD"):
            return responses.wrong_method("GET, HEAD")
        if (folder, kind) == ("audio", "wav"):
            song = media.song(job_id, job.bpm, job.seconds)
            whole = Response(200, song, "audio/wav", silence=max(0, job.directives.media_size - len(song)))
        elif (folder, kind) == ("covers", "png"):
            whole = Response(200, media.cover(job_id), "image/png")
        else:
            return responses.not_found()
        if job.directives.media_gone:
            return responses.media_refused(410)
        if job.directives.media_location:
            return responses.moved(302, job.directives.media_location)
        if job.directives.media_expired:
            signed = _SIGNATURE.search(call.target)
            if signed is None or int(signed[1]) <= job.directives.media_expired:
                return responses.media_refused(403)
        index = self._media_gets[path]
        self._media_gets[path] += 1
        hit = job.directives.fault_at(MEDIA_FAULTS, index) or self._chance(MEDIA_FAULTS, job.prompt, index)
        if hit is None:
            return _ranged(whole, call)
        entry.fault = hit.fault
        return responses.spoil(
            hit.fault,
            whole if hit.fault == "media-no-range" else _ranged(whole, call),
            delay=self.options.slow_seconds if hit.delay is None else hit.delay,
            elsewhere=f"{origin}{path}?moved",
            retry=responses.retry_after(self.options.retry_after, self.options.block_seconds, now),
        )

    def _key_elsewhere(self, call: Call) -> bool:
        places = [unquote(call.target), call.body.decode("utf-8", "replace")]
        places += [value for name, value in call.headers if name.lower() != "authorization"]
        return any(self._key_pattern.search(place) for place in places)

    def _hide(self, text: str) -> str:
        return self._key_pattern.sub(_HIDDEN, text)

    def _hide_in_url(self, url: str) -> str:
        plain = unquote(url)
        return self._hide(plain) if self._key_pattern.search(plain) else url


def _pattern(keys: set[str]) -> re.Pattern[str]:
    # A short key such as "k" is part of half the words there are: it counts only where it stands alone.
    longest_first = sorted(keys, key=len, reverse=True)
    return re.compile(
        "|".join(
            re.escape(key) if len(key) >= _SHORT_KEY else rf"(?<![\w-]){re.escape(key)}(?![\w-])"
            for key in longest_first
        )
    )


def _prompt(call: Call) -> str | Response:
    if (call.header("Content-Type") or "").partition(";")[0].strip().lower() != "application/json":
        return responses.invalid("The Content-Type header must be application/json.")
    try:
        body = json.loads(call.body)
        prompt = body.get("prompt") if isinstance(body, dict) else None
        if not isinstance(prompt, str) or not prompt.strip():
            return responses.invalid()
        prompt.encode()  # JSON may hold half a surrogate pair, which is no text
    except (ValueError, RecursionError):
        return responses.invalid("The request body must be valid JSON.")
    return prompt


def _ranged(whole: Response, call: Call) -> Response:
    """Return the part of a response that a Range header asks for; all of it where the header means nothing to us."""
    size = whole.size
    # What makes a song or a cover, and how long it is, tells it from others.
    etag = f'"{zlib.crc32(whole.body):08x}-{size}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag}
    wanted = call.header("Range")
    match = _RANGE.fullmatch(wanted.strip()) if wanted and call.header("If-Range") in (None, etag) else None
    if match is None or not (match[1] or match[2]):
        return replace(whole, headers=headers)
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return replace(whole, headers=headers)
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size:
        return replace(whole.part(0, 0), status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return replace(whole.part(start, end), status=206, headers=headers)
