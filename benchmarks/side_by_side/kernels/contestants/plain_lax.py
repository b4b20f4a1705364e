"""The operations as a JAX user writes them with lax, under XLA's default options. Nothing here is this package's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from side_by_side.kernels.bench import Program
from side_by_side.kernels.contestants import jax_programs
from side_by_side.kernels.problem import Problem


def programs(problem: Problem, arrays: list[np.ndarray], cotangent: np.ndarray) -> Iterator[Program]:
    """The problem's parts; the linear recurrence in both ways that lax has for it."""
    yield from jax_programs.programs(function_of(problem), problem, arrays, cotangent)
    if problem.op == "linear_scan":
        function = partial(_associative_scan, problem.options)
        yield from jax_programs.programs(function, problem, arrays, cotangent, "associative scan")


def function_of(problem: Problem) -> jax_programs.Function:
    """The operation as a function of the problem's arrays, in any dtype."""
    return partial(_OPS[problem.op], problem.options)


def _conv(o: dict[str, Any], x: jax.Array, w: jax.Array) -> jax.Array:
    space = "DHW"[3 - len(o["stride"]) :]
    return lax.conv_general_dilated(
        x,
        w,
        o["stride"],
        o["pads"],
        lhs_dilation=o["lhs_dilation"],
        rhs_dilation=o["rhs_dilation"],
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=o["groups"],
    )


def _conv_transpose(o: dict[str, Any], x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_transpose(
        x, w, o["strides"], o["pads"], rhs_dilation=o["rhs_dilation"], transpose_kernel=o["transpose_kernel"]
    )


def _reduced(o: dict[str, Any], x: jax.Array, initial: float, function: Callable[..., Any]) -> jax.Array:
    window, strides = (1, *o["window"], 1), (1, *o["strides"], 1)
    return lax.reduce_window(x, initial, function, window, strides, ((0, 0), *o["pads"], (0, 0)))


def _max_pool(o: dict[str, Any], x: jax.Array) -> jax.Array:
    return _reduced(o, x, -jnp.inf, lax.max)


def _avg_pool(o: dict[str, Any], x: jax.Array) -> jax.Array:
    return _reduced(o, x, 0.0, lax.add) / _reduced(o, jnp.ones((1, *x.shape[1:-1], 1), x.dtype), 0.0, lax.add)


def _dense(o: dict[str, Any], x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ (w.T if o["transpose_kernel"] else w) + jnp.expand_dims(bias, range(x.ndim - 1))


def _batch_norm(o: dict[str, Any], x: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = jnp.mean(wide, axes, keepdims=True), jnp.var(wide, axes, keepdims=True)
    factor, shift = (jnp.expand_dims(a.astype(wide.dtype), axes) for a in (scale, offset))
    return jax.nn.relu((wide - mean) * lax.rsqrt(variance + o["epsilon"]) * factor + shift).astype(x.dtype)


def _lstm(o: dict[str, Any], x: jax.Array, w: jax.Array, u: jax.Array, *rest: jax.Array) -> jax.Array:
    def cell(carry: Any, p: jax.Array) -> Any:
        h, c = carry
        i, f, g, out = jnp.split(p + h @ u, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(out) * jnp.tanh(c), c

    return _over_time(o, cell, 2, x, w, u, rest)


def _gru(o: dict[str, Any], x: jax.Array, w: jax.Array, u: jax.Array, *rest: jax.Array) -> jax.Array:
    c = rest[1] if o["bias"] else jnp.zeros((u.shape[1],), u.dtype)

    def cell(carry: Any, p: jax.Array) -> Any:
        (h,) = carry
        p_r, p_z, p_n = jnp.split(p, 3, axis=-1)
        q_r, q_z, q_n = jnp.split(h @ u + c[None], 3, axis=-1)
        z = jax.nn.sigmoid(p_z + q_z)
        return ((1 - z) * jnp.tanh(p_n + jax.nn.sigmoid(p_r + q_r) * q_n) + z * h,)

    return _over_time(o, cell, 1, x, w, u, rest)


def _rnn(o: dict[str, Any], x: jax.Array, w: jax.Array, u: jax.Array, *rest: jax.Array) -> jax.Array:
    return _over_time(o, lambda carry, p: (jnp.tanh(p + carry[0] @ u),), 1, x, w, u, rest)


def _over_time(
    o: dict[str, Any], cell: Any, states: int, x: jax.Array, w: jax.Array, u: jax.Array, rest: tuple[jax.Array, ...]
) -> jax.Array:
    """The input's product ahead of a scan over time; past a row's length its state stays and its output is zero."""
    if o["reverse"] and o["lengths"] is not None:
        raise NotImplementedError("plain lax: reverse with lengths is not written here; no case has had it")
    projected = jnp.swapaxes(x, 0, 1) @ w
    if o["bias"]:
        projected += rest[0][None, None]
    zeros = tuple(jnp.zeros((x.shape[0], u.shape[0]), x.dtype) for _ in range(states))
    valid = None
    if o["lengths"] is not None:
        valid = (jnp.arange(x.shape[1])[:, None] < rest[-1][None])[..., None]

    def step(carry: Any, inputs: Any) -> Any:
        p, ok = inputs
        new = cell(carry, p)
        if ok is None:
            return new, new[0]
        new = tuple(jnp.where(ok, a, b) for a, b in zip(new, carry))
        return new, jnp.where(ok, new[0], jnp.zeros_like(new[0]))

    _, y = lax.scan(step, zeros, (projected, valid), reverse=o["reverse"])
    return jnp.swapaxes(y, 0, 1)


def _linear_scan(o: dict[str, Any], a: jax.Array, b: jax.Array, h0: jax.Array) -> jax.Array:
    def step(h: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = at[0] * h + at[1]
        return h, h

    a = jnp.broadcast_to(a, b.shape)
    _, h = lax.scan(step, h0, (jnp.swapaxes(a, 0, 1), jnp.swapaxes(b, 0, 1)), reverse=o["reverse"])
    return jnp.swapaxes(h, 0, 1)


def _associative_scan(o: dict[str, Any], a: jax.Array, b: jax.Array, h0: jax.Array) -> jax.Array:
    first = b.shape[1] - 1 if o["reverse"] else 0
    a = jnp.broadcast_to(a, b.shape)
    pairs = a, b.at[:, first].add(a[:, first] * h0)
    return lax.associative_scan(
        lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), pairs, reverse=o["reverse"], axis=1
    )[1]  # fmt: skip


_OPS = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "dense": _dense,
    "batch_norm": _batch_norm,
    "lstm": _lstm,
    "gru": _gru,
    "rnn": _rnn,
    "linear_scan": _linear_scan,
}
