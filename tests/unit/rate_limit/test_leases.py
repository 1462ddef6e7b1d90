"""What a lease permits, who gets one, and what becomes of it."""

from __future__ import annotations

import math

import pytest

from airflow_provider_whisul.api.messages import MAX_RETRY_AFTER
from airflow_provider_whisul.rate_limit.limiter_client import CHECK_INTERVAL
from airflow_provider_whisul.rate_limit.rate_limiter import (
    LEASE_SECONDS,
    LEAST_WAIT,
    MAX_AHEAD,
    POLL_SHARE,
    SUBMISSIONS_PRESS_FOR,
    URGENT_POLL_SHARE,
    Lease,
    Permit,
    RateLimiter,
)
from tests.support.limiter_client import NOW, Client, throttled_client


def lease_of(answer: Lease | float) -> Lease:
    assert isinstance(answer, Lease)
    return answer


def wait_of(answer: Lease | float) -> float:
    assert not isinstance(answer, Lease)
    return answer


# --- a lease


@pytest.mark.parametrize(("rate", "wanted", "count"), [(100, 50, 20), (100, 7, 7), (10, 50, 2), (3, 50, 1)])
def test_a_lease_permits_what_is_wanted_but_no_more_than_its_seconds(rate: float, wanted: int, count: int) -> None:
    lease = lease_of(RateLimiter(rate).acquire(NOW, "poll", count=wanted))
    assert (lease.count, lease.interval) == (count, 1 / rate)
    assert count <= max(LEASE_SECONDS * rate, 1)


def test_a_lease_begins_one_interval_after_the_last_request_of_the_one_before() -> None:
    limiter = RateLimiter(20)
    first = lease_of(limiter.acquire(NOW, "poll", count=4))
    second = lease_of(limiter.acquire(NOW, "poll", count=4))
    assert second.delay == pytest.approx(first.delay + 4 / 20)
    assert second.first == first.first + 4


def test_a_lease_that_would_begin_too_far_ahead_is_refused_until_it_does_not() -> None:
    limiter = RateLimiter(0.5)
    lease_of(limiter.acquire(NOW, "poll"))
    wait = wait_of(limiter.acquire(NOW, "poll"))
    assert wait == pytest.approx(2 - MAX_AHEAD)
    assert lease_of(limiter.acquire(NOW + wait, "poll")).delay == pytest.approx(MAX_AHEAD)


def test_a_caller_may_want_a_lease_that_is_less_far_ahead() -> None:
    limiter = RateLimiter(2)
    lease_of(limiter.acquire(NOW, "poll"))
    assert wait_of(limiter.acquire(NOW, "poll", max_ahead=0.1)) == pytest.approx(0.4)
    assert lease_of(limiter.acquire(NOW, "poll")).delay == pytest.approx(0.5)


def test_the_permits_of_a_lease_are_numbered() -> None:
    assert Lease(7, 3, 0.0, 0.1).permit(2) == Permit(9)
    assert Lease(7, 1, 0.0, 0.1, probe=True).permit(0) == Permit(7, probe=True)


@pytest.mark.parametrize("used", [0, 1, 3])
def test_permits_that_are_given_back_are_permitted_again(used: int) -> None:
    limiter = RateLimiter(20)
    lease_of(limiter.acquire(NOW, "poll"))
    lease = lease_of(limiter.acquire(NOW, "poll", count=4))
    limiter.give_back(NOW, lease, used)
    assert lease_of(limiter.acquire(NOW, "poll")).delay == pytest.approx(lease.delay + used * lease.interval)


def test_permits_that_are_given_back_permit_no_burst() -> None:
    limiter = RateLimiter(20)
    lease = lease_of(limiter.acquire(NOW, "poll", count=4))
    limiter.give_back(NOW + 10, lease, 0)
    assert lease_of(limiter.acquire(NOW + 10, "poll")).delay == 0
    assert lease_of(limiter.acquire(NOW + 10, "poll")).delay == pytest.approx(1 / 20)


