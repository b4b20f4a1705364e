"""What of a Learner goes into a model file, and how a Learner comes back out of one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api.learner import Learner, Unfinished
from llmasos_xla.api.recipe import Recipe
from llmasos_xla.api.saving import Saved
from llmasos_xla.core import Variables
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.sharding.transfer import fetch
from llmasos_xla.training.history import History
from llmasos_xla.training.loop import Position
from llmasos_xla.training.step import Totals, TrainState, new_state
from llmasos_xla.training.tuning import Tuning


def to_file(learner: Learner, door: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The specification and the arrays that `saving.write` stores."""
    spec = specification(learner, door)
    spec["unfinished"] = fit_to_json(learner.unfinished) if spec["recipe"] and learner.unfinished else None
    arrays = arrays_by_name(learner.variables, learner.training_state if spec["recipe"] else None)
    return spec, fetch(arrays)


def specification(learner: Learner, door: Mapping[str, Any]) -> dict[str, Any]:
    """What rebuilds the model without its arrays, as JSON values."""
    return {
        "door": dict(door),
        "seed": learner.seed,
        "model": learner.spec.to_json(),
        "preprocessing": learner.preprocessing.to_json() if learner.preprocessing else None,
        "recipe": learner.recipe.to_json() if learner.recipe else None,
        "tuning": None if learner.tuning.all else learner.tuning.to_json(),
        "epochs_done": learner.epochs_done,
    }


def arrays_by_name(variables: Variables, training: TrainState | None) -> dict[str, Any]:
    """All arrays, or whatever stands for them, under the names that files and checkpoints have."""
    arrays = {f"params/{n}": a for n, a in variables.params.items()}
    arrays |= {f"state/{n}": a for n, a in variables.state.items()}
    if training is not None:
        arrays |= {f"optimizer/{n}": a for n, a in _by_path(training.optimizer).items()}
        arrays["step"] = training.step
        arrays |= {f"average/{n}": a for n, a in (training.average or {}).items()}
    return arrays


def state_of(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `arrays_by_name`, for a state of the same structure as `like`."""
    params = {n: arrays[f"params/{n}"] for n in like.variables.params}
    state = {n: arrays[f"state/{n}"] for n in like.variables.state}
    leaves = [arrays[f"optimizer/{n}"] for n in _by_path(like.optimizer)]
    average = None if like.average is None else {n: arrays[f"average/{n}"] for n in like.average}
    optimizer = jax.tree.unflatten(jax.tree.structure(like.optimizer), leaves)
    return TrainState(Variables(params, state), optimizer, average, arrays["step"])


def wanted_arrays(spec: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and dtypes of the arrays of such a model that has been trained; raises as `from_file` does."""
    learner = _bare(spec)
    variables = jax.eval_shape(learner.spec.net().init, jax.random.key(0))
    if learner.recipe is None:
        return arrays_by_name(variables, None)
    recipe = learner.recipe
    training = jax.eval_shape(lambda v: new_state(v, learner.transformation, recipe.ema), variables)
    return arrays_by_name(variables, training)


def from_file(saved: Saved) -> tuple[Learner, dict[str, Any]]:
    """The learner and its door's own entries; raises ValueError if anything does not fit together."""
    spec = saved.spec
    learner = _bare(spec)
    arrays = {kind: {} for kind in ("params", "state", "optimizer", "average")}
    for name, array in saved.arrays.items():
        kind, _, rest = name.partition("/")
        if kind in arrays:
            arrays[kind][rest] = array
    expected = jax.eval_shape(learner.spec.net().init, jax.random.key(0))
    variables = Variables(
        _like(expected.params, arrays["params"], "params"), _like(expected.state, arrays["state"], "state")
    )
    training = None
    recipe = learner.recipe
    if recipe is not None and "step" in saved.arrays:
        example = jax.eval_shape(learner.transformation.init, expected.params)
        flat = _like(_by_path(example), arrays["optimizer"], "optimizer")
        optimizer = jax.tree.unflatten(jax.tree.structure(example), [flat[n] for n in _by_path(example)])
        average = None if recipe.ema is None else _like(expected.params, arrays["average"], "average")
        training = TrainState(variables, optimizer, average, jnp.asarray(saved.arrays["step"], jnp.int32))
    learner.restore(variables, training, spec["epochs_done"])
    if training is not None and spec.get("unfinished"):
        learner.unfinished = fit_from_json(spec["unfinished"])
    return learner, spec["door"]


def _bare(spec: Mapping[str, Any]) -> Learner:
    """The learner of a specification, without its arrays."""
    missing = {"door", "seed", "model", "preprocessing", "recipe", "epochs_done"} - spec.keys()
    if missing:
        raise ValueError(f"load: the specification has no {', '.join(sorted(missing))}")
    if (
        not isinstance(spec["seed"], int)
        or not isinstance(spec["epochs_done"], int)
        or not isinstance(spec["door"], dict)
    ):
        raise ValueError("load: the specification is damaged: seed, epochs_done or door are not what they should be")
    learner = Learner(StackSpec.from_json(spec["model"]), seed=spec["seed"])
    if spec["preprocessing"] is not None:
        learner.preprocessing = Preprocessing.from_json(spec["preprocessing"])
    if spec["recipe"] is not None:
        learner.compile(Recipe.from_json(spec["recipe"]))
    learner.tuning = Tuning.from_json(spec.get("tuning"))
    return learner


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _like(expected: Mapping[str, Any], arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, jax.Array]:
    wanted = {n: (tuple(a.shape), str(a.dtype)) for n, a in expected.items()}
    came = {n: (tuple(a.shape), str(a.dtype)) for n, a in arrays.items()}
    if wanted != came:
        names = sorted(n for n in wanted.keys() | came.keys() if wanted.get(n) != came.get(n))
        differences = [f"{n}: wanted {wanted.get(n, 'none')}, the file has {came.get(n, 'none')}" for n in names[:5]]
        raise ValueError(f"load: {len(names)} arrays of {kind} do not fit the model: {'; '.join(differences)}")
    return {n: jnp.asarray(arrays[n]) for n in expected}


def fit_to_json(unfinished: Unfinished) -> dict[str, Any]:
    """A fit's request, position and history as JSON values."""
    position, totals = unfinished.position, unfinished.position.totals
    history = unfinished.history
    return {
        "request": unfinished.request,
        "epoch": position.epoch,
        "data": position.data,
        "totals": None if totals is None else jax.tree.map(lambda a: np.asarray(a).tolist(), _totals_dict(totals)),
        "history": [history.history, history.epoch, history.seconds, history.samples_per_second],
    }


def fit_from_json(config: Any) -> Unfinished:
    """The inverse of `fit_to_json`; raises ValueError for anything else."""
    try:
        totals = config["totals"]
        if totals is not None:
            metrics = {
                name: {k: jnp.asarray(v, jnp.float32) for k, v in sums.items()}
                for name, sums in totals["metrics"].items()
            }
            totals = Totals(
                jnp.float32(totals["loss"]), jnp.float32(totals["count"]), metrics, jnp.int32(totals["bad_step"])
            )
        position = Position(int(config["epoch"]), dict(config["data"]), totals)
        return Unfinished(dict(config["request"]), position, History(*config["history"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"load: the record of the interrupted fit is damaged: {error!r}") from error


def _totals_dict(totals: Totals) -> dict[str, Any]:
    return {"loss": totals.loss, "count": totals.count, "metrics": totals.metrics, "bad_step": totals.bad_step}
