"""The loop of a search: asks optuna for trials, has the queue run them, tells optuna what came of them.

What it must not forget is in the study's storage and in the queue before it is acted upon, so a search whose process
was killed is gone on with by the next call. A trial and its job know each other by a key in the job's environment: it
is there from the moment that the job is, and a job without a trial, or a trial with two jobs, cannot be.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, final

from llmasos_xla.errors import unknown
from llmasos_xla.progress import VALUE, Report, Reports
from llmasos_xla.runtime.client import Submitted
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import Job
from llmasos_xla.runtime.service import running
from llmasos_xla.runtime.space import optuna, suggested
from llmasos_xla.runtime.store import Store
from llmasos_xla.training.interrupt import deferred_interrupt

VARIABLE = "LLMASOS_TRIAL"
"""In the environment of a trial's job: study, trial, and how often it was begun, with a colon between them."""
_LOOK_SECONDS = 0.05
_ENGINE_SECONDS = 5.0
# What a job gets beyond its own grace to be gone after Ctrl-C.
_PATIENCE_SECONDS = 10.0


Start = Callable[[str, Mapping[str, Any], Mapping[str, str]], Submitted]
"""Submits the job of a trial: its name, its parameters, and variables of its environment."""


@final
class Search:
    """A search under way.

    Args:
        study: optuna's.
        key: of the study alone, whatever its name.
        space: what is suggested, by name.
        start: submits a job.
        home: of the queue.
        metric: which of the values that jobs report is compared; None: those without a name.
        trials: how many there shall be, those of earlier calls among them.
        at_once: how many may be in the queue at a time.
        seed: makes a sampler for each trial, so that one does not depend on how often the search was interrupted;
            None: the study's own sampler.
        say: told a line about each trial that has ended.
    """

    def __init__(
        self,
        study: Any,
        key: str,
        space: Mapping[str, Any],
        start: Start,
        home: Home,
        *,
        metric: str | None,
        trials: int,
        at_once: int,
        seed: int | None,
        say: Callable[[str], None],
    ):
        self._study, self._key, self._space, self._start, self._home = study, key, space, start, home
        self._metric, self._trials, self._at_once, self._seed, self._say = metric, trials, at_once, seed, say
        self._states = optuna().trial.TrialState
        self._going: list[_Trial] = []
        self._store = Store(home.store)
        # Samplers of grids call this when they are through; optuna's own is for its own loop alone.
        self._study.stop = self._stop
        self._stopped = False
        self._count = sum(trial.state != self._states.WAITING for trial in study.get_trials(deepcopy=False))
        self._looked_for_engine = time.monotonic()
        self._alone = False

    def _stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Until all trials have ended. Interrupted, it cancels the jobs of those that have not, and raises."""
        with contextlib.closing(self._store):
            try:
                # Not anywhere: within a callback of the interpreter's own Ctrl-C would be lost.
                with deferred_interrupt() as interrupted:
                    self._go_on()
                    while not (through := self._step()) and not interrupted():
                        time.sleep(_LOOK_SECONDS)
                if not through or interrupted():
                    raise KeyboardInterrupt
            except BaseException:
                self._interrupt()
                raise

    def _step(self) -> bool:
        """One look at all that is under way; whether all trials have ended."""
        for each in list(self._going):
            self._look(each)
        while len(self._going) < self._at_once and self._count < self._trials and not self._stopped:
            self._begin(self._ask(), 0)
        self._miss_engine()
        return not self._going

    def _miss_engine(self) -> None:
        """Says so where jobs wait for an engine that somebody has ended: he, and not a search, has it come back."""
        if time.monotonic() > self._looked_for_engine + _ENGINE_SECONDS:
            self._looked_for_engine = time.monotonic()
            alone = running(self._home) is None
            if alone and not self._alone:
                self._say("no engine runs; the search goes on when `llmasos up` has started one")
            self._alone = alone

    def _running(self) -> list[Any]:
        """The trials without an end, as optuna's objects that can be told something."""
        found = self._study.get_trials(deepcopy=False, states=(self._states.RUNNING,))
        # optuna hands such objects out when it is asked for new trials only; these are of a process before this one.
        return [optuna().trial.Trial(self._study, frozen._trial_id) for frozen in found]

    def _ask(self) -> Any:
        if self._seed is not None:
            import numpy as np

            number = len(self._study.get_trials(deepcopy=False))
            seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
            self._study.sampler = optuna().samplers.TPESampler(seed=seed)
        trial = self._study.ask()
        self._count += 1
        return trial

    def _name(self, trial: Any) -> str:
        return f"{self._study.study_name}-{trial.number}"

    def _mark(self, trial: Any, begun: int) -> str:
        return f"{self._key}:{trial.number}:{begun}"

    def _begin(self, trial: Any, begun: int) -> None:
        """Submits a trial's job; `begun` is how often that was done before."""
        parameters = suggested(trial, self._space)
        trial.set_user_attr("begun", begun)
        job = self._start(self._name(trial), parameters, {VARIABLE: self._mark(trial, begun)})
        trial.set_user_attr("job", job.number)
        self._going.append(_Trial(trial, job, begun))

    def _jobs(self) -> dict[str, Job]:
        """All jobs of trials, by key. One that a trial's job has submitted bears the same, but came later."""
        found = reversed(self._store.jobs())
        return {mark: job for job in found if (mark := job.spec.environment.get(VARIABLE)) is not None}

    def _go_on(self) -> None:
        """Takes on the trials that an earlier call has left without an end."""
        running = self._running()
        jobs = self._jobs() if running else {}
        for trial in running:
            begun = trial.user_attrs.get("begun", 0)
            job = jobs.get(self._mark(trial, begun))
            if job is None:
                self._begin(trial, begun)
                continue
            trial.set_user_attr("job", job.number)
            each = _Trial(trial, Submitted(job.number, self._home), begun)
            self._going.append(each)
            if each.pruned:
                each.job.cancel()
            elif each.told:
                # Whether to prune it may not have been asked after what was told last.
                self._prune_or_not(each)

    def _look(self, each: "_Trial") -> None:
        # The job first: what it reported before it ended is there then.
        job = self._store.job(each.job.number)
        for told in each.reports.new():
            self._hear(each, told)
        if job.ended:
            self._going.remove(each)
            self._end(each, job)

    def _hear(self, each: "_Trial", told: Report) -> None:
        each.names |= set(told.values)
        value = told.values.get(self._metric or VALUE, told.values.get(VALUE))
        # What is pruned does not hear more: how soon its job ends shall not make a difference.
        if value is None or told.step in each.told or each.pruned:
            return
        each.told[told.step] = value
        each.trial.report(value, told.step)
        self._prune_or_not(each)

    def _prune_or_not(self, each: "_Trial") -> None:
        if each.trial.should_prune():
            each.trial.set_user_attr("pruned", max(each.told))
            each.pruned = True
            each.job.cancel()

    def _end(self, each: "_Trial", job: Job) -> None:
        states = self._states
        if each.pruned:
            step = max(each.told)
            self._tell(each, states.PRUNED, None, f"pruned after step {step}, {each.told[step]:.6g}")
        elif job.state == "cancelled" and each.trial.user_attrs.get("interrupted") == each.begun:
            self._begin(each.trial, each.begun + 1)
        elif job.state != "done":
            what = f"job {job.number} ({job.spec.name}) {job.state}: {job.reason}"
            self._tell(each, states.FAIL, None, f"{what}; its log: {each.job.records / 'log'}")
        else:
            value = self._value(each, job)
            if math.isnan(value):
                why = f"the value of job {job.number} ({job.spec.name}) is NaN"
                self._tell(each, states.FAIL, None, f"{why}; its log: {each.job.records / 'log'}")
            else:
                self._tell(each, states.COMPLETE, value, f"{value:.6g}")

    def _value(self, each: "_Trial", job: Job) -> float:
        """What a job that is done has found; raises TypeError or ValueError if that is no number."""
        outcome, called = each.job.result(), f"job {job.number} ({job.spec.name})"
        if self._metric is not None and each.names and not each.told:
            error: Exception = unknown(f"tune: {called}", "metric", self._metric, each.names)
        elif outcome is not None and outcome.value is not None:
            return outcome.value
        elif outcome is not None and outcome.kind:
            error = TypeError(
                f"tune: {called} returned {outcome.kind}, no number; return one, or nothing and say by metric= "
                f"what of that which it reports is meant{_listed(each.names)}"
            )
        elif each.told:
            return each.told[max(each.told)]
        else:
            error = ValueError(
                f"tune: {called} returned nothing and reported nothing that is compared; return a number, call "
                f"lm.runtime.report(step, value), or say metric={_listed(each.names)}"
            )
        self._tell(each, self._states.FAIL, None, str(error))
        raise error

    def _tell(self, each: "_Trial", state: Any, value: float | None, what: str) -> None:
        if state != self._states.COMPLETE:
            each.trial.set_user_attr("why", what)
        best = self._best()
        self._study.tell(each.trial, value, state)
        if value is not None and self._best() != best:
            what += ", the best so far"
        shown = "  ".join(f"{name} {_shown(found)}" for name, found in each.trial.params.items())
        failed = "failed: " if state == self._states.FAIL else ""
        self._say(f"trial {each.trial.number}: {failed}{what}  {shown}")

    def _best(self) -> float | None:
        found = [t.value for t in self._study.get_trials(deepcopy=False, states=(self._states.COMPLETE,))]
        minimize = self._study.direction == optuna().study.StudyDirection.MINIMIZE
        return (min if minimize else max)(found, default=None)

    def _interrupt(self) -> None:
        """Cancels the jobs of trials without an end, also of those that were being submitted just now."""
        jobs, left = self._jobs(), []
        for trial in self._running():
            begun = trial.user_attrs.get("begun", 0)
            job = jobs.get(self._mark(trial, begun))
            if job is not None and not job.ended:
                if "pruned" not in trial.user_attrs:
                    trial.set_user_attr("interrupted", begun)
                left.append(job)
        for job in left:
            self._store.ask(job.number, "cancel")
        if left:
            self._say(f"interrupted; {len(left)} trials are cancelled, and the same call begins them anew")
        deadline = time.monotonic() + max((job.spec.grace for job in left), default=0.0) + _PATIENCE_SECONDS
        while any(not self._store.job(job.number).ended for job in left) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


@final
class _Trial:
    """A trial whose job has not ended, or is not known to have."""

    def __init__(self, trial: Any, job: Submitted, begun: int):
        self.trial, self.job, self.begun = trial, job, begun
        self.reports = Reports(job.records)
        self.told: dict[int, float] = dict(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self.pruned = "pruned" in trial.user_attrs
        self.names: set[str] = set()


def _listed(names: set[str]) -> str:
    return f": {', '.join(sorted(names))}" if names else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
