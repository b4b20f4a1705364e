"""Traces of jobs through the planner and through other schedulers: figures that can be worked out, and laws."""

import dataclasses
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.runtime.backfill import Runs, Waits, easy, fifo, slurm
from llmasos_xla.runtime.claims import Node, Rules
from llmasos_xla.runtime.simulation import Costs, by_plan, by_scheduler, simulate
from llmasos_xla.runtime.workload import CLASSES, Job, workload

law = settings(max_examples=100, deadline=None, derandomize=True)
COSTS = Costs(drain=10.0, start=20.0)


def slots(count):
    return [Node("here", (0,) * count, 0)]


def fates(outcome):
    return {fate.job.name: fate for fate in outcome.fates}


def test_one_job_alone():
    job = Job("one", arrival=5.0, asked=2, sizes=(2,), seconds=100.0, limit=200.0)
    for decide in (by_plan(slots(2)), by_scheduler(fifo, 2)):
        outcome = simulate([job], 2, decide, COSTS)
        assert outcome.makespan == pytest.approx(120.0)
        assert outcome.busy == pytest.approx(200.0)
        assert outcome.utilization == pytest.approx(200 / 240)
        (fate,) = outcome.fates
        assert (fate.waited, fate.preempted, fate.resized) == (0.0, 0, 0)


def test_a_resize_costs_what_is_stated():
    # Low runs on 2 devices from 0 s; at 500 s urgent wants one. Both wait 10 s until low has saved, and start in 20 s.
    low = Job("low", 0.0, asked=2, sizes=(1, 2), seconds=1000.0, limit=2000.0, power=1.0)
    urgent = Job("urgent", 500.0, asked=1, sizes=(1,), seconds=100.0, limit=200.0, priority=10)
    outcome = simulate([low, urgent], 2, by_plan(slots(2), Rules(least_run=50.0)), COSTS, frozen=50.0)
    found = fates(outcome)
    assert found["urgent"].took == pytest.approx(130.0)
    # Done by 500 s: 480 s. On one device from 530 to 630 s: worth 50. Then 30 s for the resize, and the other 470 s.
    assert found["low"].took == pytest.approx(500 + 130 + 30 + 470)
    assert (found["low"].resized, found["low"].preempted, found["low"].waited) == (2, 0, 0.0)


def test_who_is_preempted_goes_on_where_it_was():
    low = Job("low", 0.0, asked=1, sizes=(1,), seconds=1000.0, limit=2000.0)
    urgent = Job("urgent", 500.0, asked=1, sizes=(1,), seconds=100.0, limit=200.0, priority=10)
    found = fates(simulate([low, urgent], 1, by_plan(slots(1)), COSTS, frozen=120.0))
    assert found["urgent"].took == pytest.approx(130.0)
    assert found["low"].took == pytest.approx(20 + 1000 + 130 + 20)
    assert (found["low"].preempted, found["low"].waited) == (1, pytest.approx(130.0))


def contest(jobs, count, rules=Rules()):
    return {
        "fifo": simulate(jobs, count, by_scheduler(fifo, count, COSTS, priorities=False), COSTS),
        "easy": simulate(jobs, count, by_scheduler(easy, count, COSTS), COSTS),
        "slurm": simulate(jobs, count, by_scheduler(slurm, count, COSTS), COSTS),
        "fixed": simulate(jobs, count, by_plan(slots(count), rules, elastic=False), COSTS, frozen=rules.least_run),
        "plan": simulate(jobs, count, by_plan(slots(count), rules), COSTS, frozen=rules.least_run),
    }


def test_every_job_is_done_once_and_in_full():
    jobs = workload(40, 8, seed=0)
    assert [job.arrival for job in jobs] == sorted(job.arrival for job in jobs)
    for name, outcome in contest(jobs, 8).items():
        assert [fate.job for fate in outcome.fates] == jobs, name
        assert 0 < outcome.utilization < 1
        for fate in outcome.fates:
            best = fate.job.seconds / (fate.job.pace(max(fate.job.sizes)) if name == "plan" else 1)
            assert fate.took >= fate.waited + COSTS.start + best - 1e-3
            if name in ("fifo", "easy", "slurm"):
                assert fate.took == pytest.approx(fate.waited + COSTS.start + fate.job.seconds)
                assert fate.preempted == fate.resized == 0
                assert fate.began == pytest.approx(fate.waited)


def test_the_same_trace_has_the_same_outcome():
    jobs = workload(15, 8, seed=1)
    assert workload(15, 8, seed=1) == jobs
    assert simulate(jobs, 8, by_plan(slots(8)), COSTS) == simulate(jobs, 8, by_plan(slots(8)), COSTS)


