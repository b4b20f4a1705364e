"""Searches by a real queue, with functions that take no time; interrupted, killed, failing."""

import concurrent.futures
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runtime_jobs import marked, pruned_search, wait_until

import llmasos_xla as lm
from llmasos_xla import progress
from llmasos_xla.runtime.jobs import ON_DEVICES
from llmasos_xla.runtime.space import read
from llmasos_xla.runtime.store import Store

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")

tune, uniform = lm.runtime.tune, lm.runtime.uniform


def jobs(home):
    store = Store(home.store)
    try:
        return store.jobs()
    finally:
        store.close()


def lines(path):
    return path.read_text().split() if path.exists() else []


def test_trials_are_jobs(home, engine, capsys):
    engine()
    data = np.ones(1 << 20, np.uint8)

    def objective(x, kind, width):
        assert data.all()
        return np.float32((x - 0.25) ** 2 + (kind == "b") + width)

    space = {"x": uniform(0.0, 1.0), "kind": ["a", "b"], "width": lm.runtime.integers(1, 3)}
    study = tune(
        objective, space, trials=6, at_once=3, name="parabola", priority=2, grace=5, retries=0, home=home.path
    )  # fmt: skip
    assert [trial.state for trial in study.trials] == ["complete"] * 6
    for trial in study.trials:
        assert trial.value == pytest.approx(float(objective(**trial.params)))
        assert 0 <= trial.params["x"] <= 1
        assert type(trial.params["width"]) is int
    best = min(study.trials, key=lambda trial: trial.value)
    assert (study.best, study.best_value, study.best_params) == (best, best.value, best.params)
    assert repr(study) == f"<study 'parabola': 6 complete, best {best.value:.6g}>"
    found = jobs(home)
    assert [job.number for job in found] == sorted(trial.job for trial in study.trials)
    assert {job.spec.name for job in found} == {f"parabola-{number}" for number in range(6)}
    assert {(job.spec.priority, job.spec.grace, job.spec.retries) for job in found} == {(2, 5, 0)}
    assert study.optuna.best_value == best.value
    # Data are written down for as long as trials run.
    assert sum(file.stat().st_size for file in home.path.rglob("*") if file.is_file()) < data.nbytes
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    assert sum("the best so far" in line for line in said) >= 1
    # There is nothing left to do.
    again = tune(objective, space, trials=6, name="parabola", home=home.path, verbose=0)
    assert again.trials == study.trials
    assert len(jobs(home)) == 6
    frame = pytest.importorskip("pandas", reason="pandas is not installed") and study.frame()
    assert list(frame["width"]) == [trial.params["width"] for trial in study.trials]


def test_a_folder_may_have_any_name(tmp_path, monkeypatch):
    """No queue: the study is made ahead of the first job."""
    home = tmp_path / "a {b} ? c#%41"
    monkeypatch.setattr("llmasos_xla.runtime.searching.Search.run", lambda self: None)
    tune(lambda x: x, {"x": uniform(0, 1)}, name="mine", home=home, verbose=0)
    assert [file.name for file in (home / "studies" / "mine").glob("*.sqlite")] == ["study.sqlite"]


@pytest.mark.thorough
def test_the_same_seed_makes_the_same_search_in_one_go_or_in_two(home, engine):
    """Past the trials that the Parzen estimators draw at random, with pruning."""
    engine()

    def objective(x, y):
        for step in range(2):
            lm.runtime.report(step, x + y - step)
        return (x - 0.3) ** 2 + y

    def searched(name, **more):
        space = {"x": uniform(0.0, 1.0), "y": lm.runtime.loguniform(1e-3, 1.0)}
        study = tune(objective, space, at_once=1, name=name, home=home.path, verbose=0, **more)
        return [(trial.params, trial.state, trial.value, trial.reports) for trial in study.trials]

    with concurrent.futures.ThreadPoolExecutor() as threads:
        whole = threads.submit(searched, "whole", trials=12)
        other = threads.submit(searched, "other", trials=1, seed=1)
        searched("parts", trials=5)
        assert searched("parts", trials=12) == whole.result()
    assert {state for _, state, _, _ in whole.result()} == {"complete", "pruned"}
    assert other.result() != whole.result()[:1]


def test_who_reports_badly_is_cancelled_while_it_runs(home, engine, tmp_path, capsys):
    engine()
    bad = pruned_search(home, tmp_path)
    assert f"trial {bad.number}: pruned after step 3, 1  x 1" in capsys.readouterr().out


