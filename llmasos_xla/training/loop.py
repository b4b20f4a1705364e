"""The training loop: groups of batches go in, device values come out late."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmasos_xla.compiling import operations
from llmasos_xla.data.batches import batches
from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.training.ballot import Ballot
from llmasos_xla.training.callbacks import Callback, Event
from llmasos_xla.training.checkpoint import Decision, Pace
from llmasos_xla.training.diagnose import NonFiniteLossError, first_not_finite
from llmasos_xla.training.evaluation import Evaluator, arrays_of
from llmasos_xla.training.history import History
from llmasos_xla.training.interrupt import deferred_interrupt
from llmasos_xla.training.joules import Joules
from llmasos_xla.training.pipelined import DeadlockError, refuse_deadlock
from llmasos_xla.training.placed import Programs, shardings_of, tracing
from llmasos_xla.training.report import Quiet, heard
from llmasos_xla.training.step import Gradients, Objective, Totals, TrainState, make_train_step, over_group
from llmasos_xla.training.telling import teller, wait_for_room

# One dispatch should hold about this much work: enough to hide Python, little enough for a live progress bar.
_OPERATIONS_PER_DISPATCH = 3e10
_BYTES_PER_DISPATCH = 32 << 20
_MOST_STEPS = 64
# Among several processes a step waits for messages, and SIGTERM is answered some dispatches later.
_MOST_STEPS_TOGETHER = 8
# How many dispatches may be under way before the loop waits for the oldest.
IN_FLIGHT = 3
_SECONDS_BETWEEN_REPORTS = 0.1


@dataclasses.dataclass(frozen=True)
class Job:
    """What a fit is to do.

    Attributes:
        objective: network, loss and metrics.
        optimizer: the optax transformation.
        dataset, preprocessing: where batches come from.
        batch_size: rows an update, over all devices.
        first_epoch, epochs: the global number of the first epoch, and how many to run.
        seed: of the network's randomness.
        order_seed: of the data's order.
        ema: momentum of the weights' average, or None.
        validation: a data set to evaluate after each epoch, or None.
        workers: processes that decode data; 0 uses threads.
        steps_per_dispatch: updates in one call of the compiled program; None chooses.
        placement: where arrays lie on a mesh; None for one device.
        pipeline: of a model in stages, `pipeline(uniform)` gives its gradients (`training.pipelined`); or None.
        steps: the train steps that fits of this objective, optimizer and placement compiled; this one adds its own.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    dataset: Any
    preprocessing: Any
    batch_size: int
    first_epoch: int
    epochs: int
    seed: int = 0
    order_seed: int = 0
    ema: float | None = None
    validation: Any = None
    workers: int = 0
    steps_per_dispatch: int | None = None
    placement: Placement | None = None
    pipeline: Callable[[bool], Gradients] | None = None
    steps: "dict[Any, Step]" = dataclasses.field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        """The number after the last epoch's."""
        return self.first_epoch + self.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def batches(self, group: int, share: Any, epoch: int | None = None, step: int = 0) -> Any:
        """A share of the job's batches in groups, from `step` of `epoch` on (default: from the start)."""
        first = self.first_epoch if epoch is None else epoch
        return batches(
            self.dataset,
            self.preprocessing,
            batch_size=self.batch_size,
            seed=self.order_seed,
            first_epoch=first,
            epochs=self.last_epoch - first,
            start_step=step,
            group=group,
            workers=self.workers,
            share=share,
        )


class Step(NamedTuple):
    """A compiled train step."""

    program: Callable
    group: int
    """Updates in one call."""
    empty: Totals
    """The sums at an epoch's start."""


class Position(NamedTuple):
    """Where an unfinished fit stands: what it takes to go on."""

    epoch: int
    """The epoch to go on with."""
    data: dict[str, Any]
    """The batch iterator's state."""
    totals: Totals | None
    """The sums of that epoch so far; None at its start."""


class Saving(NamedTuple):
    """How a fit saves itself as it runs."""

    pace: Pace
    """When."""
    save: Callable[[TrainState, Position, bool], None]
    """`save(state, position, wait)` begins to write, and waits for the end of it if the fit ends here."""
    finish: Callable[[TrainState, Position], None]
    """`finish(state, position)` writes the fit that has run to its end, after its last callbacks."""


