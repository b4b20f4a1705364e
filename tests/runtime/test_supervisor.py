"""From state to state: who gets devices, who makes room, what becomes of those that end, with a launcher that plays."""

import time

import pytest
from runtime_jobs import spec

from llmasos_xla.progress import Need, Progress, ask, is_granted, write
from llmasos_xla.runtime.claims import Node, Rules
from llmasos_xla.runtime.jobs import MOST_DEVICES
from llmasos_xla.runtime.launchers.protocol import LOST, how_it_ended
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.supervisor import Supervisor

GiB = 1 << 30


class Stage:
    """A launcher whose attempts end when a test says so."""

    def __init__(self, devices=4, memory=8 * GiB):
        self.nodes = (Node("n", (0,) * devices, memory),)
        self.live, self.over, self.drained = {}, {}, []
        self.refuses = self.shares = False

    def capacity(self):
        return self.nodes

    def start(self, attempt):
        if self.refuses:
            raise OSError("no more processes")
        assert attempt.job not in {each.job for each in self.live.values()}
        used = {place for each in self.live.values() for place in each.places}
        assert self.shares or not used & set(attempt.places)
        self.live[attempt.token] = attempt
        return attempt.token

    def drain(self, attempt, handle):
        self.drained.append(attempt.job)

    def kill(self, attempt, handle):
        self.end(attempt.job, LOST)

    def poll(self, attempt, handle):
        if attempt.token in self.over:
            return self.over[attempt.token]
        return None if attempt.token in self.live else LOST

    def end(self, job, status):
        token = next(token for token, each in self.live.items() if each.job == job)
        self.over[token] = status
        del self.live[token]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def store(home, clock):
    found = Store(home.store, clock)
    yield found
    found.close()


@pytest.fixture
def make(home, store, stage, clock):
    return lambda **rules: Supervisor(
        home, store, stage, Rules(**{"least_run": 0.0, "margin": 0.0, **rules}), clock=clock, steady=clock
    )


def states(store):
    return [job.state for job in store.jobs()]


def test_what_fits_runs_and_the_rest_waits(store, stage, make):
    for count in (2, 1, 2):
        store.submit(spec("x", devices=(count, count)))
    supervisor = make()
    supervisor.tick()
    assert states(store) == ["running", "running", "queued"]
    assert store.job(3).reason
    stage.end(1, 0)
    supervisor.tick()
    assert states(store) == ["done", "running", "running"]
    assert [event.what for event in store.events(1)] == ["queued", "starting", "running", "done"]


def test_a_look_without_planning_plans_where_it_finds_a_change(store, stage, make):
    store.submit(spec("x", devices=(4, 4)))
    supervisor = make()
    supervisor.tick(planning=False)
    assert states(store) == ["queued"]
    supervisor.tick()
    store.submit(spec("x", devices=(4, 4)))
    stage.end(1, 0)
    supervisor.tick(planning=False)
    assert states(store) == ["done", "running"]


def test_jobs_share_a_gpu_where_their_bytes_fit(store, stage, make):
    """Both have been seen to need 30 of its 80 GiB; a third that needs 30 more has to wait."""
    stage.nodes, stage.shares = (Node("n", (80 * GiB,), 64 * GiB),), True
    for _ in range(3):
        job = store.submit(spec("x"))
        store.change(job, need={"host": {"1": GiB}, "device": {"1": 30 * GiB}})
    make(sharing=True).tick()
    assert states(store) == ["running", "running", "queued"]
    assert {attempt.device_bytes for attempt in stage.live.values()} == {30 * GiB}


def test_as_many_as_there_are(store, stage, make):
    """By a range that no machine fills: what it never gets is not planned."""
    store.submit(spec("a", devices=(1, MOST_DEVICES), preemptible=True))
    supervisor = make()
    began = time.perf_counter()
    supervisor.tick()
    assert store.job(1).size == 4
    store.submit(spec("b", devices=(2, 2), priority=1))
    stage.nodes = (Node("n", (0,) * 3, 8 * GiB),)
    supervisor.tick()
    assert states(store) == ["draining", "queued"]
    assert time.perf_counter() - began < 2.0


def test_one_makes_room_and_gets_it_back(store, stage, make, clock):
    """A on 3; B, more urgent, wants 2: A saves, goes on with 1; when B is done, with 3 again."""
    store.submit(spec("a", name="A", devices=(1, 3), sizes=(1, 3), preemptible=True))
    supervisor = make()
    supervisor.tick()
    assert store.job(1).size == 3
    store.submit(spec("b", name="B", priority=10, devices=(2, 2)))
    clock.now += 10
    supervisor.tick()
    assert (states(store), stage.drained) == (["draining", "queued"], [1])
    assert "shrinks from 3 to 1" in store.job(1).reason
    # Nothing is given away before it is acknowledged.
    for _ in range(3):
        supervisor.tick()
    assert len(stage.live) == 1
    stage.end(1, 75)
    supervisor.tick()
    assert [(job.state, job.size) for job in store.jobs()] == [("running", 1), ("running", 2)]
    clock.now += 10
    stage.end(2, 0)
    supervisor.tick()
    stage.end(1, 75)
    supervisor.tick()
    assert (store.job(1).state, store.job(1).size, store.job(1).failures) == ("running", 3, 0)


