"""Which poll goes first, as decisions alone: time is a number here."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_whisul.rate_limit.durations import Durations
from airflow_provider_whisul.rate_limit.poll_queue import ORDER_SECONDS, PollQueue, WaitingPoll

UNKNOWN = Durations()
#: All jobs take 60 to 159 s.
KNOWN = Durations(list(range(60, 160)))


def queue_of(*polls: WaitingPoll) -> PollQueue:
    queue = PollQueue()
    for poll in polls:
        queue.add(poll)
    return queue


def popped(queue: PollQueue, now: float, durations: Durations = UNKNOWN) -> list[WaitingPoll]:
    return [queue.pop(now, durations) for _ in range(len(queue))]


def of_dag(dag_id: str, jobs: int, due: float = 0.0, interval: float = 10.0) -> list[WaitingPoll]:
    return [WaitingPoll(due + job / 1000, dag_id, poll_interval=interval) for job in range(jobs)]


def test_polls_of_one_dag_go_in_the_order_in_which_they_were_due() -> None:
    polls = [WaitingPoll(due, "dag") for due in (3, 1, 2)]
    assert [poll.due for poll in popped(queue_of(*polls), 3)] == [1, 2, 3]


def test_a_queue_counts_the_polls_that_wait() -> None:
    first, second = polls = of_dag("dag", 2)
    queue = queue_of(*polls)
    queue.discard(first)
    queue.discard(first)
    assert len(queue) == 1
    assert queue.pop(0, UNKNOWN) is second
    assert len(queue) == 0


def test_a_poll_that_no_longer_waits_is_not_sent_though_it_was_in_order_already() -> None:
    polls = of_dag("dag", 5)
    queue = queue_of(*polls)
    assert queue.pop(0, UNKNOWN) is polls[0]
    queue.discard(polls[1])
    queue.discard(polls[4])
    added = WaitingPoll(0.5, "dag")
    queue.add(added)
    assert popped(queue, 0.5) == [polls[2], polls[3], added]


def test_how_long_the_oldest_poll_has_been_overdue() -> None:
    queue = queue_of()
    assert queue.overdue(100) == 0
    for due in (90, 70, 80):
        queue.add(WaitingPoll(due))
    assert queue.overdue(100) == 30


# --- between DAGs


def test_dags_take_turns() -> None:
    queue = queue_of(*of_dag("a", 4), *of_dag("b", 2), *of_dag("c", 1))
    assert [poll.dag_id for poll in popped(queue, 1)] == ["a", "b", "c", "a", "b", "a", "a"]


def test_a_poll_without_a_dag_is_as_one_of_a_dag_of_its_own() -> None:
    queue = queue_of(*of_dag("a", 3), *of_dag("", 2))
    assert [poll.dag_id for poll in popped(queue, 1)] == ["a", "", "", "a", "a"]


def test_dags_take_turns_also_where_polls_are_sent_so_seldom_that_the_order_changes_between_them() -> None:
    queue = queue_of(*of_dag("a", 10, interval=100), *of_dag("b", 10, interval=100))
    order = [queue.pop(2 * ORDER_SECONDS * at, UNKNOWN).dag_id for at in range(12)]
    assert order == ["a", "b"] * 6


def test_a_queue_remembers_no_turns_of_dags_of_which_no_poll_waits() -> None:
    queue = PollQueue()
    for now in range(100):
        for poll in [*of_dag("", 3, due=now), *of_dag(f"dag {now}", 1, due=now)]:
            queue.add(poll)
        assert len(popped(queue, now)) == 4
    assert len(queue._last_turn) <= 4 * (ORDER_SECONDS + 1)


@pytest.mark.parametrize("waited", [0.0, 40.0, 100.0, 1000.0])
@pytest.mark.parametrize("seconds_between", [0.01, 0.1, 2.0])
def test_three_jobs_beside_a_thousand_are_polled_within_a_few_turns(waited: float, seconds_between: float) -> None:
    """Also where all of the thousand are urgent, since the limit is far too low for them."""
    queue, now = queue_of(*of_dag("thousand", 1000)), waited
    for _ in range(7):
        queue.pop(now, KNOWN)
    now += ORDER_SECONDS
    for poll in of_dag("three", 3, due=now):
        queue.add(poll)
    turns = []
    for _ in range(10):
        turns.append(queue.pop(now, KNOWN).dag_id)
        now += seconds_between
    assert turns[:7].count("three") == 3


# --- within a DAG


@pytest.mark.parametrize(
    ("waited", "durations", "first"),
    [(5, KNOWN, "late"), (2, KNOWN, "early"), (5, Durations(KNOWN.seconds[:19]), "early"), (5, UNKNOWN, "early")],
    ids=["pressing", "not pressing", "too little learnt", "nothing learnt"],
)
def test_where_the_rate_limit_presses_the_job_that_is_most_probably_over_goes_first(
    waited: float, durations: Durations, first: str
) -> None:
    now = 1000.0
    young = WaitingPoll(now - waited, "dag", submitted=now - 70)
    late = WaitingPoll(now - waited + 1, "dag", submitted=now - 150)
    order = popped(queue_of(young, late), now, durations)
    assert order == ([late, young] if first == "late" else [young, late])


def test_a_job_that_was_just_polled_is_less_probably_over_than_one_that_was_not() -> None:
    now = 1000.0
    polled = WaitingPoll(now - 5, "dag", submitted=now - 120, last_poll=now - 10)
    not_polled = WaitingPoll(now - 4, "dag", submitted=now - 120, last_poll=now - 50)
    assert popped(queue_of(polled, not_polled), now, KNOWN) == [not_polled, polled]


def test_a_job_of_which_nobody_knows_when_it_was_submitted_goes_between_the_others() -> None:
    now = 1000.0
    young, old = (WaitingPoll(now - 5, "dag", submitted=now - age) for age in (70, 150))
    unknown = WaitingPoll(now - 4, "dag")
    assert popped(queue_of(young, unknown, old), now, KNOWN) == [old, unknown, young]


def test_of_jobs_that_are_equally_probably_over_the_one_that_was_due_first_goes_first() -> None:
    early, late = WaitingPoll(990, "dag"), WaitingPoll(995, "dag")
    assert popped(queue_of(late, early), 1000, KNOWN) == [early, late]


# --- urgent polls


@pytest.mark.parametrize(("interval", "urgent_after"), [(5, 25), (10, 50), (12, 60), (600, 60)])
def test_a_poll_is_urgent_after_half_of_the_time_that_no_job_shall_go_unpolled(
    interval: float, urgent_after: float
) -> None:
    queue = queue_of(WaitingPoll(100, poll_interval=interval))
    assert not queue.urgent(100 + urgent_after - 0.1)
    assert queue.urgent(100 + urgent_after)
    assert not queue_of().urgent(1e9)


def test_urgent_polls_go_first_the_oldest_before_the_others() -> None:
    now = 1000.0
    probable = WaitingPoll(now - 10, "dag", submitted=now - 150)
    improbable = [WaitingPoll(now - waited, "dag", submitted=now - 61) for waited in (51, 70, 60)]
    order = popped(queue_of(probable, *improbable), now, KNOWN)
    assert [now - poll.due for poll in order] == [70, 60, 51, 10]


def test_once_no_urgent_poll_is_left_all_dags_take_turns_again() -> None:
    queue = queue_of(WaitingPoll(40, "late"), *of_dag("late", 3, due=99), *of_dag("calm", 4, due=99))
    order = [poll.dag_id for poll in popped(queue, 100)]
    assert order[:2] == ["late", "calm"]
    assert order[2:6].count("calm") in (1, 2)


def test_urgent_polls_of_one_dag_have_every_second_turn_beside_a_hundred_dags_that_are_not_late() -> None:
    queue = queue_of(*of_dag("late", 100), *(WaitingPoll(99, f"dag {number}") for number in range(100)))
    for seldom in (0.0, ORDER_SECONDS):
        assert Counter(queue.pop(100 + seldom * at, UNKNOWN).dag_id == "late" for at in range(20))[True] == 10


@settings(deadline=None, max_examples=40)
@given(
    dags=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    rate=st.floats(1.0, 30.0),
    seed=st.integers(0, 1000),
    learnt=st.booleans(),
)
def test_no_poll_starves(dags: list[int], rate: float, seed: int, learnt: bool) -> None:
    """Each job asks again one interval after its poll, for ever; the rate is too low for all of them."""
    chance = random.Random(seed)
    jobs = sum(dags)
    queue, now = PollQueue(), 0.0
    coming: list[tuple[float, WaitingPoll]] = []
    for number, count in enumerate(dags):
        for _ in range(count):
            due = chance.uniform(0, 10)
            coming.append((due, WaitingPoll(due, f"dag {number}", submitted=due - chance.uniform(0, 300))))
    longest = 0.0
    while now < 400:
        now += 1 / rate
        for due, poll in [each for each in coming if each[0] <= now]:
            coming.remove((due, poll))
            queue.add(poll)
        if queue:
            poll = queue.pop(now, KNOWN if learnt else UNKNOWN)
            longest = max(longest, now - poll.due)
            coming.append((now + 10, WaitingPoll(now + 10, poll.dag_id, poll.submitted, last_poll=now)))
    longest = max(longest, queue.overdue(now))
    # Half of the rate is for urgent polls at least, and there are never more of them than jobs.
    assert longest <= 50 + 2 * jobs / rate + 2 * ORDER_SECONDS


# --- its cost


def test_the_next_poll_of_a_thousand_costs_less_than_a_tenth_of_a_millisecond() -> None:
    chance = random.Random(1)
    now = 1000.0

    def poll() -> WaitingPoll:
        return WaitingPoll(now - chance.uniform(0, 60), f"dag {chance.randrange(5)}", now - chance.uniform(60, 200))

    queue = queue_of(*(poll() for _ in range(1000)))
    # The least of some spans: where other programs take both cores, CPU time is several times as much.
    least = 1.0
    for _ in range(20):
        began = time.thread_time()
        # A second in which 100 polls are sent, and as many come.
        for _ in range(100):
            queue.pop(now, KNOWN)
            now += 0.01
            queue.add(poll())
        least = min(least, (time.thread_time() - began) / 100)
    assert least < 100e-6
