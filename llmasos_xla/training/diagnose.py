"""Where a loss that is not finite comes from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.training.step import Objective


class NonFiniteLossError(FloatingPointError):
    """A training loss was NaN or infinite; the weights are those before that step.

    Attributes:
        step: the update that met it, counted over the model's life.
        epoch: its epoch, counted from 0.
        culprit: the first layer or array that was not finite.
    """

    def __init__(self, step: int, epoch: int, culprit: str):
        self.step, self.epoch, self.culprit = step, epoch, culprit
        super().__init__(
            f"fit: the loss is not finite at step {step} (epoch {epoch + 1}); first not finite: {culprit}. The weights "
            "before that step are kept. Try a lower learning rate, clip_norm=1.0 in the optimizer, or look at the data."
        )


def first_not_finite(objective: Objective, variables: Variables, batch: dict[str, Any], key: jax.Array) -> str:
    """Names the first array, layer or loss of a train step that is not finite, in the order they are computed."""
    for name, array in {**variables.params, **variables.state}.items():
        if not _finite(array):
            return f"the array {name!r}, after the update before"
    for leaf in jax.tree.leaves(batch["x"]):
        if not _finite(leaf):
            return "the input batch"
    culprits: list[str] = []

    def watch(name: str, y: Any) -> None:
        if not all(_finite(leaf) for leaf in jax.tree.leaves(y)):
            culprits.append(name)

    watched = {"watch": watch} if _takes_watch(objective, variables, batch) else {}
    logits, _ = objective.forward(variables, batch["x"], train=True, key=key, **watched)
    if culprits:
        return f"the output of layer {culprits[0]!r}"
    if not _finite(logits):
        return "the model's output"
    losses = np.asarray(objective.losses(logits, jnp.asarray(batch["y"]), jnp.asarray(batch["weight"])))
    rows = np.flatnonzero(~np.isfinite(losses))
    return f"the loss of row {rows[0]} of the batch" if len(rows) else "the sum of the losses"


def _takes_watch(objective: Objective, variables: Variables, batch: dict[str, Any]) -> bool:
    try:
        jax.eval_shape(lambda: objective.forward(variables, batch["x"], train=False, watch=lambda name, y: None)[0])
    except TypeError as error:
        if "watch" in str(error):
            return False
        raise
    return True


def _finite(array: Any) -> bool:
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(jnp.all(jnp.isfinite(array)))