def test_only_who_saves_itself_makes_room(home, store, stage, make, clock):
    store.submit(spec("a", devices=(1, 4)))
    supervisor = make()
    supervisor.tick()
    store.submit(spec("b", priority=10))
    supervisor.tick()
    assert states(store) == ["running", "queued"]
    beginning = home.job(1) / store.job(1).token
    beginning.parent.mkdir(parents=True)
    write(beginning, 0, Progress(3, 0, 0.5, False, clock.now))
    supervisor.tick()
    assert states(store) == ["running", "queued"]
    write(beginning, 0, Progress(4, 0, 0.5, True, clock.now))
    supervisor.tick()
    assert states(store) == ["draining", "queued"]


def test_failures_are_tried_again_a_few_times_and_later_each_time(store, stage, make, clock):
    store.submit(spec("a", retries=2))
    supervisor = make()
    for failures in (1, 2):
        supervisor.tick()
        stage.end(1, 9)
        supervisor.tick()
        job = store.job(1)
        assert (job.state, job.failures) == ("queued", failures)
        assert f"it ended with status 9; {2 - failures} more tries" in job.reason
        pause = job.not_before - clock.now
        assert pause == 2.0 ** (failures - 1)
        clock.now += pause
    supervisor.tick()
    stage.end(1, 137)
    supervisor.tick()
    job = store.job(1)
    assert (job.state, job.status, job.reason) == ("failed", 137, "signal 9 ended it, 3 times")


def test_who_was_ended_for_another_has_not_failed(store, stage, make):
    store.submit(spec("a", preemptible=True, devices=(4, 4), retries=0))
    supervisor = make()
    supervisor.tick()
    store.submit(spec("b", priority=1, devices=(4, 4)))
    supervisor.tick()
    stage.end(1, 143)
    supervisor.tick()
    assert [(job.state, job.failures) for job in store.jobs()] == [("queued", 0), ("running", 0)]


def test_memory_is_never_promised_twice(store, stage, make):
    for _ in range(3):
        store.submit(spec("a", memory=3 * GiB))
    supervisor = make()
    supervisor.tick()
    assert states(store) == ["running", "running", "queued"]
    store.submit(spec("a", memory=20 * GiB, name="large"))
    supervisor.tick()
    assert "20" in store.job(4).reason
    stage.end(1, 0)
    supervisor.tick()
    assert states(store) == ["done", "running", "running", "queued"]


def test_who_asks_for_what_there_is_begins_and_who_asks_for_more_waits(home, store, stage, make):
    """Three fits start, and learn what they need only then: two of 3 GiB begin, the third gives its devices back."""
    for _ in range(3):
        store.submit(spec("a", devices=(1, 2), sizes=(1,)))
    supervisor = make()
    supervisor.tick()
    assert states(store) == ["running"] * 3
    beginnings = [home.job(job.number) / job.token for job in store.jobs()]
    for beginning in beginnings:
        beginning.parent.mkdir(parents=True)
        ask(beginning, 0, Need(3 * GiB, 0))
    supervisor.tick()
    assert [is_granted(beginning) for beginning in beginnings] == [True, True, False]
    assert (states(store), stage.drained) == (["running", "running", "draining"], [3])
    assert store.job(3).reason == "it needs 3.00 GiB of memory, more than the others leave"
    stage.end(3, 75)
    for _ in range(3):
        supervisor.tick()
    # Known by now, its need is waited for.
    assert states(store) == ["running", "running", "queued"]
    assert store.job(3).need == {"host": {"1": 3 * GiB}}
    stage.end(1, 0)
    supervisor.tick()
    assert states(store) == ["done", "running", "running"]


def test_jobs_after_jobs(store, stage, make):
    store.submit(spec("a", retries=0))
    store.submit(spec("b", after=(1,)))
    store.submit(spec("c", retries=0))
    store.submit(spec("d", after=(1, 3)))
    supervisor = make()
    supervisor.tick()
    assert states(store) == ["running", "waiting", "running", "waiting"]
    stage.end(1, 0)
    stage.end(3, 1)
    supervisor.tick()
    supervisor.tick()
    assert states(store) == ["done", "running", "failed", "cancelled"]
    assert store.job(4).reason == "job 3, which comes before it, failed"


def test_cancelled_while_it_runs(store, stage, make):
    store.submit(spec("a"))
    supervisor = make()
    supervisor.tick()
    store.ask(1, "cancel")
    supervisor.tick()
    assert (states(store), stage.drained) == (["draining"], [1])
    stage.end(1, 75)
    supervisor.tick()
    assert states(store) == ["cancelled"]