def test_permits_that_are_given_back_after_later_ones_were_given_are_lost() -> None:
    limiter = RateLimiter(20)
    lease = lease_of(limiter.acquire(NOW, "poll", count=4))
    later = lease_of(limiter.acquire(NOW, "poll"))
    limiter.give_back(NOW, lease, 0)
    assert lease_of(limiter.acquire(NOW, "poll")).delay == pytest.approx(later.delay + 1 / 20)


def test_a_probe_that_is_given_back_is_permitted_again() -> None:
    client = throttled_client()
    client.limiter.give_back(client.now, client.take(), 0)
    assert client.take().probe


def test_a_lease_that_nobody_uses_runs_out() -> None:
    limiter = RateLimiter(20)
    lease_of(limiter.acquire(NOW, "poll", count=4))
    assert lease_of(limiter.acquire(NOW + 1, "poll")).delay == 0


def test_no_lease_is_ahead_during_a_block() -> None:
    client = throttled_client()
    wait = wait_of(client.limiter.acquire(client.now, "poll", count=9))
    assert wait == pytest.approx(5)
    probe = lease_of(client.limiter.acquire(client.now + wait, "poll", count=9))
    assert (probe.count, probe.delay, probe.probe) == (1, 0, True)


def test_the_permits_of_a_lease_hold_no_longer_once_a_block_begins() -> None:
    client = Client(20)
    lease = client.take(count=4)
    assert client.limiter.is_permitted(lease.first + 3)
    client.respond(lease.first, True)
    assert not client.limiter.is_permitted(lease.first + 3)
    probe = client.send()
    assert client.limiter.is_permitted(probe)
    client.respond(probe, False)
    assert client.limiter.is_permitted(client.send())


# --- submissions first


def test_polls_leave_the_larger_share_to_submissions() -> None:
    for urgent, share in ((False, POLL_SHARE), (True, URGENT_POLL_SHARE)):
        limiter, now, polls, submissions = RateLimiter(10), NOW, 0, 0
        while now < NOW + 60:
            # Submissions take all that they can get.
            while isinstance(limiter.acquire(now, "submission"), Lease):
                submissions += 1
            answer = limiter.acquire(now, "poll", urgent=urgent)
            if isinstance(answer, Lease):
                polls += answer.count
            now += 0.05
        assert polls / (polls + submissions) == pytest.approx(share, rel=0.2)
        assert polls + submissions == pytest.approx(600, rel=0.05)


def test_polls_have_what_submissions_leave() -> None:
    limiter, now, polls, submissions = RateLimiter(10), NOW, 0, 0
    while now < NOW + 60:
        if (now - NOW) % 1 == 0:
            submissions += isinstance(limiter.acquire(now, "submission"), Lease)
        answer = limiter.acquire(now, "poll", count=50)
        if isinstance(answer, Lease):
            polls += answer.count
        now += 0.0625
    assert submissions == 60
    assert polls > 400


def test_a_submission_waits_for_no_lease_of_polls_that_only_use_what_is_left() -> None:
    limiter = RateLimiter(100)
    lease_of(limiter.acquire(NOW, "submission"))
    polls = lease_of(limiter.acquire(NOW + 1, "poll", count=50))
    assert polls.count == LEAST_WAIT * 100
    assert lease_of(limiter.acquire(NOW + 1, "submission")).delay <= LEAST_WAIT + 1e-6


def test_polls_have_the_whole_rate_once_no_submission_has_asked_for_a_while() -> None:
    limiter = RateLimiter(10)
    for _ in range(5):
        limiter.acquire(NOW, "submission")
    asked_at = NOW + SUBMISSIONS_PRESS_FOR + 0.01
    for number in range(5):
        assert lease_of(limiter.acquire(asked_at, "poll")).delay == pytest.approx(number / 10)


def test_a_poll_that_may_not_be_sent_yet_asks_again_in_a_while() -> None:
    limiter = RateLimiter(10)
    lease_of(limiter.acquire(NOW, "poll"))
    for _ in range(5):
        limiter.acquire(NOW, "submission")
    assert 0.01 <= wait_of(limiter.acquire(NOW, "poll")) <= MAX_AHEAD


