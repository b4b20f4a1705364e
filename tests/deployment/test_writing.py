"""Prompts that come whenever they like are written as `lm.generate` writes each of them alone."""

import queue
import threading
import time

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment import lanes
from llmasos_xla.deployment.batching import ExpiredError, QueueFullError
from llmasos_xla.deployment.lanes import Lane, wanted
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.writing import Prompt, Writer

SIZES = {"vocab": 31, "context": 160, "width": 24, "depth": 2, "heads": 3}


def model_of(seed):
    model = lm.models.gpt2(seed=seed, **SIZES)
    rng = np.random.default_rng(seed)
    # Far enough from zero that texts differ.
    variables = model.variables
    params = {n: np.asarray(a + 0.3 * rng.standard_normal(a.shape), np.float32) for n, a in variables.params.items()}
    model.learner.begin(variables._replace(params=params))
    model.predict(np.zeros((1, 8), np.int32))
    return model


@pytest.fixture(scope="module")
def models():
    return [model_of(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def served(models):
    return [Served.of_model(model, "story", str(i)) for i, model in enumerate(models)]


@pytest.fixture(scope="module")
def writer():
    writer = Writer("story", most_rows=4)
    yield writer
    writer.close()


class Heard:
    """What one prompt hears."""

    def __init__(self, writer, served, ids, most_new=12, **more):
        self.ids, self.pieces, self.reason, self.error = [], 0, None, None
        self.done, self.threads = threading.Event(), set()
        self.prompt = Prompt(served, ids, most_new, self.tell, **{"temperature": 0.0, **more})
        writer.submit(self.prompt)

    def tell(self, ids, reason, error):
        assert not self.done.is_set()
        self.ids += ids
        self.pieces += 1
        self.reason, self.error = reason, error
        self.threads.add(threading.current_thread().name)
        if reason or error:
            self.done.set()

    def result(self):
        assert self.done.wait(120)
        if self.error:
            raise self.error
        return self.ids


@pytest.fixture
def frozen(monkeypatch):
    """While it is set, those who have a row write nothing more."""
    frozen, run = threading.Event(), lanes.RowPrograms.advance

    def advance(self, variables, rows, keep, steps):
        if frozen.is_set():
            time.sleep(0.005)
            steps = 0
        return run(self, variables, rows, keep, steps)

    monkeypatch.setattr(lanes.RowPrograms, "advance", advance)
    frozen.set()
    yield frozen
    frozen.clear()


def prompts(count):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 31, n).tolist() for n in rng.integers(1, 40, count)]


def test_prompts_in_company_are_written_as_alone(models, served, writer):
    rows = prompts(10)
    news = [5, 60, 20, 1, 100, 33, 7, 12, 2, 50]
    heard = []
    for row, new in zip(rows, news):
        heard.append(Heard(writer, served[0], row, new))
        time.sleep(0.02)
    for row, new, one in zip(lm.generate(models[0], rows, max_new_tokens=100), news, heard):
        assert one.result() == row[:new]
        assert one.reason == "length"
    assert writer.written == sum(news)
    assert writer.live == 0


def test_what_is_drawn_is_what_generate_draws(models, served, writer):
    drawn = {"temperature": 0.9, "top_k": 8, "top_p": 0.95, "seed": 5}
    row = prompts(1)[0]
    wanted = lm.generate(models[0], [row, row], max_new_tokens=30, **drawn)
    assert wanted[0] != wanted[1]
    heard = [Heard(writer, served[0], row, 30, draw=i, **drawn) for i in range(2)]
    assert [one.result() for one in heard] == wanted


def test_an_update_changes_nothing_for_texts_that_are_being_written(models, served, writer):
    rows = prompts(4)
    heard = [Heard(writer, served[i % 2], row, 80) for i, row in enumerate(rows)]
    wanted = [lm.generate(model, rows, max_new_tokens=80) for model in models]
    assert [one.result() for one in heard] == [wanted[i % 2][i] for i in range(4)]
    # Versions of one architecture share what is compiled.
    before = writer.stats()["programs"]
    assert Heard(writer, served[1], rows[0], 3).result() == wanted[1][0][:3]
    assert writer.stats()["programs"] == before


def test_a_text_ends_at_its_ends(models, served, writer):
    row = prompts(1)[0]
    whole = lm.generate(models[0], row, max_new_tokens=50)
    end = whole[5]
    one = Heard(writer, served[0], row, 40, ends=(end,))
    assert one.result() == whole[: whole.index(end)]
    assert one.reason == "stop"
    one = Heard(writer, served[0], row, 40, ends=(30, whole[0]))
    assert (one.result(), one.reason) == ([], "stop")


def test_no_more_is_written_than_the_context_holds(models, served, writer):
    row = list(range(30)) * 5
    one = Heard(writer, served[0], row, 500)
    assert one.result() == lm.generate(models[0], row, max_new_tokens=500)
    assert len(one.ids) == 10
    with pytest.raises(ValueError, match="the prompt has 160 ids, the model reads 160 at most"):
        Heard(writer, served[0], [1] * 160)
    with pytest.raises(ValueError, match="no ids"):
        Heard(writer, served[0], [])
    with pytest.raises(ValueError, match="9 ids that end the text came; 8 may"):
        Heard(writer, served[0], [1], ends=tuple(range(9)))