def test_a_crash_is_that_trials_alone_and_so_is_a_nan(home, engine, capsys):
    """And a sampler that has no more to try ends the search."""
    engine()

    def objective(kind):
        if kind == "crash":
            raise KeyError("no such thing")
        return {"fine": 2.0, "nan": float("nan")}[kind]

    kinds = ["fine", "crash", "nan"]
    study = tune(
        objective,
        {"kind": kinds},
        trials=4,
        at_once=1,
        name="some",
        direction="maximize",
        sampler=optuna.samplers.GridSampler({"kind": kinds}),
        retries=0,
        home=home.path,
    )
    found = {trial.params["kind"]: trial for trial in study.trials}
    assert len(study.trials) == 3
    assert {kind: trial.state for kind, trial in found.items()} == {"fine": "complete", "crash": "fail", "nan": "fail"}
    assert study.best_params == {"kind": "fine"}
    crash = found["crash"]
    log = home.job(crash.job) / "log"
    name = f"job {crash.job} (some-{crash.number})"
    assert crash.why == f"{name} failed: it ended with status 1: KeyError: 'no such thing'; its log: {log}"
    assert found["nan"].why.startswith(f"the value of job {found['nan'].job} (some-{found['nan'].number}) is NaN")
    assert f"trial {crash.number}: failed: {name}" in capsys.readouterr().out


def test_where_all_fail_it_is_told_why(home, engine):
    engine()

    def objective(x):
        print("looking for it")
        raise OSError("no disk")

    with pytest.raises(
        lm.runtime.JobError, match=r"all 2 trials of 'bad' failed(.|\n)*looking(.|\n)*no disk(.|\n)*Mend"
    ):
        tune(objective, {"x": uniform(0, 1)}, trials=2, name="bad", retries=0, home=home.path)


# A search in a process of its own. Each job writes a line when it begins, and one when it is through.
SEARCH = """
import sys, time
import llmasos_xla as lm

home, lines, seconds, trials = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])

def objective(x):
    with open(lines, "a") as file:
        file.write(f"begun-{x}\\n")
    lm.runtime.report(0, x)
    time.sleep(seconds)
    with open(lines, "a") as file:
        file.write(f"through-{x}\\n")
    return x

study = lm.runtime.tune(
    objective, {"x": lm.runtime.uniform(0.0, 1.0)}, trials=trials, at_once=2, name="cut", grace=5, home=home)
print(study)
"""


@pytest.fixture
def searching(home, engine, tmp_path):
    engine()
    script, told = tmp_path / "search.py", tmp_path / "lines"
    script.write_text(SEARCH)
    processes = []

    def start(seconds, trials=4):
        processes.append(
            subprocess.Popen(
                [sys.executable, script, home.path, told, str(seconds), str(trials)], text=True, stdout=subprocess.PIPE
            )
        )
        return processes[-1], told

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_killed_it_goes_on_and_nothing_is_run_twice(home, searching):
    process, told = searching(1.0)
    wait_until(lambda: len(lines(told)) >= 2)
    process.kill()
    process.wait()
    # Of the two that were under way the first goes on by itself.
    again, _ = searching(0.0)
    out, _ = again.communicate(timeout=60)
    assert "4 complete" in out
    said = lines(told)
    assert len({line for line in said if line.startswith("begun")}) == 4
    assert len(said) == len(set(said)) == 8
    assert len(jobs(home)) == 4


@pytest.mark.slow
def test_killed_again_and_again_each_trial_is_through_once(home, searching):
    rng = np.random.default_rng(0)
    for _ in range(12):
        process, told = searching(0.3, 24)
        # Some moment from the start of the loop on, which takes about a second to come to.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.7, 2.0))
        process.kill()
        process.wait()
    last, told = searching(0.0, 24)
    last.communicate(timeout=60)
    study = tune(lambda x: x, {"x": uniform(0.0, 1.0)}, trials=24, name="cut", home=home.path, verbose=0)
    states = [trial.state for trial in study.trials]
    assert len(states) == len(jobs(home)) == 24
    assert set(states) == {"complete", "pruned"}
    said = lines(told)
    assert len(said) == len(set(said))
    assert {f"through-{trial.params['x']}" for trial in study.trials if trial.state == "complete"} <= set(said)
    assert not any(marked(job.token) for job in jobs(home))


