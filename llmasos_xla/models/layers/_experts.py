"""The arithmetic of a mixture of experts: routing, places, and the experts' products."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_xla.kernels.conv.geometry import at_least_float32
from llmasos_xla.models.layers._checks import number, whole
from llmasos_xla.sharding import placement


class Mixing(NamedTuple):
    """How tokens find experts."""

    experts: int
    experts_per_token: int
    capacity_factor: float
    prediction_capacity_factor: float | None
    balance_rate: float

    @classmethod
    def of(cls, spec: Any) -> "Mixing":
        """That of a layer whose fields have these names."""
        return cls(*(getattr(spec, name) for name in cls._fields))

    def check(self, who: str) -> None:
        """Refuses more experts a token than there are, and factors that leave no place."""
        whole(who, "experts_per_token", self.experts_per_token)
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"{who}: experts_per_token is {self.experts_per_token}, of experts there are {self.experts}"
            )
        for name in ("capacity_factor", "prediction_capacity_factor"):
            factor = getattr(self, name)
            if factor is not None and number(who, name, factor, least=0.0) == 0:
                raise ValueError(f"{who}: {name} wants a positive number, got 0")
        number(who, "balance_rate", self.balance_rate, least=0.0)

    def shapes(self, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """The trained arrays by name."""
        return {
            "router/kernel": (width, self.experts),
            "experts/gate/kernel": (self.experts, width, hidden),
            "experts/up/kernel": (self.experts, width, hidden),
            "experts/down/kernel": (self.experts, hidden, width),
        }

    def state(self) -> dict[str, Any]:
        """The arrays carried from step to step, as they begin."""
        return {"router/balance": jnp.zeros(self.experts, jnp.float32), "router/dropped": jnp.zeros((), jnp.int32)}

    def capacity(self, time: Any, train: bool) -> Any:
        """Places of each expert for the tokens of a row."""
        factor = self.capacity_factor if train else self.prediction_capacity_factor
        return time if factor is None else min(time, math.ceil(factor * time * self.experts_per_token / self.experts))


class Routes(NamedTuple):
    """Where the tokens of a batch go; [batch, time, experts_per_token] each."""

    chosen: jax.Array
    """Numbers of the experts."""
    gates: jax.Array
    """By what each expert's answer is weighted."""
    place: jax.Array
    """How many tokens stand before it with that expert."""
    kept: jax.Array
    """Whether there is a place left, and the token is none of padding."""