@pytest.mark.parametrize("submitting", [True, False])
def test_polls_that_wait_do_not_ask_in_a_busy_loop(submitting: bool) -> None:
    limiter, now, refused = RateLimiter(1_000), NOW, 0
    while now < NOW + 1:
        # Others take all that there is.
        while submitting and isinstance(limiter.acquire(now, "submission"), Lease):
            pass
        if not isinstance(answer := limiter.acquire(now, "poll"), Lease):
            refused += 1
            now += answer
    assert 0 < refused <= 21


# --- a pause, and a response that asks to wait


def test_a_pause_begins_a_block_that_lasts_at_least_so_long() -> None:
    client = Client(10)
    client.limiter.pause(client.now, 30)
    assert client.blocked
    assert client.cooldown == pytest.approx(30)
    assert client.take().probe


def test_a_pause_long_after_a_long_block_lasts_no_longer_than_it_says() -> None:
    client = throttled_client()
    client.trip(failed_probes=4)
    client.now += 100
    client.limiter.pause(client.now, 1.0)
    assert client.cooldown == pytest.approx(1.0)


def test_a_pause_during_a_block_prolongs_it_and_never_shortens_it() -> None:
    client = throttled_client()
    client.limiter.pause(client.now, 2)
    assert client.cooldown == pytest.approx(5)
    rate = client.rate
    client.limiter.pause(client.now, 30)
    assert client.cooldown == pytest.approx(30)
    assert client.rate == rate


def test_a_pause_long_after_a_block_began_leaves_a_state_that_can_be_read() -> None:
    client = throttled_client()
    # Nobody has had anything to send for hours, so that nothing has found the block to be over.
    client.now += 3 * MAX_RETRY_AFTER
    client.limiter.pause(client.now, 30)
    read = RateLimiter.from_dict(client.limiter.as_dict())
    assert read.block.active
    assert read.next_allowed_at(client.now) == pytest.approx(client.now + 30)


def test_a_response_that_says_that_the_limit_is_used_up_delays_the_next_request_without_a_block() -> None:
    client = Client(10)
    request = client.send()
    assert not client.respond(request, False, 12)
    assert not client.blocked
    assert client.cooldown == pytest.approx(12)
    assert client.rate == 10


def test_the_response_to_a_probe_that_says_so_ends_the_block_and_delays_the_next_request() -> None:
    client = throttled_client()
    assert client.respond(client.send(), False, 12)
    assert not client.blocked
    assert client.cooldown == pytest.approx(12)


def test_times_of_submissions_and_polls_that_a_reset_clock_left_ahead_delay_nothing() -> None:
    limiter = RateLimiter(10)
    limiter.acquire(NOW + 3600, "submission")
    limiter.acquire(NOW + 3600.2, "poll")
    wait_or_lease = limiter.acquire(NOW, "poll")
    delay = wait_or_lease.delay if isinstance(wait_or_lease, Lease) else wait_or_lease
    assert delay <= 0.1 + 1e-6
    assert limiter.submissions_until <= NOW + SUBMISSIONS_PRESS_FOR
    assert math.isfinite(limiter.last_poll_at)


def test_a_submission_that_is_refused_changes_nothing_shortly_after_another_one() -> None:
    limiter = RateLimiter(0.5)
    lease_of(limiter.acquire(NOW, "submission"))
    wait_of(limiter.acquire(NOW + 0.6, "submission"))
    known = limiter.as_dict()
    # Hundreds of processes that wait would each write, and get in each other's way.
    wait_of(limiter.acquire(NOW + 0.9, "submission"))
    assert limiter.as_dict() == known


def test_submissions_press_without_a_break_while_one_asks_every_second() -> None:
    limiter = RateLimiter(0.01)
    lease_of(limiter.acquire(NOW, "submission"))
    for number in range(1, 30):
        now = NOW + CHECK_INTERVAL * number
        assert limiter.submissions_until > now
        wait_of(limiter.acquire(now, "submission"))