def test_who_is_gone_leaves_its_row(served, writer, frozen):
    gone = [Heard(writer, served[0], [1 + i], 150) for i in range(4)]
    late = Heard(writer, served[0], [9], 4)
    while not all(one.ids for one in gone):
        time.sleep(0.01)
    assert not late.ids
    gone[2].prompt.cancelled = True
    while not late.ids:
        time.sleep(0.01)
    frozen.clear()
    assert len(late.result()) == 4
    assert not gone[2].done.is_set()
    for one in gone:
        one.prompt.cancelled = True


def test_time_that_is_over(served, writer, frozen):
    busy = [Heard(writer, served[0], [1 + i], 150) for i in range(4)]
    while not all(one.ids for one in busy):
        time.sleep(0.01)
    waiting = Heard(writer, served[0], [8], 5, deadline=time.monotonic())
    late = busy.pop()
    late.prompt.deadline = time.monotonic()
    with pytest.raises(ExpiredError, match="before its turn came"):
        waiting.result()
    with pytest.raises(ExpiredError, match="before its text had ended"):
        late.result()
    for one in busy:
        one.prompt.cancelled = True


def test_the_urgent_come_first_and_a_full_queue_refuses(served, frozen):
    writer, order = Writer("story", most_rows=1, most_waiting=2), queue.SimpleQueue()
    first = Heard(writer, served[0], [1], 40)
    while not first.ids:
        time.sleep(0.01)

    def heard(name, priority):
        one = Heard(writer, served[0], [2], 1, priority=priority)
        tell, one.prompt.tell = one.prompt.tell, lambda *said: (order.put(name), tell(*said))
        return one

    waiting = [heard("late", 1), heard("soon", 0)]
    with pytest.raises(QueueFullError, match="2 prompts wait") as refused:
        heard("none", 0)
    frozen.clear()
    assert 1 <= refused.value.retry_after <= 60
    for one in waiting:
        one.result()
    assert [order.get(), order.get()] == ["soon", "late"]
    writer.close()
    with pytest.raises(QueueFullError, match="stopping"):
        Heard(writer, served[0], [1])


def test_a_fault_of_one_call_ends_those_in_it_and_no_others(models, served, writer, monkeypatch):
    Heard(writer, served[0], [1], 2).result()
    run = lanes.RowPrograms.advance
    monkeypatch.setattr(lanes.RowPrograms, "advance", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Heard(writer, served[0], [1], 9).result()
    monkeypatch.setattr(lanes.RowPrograms, "advance", run)
    assert len(Heard(writer, served[0], [1], 9).result()) == 9
    read = lanes.RowPrograms.read

    def fails(self, variables, ids, real, wanted):
        if int(ids[0, -1]) == 13:
            raise ValueError("no luck")
        return read(self, variables, ids, real, wanted)

    monkeypatch.setattr(lanes.RowPrograms, "read", fails)
    good, bad = Heard(writer, served[0], [1], 9), Heard(writer, served[0], [13], 9)
    with pytest.raises(RuntimeError, match="the model failed: no luck"):
        bad.result()
    assert len(good.result()) == 9


def test_programs_are_compiled_ahead(served):
    writer = Writer("story")
    writer.warm(served[0])
    programs = writer.stats()["programs"]
    assert programs == 3
    assert len(Heard(writer, served[0], [1, 2], 30).result()) == 30
    assert writer.stats()["programs"] == programs
    writer.close()


def test_programs_for_several_are_compiled_ahead(served):
    lane = Lane(served[0], 16)
    lane.programs.prepare(lane.first(4))
    lane.programs.compiled.clear()
    for prompt in range(4):
        assert lane.programs.ready(lane.wanted_for(2, 30))
        lane.put(prompt, [1, 2], wanted(30, (), 0, prompt, 1.0, None, None))
    lane.advance(8)
    assert not lane.programs.compiled
    assert lane.first(100) == lane.first(16)


def test_models_that_write_no_text(image_model, writer):
    with pytest.raises(TypeError, match="model 'm' writes no text; it is Sequential"):
        writer.submit(Prompt(Served.of_model(image_model, "m"), [1], 1, print))
    bert = lm.models.bert(vocab=9, context=8, width=4, depth=1, heads=1, hidden=4)
    bert.predict(np.zeros((1, 4), np.int32))
    with pytest.raises(TypeError, match="writes no text; it is BertConfig"):
        writer.submit(Prompt(Served.of_model(bert, "b"), [1], 1, print))


def test_an_update_is_written_with_by_the_programs_that_are_there(models, served):
    slot = Slot("story")
    for version in served:
        slot.warm_writer(version, slot.current)
        slot.put(version)
        programs = slot.writer.stats()["programs"]
        assert Heard(slot.writer, version, [3, 4], 30).result()
    assert slot.writer.stats()["programs"] == programs == 3
    assert slot.stats()["writing"]["prompts"] == 2
    slot.writer.close()
