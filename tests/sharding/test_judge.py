"""Which rank is the cause, from what is heard of all of them and when."""

import itertools

import pytest

from llmasos_xla.sharding.processes.judge import Judge

BEAT = 10.0


@pytest.fixture
def judge():
    return Judge(3, BEAT, now=0.0)


def test_nobody_failed(judge):
    for now in range(0, 100, 5):
        for rank in range(3):
            judge.heard(rank, float(now))
        assert judge.verdict(float(now)) is None


def test_silence_counts_from_the_last_sign_of_life(judge):
    judge.heard(1, 50.0)
    judge.heard(2, 45.0)
    assert judge.verdict(54.9) is None
    assert judge.verdict(55.1) == (2, "no sign of life for 10 s: stopped, stuck in C code, or cut off the network")


def test_rank_zero_is_where_the_judge_is(judge):
    judge.heard(1, 100.0)
    judge.heard(2, 100.0)
    assert judge.verdict(105.0) is None


def test_sleep_of_the_judge_is_nobodys_silence(judge):
    judge.slept(500.0)
    assert judge.verdict(505.0) is None
    assert judge.verdict(511.0) is not None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_what_a_dead_neighbor_causes_is_never_the_cause(judge, order):
    """In whatever order the three events come, within the heartbeat."""
    events = [
        lambda now: judge.failed(0, "Gloo: connection reset", True, now),
        lambda now: judge.closed(1, now),
        lambda now: judge.failed(2, "Gloo: connection reset", True, now),
    ]
    for step, number in enumerate(order):
        events[number](float(step))
    assert judge.verdict(3.0).rank == 1


def test_a_secondhand_error_is_the_cause_if_no_other_is_found(judge):
    judge.failed(2, "Gloo: timed out", True, 1.0)
    for rank in (1, 2):
        judge.heard(rank, 10.0)
    assert judge.verdict(10.9) is None
    assert judge.verdict(11.1) == (2, "Gloo: timed out")


def test_the_first_error_of_several_is_the_cause(judge):
    judge.failed(2, "ValueError: b", False, 1.0)
    judge.failed(1, "ValueError: a", False, 2.0)
    judge.closed(2, 3.0)
    assert judge.verdict(3.0) == (2, "ValueError: b")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ranks_that_end_together_are_no_failure(judge, order):
    """A connection may be seen to close ahead of another rank's good-bye."""
    judge.ended(order[0], 1.0)
    judge.closed(order[0], 1.1)
    assert judge.verdict(1.2) is None
    for rank in order[1:]:
        judge.ended(rank, 1.3)
    assert judge.all_ended


def test_a_rank_that_is_killed_while_it_waits_for_the_others(judge):
    judge.ended(1, 1.0)
    assert judge.waiting() == ([1], [0, 2], 1.0)
    judge.closed(1, 2.0)
    assert judge.verdict(3.1) == (1, "it was killed while it waited for the others to end")
