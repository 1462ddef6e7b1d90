"""What must hold for each try of a batch, read from the sandbox's request log and from how the try ended."""

from __future__ import annotations

import json
import math
import traceback
from itertools import pairwise
from typing import Any

from airflow_provider_whisul.exceptions import WhisulError
from airflow_provider_whisul.operators.arguments import allowed_failures
from airflow_provider_whisul.polling import LAST_POLL_SECONDS_PER_JOB
from airflow_provider_whisul.sandbox import LoggedRequest, Sandbox, SandboxOptions
from tests.integration.campaign.batch_world import BatchTask, BatchTry
from tests.integration.campaign.judge import (
    AMBIGUOUS_FAULTS,
    LONGEST_OVERTIME,
    NOT_FOUND,
    NOT_FOUND_GRACE,
    REFUSED,
    UNREADABLE_FAULTS,
    chain,
    is_throttled,
)
from tests.integration.campaign.world import BACKOFF_SCHEDULE, KEY, TOLERANCE, Interruption
from tests.support.airflow import TaskStore

#: Ambiguous submissions in a row after which a try submits nothing more.
MAX_IN_A_ROW = 3

#: Transient failures in a row with which the waiting for a job ends.
MAX_FAILURES = 20


class _Block:
    """
    What a client knows of its key's block, read from its requests and their responses.

    :param options: How the sandbox limits the key.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self._options = options
        self.in_a_row = 0
        self._active = False
        self._not_before = -math.inf
        #: When the response comes, the request, and whether it is a probe.
        self._under_way: list[tuple[float, LoggedRequest, bool]] = []

    def send(self, request: LoggedRequest, response_at: float) -> str:
        """Send a request, and return what is wrong with that."""
        self.receive_until(request.at)
        wrong = ""
        if self._active and request.at < self._not_before - TOLERANCE:
            wrong = f"sent {self._not_before - request.at} s too early after the 429 no. {self.in_a_row} in a row"
        elif self._active and any(probe and at > request.at + TOLERANCE for at, _, probe in self._under_way):
            wrong = "sent while a probe was under way"
        if response_at < math.inf:
            self._under_way.append((response_at, request, self._active))
        return wrong

    def receive_until(self, now: float) -> None:
        """Take in the responses that have come."""
        for response_at, request, is_probe in self._under_way:
            if response_at < now - TOLERANCE or response_at == request.at:
                self._receive(response_at, request, is_probe)
        self._under_way = [one for one in self._under_way if not (one[0] < now - TOLERANCE or one[0] == one[1].at)]

    def _receive(self, now: float, request: LoggedRequest, is_probe: bool) -> None:
        if is_throttled(request):
            if is_probe or not self._active:
                self.in_a_row += 1
            self._active = True
        elif is_probe and request.status is not None:
            self._active, self.in_a_row = False, 0
        if is_throttled(request) or (is_probe and request.status is None):
            wait = BACKOFF_SCHEDULE[min(max(self.in_a_row, 1), len(BACKOFF_SCHEDULE)) - 1]
            if self._options.retry_after and is_throttled(request):
                wait = max(wait, self._options.block_seconds)
            self._not_before = max(self._not_before, now + wait)


#: Kills of a worker that may not have recorded its latest job.
UNRECORDED = (Interruption.AFTER_POST, Interruption.BEFORE_INTENT, Interruption.WHILE_WAITING)


class BatchJudge:
    """
    What must hold for the last try of a batch.

    :param task: The batch.
    :param tries: Its tries, the last of which is judged.
    :param sandbox: The sandbox that its requests went to.
    :param store: The task state store, None where there is none.
    """

    def __init__(self, task: BatchTask, tries: list[BatchTry], sandbox: Sandbox, store: TaskStore | None) -> None:
        self.task = task
        self.tries = tries
        self.this = tries[-1]
        self.jobs = sandbox.jobs
        self.options = sandbox._state.options
        self.store = store

    def judge(self) -> None:
        """Raise an ``AssertionError`` with all tries and the log where something does not hold."""
        self._error_is_one_of_ours()
        self._results_are_right()
        self._no_paid_job_is_dropped()
        self._no_job_is_given_up_early()
        self._earlier_jobs_are_continued_or_named()
        self._submissions_are_bounded()
        self._no_song_is_submitted_again_without_a_reason()
        self._waits_end_in_time()
        self._polls_keep_their_distance()
        self._cooldown_is_waited_out()
        self._key_is_nowhere()

    def _ensure(self, holds: object, what: str) -> None:
        if holds:
            return
        lines = [f"{self.task.name}, try {self.this.number}: {what}", repr(self.task), repr(self.options)]
        for this in self.tries:
            lines.append(
                f"try {this.number} from {this.started:.3f} to {this.ended:.3f}, {this.interruption}: {this.outcome!r}"
            )
            lines += [f"    {wait}" for wait in this.waits]
            lines += [
                f"    {one.at:.3f} {one.method} {one.status} {one.fault or ''} {one.job_id} {one.prompt or ''}"
                for one in this.requests
            ]
        raise AssertionError("\n".join([*lines, f"store {self.store}", "log of the try:", self.this.log]))

    def _error_is_one_of_ours(self) -> None:
        outcome = self.this.outcome
        self._ensure(
            self.this.killed or isinstance(outcome, list | WhisulError), f"ended with {type(outcome)}: {outcome!r}"
        )

    def _results_are_right(self) -> None:
        for results in (self.this.outcome, self.this.pushed):
            if isinstance(results, list):
                self._ensure([one["prompt"] for one in results] == self.this.prompts, "results of other prompts")
                self._ensure(all(self._is_right(one) for one in results), f"wrong results: {results}")
        if isinstance(self.this.outcome, list):
            failed = sum(one["status"] == "failed" for one in self.this.outcome)
            allowed = allowed_failures(self.task.max_failures, len(self.this.prompts))
            self._ensure(failed <= allowed, f"succeeded with {failed} failed songs")

    def _is_right(self, result: Any) -> bool:
        if result["status"] != "completed":
            return bool(result["error"])
        job = self.jobs[result["job_id"]]
        return job.ending == "completed" and job.is_over(self.this.ended) and job.prompt == result["prompt"]

    def _known_jobs(self, then: BatchTry) -> list[LoggedRequest]:
        """Return the submissions of a try whose responses named their jobs to a worker that could record them."""
        posts = then.posts
        # Until the next song's intent is recorded only the ledger has the last one.
        if then.interrupted_by in UNRECORDED and posts:
            posts = posts[:-1]
        return [post for post in posts if post.job_id in self.jobs and not self._is_ambiguous(post)]

    @staticmethod
    def _is_ambiguous(post: LoggedRequest) -> bool:
        return post.fault in AMBIGUOUS_FAULTS

    def _no_paid_job_is_dropped(self) -> None:
        kept = json.dumps([self.this.stored[-2:], self.this.log])
        for post in self._known_jobs(self.this):
            self._ensure(str(post.job_id) in kept, f"job {post.job_id} is neither recorded nor in the log")

    def _no_job_is_given_up_early(self) -> None:
        """A try that ends by itself has polled each of its jobs until that had ended, or until the wait had."""
        this = self.this
        if this.killed or not this.waits or this.waits[-1].disturbed:
            return
        if not isinstance(this.outcome, list) and this.pushed is None:
            return
        # Whatever the key is refused for fails every other poll too.
        if isinstance(this.outcome, WhisulError) and this.outcome.http_status == 401:
            return
        named = json.dumps(this.outcome if isinstance(this.outcome, list) else this.pushed)
        for post in self._known_jobs(this):
            polls = [poll for poll in this.polls if poll.job_id == post.job_id]
            ended = any(self._has_failed(poll) or self._was_over(poll) for poll in polls)
            out_of_time = this.ended >= this.waits[-1].deadline - TOLERANCE
            out_of_time = out_of_time or any(
                abs(wait.ended - wait.deadline) <= self._longest_overtime for wait in this.waits
            )
            given_up = len(polls) >= MAX_FAILURES or self._not_found_for(polls) >= NOT_FOUND_GRACE - TOLERANCE
            final = bool(polls) and polls[-1].status in (401, 402)
            self._ensure(ended or out_of_time or given_up or final, f"job {post.job_id} was given up early")
            self._ensure(ended or str(post.job_id) in named, f"job {post.job_id} is in no result")

    def _earlier_jobs_are_continued_or_named(self) -> None:
        """Where the prompts are others than in the try before, its jobs are named in the log."""
        this = self.this
        if not self.task.keeps_state or not self.task.renders_anew or len(self.tries) < 2:
            return
        before = self.tries[-2]
        if isinstance(before.outcome, list) or before.interrupted_by is Interruption.AFTER_RETURN:
            return
        polls = [poll for one in self.tries for poll in one.polls]
        for post in self._known_jobs(before):
            failed = any(self._has_failed(poll) for poll in polls if poll.job_id == post.job_id)
            self._ensure(failed or str(post.job_id) in this.log, f"the log does not name job {post.job_id}")

    def _submissions_are_bounded(self) -> None:
        this = self.this
        self._ensure({post.prompt for post in this.posts} <= set(this.prompts), "another rendering was submitted")
        # What was certainly refused made no job: the client has sent it again, or the batch stopped.
        may_cost = [post for post in this.posts if post.status not in REFUSED]
        self._ensure(len(may_cost) <= len(this.prompts) * self.task.attempts, f"{len(may_cost)} submissions")
        for prompt in this.prompts:
            times = sum(post.prompt == prompt for post in may_cost)
            self._ensure(times <= self.task.attempts, f"{prompt!r} was submitted {times} times")
        in_a_row = 0
        for post in may_cost:
            self._ensure(in_a_row < MAX_IN_A_ROW, f"submitted after {in_a_row} ambiguous submissions in a row")
            in_a_row = in_a_row + 1 if self._is_ambiguous(post) else 0

    def _no_song_is_submitted_again_without_a_reason(self) -> None:
        this = self.this
        earlier: dict[str, tuple[BatchTry, LoggedRequest]] = {}
        for then in self.tries if self.task.keeps_state else [this]:
            for post in then.posts:
                prompt = str(post.prompt)
                if then is this and prompt in earlier:
                    self._check_reason(*earlier[prompt], post)
                if post.status not in REFUSED:
                    earlier[prompt] = (then, post)

    def _check_reason(self, then: BatchTry, before: LoggedRequest, again: LoggedRequest) -> None:
        since = self.tries[then.number - 1 :]
        polls = [poll for one in since for poll in one.polls if poll.job_id == before.job_id and poll.at <= again.at]
        cleared = [one for one in since if one.max_tries != self.this.max_tries]
        if any(isinstance(one.outcome, list) or one.interrupted_by is Interruption.AFTER_RETURN for one in cleared):
            return
        unknown = then.interrupted_by is Interruption.AFTER_POST and then.posts[-1] is before
        failed = any(self._has_failed(poll) for poll in polls)
        # The ledger may have named the job of a worker that was killed.
        if self._is_ambiguous(before) or (unknown and not failed):
            self._ensure(then is not self.this, f"an ambiguous submission was repeated within a try: {again}")
            warned = any("may already have been paid for" in one.log for one in since[1:])
            self._ensure(warned, f"submitted again without a warning: {again}")
            self._ensure(self.task.on_ambiguous == "retry" or cleared, f"submitted against the user's will: {again}")
            return
        not_found = then is not self.this and self._not_found_for(polls) >= NOT_FOUND_GRACE - TOLERANCE
        self._ensure(failed or not_found, f"paid for twice: {again}")

    def _has_failed(self, poll: LoggedRequest) -> bool:
        return self._is_readable(poll) and self.jobs[str(poll.job_id)].ending == "failed" and self._was_over(poll)

    def _was_over(self, poll: LoggedRequest) -> bool:
        return self._is_readable(poll) and self.jobs[str(poll.job_id)].is_over(poll.at)

    @staticmethod
    def _is_readable(poll: LoggedRequest) -> bool:
        return poll.status == 200 and poll.fault not in UNREADABLE_FAULTS

    def _not_found_for(self, polls: list[LoggedRequest]) -> float:
        """Return for how many seconds at most no poll in a row has found a job."""
        longest, since = 0.0, None
        for poll in polls:
            if poll.status in NOT_FOUND:
                since = poll.at if since is None else since
                longest = max(longest, poll.at - since)
            elif self._is_readable(poll):
                since = None
        return longest

    @property
    def _longest_overtime(self) -> float:
        # The last polls of all jobs are due in the same moment. After them comes the last one's response.
        return max(LONGEST_OVERTIME, 5.0 + LAST_POLL_SECONDS_PER_JOB * len(self.task.directives)) + self.this.latency

    def _waits_end_in_time(self) -> None:
        for wait in self.this.waits:
            self._ensure(wait.deadline <= wait.began + self.task.timeout + TOLERANCE or wait.disturbed, f"late: {wait}")
            if wait.ended and not (wait.disturbed and self.this.interruption is Interruption.NO_TRIGGERER):
                over = wait.ended - max(wait.deadline, wait.began)
                self._ensure(over <= self._longest_overtime, f"waited {over} s too long: {wait}")

    def _polls_keep_their_distance(self) -> None:
        for job_id in {poll.job_id for poll in self.this.polls}:
            times = [poll.at for poll in self.this.polls if poll.job_id == job_id]
            self._ensure(
                all(after - before >= 5 - TOLERANCE for before, after in pairwise(times)), f"{job_id} polled: {times}"
            )

    def _cooldown_is_waited_out(self) -> None:
        """After a 429 nothing is sent until its wait is over, and then one probe at a time until the block is over."""
        this, block = self.this, _Block(self.options)
        # Workers submit and the triggerer polls. They share what they know of the block, also after a restart.
        ends = [wait.ended for wait in this.waits] + [at for _, at in this.restarts]
        for request in this.requests:
            wrong = block.send(request, self._response_at(request, ends))
            self._ensure(not wrong, f"{wrong}: {request}")

    def _response_at(self, request: LoggedRequest, ends: list[float]) -> float:
        """Return when a client had the response to a request, infinity where it may have ended by then."""
        # A connection that breaks does so at once.
        if request.method == "POST" or not self.this.latency or request.status is None:
            return request.at
        response_at = request.at + self.this.latency
        return math.inf if any(request.at <= end < response_at + TOLERANCE for end in ends) else response_at

    def _key_is_nowhere(self) -> None:
        texts = [self.this.log, *self.this.stored]
        if isinstance(self.this.outcome, BaseException):
            texts += [*traceback.format_exception(self.this.outcome), *map(repr, chain(self.this.outcome))]
        self._ensure(not any(KEY in text for text in texts), "the key is in the log, in Airflow or in an exception")
