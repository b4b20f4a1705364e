"""The queue: together what fits together, the urgent first, never more than may be."""

import threading
import time

import numpy as np
import pytest

from llmasos_xla.deployment.batching import Batcher, ExpiredError, Job, QueueFullError
from llmasos_xla.deployment.engine import Engine


class Doubler:
    """Stands for a version: doubles x, notes its batches, and waits for `go`."""

    def __init__(self):
        self.go, self.batches, self.inside, self.most = threading.Event(), [], 0, 0
        self.go.set()

    def run(self, inputs):
        self.inside += 1
        self.most = max(self.most, self.inside)
        assert self.go.wait(20)
        x = inputs["x"]
        self.batches.append(x[:, 0].tolist())
        self.inside -= 1
        if (x < 0).any():
            raise RuntimeError("negative")
        return {"y": 2 * x}


class Ends:
    """What became of each job, in order."""

    def __init__(self):
        self.found, self.changed = [], threading.Condition()

    def __call__(self, results):
        with self.changed:
            self.found += results
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.found) >= count, 20)
        return self.found


@pytest.fixture
def ends():
    return Ends()


@pytest.fixture
def batcher_of(ends):
    made = []

    def make(**options):
        made.append(Batcher(ends, **options))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def job(doubler, *values, width=1, **options):
    return Job(doubler, {"x": np.repeat(np.array(values, np.float32)[:, None], width, 1)}, **options)


def held(doubler, batcher):
    """The doubler is busy with a first job, so that what comes now has to wait."""
    doubler.go.clear()
    batcher.submit(job(doubler, 0))
    deadline = time.monotonic() + 20
    while not doubler.inside:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_waits_runs_together_and_each_gets_its_own(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of()
    held(doubler, batcher)
    jobs = [job(doubler, 1), job(doubler, 2, 3), job(doubler, 4)]
    for each in jobs:
        batcher.submit(each)
    doubler.go.set()
    found = dict(ends.wait(4))
    assert doubler.batches == [[0], [1, 2, 3, 4]]
    for each in jobs:
        np.testing.assert_array_equal(found[each]["y"], 2 * each.inputs["x"])


def test_a_batch_is_no_larger_than_it_may_be(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_rows=3)
    held(doubler, batcher)
    for values in ((1, 2), (3, 4), (5,), (6, 7, 8, 9)):
        batcher.submit(job(doubler, *values))
    doubler.go.set()
    ends.wait(5)
    # A request that is larger by itself runs alone; a smaller one may go ahead where it still fits.
    assert doubler.batches == [[0], [1, 2, 5], [3, 4], [6, 7, 8, 9]]


def test_other_shapes_and_versions_run_apart(ends, batcher_of):
    one, other, batcher = Doubler(), Doubler(), batcher_of()
    held(one, batcher)
    for each in (job(one, 1), job(one, 2, width=2), job(other, 3), job(one, 4)):
        batcher.submit(each)
    one.go.set()
    ends.wait(5)
    assert one.batches == [[0], [1, 4], [2]]
    assert other.batches == [[3]]


def test_the_urgent_goes_first(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_rows=1)
    held(doubler, batcher)
    for value, priority in ((1, 3), (2, 2), (3, 3), (4, 2)):
        batcher.submit(job(doubler, value, priority=priority))
    doubler.go.set()
    ends.wait(5)
    assert doubler.batches == [[0], [2], [4], [1], [3]]


def test_a_full_queue_says_when_to_come_back(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_waiting=2)
    held(doubler, batcher)
    for value in (1, 2):
        batcher.submit(job(doubler, value, priority=3))
    with pytest.raises(QueueFullError, match="2 requests wait, which is all that may") as told:
        batcher.submit(job(doubler, 3, priority=3))
    assert 0 < told.value.retry_after <= 60
    # A more urgent one takes the place of the least urgent, the one that came last.
    batcher.submit(job(doubler, 4, priority=1))
    assert [type(result) for _, result in ends.wait(1)] == [QueueFullError]
    doubler.go.set()
    ends.wait(4)
    assert sorted(value for batch in doubler.batches for value in batch) == [0, 1, 4]


def test_bytes_are_bounded_too(batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_bytes=100)
    held(doubler, batcher)
    batcher.submit(job(doubler, 1, width=20))
    with pytest.raises(QueueFullError):
        batcher.submit(job(doubler, 2, width=20))
    doubler.go.set()


def test_whose_time_is_over_does_not_run(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of()
    held(doubler, batcher)
    late, left, good = job(doubler, 1, deadline=time.monotonic()), job(doubler, 2), job(doubler, 3)
    for each in (late, left, good):
        batcher.submit(each)
    left.cancelled = True
    doubler.go.set()
    found = dict(ends.wait(4))
    assert isinstance(found[late], ExpiredError)
    assert doubler.batches == [[0], [3]]


def test_a_fault_is_its_own_job_s_alone(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of()
    held(doubler, batcher)
    good, bad = job(doubler, 1), job(doubler, -1)
    batcher.submit(good)
    batcher.submit(bad)
    doubler.go.set()
    found = dict(ends.wait(3))
    assert isinstance(found[bad], RuntimeError)
    np.testing.assert_array_equal(found[good]["y"], [[2]])


def test_one_call_at_a_time(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_rows=2)
    threads = [threading.Thread(target=lambda: [batcher.submit(job(doubler, i)) for i in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends.wait(80)
    assert doubler.most == 1


def test_a_delay_gathers(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(most_rows=3, delay=20.0)
    for value in (1, 2, 3):
        batcher.submit(job(doubler, value))
    ends.wait(3)
    assert doubler.batches == [[1, 2, 3]]


def test_closing_runs_what_waits_and_takes_no_more(ends, batcher_of):
    doubler, batcher = Doubler(), batcher_of(delay=20.0)
    batcher.submit(job(doubler, 1))
    batcher.close()
    assert doubler.batches == [[1]]
    with pytest.raises(QueueFullError, match="is stopping"):
        batcher.submit(job(doubler, 2))


def test_programs_that_are_asked_for_stay(monkeypatch):
    monkeypatch.setattr("llmasos_xla.deployment.engine._MOST_PROGRAMS", 3)
    engine = Engine(lambda arrays, inputs: {"output": inputs["input"]}, "same")
    for length in (1, 2, 1, 3, 1, 4, 1):
        engine({}, {"input": np.zeros((1, length), np.float32)})
    assert len(engine.compiled) == 4


def test_outputs_count_where_room_is_counted():
    free = threading.Event()
    done = []
    queue = Batcher(done.extend, most_bytes=1000, most_rows=1)
    held = Doubler()
    held.go = free
    for expected in (False, False, True):
        job = Job(held, {"x": np.ones((1, 1))}, answer=600)
        if expected:
            with pytest.raises(QueueFullError):
                queue.submit(job)
        else:
            queue.submit(job)
            while not held.inside:
                time.sleep(0.001)
    free.set()
    queue.close()
    assert len(done) == 2