def fit(
    job: Job,
    state: TrainState,
    keep: Callable[[TrainState, Position | None, bool], None],
    *,
    evaluator: Evaluator,
    callbacks: Sequence[Callback] = (),
    model: Any = None,
    report: Quiet,
    history: History,
    resume: Position | None = None,
    saving: Saving | None = None,
) -> None:
    """Runs the job.

    `keep(state, position, ended)` is told the newest state after every epoch, and when the fit ends, also by an error
    or by Ctrl-C; the position is None once the fit has run to its end. The given state is donated. With
    `saving`, SIGTERM raises SystemExit(75) once the fit is saved.
    """
    # Compiling is shown too, so the report begins before there is a run; what fails there must give the screen back.
    report = heard(report, *teller(saving is not None))
    report.begin(job.first_epoch, job.last_epoch, job.steps_per_epoch)
    try:
        run = _Run(job, state, report, history, resume, saving)
    except BaseException:
        report.end()
        raise

    def tell(kind: Any, epoch: int, logs: dict[str, float]) -> bool:
        answers = [callback(Event(kind, epoch, run.updates, logs, model)) for callback in callbacks]
        if any(map(callable, answers)):
            raise TypeError("fit: a callback answered with a function; write callbacks=[early_stopping()], with ()")
        return any(isinstance(answer, str) and answer == "stop" for answer in answers)

    joules = run.joules
    try:
        with deferred_interrupt() as interrupted:
            # From here on the run's state is the only one: the weights it began with need not wait for the epoch's end.
            keep(run.state, run.position, False)
            if not wait_for_room(history.compiled, saving is not None, lambda: bool(run.pace.wish(interrupted()).stop)):
                raise SystemExit(EXIT_SAVED)
            tell("begin", job.first_epoch - 1, {})
            for epoch in range(resume.epoch if resume else job.first_epoch, job.last_epoch):
                logs, seconds = run.epoch(epoch, interrupted)
                if job.validation is not None:
                    variables = evaluation_variables(run.state)
                    logs |= evaluator(variables, job.validation, job.preprocessing, report=report, prefix="val_")
                history.add(epoch, logs, seconds, run.samples)
                cost = joules.told(history, run.all_samples) if epoch + 1 == job.last_epoch else ""
                report.epoch_end(epoch, seconds, run.samples / max(seconds, 1e-9), logs, cost)
                # Only now is the epoch over: one that ends in its validation goes on with that.
                run.position = Position(epoch + 1, run.source.get_state(), None)
                keep(run.state, run.position, False)
                if tell("epoch", epoch, logs):
                    cost = "" if cost else joules.told(history, run.all_samples)
                    report.note(f"stopped by a callback after epoch {epoch + 1}  {cost}".rstrip())
                    break
                if epoch + 1 < job.last_epoch:
                    wish = run.ballot.last() if run.ballot else run.pace.wish(interrupted())
                    decision = run.pace.decide(run.updates, wish, epoch + 1 - job.first_epoch)
                    run.act(decision, f"after epoch {epoch + 1}")
            end, run.position = run.position, None
    finally:
        keep(run.state, run.position, True)
        joules.end(history, run.all_samples)
        run.close()
        report.end()
    tell("end", job.last_epoch - 1, {})
    if saving is not None and end is not None:
        saving.finish(run.state, end)
    if interrupted():
        # It came after the last step: the fit is whole, but what comes after it was to stop too.
        raise KeyboardInterrupt


def evaluation_variables(state: TrainState) -> Any:
    """The variables that evaluation and prediction use: the averaged weights where there are any."""
    return state.variables if state.average is None else state.variables._replace(params=state.average)


def choose_steps_per_dispatch(step: Callable, steps_per_epoch: int, *arguments: Any) -> int:
    """How many updates one call should make, so that Python's share of the time stays small.

    `arguments` are the step's: its carry, one batch and a key.
    """
    work = operations(step, *arguments)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[1]))
    if work <= 0:
        return 1
    most = _MOST_STEPS if jax.process_count() == 1 else _MOST_STEPS_TOGETHER
    steps = min(_OPERATIONS_PER_DISPATCH / work, _BYTES_PER_DISPATCH / max(size, 1), most, steps_per_epoch)
    return max(1, int(steps))