def mixture(
    arrays: dict[str, jax.Array], x: jax.Array, mask: jax.Array | None, mixing: Mixing, *, train: bool
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The experts' answer to each token, [batch, time, width], and the new state.

    Tokens take places in the order of time, row by row: what a row gives depends neither on the other rows, nor on how
    rows are divided over devices, nor an output on later tokens. Padding takes no place and gives zeros.
    """
    routes, wanted = _routes(arrays, x, mask, mixing, mixing.capacity(x.shape[1], train))
    y = _answers(arrays, x, routes, mixing.experts, mixing.capacity(x.shape[1], train))
    state = {name: arrays[name] for name in ("router/balance", "router/dropped")}
    if train:
        load = jnp.sum(wanted, axis=(0, 1))
        over = load.astype(jnp.float32) - jnp.mean(load.astype(jnp.float32))
        kept = jnp.sum(routes.kept.astype(jnp.int32))
        state = {
            "router/balance": state["router/balance"] - mixing.balance_rate * jnp.sign(over),
            "router/dropped": jnp.sum(load) - kept,
        }
    return y, state


def _routes(
    arrays: dict[str, jax.Array], x: jax.Array, mask: jax.Array | None, mixing: Mixing, capacity: Any
) -> tuple[Routes, jax.Array]:
    """The routes, and which expert each token wants, [batch, time, experts] of 0 and 1."""
    # In full precision: a choice that rounding turns sends the token to another expert.
    wide = at_least_float32(x.dtype)
    kernel = arrays["router/kernel"].astype(wide)
    scores = jax.nn.sigmoid(jnp.einsum("btw,we->bte", x.astype(wide), kernel, precision=jax.lax.Precision.HIGHEST))
    # The balance decides who is chosen and never how much an answer counts: it needs no gradient and bends none.
    ranked = jax.lax.stop_gradient(scores) + arrays["router/balance"].astype(wide)[None, None]
    chosen = _highest(ranked, mixing.experts_per_token)
    gates = jnp.take_along_axis(scores, chosen, axis=-1)
    if mixing.experts_per_token > 1:
        gates = gates / jnp.sum(gates, axis=-1, keepdims=True)
    wanted = jnp.sum(jax.nn.one_hot(chosen, mixing.experts, dtype=jnp.int32), axis=-2)
    if mask is not None:
        wanted = jnp.where(mask[..., None], wanted, 0)
    place = jnp.take_along_axis(jnp.cumsum(wanted, axis=1) - wanted, chosen, axis=-1)
    kept = place < capacity
    return Routes(chosen, gates, place, kept if mask is None else kept & mask[..., None]), wanted


def _highest(scores: jax.Array, count: int) -> jax.Array:
    """The numbers of the highest scores on the last axis, highest first, lower numbers first among equals.

    One maximum after the other rather than `top_k`, for which XLA on CPU gathers all rows on every device.
    """
    numbers = []
    for _ in range(count):
        numbers.append(jnp.argmax(scores, axis=-1))
        scores = jnp.where(jax.nn.one_hot(numbers[-1], scores.shape[-1], dtype=bool), -jnp.inf, scores)
    return jnp.stack(numbers, axis=-1)


def _answers(arrays: dict[str, jax.Array], x: jax.Array, routes: Routes, experts: int, capacity: Any) -> jax.Array:
    """Each token's answers, weighted and summed; tokens go to the experts' devices and back."""
    time = x.shape[1]

    def sent(x: jax.Array, routes: Routes) -> jax.Array:
        slots = jnp.where(routes.kept, routes.chosen * capacity + routes.place, experts * capacity)
        tokens = jnp.broadcast_to(jnp.arange(time)[:, None], slots.shape)
        source = jnp.full(experts * capacity, time).at[slots].set(tokens, mode="drop")
        return jnp.take(x, source, axis=0, mode="fill", fill_value=0).reshape(experts, capacity, -1)

    def returned(y: jax.Array, routes: Routes) -> jax.Array:
        slots = jnp.where(routes.kept, routes.chosen * capacity + routes.place, 0)
        weights = jnp.where(routes.kept, routes.gates, 0.0).astype(y.dtype)
        return jnp.einsum("tkw,tk->tw", y.reshape(experts * capacity, -1)[slots], weights)

    kernels = (arrays[f"experts/{name}/kernel"].astype(x.dtype) for name in ("gate", "up", "down"))
    gate, up, down = kernels
    seen = _at_experts(_at_rows(jax.vmap(sent)(x, routes)))
    hidden = jax.nn.silu(jnp.einsum("becw,ewh->bech", seen, gate)) * jnp.einsum("becw,ewh->bech", seen, up)
    answer = _at_rows(_at_experts(jnp.einsum("bech,ehw->becw", hidden, down)))
    return jax.vmap(returned)(answer, routes)


def _at_experts(x: jax.Array) -> jax.Array:
    """[batch, experts, ...] with the experts split over their devices: each token moves to where its expert lies."""
    here = placement.current()
    if here is None or here.spec.expert == 1:
        return x
    return _constrained(x, tuple(axis for axis in here.batch_axes if axis != "expert"), "expert", here)


def _at_rows(x: jax.Array) -> jax.Array:
    """The inverse of `_at_experts`."""
    here = placement.current()
    return x if here is None or here.spec.expert == 1 else _constrained(x, here.batch_axes, None, here)


def _constrained(x: jax.Array, rows: tuple[str, ...], experts: str | None, here: placement.Placement) -> jax.Array:
    free = PartitionSpec.UNCONSTRAINED
    # Inside of a shard_map over another axis the mesh is that one's.
    outer = jax.sharding.get_abstract_mesh()
    mesh = here.mesh if outer.empty else outer
    spec = PartitionSpec(rows or None, experts, *[free] * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