def test_priorities_are_worth_something():
    outcome = contest(workload(60, 8, seed=0), 8)["plan"]
    low, middle, high = (
        statistics.mean(fate.waited for fate in outcome.fates if fate.job.priority == priority) for priority in CLASSES
    )
    assert low > middle >= high


def stream(hours):
    """A gang of all four devices at 0 s, and jobs of more priority that keep all devices busy."""
    gang = Job("gang", 0.5, asked=4, sizes=(4,), seconds=300.0, limit=600.0)
    others = [
        Job(f"other{i:03}", 300.0 * i, asked=2, sizes=(2,), seconds=600.0, limit=1200.0, priority=2)
        for i in range(int(hours * 12))
    ]
    return [gang, *others]


def test_nobody_starves_under_a_stream_without_end():
    rules = Rules(aging=1800.0, least_run=120.0)
    found = fates(simulate(stream(8), 4, by_plan(slots(4), rules), COSTS, frozen=rules.least_run))
    # Two points ahead, one for running, and one of the stream's own waiting; then nobody is younger than 120 s.
    assert found["gang"].began < (2 + 1 + 1) * rules.aging + 2 * rules.least_run
    # Without aging it waits until the stream is over.
    never = dataclasses.replace(rules, aging=float("inf"))
    found = fates(simulate(stream(4), 4, by_plan(slots(4), never), COSTS, frozen=rules.least_run))
    assert found["gang"].began > 4 * 3600


@pytest.mark.thorough
@pytest.mark.parametrize("wants", [2, 3, 4])
def test_equals_do_not_keep_a_gang_out(wants):
    # Small jobs always run, and one or another of them may not be touched yet.
    rules = Rules(aging=900.0, least_run=120.0)
    gang = Job("gang", 50.5, asked=wants, sizes=(wants,), seconds=300.0, limit=600.0)
    small = [Job(f"small{i:03}", 50.0 * i, asked=1, sizes=(1,), seconds=230.0, limit=500.0) for i in range(60)]
    found = fates(simulate([gang, *small], 4, by_plan(slots(4), rules), COSTS, frozen=rules.least_run))
    assert found["gang"].began < 2 * rules.aging + 2 * rules.least_run


def test_who_never_fits_is_told():
    job = Job("wide", 0.0, asked=4, sizes=(4,), seconds=1.0, limit=1.0)
    for decide in (by_plan(slots(2)), by_scheduler(fifo, 2), by_scheduler(slurm, 2)):
        with pytest.raises(ValueError, match="simulate: wide asks for 4 devices, and there are 2"):
            simulate([job], 2, decide)


@st.composite
def queues(draw):
    devices = draw(st.integers(1, 8))
    free, running = devices, []
    for _ in range(draw(st.integers(0, 4))):
        if free:
            running.append((draw(st.integers(1, free)), draw(st.sampled_from([1.0, 5.0, 7.0, 20.0]))))
            free -= running[-1][0]
    waiting = draw(
        st.lists(st.tuples(st.integers(1, devices), st.sampled_from([1.0, 4.0, 6.0, 30.0])), min_size=1, max_size=6)
    )
    return devices, running, waiting


def first_start(running, devices, wants):
    """Seconds until that many devices are free, if nobody else starts."""
    times = sorted([0.0, *(seconds for _, seconds in running)])
    return next(t for t in times if devices - sum(size for size, seconds in running if seconds > t) >= wants)


@law
@given(queues())
def test_backfill_delays_nobody_it_has_promised(queue):
    devices, running, waiting = queue
    runs = [Runs(*one) for one in running]
    waits = [Waits(f"job{i}", *one) for i, one in enumerate(waiting)]
    free = devices - sum(size for size, _ in running)
    simple = fifo(waits, runs, devices)
    for scheduler in (easy, slurm):
        starts = scheduler(waits, runs, devices)
        assert set(simple) <= set(starts)
        assert sum(one.devices for one in waits if one.name in starts) <= free
        rest = [one for one in waits if one.name not in starts]
        if rest and rest[0] is waits[len(simple)]:
            ahead = [*running, *((one.devices, one.seconds) for one in waits[: len(simple)])]
            after = [*running, *((one.devices, one.seconds) for one in waits if one.name in starts)]
            assert first_start(after, devices, rest[0].devices) <= first_start(ahead, devices, rest[0].devices)


def test_slurm_promises_to_more_than_the_first():
    # first begins at 10 s on 3 of 4 devices, second at 20 s on all; third would delay second alone.
    waits = [Waits("first", 3, 10.0), Waits("second", 4, 10.0), Waits("third", 1, 25.0)]
    running = [Runs(3, 10.0)]
    assert easy(waits, running, 4) == ["third"]
    assert slurm(waits, running, 4) == []
