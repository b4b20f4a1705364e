"""The train step and the evaluation step: pure functions of state, totals and a batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llmasos_xla.compiling import jit_is_disabled
from llmasos_xla.core import Net, Variables
from llmasos_xla.errors import unknown
from llmasos_xla.kernels.activation import activation
from llmasos_xla.sharding.placement import current, gathered_again
from llmasos_xla.training.losses import Loss, logits_for
from llmasos_xla.training.metrics import Metric, add

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}
_PRECISION_ALIASES = {"mixed_bfloat16": "bfloat16", "bf16": "bfloat16", "fp32": "float32", "f32": "float32"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training carries from step to step."""

    variables: Variables
    optimizer: optax.OptState
    average: Any
    """The weights' running average by name, if the optimizer keeps one, else None."""
    step: Any
    """Number of updates so far, int32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the batches so far; read late, on the host."""

    loss: Any
    """Sum of the samples' weighted losses, float32."""
    count: Any
    """Number of samples, padding left out, float32."""
    metrics: dict[str, dict[str, Any]]
    """Each metric's sums."""
    bad_step: Any
    """The first step whose loss was not finite, int32, -1 if none: nothing is updated from that step on."""

    def read(self, metrics: Sequence[Metric], prefix: str = "") -> dict[str, float]:
        """The mean loss and the metrics as numbers."""
        loss, count, sums = jax.device_get((self.loss, self.count, self.metrics))
        logs = {prefix + "loss": float(loss / max(float(count), 1.0))}
        return logs | {prefix + m.name: m.result(sums[m.name]) for m in metrics}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is computed of a batch: network, loss, metrics, and how numbers are prepared.

    Attributes:
        net: the model, up to its logits.
        loss: the loss.
        metrics: what else is summed.
        head: name of the activation from logits to outputs, or None.
        prepare: raw input as it comes from the data -> the network's input, traced into the step.
        precision: dtype of the network's arithmetic; parameters and losses stay float32.
        class_weight: weight of each class, or None; labels are ids or one-hot then, one class a sample.
    """

    net: Net
    loss: Loss
    metrics: tuple[Metric, ...] = ()
    head: str | None = None
    prepare: Callable[[Any], Any] = lambda x: x
    precision: str = "float32"
    class_weight: tuple[float, ...] | None = None

    def predict(self, variables: Variables, x: Any) -> Any:
        """Outputs [rows, ...] float32 of encoded input, to be traced."""
        return self.outputs(self.forward(variables, x, train=False)[0])

    def outputs(self, logits: Any) -> Any:
        """The model's outputs from its logits, in float32."""
        return jax.tree.map(lambda a: activation(self.head)(a.astype(jnp.float32)), logits)

    def forward(
        self, variables: Variables, x: Any, *, train: bool, key: jax.Array | None = None, **inputs: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Logits and the new state, computed in `precision`."""
        params, x, placement = self.in_precision(variables.params), self.in_precision(self.prepare(x)), current()
        if placement is not None:
            # After the cast: half the bytes travel.
            params = placement.gathered(params)
        logits, state = self.net.apply(Variables(params, variables.state), x, train=train, key=key, **inputs)
        # Statistics keep the dtype they are stored in, whatever the arithmetic was.
        return logits, {name: a.astype(variables.state[name].dtype) for name, a in state.items()}

    def in_precision(self, tree: Any) -> Any:
        """A tree of arrays, its floats in `precision`."""
        dtype = PRECISIONS[self.precision]
        return tree if dtype == jnp.float32 else _cast(tree, dtype)

    def empty(self, y: Any, x: Any, variables: Variables) -> Totals:
        """Totals of no batch; shapes are found without computing anything."""
        batch = jax.tree.leaves(x)[0].shape[0]

        def sums() -> Any:
            logits, _ = self.forward(variables, x, train=False)
            return self._sums(logits, y, jnp.ones(batch, jnp.float32))

        # Under disable_jit a user's metric may look at values, which eval_shape has none of.
        shapes = sums() if jit_is_disabled() else jax.eval_shape(sums)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return Totals(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), zeros, jnp.full((), -1, jnp.int32))

    def losses(self, logits: Any, y: jax.Array, weight: jax.Array) -> jax.Array:
        """Weighted loss of each sample, [batch]."""
        outputs = self.outputs(logits)
        values = self.loss(logits_for(self.loss, self.head, logits, outputs), outputs, y)
        if self.class_weight is not None:
            ids = jnp.argmax(y, -1) if y.size > y.shape[0] else y.reshape(y.shape[0]).astype(jnp.int32)
            values = values * jnp.asarray(self.class_weight, jnp.float32)[ids]
        return values * weight

    def _sums(self, logits: Any, y: jax.Array, weight: jax.Array) -> dict[str, dict[str, jax.Array]]:
        outputs = self.outputs(logits)
        sums = {}
        for metric in self.metrics:
            try:
                sums[metric.name] = metric.sums(outputs, y, weight)
            except TypeError as error:
                raise ValueError(
                    f"metric {metric.name!r} does not fit outputs {('batch', *outputs.shape[1:])} and labels "
                    f"{('batch', *y.shape[1:])}: {error}"
                ) from error
        return sums

    def sums(self, logits: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
        """Sum of the weighted losses and the metrics' sums: of a batch's parts they add up to the batch's."""
        y, weight = batch["y"], batch["weight"]
        # A metric need not be differentiable.
        return jnp.sum(self.losses(logits, y, weight)), self._sums(jax.lax.stop_gradient(logits), y, weight)

    def gradients(self, params: dict[str, jax.Array], state: dict[str, jax.Array], batch: Any, key: Any) -> Any:
        """The gradient of sum(weight * loss) / count, as `Gradients` says."""

        def forward(params: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
            return self.forward(Variables(params, state), batch["x"], train=True, key=key)

        placement = current()
        if placement is not None and placement.gathers(params):
            forward = gathered_again(forward)

        def mean(params: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            logits, new = forward(params)
            loss, sums = self.sums(logits, batch)
            return loss / rows(batch), (loss, sums, new)

        return jax.value_and_grad(mean, has_aux=True)(params)


Gradients = Callable[..., tuple[tuple[jax.Array, tuple[jax.Array, Any, dict[str, jax.Array]]], dict[str, jax.Array]]]
"""`(params, state, batch, key) -> ((loss, (sum of losses, metrics' sums, new state)), gradients of loss)`; `loss` is
the sum divided by the batch's rows."""


def rows(batch: Mapping[str, Any]) -> jax.Array:
    """What a batch's sum of losses is divided by: its rows, padding left out."""
    return jnp.maximum(batch["count"], 1).astype(jnp.float32)


def more(before: Totals, loss: jax.Array, sums: Any, count: jax.Array) -> Totals:
    """The totals with one more batch."""
    return Totals(
        before.loss + loss, before.count + count.astype(jnp.float32), add(before.metrics, sums), before.bad_step
    )


def precision_by_name(precision: str) -> str:
    """The precision's full name: "float32" or "bfloat16" (also spelled "mixed_bfloat16")."""
    name = _PRECISION_ALIASES.get(precision, precision)
    if name not in PRECISIONS:
        raise unknown("compile", "precision", precision, {*PRECISIONS, *_PRECISION_ALIASES})
    if name == "float64" and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "compile: precision 'float64' needs 64-bit arrays, which JAX has switched off: "
            'jax.config.update("jax_enable_x64", True) first'
        )
    return name


def new_state(variables: Variables, optimizer: optax.GradientTransformation, ema: float | None = None) -> TrainState:
    """The state before the first step."""
    average = None if ema is None else jax.tree.map(jnp.copy, variables.params)
    return TrainState(variables, optimizer.init(variables.params), average, jnp.zeros((), jnp.int32))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: float | None = None,
    gradients_of: Gradients | None = None,
) -> Callable[..., tuple[TrainState, Totals]]:
    """`step((state, totals), batch, key) -> (state, totals)`: one update.

    `batch` maps "x", "y", "weight" [batch] and "count" [] (samples that are not padding). The gradient is that of
    sum(weight * loss) / count. From the first loss that is not finite on, weights and statistics stay as they are, so
    that what led there can be looked at; the optimizer sees gradients of zero. `gradients_of` computes them, if not the
    objective. An optimizer that gives no updates for some names leaves those arrays as they are (`tuning.Tuning`).
    """
    gradients_of = gradients_of or objective.gradients

    def step(carry: tuple[TrainState, Totals], batch: Mapping[str, Any], key: jax.Array) -> tuple[TrainState, Totals]:
        state, totals = carry
        (loss, (summed_loss, sums, carried)), gradients = gradients_of(
            state.variables.params, state.variables.state, batch, jax.random.fold_in(key, state.step)
        )
        fine = jnp.isfinite(loss) & (totals.bad_step < 0)

        def if_fine(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)

        # Zeroed gradients and updates rather than a choice between two states: the old state can then be overwritten
        # where it lies, which is a third of a small model's step.
        gradients = if_fine(gradients, jax.tree.map(jnp.zeros_like, gradients))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.variables.params)
        updates = if_fine(updates, jax.tree.map(jnp.zeros_like, updates))
        # What the optimizer has no updates for is frozen: not a bit of it changes.
        changed: Any = optax.apply_updates({n: state.variables.params[n] for n in updates}, updates)
        params = {**state.variables.params, **changed}
        average = state.average
        if average is not None and ema is not None:
            after = {n: (ema * average[n] + (1.0 - ema) * a).astype(average[n].dtype) for n, a in changed.items()}
            average = {**average, **if_fine(after, {n: average[n] for n in after})}
        summed = if_fine(more(totals, summed_loss, sums, batch["count"]), totals)
        bad_step = jnp.where(fine | (totals.bad_step >= 0), totals.bad_step, state.step)
        state = TrainState(
            Variables(params, if_fine(carried, state.variables.state)),
            optimizer_state,
            average,
            state.step + fine.astype(jnp.int32),
        )
        return state, dataclasses.replace(summed, bad_step=bad_step)

    return step


def make_eval_step(objective: Objective) -> Callable[..., Totals]:
    """`step(totals, batch, variables) -> totals`: sums of loss and metrics, nothing learnt."""

    def step(totals: Totals, batch: Mapping[str, Any], variables: Variables) -> Totals:
        logits, _ = objective.forward(variables, batch["x"], train=False)
        return more(totals, *objective.sums(logits, batch), batch["count"])

    return step


def over_group(step: Callable) -> Callable:
    """Runs `step(carry, batch, *rest) -> carry` over the first `steps` batches of a group, in one dispatch.

    The result is `many(carry, group, steps, *rest) -> carry`; arrays of the group have a leading axis of batches.
    """

    def many(carry: Any, group: Any, steps: jax.Array, *rest: Any) -> Any:
        if jax.tree.leaves(group)[0].shape[0] == 1:
            # A loop of one would hide the batch from XLA's convolution libraries; without it they see it.
            return step(carry, jax.tree.map(lambda a: a[0], group), *rest)

        def body(i: jax.Array | int, carry: Any) -> Any:
            batch = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), group)
            return step(carry, batch, *rest)

        return jax.lax.fori_loop(0, steps, body, carry)

    return many


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)