def test_killed_between_asking_and_submitting(home, engine, monkeypatch):
    """A trial without a job gets one; a job whose trial does not know it yet is its job."""
    engine()
    from llmasos_xla.runtime import tuning

    class Killed(BaseException):
        pass

    def objective(x):
        return x

    space, real = {"x": uniform(0.0, 1.0)}, tuning.submit

    def search():
        return tune(objective, space, trials=2, at_once=1, name="gap", home=home.path, verbose=0)

    for after in (False, True):

        def dies(*arguments, after=after, **options):
            if after:
                real(*arguments, **options)
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(tuning, "submit", dies)
            # Who is killed cleans nothing up.
            patched.setattr(lm.runtime.searching.Search, "_interrupt", lambda self: None)
            with pytest.raises(Killed):
                search()
    study = search()
    assert [trial.state for trial in study.trials] == ["complete"] * 2
    assert [(trial.number, trial.job) for trial in study.trials] == [(0, 1), (1, 2)]
    assert len(jobs(home)) == 2


def test_ctrl_c_cancels_and_the_same_call_begins_anew(home, searching):
    process, told = searching(1000)
    wait_until(lambda: len(lines(told)) >= 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "interrupted; 2 trials are cancelled, and the same call begins them anew" in out
    found = jobs(home)
    assert [job.state for job in found] == ["cancelled"] * 2
    assert len(list((home.path / "studies/cut/calls").iterdir())) == 1
    assert not any(marked(job.token) for job in found)
    again, _ = searching(0.0)
    out, _ = again.communicate(timeout=60)
    assert "<study 'cut': 4 complete" in out
    assert not (home.path / "studies/cut/calls").exists()
    said = lines(told)
    assert sorted(said[:2]) == sorted(line for line in said[2:] if line in said[:2])
    assert sum(line.startswith("through") for line in said) == 4
    assert {job.state for job in jobs(home) if job.state in ON_DEVICES} == set()


def fitting(told, **how):
    """A function to be searched, which fits and prints a metric of each epoch behind the word "told"."""

    def objective(units):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 4)).astype("float32")
        y = (x[:, 0] > 0).astype("int32")
        model = lm.Sequential([lm.layers.Dense(units, activation="relu"), lm.layers.Dense(2, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        options = {**how, "checkpoint": lm.runtime.here().folder / "fit"} if how.get("resume") else how
        history = model.fit(x, y, batch_size=32, validation_data=(x, y), **options)
        print("told", *history.history[told])

    return objective


def test_a_fit_reports_by_itself(home, engine):
    engine()
    objective = fitting("val_loss", epochs=2, verbose=0)
    study = tune(objective, {"units": [3]}, trials=1, name="fit", metric="val_loss", home=home.path)
    (trial,) = study.trials
    log = lm.runtime.Submitted(trial.job, home).logs()
    told = [float(word) for word in log.partition("told ")[2].split()]
    assert len(told) == 2
    assert trial.reports == dict(enumerate(told))
    assert trial.value == told[-1]


@pytest.mark.slow
def test_a_trial_that_makes_room_goes_on_and_so_do_its_reports(home, engine):
    engine()
    objective = fitting("loss", epochs=12, resume=True, callbacks=[lambda event: time.sleep(0.2)])

    def make_room():
        reports = progress.Reports(home.job(1))
        wait_until(lambda: any(told.step >= 2 for told in reports.new()))
        store = Store(home.store)
        store.ask(1, "drain")
        store.close()

    with concurrent.futures.ThreadPoolExecutor() as threads:
        made = threads.submit(make_room)
        study = tune(objective, {"units": [3]}, trials=1, name="fit", metric="loss", home=home.path)
        made.result()
    (trial,) = study.trials
    (job,) = jobs(home)
    assert (job.attempt, job.failures) == (2, 0)
    told = lm.runtime.Submitted(1, home).logs().rpartition("told ")[2].split()
    assert trial.reports == dict(enumerate(map(float, told)))
    assert len(told) == 12


RATED = """
import sys, llmasos_xla as lm
assert sys.argv[1::2] == ["--data", "--rate", "--kind"], sys.argv
lm.runtime.report(0, 9.0)
lm.runtime.report(1, {"loss": float(sys.argv[4])})
"""


def test_a_script_gets_its_parameters_as_options(home, engine, tmp_path):
    engine()
    script = tmp_path / "rated.py"
    script.write_text(RATED)
    space = {"rate": lm.runtime.loguniform(1e-3, 1e-1), "kind": ["a"]}
    with pytest.raises(ValueError, match=r"tune: a script returns nothing; say by metric="):
        tune(script, space, trials=2, home=home.path)
    study = tune([str(script), "--data", "x"], space, trials=2, metric="loss", home=home.path)
    assert [trial.value for trial in study.trials] == [trial.params["rate"] for trial in study.trials]
    assert study.name.startswith("rated-")


def test_from_a_shell(home, engine, tmp_path):
    engine()
    script = tmp_path / "rated.py"
    script.write_text(RATED)

    def shell(*arguments):
        command = [sys.executable, "-m", "llmasos_xla", "tune", "--home", home.path, *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout, done.stderr

    options = ["--metric", "loss", "--maximize", "--trials", 2, "--name", "rates", "--space", "rate=uniform(0.5, 1)"]
    status, out, err = shell(*options, "--space", "kind=a", script, "--data", "x")
    assert (status, err) == (0, "")
    study = optuna.load_study(study_name="rates", storage=f"sqlite:///{home.path}/studies/rates/study.sqlite")
    best = f"--rate {study.best_params['rate']} --kind a"
    assert out.splitlines()[-1] == f"rates: {study.best_value:.6g} by trial {study.best_trial.number}: {best}"
    assert study.best_value == max(trial.value for trial in study.trials)
    status, out, err = shell("--metric", "loss", "--space", "rate=uniform(1)", script)
    assert (status, out) == (2, "")
    assert err.startswith(
        "llmasos tune: a range is uniform(0, 1), loguniform(1e-4, 1e-1) or integers(1, 8), 'uniform(1)'"
    )
    assert shell("--metric", "loss", "--space", "rate=uniform(1, 0)", script)[2].startswith(
        "llmasos tune: uniform: low"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kind=a,b", ["a", "b"]),
        ("x = 1, 0.5,c", [1, 0.5, "c"]),
        ("x=uniform(-1, 1, step=0.5)", uniform(-1, 1, step=0.5)),
        ("x=integers(1, 8, log=True)", lm.runtime.integers(1, 8, log=True)),
    ],
)
def test_what_a_shell_says(text, what):
    assert read(text) == (text[0] if text[0] == "x" else "kind", what)


def test_what_is_no_value_ends_the_search_with_advice(home, engine):
    engine()

    def words(x):
        return {"loss": x}

    def other(x):
        lm.runtime.report(0, {"loss": x})
        return x

    space = {"x": uniform(0, 1)}
    with pytest.raises(
        TypeError, match=r"tune: job 1 \(words-\w+-0\) returned dict, no number; return one, or nothing"
    ):
        tune(words, space, trials=2, at_once=1, home=home.path)
    with pytest.raises(ValueError, match=r"tune: job 2 \(o-0\): unknown metric 'los'; did you mean 'loss'"):
        tune(other, space, trials=2, at_once=1, metric="los", name="o", home=home.path)
    with pytest.raises(ValueError, match=r"tune: the metric of the study 'o' was 'los', 'loss' came; go on"):
        tune(other, space, trials=2, metric="loss", name="o", home=home.path)
    with pytest.raises(ValueError, match=r"tune: the space .*'x': 'Float.*high=1.0.*'x': 'Float.*high=2.0"):
        tune(other, {"x": uniform(0, 2)}, trials=2, metric="los", name="o", home=home.path)
    with pytest.raises(ValueError, match=r"tune: the direction of the study 'o' was 'minimize', 'maximize' came"):
        tune(other, space, trials=2, metric="los", name="o", direction="maximize", home=home.path)


def test_one_search_of_a_study_at_a_time(home):
    (home.path / "studies" / "mine").mkdir(parents=True)
    with open(home.path / "studies" / "mine" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("123")
        lock.flush()
        with pytest.raises(RuntimeError, match=r"tune: process 123 searches the study 'mine'; end it, or give another"):
            tune(lambda x: x, {"x": uniform(0, 1)}, name="mine", home=home.path)


def fine(x):
    return x


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tune(fine, []), TypeError, r"tune: the space is a dict of names and ranges, list came"),
        (lambda: tune(fine, {}), ValueError, r"tune: the space is empty; name what is to be found"),
        (lambda: tune(fine, {"x y": [1]}), ValueError, r"tune: a name in the space is that of an argument, 'x y' came"),
        (lambda: tune(fine, {"x": (0, 1)}), TypeError, r"\(0, 1\) came; write uniform\(0, 1\) or \[0, ...\]"),
        (lambda: tune(fine, {"y": [1]}), TypeError, r"tune: fine\(x\) is called with y by name: .*functools.partial"),
        (lambda: tune(fine, {"x": [1]}, trials=0), ValueError, r"tune: trials is a whole number from 1 up, 0 came"),
        (lambda: tune(fine, {"x": [1]}, at_once=2.0), ValueError, r"tune: at_once is a whole number from 1 up, 2.0 "),
        (lambda: tune(fine, {"x": [1]}, seed=-1), ValueError, r"tune: a seed is a whole number from 0 up, or None, -1"),
        (lambda: tune(fine, {"x": [1]}, direction="min"), ValueError, r"tune: unknown direction 'min'; "),
        (lambda: tune(fine, {"x": [1]}, name="a b"), ValueError, r"tune: a name is of letters, .* 'a b' came"),
        (lambda: tune(fine, {"x": [1]}, device=1), ValueError, r"unknown option 'device'; did you mean 'devices'\?"),
        (lambda: tune("train", {"x": [1]}), TypeError, r"tune: an objective is a function, or a script whose name"),
        (lambda: uniform(1, 0), ValueError, r"uniform: low is below high, 1 and 0 came"),
        (lambda: uniform(0, 1, step=2), ValueError, r"uniform: a step is above 0 and at most high - low, 2 came"),
        (lambda: uniform("a", 1), TypeError, r"uniform: low is a finite number, 'a' came"),
        (lambda: lm.runtime.loguniform(0, 1), ValueError, r"loguniform: low is above 0, 0 came; 0 has no logarithm"),
        (lambda: lm.runtime.integers(0.5, 1), TypeError, r"integers: low is a whole number, 0.5 came"),
        (lambda: lm.runtime.integers(3, 3), ValueError, r"integers: low is below high, 3 and 3 came"),
        (lambda: lm.runtime.integers(0, 3, log=True), ValueError, r"integers: low is 1 or more and step is 1 with log"),
        (lambda: lm.runtime.choice([]), ValueError, r"choice: there is nothing to choose from"),
        (lambda: lm.runtime.choice([fine]), TypeError, r"choice: a value is None, .* give names, and look up"),
        (lambda: read("x"), ValueError, r"tune: --space is NAME=RANGE or NAME=A,B,C, 'x' came"),
        (lambda: read("x=open(1)"), ValueError, r"tune: a range is .*, 'open\(1\)' came for 'x'"),
        (lambda: lm.runtime.report(-1, 1.0), ValueError, r"report: a step is a whole number from 0 up, -1 came"),
        (
            lambda: lm.runtime.report(0, "bad"),
            TypeError,
            r"report: a value is a number, or numbers by name, 'bad' came",
        ),
    ],
)
def test_what_cannot_be_searched_is_told(unchecked, tmp_path, monkeypatch, call, error, text):
    monkeypatch.setenv("LLMASOS_HOME", str(tmp_path))
    with pytest.raises(error, match=text):
        call()


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'tune needs optuna: pip install "llmasos_xla\[tune\]"'):
        tune(fine, {"x": [1, 2]})