class _Run:
    """One fit under way. Donation makes the newest state the only one, so it is held here and nowhere else."""

    def __init__(
        self,
        job: Job,
        state: TrainState,
        report: Quiet,
        history: History,
        resume: Position | None,
        saving: Saving | None,
    ):
        self.job, self.state, self.report, self.history, self.saving = job, state, report, history, saving
        self.pace = saving.pace if saving else Pace()
        self.programs = Programs(job.placement, job.batch_size)
        self.ballot = Ballot(job.placement.mesh) if job.placement and jax.process_count() > 1 else None
        self.key = self.programs.everywhere(jax.random.key(job.seed))
        self.updates = int(state.step)
        # Of this epoch, and of all.
        self.samples = self.all_samples = 0
        first = self._batch(job.batches(1, self.programs.share))
        example = self.programs.whole(first, axis=0)
        compiled = self._compiled(first, example)
        self.program, self.empty = compiled.program, compiled.empty
        history.steps_per_dispatch = compiled.group
        self.source = job.batches(compiled.group, self.programs.share)
        self.steps_per_epoch = self.source.steps_per_epoch
        if resume is not None:
            self.source.set_state(resume.data)
        self.position = resume or Position(job.first_epoch, self.source.get_state(), None)
        self.groups: Iterator[Any] = iter(self.source)
        self.pace.start(self.updates)
        self.joules = Joules(state)

    def _compiled(self, first: dict[str, Any], example: dict[str, Any]) -> Step:
        """The compiled train step for batches like the example; an earlier fit's where there was one like this."""
        job, state = self.job, self.state
        if job.pipeline is not None or self.ballot is not None:
            # These are bound to this fit's stages and processes.
            return self._compile(first, example)
        leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *trees: trees, state, example))
        steps = job.steps_per_dispatch, min(job.steps_per_epoch, _MOST_STEPS)
        like = job.objective.class_weight, steps, structure, *leaves
        if like not in job.steps:
            job.steps[like] = self._compile(first, example)
        return job.steps[like]

    def _compile(self, first: dict[str, Any], example: dict[str, Any]) -> Step:
        job, state, ballot = self.job, self.state, self.ballot
        step = self._step(uniform=False)
        with tracing(job.placement):
            empty = job.objective.empty(first["y"], first["x"], state.variables)
            group = job.steps_per_dispatch or choose_steps_per_dispatch(
                step, job.steps_per_epoch, (state, empty), example, self.key
            )
        empty = self.programs.everywhere(empty)
        stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((group, *a.shape), a.dtype), example)

        def shardings(placement: Placement) -> tuple[tuple, Any]:
            of_state, whole = shardings_of(placement, state, state.variables), placement.replicated
            given, out = (of_state, whole, placement.batch(stacked, axis=1), whole, whole), (of_state, whole)
            return ((*given, ballot.sharding), (*out, whole)) if ballot else (given, out)

        def compiled(step: Callable) -> Callable:
            many = over_group(step)

            def train(state: Any, totals: Any, group: Any, steps: Any, key: Any, *votes: jax.Array) -> tuple:
                return *many((state, totals), group, steps, key), *map(Ballot.counted, votes)

            return self.programs.compile(
                train,
                state,
                empty,
                stacked,
                np.int32(1),
                self.key,
                *([ballot.slip] if ballot else []),
                shardings=shardings,
                what="train step" if group == 1 else f"train step x {group}",
                donate=(0,),
                inspect=None if job.pipeline is None else refuse_deadlock,
                log=self.history.compiled,
            )

        with self.report.compiling("train step"):
            try:
                program = compiled(step)
            except DeadlockError:
                self.report.note("the pipeline's stages wait for each other in this mesh: every device computes all")
                program = compiled(self._step(uniform=True))
        return Step(program, group, empty)

    def _step(self, uniform: bool) -> Callable:
        job = self.job
        gradients = None if job.pipeline is None else job.pipeline(uniform)
        return make_train_step(job.objective, job.optimizer, job.ema, gradients)

    def epoch(self, epoch: int, interrupted: Callable[[], bool]) -> tuple[dict[str, float], float]:
        """Trains to the end of the epoch; returns its metrics and seconds."""
        self.report.epoch(epoch)
        totals = self.position and self.position.totals
        totals = self.empty if totals is None else self.programs.everywhere(totals)
        self.samples = 0
        under_way: collections.deque[jax.Array] = collections.deque()
        started = reported = time.perf_counter()
        # A fit that was interrupted in an epoch's last dispatch has none left to do of it.
        at = self.source.get_state()
        done = int(at["step"]) if at["epoch"] == epoch else self.steps_per_epoch
        first_update = self.updates - done
        while done < self.steps_per_epoch:
            group = next(self.groups)
            arrays = self.programs.batch(arrays_of(group), axis=1)
            votes = [self.ballot.cast(self.pace.wish(interrupted()))] if self.ballot else []
            self.state, totals, *answer = self.program(
                self.state, totals, arrays, np.int32(group.steps), self.key, *votes
            )
            self.updates += group.steps
            rows = int(group.count[: group.steps].sum())
            self.samples += rows
            self.all_samples += rows
            done = group.first_step + group.steps
            self.position = Position(epoch, self.source.get_state(), totals)
            under_way.append(totals.bad_step)
            if len(under_way) > IN_FLIGHT:
                self._check(under_way.popleft(), epoch, first_update)
            now = time.perf_counter()
            if now - reported > _SECONDS_BETWEEN_REPORTS and done < self.steps_per_epoch:
                reported = now
                logs = totals.read(self.job.objective.metrics)
                self.report.step(done, self.samples / (now - started), logs)
                self.joules.keep_up()
            wish = self.ballot.heard(*answer) if self.ballot else self.pace.wish(interrupted())
            decision = self.pace.decide(self.updates, wish)
            # What is due at an epoch's last step is saved with the epoch.
            if decision.stop or (decision.save and done < self.steps_per_epoch):
                # A position must not hide a step that went wrong.
                self._check(totals.bad_step, epoch, first_update)
                self.act(decision, f"in epoch {epoch + 1} at step {done} of {self.steps_per_epoch}")
        logs = totals.read(self.job.objective.metrics)
        self._check(totals.bad_step, epoch, first_update)
        return logs, time.perf_counter() - started

    def act(self, decision: Decision, where: str) -> None:
        """Saves, and ends the fit, if that is the decision."""
        if self.saving is not None and self.position is not None and (decision.save or decision.stop):
            self.saving.save(self.state, self.position, bool(decision.stop))
            self.pace.start(self.updates)
        if decision.stop == "interrupt":
            self.report.note(
                f"interrupted {where}; the weights are kept, the same call of fit goes on from here"
                + (" with resume=True" if self.saving else "")
            )
            raise KeyboardInterrupt
        if decision.stop == "terminate":
            self.report.note(f"told to end {where}; the fit is saved, resume=True goes on from here")
            raise SystemExit(EXIT_SAVED)

    def _check(self, bad_step: jax.Array, epoch: int, first_update: int) -> None:
        step = int(bad_step)
        if step < 0:
            return
        again = self.job.batches(1, self.programs.share, epoch, step - first_update)
        batch = self.programs.batch(self._batch(again), axis=0)
        key = jax.random.fold_in(self.key, step)
        # Later batches of the fit were not learnt from; a new fit starts its epochs anew.
        self.position = None
        raise NonFiniteLossError(step, epoch, first_not_finite(self.job.objective, self.state.variables, batch, key))

    @staticmethod
    def _batch(source: Any) -> dict[str, Any]:
        """The first batch there is, by itself."""
        with source:
            return jax.tree.map(lambda a: jnp.asarray(a[0]), arrays_of(next(source)))

    def close(self) -> None:
        """Ends the data's threads and processes."""
        close = getattr(self.groups, "close", None)
        if close is not None:
            close()
