"""How a fit and its folder of checkpoints meet: what is saved, how it is gone on with, and opening it as a model."""

import contextlib
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, final

import jax
import jax.numpy as jnp

from llmasos_xla.api import files
from llmasos_xla.api.learner import Learner, Unfinished
from llmasos_xla.api.saving import Saved
from llmasos_xla.core import Variables
from llmasos_xla.progress import EXIT_SAVED
from llmasos_xla.training.callbacks import Callback, Remembering
from llmasos_xla.training.checkpoint import Checkpoint, Pace
from llmasos_xla.training.checkpoint_folder import DamagedCheckpointError, entries
from llmasos_xla.training.history import History
from llmasos_xla.training.interrupt import deferred_termination
from llmasos_xla.training.loop import Position, Saving
from llmasos_xla.training.report import Quiet
from llmasos_xla.training.step import TrainState
from llmasos_xla.training.store import Store


@contextlib.contextmanager
def keeping(
    checkpoint: Checkpoint | str | os.PathLike | None, resume: bool, door: Mapping[str, Any]
) -> "Iterator[Keeper | None]":
    """Around a fit: its keeper, or None without `checkpoint`. Within it SIGTERM saves, and exits with status 75.

    Raises FileExistsError for a folder that has checkpoints which are not to be gone on with.
    """
    if checkpoint is None:
        if resume:
            raise ValueError("fit: resume=True needs checkpoint=, the folder of the fit to go on with")
        yield None
        return
    options = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    folder = pathlib.Path(options.folder)
    if folder.is_file():
        raise FileExistsError(f"fit: checkpoint= wants a folder, {str(folder)!r} is a file")
    if not resume and (there := entries(folder)):
        raise FileExistsError(
            f"fit: {str(folder)!r} holds the checkpoints of another fit, up to step {there[-1].step}; pass resume=True "
            "to go on with that fit, choose another folder, or delete this one"
        )
    best: Any = options.best
    with (
        deferred_termination() as terminated,
        Store(folder, keep=options.keep, best=best, keep_best=options.keep_best) as store,
    ):
        yield Keeper(options, resume, door, store, terminated)
        if terminated():
            # It came when there was nothing left to stop: the fit is whole and saved, the script is not to go on.
            raise SystemExit(EXIT_SAVED)


