"""`lm.runtime.tune`: a search for hyper-parameters whose trials are jobs of the queue."""

import contextlib
import functools
import inspect
import os
import pathlib
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final

from llmasos_xla.errors import missing_package, unknown
from llmasos_xla.runtime.client import JobError, Submitted, kept, submit
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.locks import take
from llmasos_xla.runtime.objective import Objective
from llmasos_xla.runtime.searching import Search
from llmasos_xla.runtime.space import as_json, checked, optuna

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_BUSY_SECONDS = 30.0
_NOTES = "llmasos"
"""The attribute of a study of optuna's that says what was searched."""


class Trial(NamedTuple):
    """One try of a search."""

    number: int
    state: str
    """complete, pruned or fail; waiting where somebody has enqueued it, and the search has not come to it."""
    value: float | None
    """What was found; of one that was pruned what it reported last."""
    params: dict[str, Any]
    reports: dict[int, float]
    """What it reported, by step."""
    job: int | None
    """Its number in the queue."""
    seconds: float | None
    """From when it was submitted to its end, waiting included."""
    why: str
    """How one ended that is not complete."""


@final
class Study:
    """What a search has found. Made by `tune`.

    Attributes:
        name: by which `tune` goes on with it.
        direction: "minimize" or "maximize".
        trials: all of them, by number.
        optuna: the study as optuna has it, for its plots and importances.
    """

    def __init__(self, study: Any):
        self.name: str = study.study_name
        self.direction: str = study.direction.name.lower()
        self.trials = tuple(_row(trial) for trial in study.get_trials(deepcopy=False))
        self.optuna = study

    @property
    def best(self) -> Trial:
        """The best trial that is complete; raises ValueError where none is."""
        found = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        if not found:
            raise ValueError(f"Study: none of the {len(self.trials)} trials of {self.name!r} is complete; see trials")
        return (min if self.direction == "minimize" else max)(found, key=lambda trial: trial.value or 0.0)

    @property
    def best_params(self) -> dict[str, Any]:
        """Those of the best trial."""
        return dict(self.best.params)

    @property
    def best_value(self) -> float:
        """What the best trial has found."""
        value = self.best.value
        assert value is not None
        return value

    def frame(self) -> Any:
        """The trials as a pandas DataFrame, by number, a column for each parameter.

        Raises ImportError if pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_package("Study.frame", "pandas", instead="trials, a tuple of rows") from error
        rows = [
            {"number": t.number, "state": t.state, "value": t.value, **t.params, "seconds": t.seconds, "job": t.job}
            for t in self.trials
        ]
        return pandas.DataFrame(rows).set_index("number")

    def __repr__(self) -> str:
        counts = [f"{sum(t.state == s for t in self.trials)} {s}" for s in ("complete", "pruned", "fail", "waiting")]
        told = ", ".join(count for count in counts if not count.startswith("0 ")) or "no trials"
        best = f", best {self.best_value:.6g}" if any(t.state == "complete" for t in self.trials) else ""
        return f"<study {self.name!r}: {told}{best}>"


def tune(
    objective: Callable[..., Any] | str | os.PathLike | Sequence[str],
    space: Mapping[str, Any],
    *,
    trials: int = 40,
    at_once: int = 4,
    direction: Literal["minimize", "maximize"] = "minimize",
    metric: str | None = None,
    name: str | None = None,
    seed: int | None = 0,
    sampler: Any = None,
    pruner: Any = None,
    devices: int | tuple[int, int] = 1,
    priority: int = 0,
    retries: int = 1,
    storage: Any = None,
    home: str | os.PathLike | None = None,
    verbose: int = 1,
    **job: Any,
) -> Study:
    """Searches for the parameters with which an objective is best; each trial is a job of the queue.

    New trials are drawn where good ones lay (tree-structured Parzen estimators: Bergstra et al. 2011, "Algorithms for
    Hyper-Parameter Optimization"). One that reports worse than the median of those before it had at that step is
    pruned: its job is cancelled. A search that was interrupted, or whose process was killed, is gone on with by the
    same call.

    Args:
        objective: a function of the parameters, which come by name. It returns a number; or nothing, and what it
            reported last is its value. Or a script, alone or in a list with its other arguments, which gets
            `--learning_rate 0.01` for each.
        space: what each parameter may be: `uniform`, `loguniform`, `integers`, a list of choices, or a distribution
            of optuna's.
        trials: how many there shall be, those of earlier calls among them.
        at_once: how many may be in the queue at a time; the queue decides how many of them run.
        direction: whether the least or the greatest value is the best.
        metric: which of the metrics that fits tell after each epoch, or `report` by name, is compared: "val_loss".
            Without it only numbers that `report(step, value)` tells by no name are.
        name: of the study, and of its jobs, as name-0; a new one if None.
        seed: makes the same search again with at_once=1, however often it was interrupted.
        sampler: optuna's, instead of the Parzen estimators and the seed.
        pruner: optuna's, instead of the median: `SuccessiveHalvingPruner` (ASHA: Li et al. 2020, "A System for
            Massively Parallel Hyperparameter Tuning"), `NopPruner` for none.
        devices, priority, retries: of each job, as `submit` has them; a crash counts once its retries are used up.
        storage: optuna's, or its URL; studies/NAME/study.sqlite in the queue's home if None.
        home: the folder of the queue; the user's own if None.
        verbose: 0 quiet, 1 a line for each trial that has ended.
        **job: sizes, layout, memory, preemptible, grace, stuck_after, environment, as `submit` has them.

    Raises ValueError and TypeError for what cannot be searched, JobError if every trial failed, RuntimeError where
    another process searches the study, ImportError if optuna is missing.
    """
    found = checked(space)
    _check(objective, found, trials, at_once, direction, metric, name, job)
    if not (seed is None or (isinstance(seed, int) and seed >= 0)):
        raise ValueError(f"tune: a seed is a whole number from 0 up, or None, {seed!r} came")
    place = Home(home).make()
    called = name or f"{_called(objective)}-{secrets.token_hex(3)}"
    options = {"devices": devices, "priority": priority, "retries": retries, "home": place.path, **job}
    say = _say if verbose else _nothing
    with _alone(place, called) as folder, _study(folder, storage, called, direction, sampler, pruner) as study:
        key = _same(study, called, found, direction, metric)
        ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if ended:
            say(f"going on with {called!r}: {ended} of {trials} trials have ended")
        given = None if sampler is not None else seed
        with _starting(objective, folder, options) as start:
            Search(
                study, key, found, start, place, metric=metric, trials=trials, at_once=at_once, seed=given, say=say
            ).run()
        result = Study(study)
    _refuse_all_failed(result, place)
    return result


def _check(
    objective: Any,
    space: Mapping[str, Any],
    trials: int,
    at_once: int,
    direction: str,
    metric: str | None,
    name: str | None,
    job: Mapping[str, Any],
) -> None:
    for what, value in (("trials", trials), ("at_once", at_once)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"tune: {what} is a whole number from 1 up, {value!r} came")
    if direction not in ("minimize", "maximize"):
        raise unknown("tune", "direction", direction, ("minimize", "maximize"))
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"tune: a name is of letters, digits, . _ and -, 80 at most, {name!r} came")
    ours = {"name", "after", "start"} & set(job)
    known = set(inspect.signature(submit).parameters) - {"what", "arguments", "name", "after", "start"}
    if ours or not set(job) <= known:
        raise unknown("tune", "option", min(ours or set(job) - known), known | set(inspect.signature(tune).parameters))
    if callable(objective):
        try:
            inspect.signature(objective).bind(**dict.fromkeys(space))
        except TypeError as error:
            called = getattr(objective, "__name__", type(objective).__name__)
            raise TypeError(
                f"tune: {called}{inspect.signature(objective)} is called with {', '.join(space)} by name: {error}; "
                "name in the space what it takes, and bind the rest by functools.partial"
            ) from None
        except ValueError:
            # Some that are written in C do not tell what they take.
            pass
    elif not (script := _script(objective)) or not script[0].endswith(".py"):
        raise TypeError(f"tune: an objective is a function, or a script whose name ends in .py; {objective!r} came")
    elif metric is None:
        raise ValueError(
            "tune: a script returns nothing; say by metric= what of that which its fit tells is compared, as "
            f"'val_loss', or {'value'!r} for what it reports without a name"
        )


def _script(objective: Any) -> list[str]:
    """A script and its arguments; empty for what is none."""
    if isinstance(objective, str | os.PathLike):
        return [os.fspath(objective)]
    return list(map(str, objective)) if isinstance(objective, list | tuple) else []


def _called(objective: Any) -> str:
    """A name for the study."""
    if callable(objective):
        name = getattr(objective, "__name__", type(objective).__name__)
    else:
        name = pathlib.Path(_script(objective)[0]).stem
    return re.sub(r"[^A-Za-z0-9._-]", "", name).strip("._-")[:60] or "search"


@contextlib.contextmanager
def _starting(objective: Any, folder: pathlib.Path, options: Mapping[str, Any]) -> Iterator[Callable[..., Submitted]]:
    """Gives what submits a trial's job. A function is written down once for all of them: there may be data in it."""
    given = dict(options.get("environment") or {})
    rest = {name: value for name, value in options.items() if name != "environment"}
    calls = folder / "calls"
    path = kept(objective, (), calls) if callable(objective) else None

    def start(name: str, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> Submitted:
        own: dict[str, Any] = {"name": name, "environment": {**given, **environment}, **rest}
        if path is not None:
            return submit(Objective(str(path), dict(parameters)), **own)
        return submit(_script(objective), *(f for n, value in parameters.items() for f in (f"--{n}", value)), **own)

    yield start
    # All trials have ended, and nobody reads what this call or one before it has written down.
    if path is not None:
        shutil.rmtree(calls)


@contextlib.contextmanager
def _alone(home: Home, name: str) -> Iterator[pathlib.Path]:
    """The folder of a study, for one search at a time: two would take each other's trials for a dead process's."""
    folder = home.path / "studies" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        if not take(lock):
            lock.seek(0)
            raise RuntimeError(
                f"tune: process {lock.read().strip() or 'unknown'} searches the study {name!r}; end it, or give "
                "another name"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


@contextlib.contextmanager
def _study(folder: pathlib.Path, storage: Any, name: str, direction: str, sampler: Any, pruner: Any) -> Iterator[Any]:
    package = optuna()
    if storage is None:
        from sqlalchemy.pool import NullPool

        # A file each: none waits for another's, nor makes the same one at the same moment. It is closed between uses,
        # and is not in the URL, where a folder's name may have a meaning.
        connect = functools.partial(sqlite3.connect, folder / "study.sqlite", timeout=_BUSY_SECONDS)
        storage = package.storages.RDBStorage("sqlite://", engine_kwargs={"poolclass": NullPool, "creator": connect})
    before = package.logging.get_verbosity()
    # It tells of every study that it makes or finds.
    package.logging.set_verbosity(max(before, package.logging.WARNING))
    try:
        yield package.create_study(
            study_name=name, storage=storage, direction=direction, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    finally:
        package.logging.set_verbosity(before)


def _same(study: Any, name: str, space: Mapping[str, Any], direction: str, metric: str | None) -> str:
    """The study's key, which is made with it; raises ValueError if it has searched for something else."""
    searched = {"space": as_json(space), "metric": metric}
    if _NOTES not in study.user_attrs:
        study.set_user_attr(_NOTES, {"key": secrets.token_hex(8), **searched})
    notes = study.user_attrs[_NOTES]
    differs = [
        (what, before, now)
        for what, before, now in (
            ("direction", study.direction.name.lower(), direction),
            *((what, notes[what], searched[what]) for what in searched),
        )
        if before != now
    ]
    if differs:
        what, before, now = differs[0]
        if what == "space":
            before, now = _differing(before, now), _differing(now, before)
        raise ValueError(
            f"tune: the {what} of the study {name!r} was {before!r}, {now!r} came; go on with what it was, or "
            "give another name"
        )
    return notes["key"]


def _differing(space: Any, other: Any) -> dict[str, str]:
    """What of a space is not so in the other, in words."""
    found = {}
    for name in (name for name in space if space[name] != other.get(name)):
        inside = ", ".join(f"{what}={value}" for what, value in space[name]["attributes"].items())
        found[name] = f"{space[name]['name']}({inside})"
    return found


def _refuse_all_failed(study: Study, home: Home) -> None:
    if not study.trials or any(trial.state != "fail" for trial in study.trials):
        return
    last = study.trials[-1]
    log = "" if last.job is None else Submitted(last.job, home).logs()[-2000:]
    raise JobError(
        f"tune: all {len(study.trials)} trials of {study.name!r} failed, the last one: {last.why}\n{log}"
        "Mended, the search goes on with more trials=, or begins anew under another name"
    )


def _row(trial: Any) -> Trial:
    seconds = trial.duration and trial.duration.total_seconds()
    attributes = trial.user_attrs
    reports = dict(sorted(trial.intermediate_values.items()))
    return Trial(
        trial.number,
        trial.state.name.lower(),
        trial.value,
        dict(trial.params),
        reports,
        attributes.get("job"),
        seconds,
        attributes.get("why", ""),
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _nothing(text: str) -> None:
    pass
