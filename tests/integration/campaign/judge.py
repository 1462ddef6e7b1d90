"""What must hold for each try in a campaign, read from the sandbox's request log and from how the try ended."""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Iterator
from itertools import dropwhile, pairwise, takewhile
from pathlib import Path

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout

from airflow_provider_whisul.exceptions import (
    WhisulAmbiguousSubmitError,
    WhisulConnectionError,
    WhisulError,
    WhisulInvalidInputError,
    WhisulJobFailedError,
    WhisulJobNotFoundError,
    WhisulJobTimeoutError,
    WhisulOutOfCreditsError,
    WhisulRateLimitError,
    WhisulResponseError,
    WhisulServerError,
    WhisulSongMissingError,
    WhisulUnauthorizedError,
)
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox
from tests.integration.campaign.world import BACKOFF_SCHEDULE, KEY, TOLERANCE, Interruption, SongTask, Try
from tests.support.airflow import Killed, TaskStore

#: Seconds from the first 404 on in which a job may not be there yet, or a gateway is at fault.
NOT_FOUND_GRACE = 60.0

#: Faults whose response holds no job id, though the job may exist.
AMBIGUOUS_FAULTS = {
    *("post-500", "post-502-html", "post-drop", "post-drop-before"),
    *("post-truncated", "post-html-202", "post-no-id", "post-bad-id"),
    *("post-redirect", "post-303"),
}
UNREADABLE_FAULTS = {"get-truncated", "get-redirect", "get-html-200", "get-403-html"}

#: Seconds. A wait's last poll comes within the API's least interval after the deadline, or after the wait has begun,
#: and waits as long again for the rate limiter.
LONGEST_OVERTIME = 10.0

#: Statuses of a submission that certainly made no job.
REFUSED = (401, 402, 403, 413, 422, 429)
NOT_FOUND = (404, 410)


def is_throttled(request: LoggedRequest) -> bool:
    """Return whether a request was refused as one too many."""
    return request.status == 429 and request.fault != "post-no-credits"


def was_lost(post: LoggedRequest) -> bool:
    """Return whether a submission got no response that tells whether it made a job, and which."""
    return post.fault in AMBIGUOUS_FAULTS or post.status is None