@final
class Keeper:
    """Saves one fit of a Learner into a Store, and takes one up from there. Made by `keeping`."""

    def __init__(
        self,
        options: Checkpoint,
        resume: bool,
        door: Mapping[str, Any],
        store: Store,
        terminated: Callable[[], bool],
    ):
        self._options, self._resume, self._door, self._store = options, resume, door, store
        self._terminated = terminated
        self._class_weight: list[float] | None = None

    def take_up(
        self,
        learner: Learner,
        request: dict[str, Any],
        callbacks: Sequence[Callback],
        report: Quiet,
        *,
        validated: bool,
        class_weight: Sequence[float] | None,
    ) -> tuple[bool, History | None]:
        """Brings the learner to where the newest whole checkpoint stands, if it is to and there is one.

        Returns whether the fit is finished, and its history, or None if it starts anew.

        Raises ValueError if the checkpoint belongs to another model, other data or other settings.
        """
        self._class_weight = None if class_weight is None else list(class_weight)
        self._check_metric(learner, validated)
        store = self._store
        if store.swept:
            report.note(f"removed what killed saves left in {str(store.folder)!r}: {', '.join(store.swept)}")
        if not self._resume:
            return False, None
        step, damage = store.newest_whole(set_aside=True)
        if damage:
            told = "; ".join(f"{name}: {wrong}" for name, wrong in damage.items())
            if step is None:
                raise DamagedCheckpointError(
                    f"fit: no checkpoint in {str(store.folder)!r} is whole ({told}); start anew in another folder"
                )
            # Going on from an older one costs time and changes no number, and a job restarted at night has nobody to
            # ask; but it is said, also where verbose is 0.
            warnings.warn(
                f"fit: damaged checkpoints in {str(store.folder)!r} were set aside under names that end in .damaged "
                f"({told}); going on from step {step}, which is whole",
                stacklevel=5,
            )
        if step is None:
            report.note(f"there is no checkpoint in {str(store.folder)!r} yet; the fit starts")
            return False, None
        record = store.record(step)
        fit = files.fit_from_json(record.get("unfinished") or record.get("finished"))
        done = not record.get("unfinished") and fit.request["epochs"] == request["epochs"]
        self._check_same(learner, record, fit, request)
        now = learner.training_state
        assert now is not None
        arrays = files.arrays_by_name(now.variables, now)
        like = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_sharding(a)) for n, a in arrays.items()}
        like |= {n: s for n, s in store.shapes(step).items() if n.startswith("callbacks/")}
        stored, _ = store.restore(step, like, check=False)
        stored = {n: jnp.asarray(a) for n, a in stored.items()}
        if lost := record["callbacks"].keys() - _named(callbacks).keys():
            report.note(f"what {', '.join(sorted(lost))} remembered is lost: this call of fit has no such callbacks")
        _give_back(callbacks, record["callbacks"], stored)
        fit.history.steps_per_dispatch = int(record.get("steps_per_dispatch", 1))
        unfinished = None if done else fit._replace(request=request)
        learner.take_up(files.state_of(stored, now), unfinished, record["epochs_done" if done else "first_epoch"])
        report.note(f"read step {step} from {str(store.folder)!r}{'; that fit is finished' if done else ''}")
        return done, fit.history

    def saving(
        self, learner: Learner, request: dict[str, Any], history: History, callbacks: Sequence[Callback], report: Quiet
    ) -> Saving:
        """What the loop calls."""

        def write(state: TrainState, position: Position, finished: bool, metrics: Mapping[str, float]) -> None:
            started = time.perf_counter()
            fit = files.fit_to_json(Unfinished(request, position, history))
            memories, kept = _memories(callbacks)
            record = {
                **files.specification(learner, self._door),
                "first_epoch": request["first_epoch"],
                "class_weight": self._class_weight,
                "steps_per_dispatch": history.steps_per_dispatch,
                "unfinished": None if finished else fit,
                "finished": fit if finished else None,
                "callbacks": memories,
            }
            step = int(state.step)
            self._store.save(step, {**files.arrays_by_name(state.variables, state), **kept}, record, metrics)
            history.saves.append((step, time.perf_counter() - started))

        def save(state: TrainState, position: Position, wait: bool) -> None:
            # Amid an epoch its metrics are not known.
            write(state, position, False, _last(history) if position.totals is None else {})
            if wait:
                self._store.wait()
                report.note(f"saved step {int(state.step)} in {str(self._store.folder)!r}")

        def finish(state: TrainState, position: Position) -> None:
            now = learner.training_state
            assert now is not None
            # A callback may have put other weights in place, which the last metrics are not about.
            write(now, position, True, _last(history) if _same_weights(now, state) else {})
            self._store.wait()

        return Saving(Pace(self._options, self._terminated), save, finish)

    def _check_metric(self, learner: Learner, validated: bool) -> None:
        recipe, best = learner.recipe, self._options.best
        if best is None or recipe is None:
            return
        names = ["loss", *(metric.name for metric in recipe.metrics)]
        names += [f"val_{name}" for name in names] if validated else []
        if best[0] not in names:
            hint = "; pass validation_data= or validation_split=" if best[0].startswith("val_") else ""
            raise ValueError(f"Checkpoint: best wants a metric of this fit, {', '.join(names)}; got {best[0]!r}{hint}")

    def _check_same(
        self, learner: Learner, record: Mapping[str, Any], fit: Unfinished, request: Mapping[str, Any]
    ) -> None:
        here = json.loads(json.dumps(files.specification(learner, self._door)))
        differences = []
        for name in ("model", "seed", "recipe", "tuning", "preprocessing"):
            differences += _differences(name, record.get(name), here[name])
        differences += _differences("fit class_weight", record.get("class_weight"), self._class_weight)
        for name in ("rows", "batch_size", "seed", "first_epoch"):
            differences += _differences(f"fit {name}", fit.request.get(name), request[name])
        if fit.request.get("first_epoch") != request["first_epoch"]:
            differences.append(
                "this model has been trained since or otherwise: resume with one as it was before that fit"
            )
        if differences:
            raise ValueError(
                f"fit: the checkpoints in {str(self._store.folder)!r} belong to another fit: {'; '.join(differences)}. "
                "Resume with the same model, data and settings, or choose another folder"
            )
        last = request["first_epoch"] + request["epochs"]
        if fit.position.epoch > last or (fit.position.epoch == last and fit.position.totals is not None):
            raise ValueError(
                f"fit: the fit in {str(self._store.folder)!r} is in epoch {fit.position.epoch + 1} already, "
                f"epochs={request['epochs']} asks for less; pass epochs={fit.request['epochs']} or another folder"
            )