def test_reports_of_all_attempts_each_once(tmp_path, monkeypatch):
    reports = progress.Reports(tmp_path)
    assert reports.new() == []
    monkeypatch.setenv("LLMASOS_JOB_LAYOUT", "devices")
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "a"))
    lm.runtime.report(np.int32(0), np.float32(1.5))
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "b"))
    lm.runtime.report(1, {"loss": 2, "accuracy": float("inf")})
    first, second = reports.new()
    assert (first.step, first.values) == (0, {"value": 1.5})
    assert (second.step, second.values) == (1, {"loss": 2.0, "accuracy": float("inf")})
    # Whoever is in the middle of a line is heard when it is whole.
    with open(tmp_path / "b.reports", "a") as file:
        file.write('{"step": 2, "values": {"loss"')
        file.flush()
        assert reports.new() == []
        file.write(': 3.0}, "at": 1.0}\n')
    assert [told.values for told in reports.new()] == [{"loss": 3.0}]
    assert reports.new() == []
    # Ranks other than the first, and what no queue runs, tell nothing.
    with monkeypatch.context() as second:
        second.setenv("LLMASOS_JOB_LAYOUT", "processes")
        second.setattr("jax.process_index", lambda: 1)
        lm.runtime.report(3, 1.0)
    monkeypatch.delenv(progress.VARIABLE)
    lm.runtime.report(3, 1.0)
    assert reports.new() == []
    assert sorted(os.listdir(tmp_path)) == ["a.reports", "b.reports"]


@pytest.mark.slow
def test_it_finds_more_than_chance_does(home, engine):
    """Of a valley in four dimensions; the median of three seeds, as many trials each."""
    engine()

    def objective(a, b, c, d):
        return (a - 0.7) ** 2 + (b - 0.2) ** 2 + 0.1 * (c + d)

    space = {name: uniform(0.0, 1.0) for name in "abcd"}

    def best(seed, sampler=None):
        return tune(objective, space, trials=40, seed=seed, sampler=sampler, home=home.path, verbose=0).best_value

    found = [best(seed) for seed in range(3)]
    chance = [best(None, optuna.samplers.RandomSampler(seed=seed)) for seed in range(3)]
    assert np.median(found) < np.median(chance)