class Judge:
    """
    What must hold for the last try of a task.

    :param song: The task.
    :param tries: Its tries, the last of which is judged.
    :param sandbox: The sandbox that the task's requests went to.
    :param store: The task state store, None where there is none.
    """

    def __init__(self, song: SongTask, tries: list[Try], sandbox: Sandbox, store: TaskStore | None) -> None:
        self.song = song
        self.tries = tries
        self.this = tries[-1]
        self.jobs = sandbox.jobs
        self.requests = sandbox.requests
        self.options = sandbox._state.options
        self.store = store

    def judge(self) -> None:
        """Raise an ``AssertionError`` with all tries and the log where something does not hold."""
        self._outcome_matches_what_happened()
        self._error_is_one_of_ours()
        self._no_paid_job_is_dropped()
        self._at_most_one_submission_per_try()
        self._no_submission_without_a_reason()
        self._no_poll_after_a_final_response()
        self._job_without_a_song_is_replaced()
        self._polls_keep_their_distance()
        self._cooldown_is_waited_out()
        self._key_is_nowhere()
        self._waiting_ends_in_time()

    def _ensure(self, holds: object, what: str) -> None:
        if holds:
            return
        lines = [f"{self.song.name}, try {self.this.number}: {what}", repr(self.song), repr(self.options)]
        for this in self.tries:
            lines.append(
                f"try {this.number} from {this.started:.3f} to {this.ended:.3f}, {this.interruption}: {this.outcome!r}"
            )
            lines.append(f"    deadline {this.deadline}, restarts {this.restarts}")
            lines += [
                f"    {one.at:.3f} {one.method} {one.status} {one.fault or ''} {one.job_id} {one.prompt or ''}"
                for one in this.requests
            ]
        raise AssertionError("\n".join([*lines, f"store {self.store}", "log of the try:", self.this.log]))

    def _outcome_matches_what_happened(self) -> None:
        """Every try returns its song, or raises the error for what happened."""
        this, outcome = self.this, self.this.outcome
        last = this.requests[-1] if this.requests else None
        status = last and last.status
        match outcome:
            case Killed():
                right: object = True
            case {"job_id": str(job_id)}:
                job = self.jobs[job_id]
                prompt_is_right = this.is_sensor or job.prompt == this.prompt
                right = job.ending == "completed" and job.is_over(this.ended) and prompt_is_right
                right = right and outcome["prompt"] == job.prompt and job_id == (this.job_id or job_id)
            case str():
                right = not self.song.wait and self.jobs[outcome].prompt == this.prompt
            case WhisulInvalidInputError():
                right = status in (413, 422) or (not this.prompt.strip() and not this.requests)
            case WhisulOutOfCreditsError():
                right = status == 402 or (last and last.fault == "post-no-credits")
            case WhisulUnauthorizedError():
                right = status == 401
            case WhisulAmbiguousSubmitError():
                right = self._is_ambiguous(this) if this.posts else self._ambiguous_earlier()
                right = right and isinstance(outcome, AirflowFailException) == (self.song.on_ambiguous == "fail")
            case WhisulJobFailedError():
                job = self.jobs[str(outcome.job_id)]
                right = job.ending == "failed" and job.is_over(this.ended)
                right = right and isinstance(outcome, AirflowFailException) == (this.is_sensor and not this.by_hook)
            case WhisulJobNotFoundError():
                right = last and status in NOT_FOUND and self._missing_for(this, last) >= NOT_FOUND_GRACE - TOLERANCE
            case WhisulJobTimeoutError() | AirflowSensorTimeout():
                by_sensor = this.is_sensor and not this.by_hook
                right = isinstance(outcome, AirflowSensorTimeout) == by_sensor and self._not_known_over()
                # At its slowest the rate limiter permits the last poll 10 s later, after the deadline.
                early = 10.0 if "Nothing was sent" in str(outcome) else TOLERANCE
                timely = status == 429 or self._is_in_cooldown() or this.ended >= self._deadline() - early
                right = right and timely
            case WhisulSongMissingError():
                job = self.jobs[str(outcome.job_id)]
                right = job.is_over(this.ended) and not self._has_ended(job.job_id, this.ended)
            case WhisulRateLimitError():
                right = self._is_in_cooldown() if "Nothing was sent" in str(outcome) else status == 429
            case WhisulServerError():
                right = status is not None and status >= 500
            case WhisulResponseError():
                right = last and last.fault in UNREADABLE_FAULTS | {"post-403-html"}
            case WhisulConnectionError():
                right = last and last.method == "GET" and status is None
            case _:
                right = False
        self._ensure(right, f"ended with {outcome!r}, which is not what happened")
        posted = self._is_ambiguous(this) and not this.killed
        self._ensure(
            not posted or isinstance(outcome, WhisulAmbiguousSubmitError), "an ambiguous submission was not reported"
        )

    def _error_is_one_of_ours(self) -> None:
        outcome = self.this.outcome
        ours = isinstance(outcome, WhisulError | Killed) or (
            self.this.is_sensor and type(outcome) is AirflowSensorTimeout
        )
        self._ensure(ours or not isinstance(outcome, BaseException), f"ended with {type(outcome)}")

    def _no_paid_job_is_dropped(self) -> None:
        """Every job whose id a response told is known to a later try, or is in the log."""
        told = [post for post in self.this.posts if post.job_id in self.jobs and not was_lost(post)]
        if self.this.killed and self.this.outcome.args[0] is Interruption.AFTER_POST:
            return
        record = json.dumps(self.store) + records_of_this_machine()
        for post in told:
            named = str(post.job_id) in self.this.log or (self.song.keeps_state and str(post.job_id) in record)
            self._ensure(named, f"job {post.job_id} is neither recorded nor in the log")
            if self.song.wait and not self.this.killed:
                self._ensure(self._was_waited_for(post), f"job {post.job_id} was given up early")

    def _was_waited_for(self, post: LoggedRequest) -> bool:
        """Return whether a job was polled until it had ended, or until an error named it."""
        polls = [poll for poll in self.this.polls if poll.job_id == post.job_id]
        ended = any(self._returned_the_job(poll) and self._has_ended(str(post.job_id), poll.at) for poll in polls)
        error = self.this.outcome
        in_error = isinstance(error, BaseException) and str(post.job_id) in str(error)
        return ended or in_error or isinstance(error, dict) or getattr(error, "http_status", None) in (401, 402)

    def _is_in_cooldown(self) -> bool:
        """Return whether a 429 in this try, or in one before it, may still block the key."""
        limited = [request.at for request in self.requests if is_throttled(request) and request.at <= self.this.ended]
        longest = max(BACKOFF_SCHEDULE[-1] * 1.1, self.options.block_seconds if self.options.retry_after else 0.0)
        return bool(limited) and self.this.ended <= limited[-1] + longest + 1

    def _missing_for(self, then: Try, missing: LoggedRequest, *, anew: bool = False) -> float:
        """
        Return for how many seconds a try has not found a job, up to one of its 404s.

        With ``anew`` as the last that polled it knows: a trigger knows neither what the task has met nor what the
        trigger before a restart has.
        """
        fresh = {index for index, _ in then.restarts}
        if then.is_sensor and self.song.deferrable:
            fresh.add(1)
        elif not then.is_sensor:
            # The poll that ends the re-attachment is the last that knows its 404s.
            fresh.add(1 + sum(1 for _ in takewhile(lambda request: request.status in NOT_FOUND, then.requests)))
        since: float | None = None
        for index, request in enumerate(then.requests):
            if (anew and index in fresh) or (request.job_id == missing.job_id and self._returned_the_job(request)):
                since = None
            if request.job_id == missing.job_id and request.status in NOT_FOUND and since is None:
                since = request.at
            if request is missing:
                break
        return 0.0 if since is None else missing.at - since

    def _at_most_one_submission_per_try(self) -> None:
        """A submission is sent again after a 429 or a CDN's refusal only, never where it may have been accepted."""
        sent_again = [post for post in self.this.posts[:-1] if not (is_throttled(post) or post.status == 403)]
        self._ensure(not sent_again, "a submission that may have made a job was sent again")
        self._ensure(not self.this.is_sensor or not self.this.posts, "a sensor submitted")

    def _no_submission_without_a_reason(self) -> None:
        this = self.this
        if not self.song.keeps_state or not this.posts:
            return
        earlier = [(before, post) for before in self.tries[:-1] for post in before.posts if not is_throttled(post)]
        if not earlier:
            return
        then, post = earlier[-1]
        since = self.tries[then.number - 1 :]
        if post.status in REFUSED:
            return
        made_no_song = any(self._made_no_song(one, poll, post) for one in since for poll in one.polls)
        cleared = [before for before in since if before.max_tries != this.max_tries]
        # A record cannot tell a task that has succeeded from one killed at that moment. Cleared, both make a new song.
        if any(self._had_its_result(before) for before in cleared):
            return
        if post.prompt != this.prompt:
            logged = any("for another prompt" in one.log for one in since)
            self._ensure(made_no_song or logged, "the prompt has changed, and the log does not say so")
        elif then.killed and then.outcome.args[0] is Interruption.AFTER_POST and made_no_song:
            # The ledger had the job.
            return
        elif self._is_ambiguous(then) or (then.killed and then.outcome.args[0] is Interruption.AFTER_POST):
            warned = any("may already have been paid for" in one.log for one in since)
            self._ensure(warned, "submitted again without a warning")
            self._ensure(self.song.on_ambiguous == "retry" or cleared, "submitted again against the user's will")
        else:
            self._ensure(made_no_song, "paid for twice")

    def _had_its_result(self, then: Try) -> bool:
        killed_with_result = then.killed and then.outcome.args[0] is Interruption.AFTER_RECORD and not self.song.wait
        return then.delivered or killed_with_result

    def _made_no_song(self, then: Try, poll: LoggedRequest, post: LoggedRequest) -> bool:
        """Return whether a poll showed that a job has failed, or is not found for good."""
        if poll.job_id != post.job_id:
            return False
        if poll.status in NOT_FOUND:
            return self._missing_for(then, poll) >= NOT_FOUND_GRACE - TOLERANCE
        job = self.jobs[str(post.job_id)]
        return self._returned_the_job(poll) and job.ending == "failed" and job.is_over(poll.at)

    def _no_poll_after_a_final_response(self) -> None:
        for poll, after in pairwise(self.this.polls):
            if poll.job_id == after.job_id:
                over = self._returned_the_job(poll) and self._has_ended(str(poll.job_id), poll.at)
                missing_for = self._missing_for(self.this, poll, anew=True) if poll.status in NOT_FOUND else 0.0
                not_found = missing_for >= NOT_FOUND_GRACE + TOLERANCE
                self._ensure(
                    not (over or not_found or poll.status in (401, 402)), f"polled again after a final response: {poll}"
                )

    def _job_without_a_song_is_replaced(self) -> None:
        """A try that finds its job failed or not found submits again in the same try."""
        this = self.this
        if this.is_sensor or this.killed or not this.requests:
            return
        found = this.requests[0]
        # Where the rate limiter permitted no poll, the first poll in the log is one of the wait.
        if found.method == "GET" and "Nothing was sent" not in this.log:
            made = next(post for one in self.tries for post in one.posts if post.job_id == found.job_id)
            streak = takewhile(lambda poll: poll.status == 404, this.polls)
            made_no_song = any(self._made_no_song(this, poll, made) for poll in [found, *streak])
            self._ensure(not made_no_song or this.posts, "a job that made no song was not replaced")

    def _polls_keep_their_distance(self) -> None:
        for job_id in {poll.job_id for poll in self.this.polls}:
            times = [poll.at for poll in self.this.polls if poll.job_id == job_id]
            gaps = [after - before for before, after in pairwise(times)]
            self._ensure(all(gap >= 5 - TOLERANCE for gap in gaps), f"polled within 5 s: {gaps}")

    def _cooldown_is_waited_out(self) -> None:
        # A restarted triggerer knows only the arguments of its trigger, not the 429s since then.
        fresh = {index for index, _ in self.this.restarts}
        in_a_row = 0
        for index, (before, after) in enumerate(pairwise(self.this.requests), 1):
            in_a_row = in_a_row + 1 if is_throttled(before) and index - 1 not in fresh else int(is_throttled(before))
            if not is_throttled(before) or index in fresh:
                continue
            wait = BACKOFF_SCHEDULE[min(in_a_row, len(BACKOFF_SCHEDULE)) - 1]
            if self.options.retry_after:
                wait = max(wait, self.options.block_seconds)
            gap = after.at - before.at
            self._ensure(gap >= wait - TOLERANCE, f"{gap} s after the 429 no. {in_a_row} in a row, not {wait}")

    def _key_is_nowhere(self) -> None:
        self._ensure(KEY not in self.this.log, "the key is in the log")
        self._ensure(not any(KEY in text for text in self.this.stored), "the key is in an XCom, a trigger or the store")
        if isinstance(self.this.outcome, BaseException):
            texts = [*traceback.format_exception(self.this.outcome), *map(repr, chain(self.this.outcome))]
            self._ensure(not any(KEY in text for text in texts), "the key is in an exception")

    def _waiting_ends_in_time(self) -> None:
        this = self.this
        if self._waited() and not (this.killed or this.interruption is Interruption.NO_TRIGGERER):
            latest = max([self._deadline(), this.started, *(at for _, at in this.restarts)]) + LONGEST_OVERTIME
            over = this.ended - latest
            self._ensure(over <= 0.001, f"waited {over} s too long")
        if this.deadline is not None:
            off = this.deadline - self._deadline()
            self._ensure(abs(off) <= TOLERANCE, f"the trigger's deadline is off by {off} s")

    def _waited(self) -> bool:
        if self.this.is_sensor:
            return True
        return self.song.wait and bool(self.this.polls)

    def _deadline(self) -> float:
        """Return when a try must stop waiting: the timeout after it had its job."""
        if self.this.is_sensor and self.song.deferrable and self.song.retries:
            # A sensor's timeout is for all its tries together, until a user clears it.
            return next(one.started for one in self.tries if one.max_tries == self.this.max_tries) + self.song.timeout
        if self.this.is_sensor:
            # Likewise that of a sensor that is rescheduled.
            since = self.this.rescheduled_at
            return (self.this.started if since is None else since) + self.song.timeout
        if self._first_poll_was_refused():
            # The task has re-attached without a request; the first one is its trigger's, after the cooldown.
            return self.this.started + self.song.timeout
        made = [post for post in self.this.posts if post.status not in REFUSED]
        # A try that re-attaches polls until the job is found, and waits from then on.
        made = (
            made
            or list(dropwhile(lambda request: request.status in NOT_FOUND, self.this.requests))
            or self.this.requests
        )
        return (made[0].at if made else self.this.started) + self.song.timeout

    def _first_poll_was_refused(self) -> bool:
        """Return whether the rate limiter permitted no poll of the job that the try re-attached to."""
        return any("Re-attaching to" in line and "Nothing was sent" in line for line in self.this.log.splitlines())

    def _not_known_over(self) -> bool:
        job_id = self.this.job_id or self.this.outcome.job_id
        polls = [poll for poll in self.this.polls if poll.job_id == job_id]
        return not polls or not self._returned_the_job(polls[-1]) or not self._has_ended(job_id, polls[-1].at)

    def _has_ended(self, job_id: str, at: float) -> bool:
        """Return whether a job has failed, or is completed and has its song."""
        job = self.jobs[job_id]
        return job.is_over(at - (math.inf if job.directives.bare_track else job.directives.song_late))

    def _returned_the_job(self, poll: LoggedRequest) -> bool:
        """Return whether a poll certainly returned the job as it was."""
        return poll.status == 200 and poll.fault not in UNREADABLE_FAULTS

    def _is_ambiguous(self, then: Try) -> bool:
        """Return whether the response to the submission of a try was lost."""
        return bool(then.posts) and was_lost(then.posts[-1])

    def _ambiguous_earlier(self) -> bool:
        """Return whether an earlier try may have submitted without recording the job."""
        return self.song.keeps_state and any(
            self._is_ambiguous(then)
            or (
                then.killed
                and then.outcome.args[0]
                in (Interruption.BEFORE_POST, Interruption.AFTER_POST, Interruption.WHILE_WAITING)
            )
            for then in self.tries[:-1]
        )


def records_of_this_machine() -> str:
    """Return all records of tasks in this machine's folder."""
    folder = Path(os.environ["AIRFLOW_HOME"]) / "whisul_state" / "records"
    return "\n".join(path.read_text() for path in folder.glob("*.json"))


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and what caused each one."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