def read(path: str | os.PathLike, step: int | Literal["best"] | None = None) -> Saved:
    """What a checkpoint says of its model, as a model file says it.

    Raises FileNotFoundError, or ValueError with the reason for what is damaged or no checkpoint of a fit.
    """
    if not entries(path):
        inside = pathlib.Path(path).absolute()
        within = [entry for entry in entries(inside.parent) if entry.path == inside]
        hint = f": {str(inside.parent)!r}, with step={within[0].step}" if within else ""
        raise ValueError(
            f"load: {str(path)!r} is a folder; wanted a .h5 or .safetensors file, or a folder that fit(checkpoint=) "
            f"has saved in{hint}"
        )
    with Store(path, read_only=True) as store:
        if step == "best":
            step = store.best_step()
        try:
            spec = store.record(step)
            arrays, _ = store.restore(step, files.wanted_arrays(spec), partial=True)
        except DamagedCheckpointError as error:
            whole, _ = store.newest_whole()
            other = f"load({str(path)!r}, step={whole}) opens one that is whole"
            way_out = "no other is whole" if whole is None else other
            raise DamagedCheckpointError(f"load: {error}; {way_out}") from error
    return Saved(spec, arrays)


def _sharding(array: jax.Array) -> jax.sharding.Sharding | None:
    # What was not put somewhere on purpose stays free to follow other arrays.
    return array.sharding if array.committed else None


def _same_weights(a: TrainState, b: TrainState) -> bool:
    mine, theirs = (jax.tree.leaves((state.variables, state.average)) for state in (a, b))
    return a is b or all(x is y or bool(jnp.array_equal(x, y)) for x, y in zip(mine, theirs))


def _last(history: History) -> dict[str, float]:
    return {name: values[-1] for name, values in history.history.items() if values}


def _differences(name: str, there: Any, here: Any) -> list[str]:
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        return [d for key in keys for d in _differences(f"{name} {key}", there.get(key), here.get(key))]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [d for i, (a, b) in enumerate(zip(there, here)) for d in _differences(f"{name} {i}", a, b)]
    return [f"{name}: there {str(there)[:60]}, here {str(here)[:60]}"]


def _named(callbacks: Sequence[Callback]) -> dict[str, Remembering]:
    """The callbacks with a memory: by their name, the second of a name with a number."""
    found: dict[str, Remembering] = {}
    for callback in callbacks:
        if isinstance(callback, Remembering):
            count = sum(c.name == callback.name for c in found.values())
            found[f"{callback.name}.{count}" if count else callback.name] = callback
    return found


def _memories(callbacks: Sequence[Callback]) -> tuple[dict[str, dict[str, Any]], dict[str, jax.Array]]:
    """What callbacks remember, as JSON values and as arrays by name."""
    values: dict[str, dict[str, Any]] = {}
    arrays: dict[str, jax.Array] = {}
    for name, callback in _named(callbacks).items():
        values[name] = {k: v for k, v in callback.memory.items() if not isinstance(v, Variables)}
        for key, kept in callback.memory.items():
            if isinstance(kept, Variables):
                by_name = files.arrays_by_name(kept, None)
                arrays |= {f"callbacks/{name}/{key}/{n}": a for n, a in by_name.items()}
    return values, arrays


def _give_back(callbacks: Sequence[Callback], values: Mapping[str, Any], arrays: Mapping[str, jax.Array]) -> None:
    for name, callback in _named(callbacks).items():
        # A callback that the fit did not have before begins anew.
        callback.memory |= values.get(name, {})
        prefix = f"callbacks/{name}/"
        for key in sorted({rest.split("/")[0] for rest in _under(prefix, arrays)}):
            params, state = (_under(f"{prefix}{key}/{kind}/", arrays) for kind in ("params", "state"))
            callback.memory[key] = Variables(params, state)


def _under(prefix: str, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