@pytest.mark.parametrize(("status", "drains"), [(75, False), (75, True), (1, False), (0, False)])
def test_cancelled_just_as_it_ends(home, store, stage, make, status, drains):
    """The wish comes between the engine's look at the job and what it does about its end."""
    store.submit(spec("a"))
    supervisor = make()
    supervisor.tick()
    if drains:
        store.ask(1, "drain")
        supervisor.tick()
    stage.end(1, status)
    other, poll = Store(home.store), stage.poll

    def polled(attempt, handle):
        other.ask(attempt.job, "cancel")
        return poll(attempt, handle)

    stage.poll = polled
    supervisor.tick()
    supervisor.tick()
    assert states(store) == ["cancelled"]
    assert not stage.live
    other.close()


def test_a_stuck_rank_is_started_again(home, store, stage, make, clock):
    store.submit(spec("a", stuck_after=5.0))
    supervisor = make()
    supervisor.tick()
    beginning = home.job(1) / store.job(1).token
    beginning.parent.mkdir(parents=True)
    for now, step in ((1001.0, 7), (1004.0, 8), (1008.0, 9)):
        clock.now = now
        # The other rank waits for it in its next step.
        write(beginning, 0, Progress(step + 1, 0, None, True, now))
        write(beginning, 1, Progress(min(step, 8), 0, None, True, now))
        supervisor.tick()
    assert states(store) == ["running"]
    clock.now = 1010.0
    supervisor.tick()
    supervisor.tick()
    job = store.job(1)
    assert (job.state, job.failures) == ("queued", 1)
    assert "rank 1 was stuck at step 8 for 5 s" in job.reason


def test_a_clock_that_is_set_makes_nobody_stuck_and_keeps_nobody_waiting(home, store, stage, clock):
    steady = Clock()
    rules = Rules(least_run=120.0, margin=0.0)
    supervisor = Supervisor(home, store, stage, rules, clock=clock, steady=steady)
    store.submit(spec("a", stuck_after=5.0, devices=(4, 4), preemptible=True))
    supervisor.tick()
    beginning = home.job(1) / store.job(1).token
    beginning.parent.mkdir(parents=True)
    write(beginning, 0, Progress(1, 0, None, True, 1000.0))
    # A machine that has slept for a day.
    for clock.now in (1000.0, 87400.0):
        supervisor.tick()
    assert states(store) == ["running"]
    # And one whose clock was a day ahead: nobody knows how long the job has run, and that it failed a moment ago.
    stage.end(1, 1)
    supervisor.tick()
    assert store.job(1).not_before > clock.now
    clock.now = 1000.0
    supervisor.tick()
    assert states(store) == ["running"]
    clock.now = -80000.0
    store.submit(spec("b", priority=5))
    supervisor.tick()
    assert states(store) == ["draining", "queued"]


def test_statuses_in_words():
    assert [how_it_ended(status) for status in (3, 137, 255)] == [
        "it ended with status 3",
        "signal 9 ended it",
        "it ended with status 255",
    ]


def test_a_supervisor_after_one_that_was_killed_goes_on(store, stage, make, clock):
    for name in ("never started", "started and not written down", "runs", "was to end", "ended meanwhile"):
        store.submit(spec("x", name=name.replace(" ", "-")))
    started = {}
    for job in store.jobs():
        token = f"t{job.number}"
        places = (("n", job.number % 4),) if job.number != 5 else ()
        state = {4: "draining", 1: "starting", 2: "starting"}.get(job.number, "running")
        handle = None if state == "starting" else token
        store.change(job, state, token=token, places=places, attempt=1, handle=handle)
        started[job.number] = token
    for number in (2, 3, 4):
        job = store.job(number)
        stage.live[f"t{number}"] = make()._attempt(job)
    stage.over["t5"] = 0
    stage.drained.clear()
    supervisor = make()
    assert stage.drained == [4]
    supervisor.tick()
    assert states(store) == ["running", "running", "running", "draining", "done"]
    assert store.job(1).attempt == 2
    assert store.job(1).failures == 0
    assert store.job(2).attempt == 1


def test_going_down_all_are_saved(store, stage, make):
    store.submit(spec("a"))
    store.submit(spec("b"))
    supervisor = make()
    supervisor.tick()
    supervisor.close()
    assert not supervisor.idle
    for job in (1, 2):
        stage.end(job, 75)
    supervisor.tick()
    assert supervisor.idle
    supervisor.tick()
    assert states(store) == ["queued", "queued"]


def test_what_cannot_be_started(store, stage, make):
    store.submit(spec("a", retries=0))
    stage.refuses = True
    make().tick()
    assert (states(store), store.job(1).status) == (["failed"], 126)
