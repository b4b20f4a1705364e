"""Which formulation of a recurrence runs, in the order of preference."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, choose, platform
from llmasos_xla.kernels.activation import ACTIVATIONS, Activation, activation
from llmasos_xla.kernels.rnn import onednn, triton, xla, xla_tangent
from llmasos_xla.kernels.rnn._check import STATES, Problem, check

PERSISTENT, LIBRARY, TANGENT, PLAIN = "persistent kernel", "library", "hand-written derivative", "plain scan"
APART = "a call each"

# Up to this many elements of w_input, a forward pass alone is faster on CPU with the input's product inside the loop,
# where its result stays in cache: for a GRU, and for the simple recurrence of a single row.
SMALL_GRU, SMALL_RNN = 2**14, 2**10


class Options(NamedTuple):
    """What a request says beside its arrays `x`, `w_input`, `w_recurrent`, `bias` and the states."""

    recurrent_bias: Any = None
    activation: str | None = "tanh"
    recurrent_activation: str | None = "sigmoid"
    reset_after: bool = True
    lengths: Any = None
    resets: Any = None
    recurrent_mask: Any = None
    layer_norm: Any = None
    reverse: bool = False
    implementation: str | None = None


def candidates(op: str, x: Any, w_input: Any, w_recurrent: Any, bias: Any, *states: Any, **options: Any):
    """Every way to compute this recurrence, from the arguments of its public function."""
    p, o = _problem(op, x, w_input, w_recurrent, bias, states, options)
    kind, (cell, tangent, unfit, standard, persistent) = _versions(op, p, o)
    named = o.implementation is not None
    return [
        _persistent(kind, (p,), persistent, lambda: triton.recurrence(kind, (p,), named)[0]),
        _library(op, p, standard, named),
        *_scans(p, tangent, cell, unfit),
    ]


def both_directions(function: Callable, x: Any, forward: Mapping, backward: Mapping, **options: Any):
    """Every way to compute both directions of a recurrence, from the arguments of `bidirectional`."""
    op, implementation = function.__name__, options.get("implementation")
    directions = [{"bias": None, **forward, "reverse": False}, {"bias": None, **backward, "reverse": True}]
    problems, kind, unfit = [], op, None
    for arrays in directions:
        rest = {**arrays, **options}
        p, o = _problem(op, x, rest.pop("w_input"), rest.pop("w_recurrent"), rest.pop("bias"), (), rest)
        kind, versions = _versions(op, p, o)
        problems.append(p)
        unfit = versions.persistent
    one, other = problems
    if one.w_recurrent.shape != other.w_recurrent.shape:
        unfit = f"w_recurrent is {one.w_recurrent.shape} forward, {other.w_recurrent.shape} backward"
    elif (one.recurrent_mask is None) != (other.recurrent_mask is None):
        unfit = "recurrent_mask is given in one direction only"
    elif (one.layer_norm and one.layer_norm.epsilon) != (other.layer_norm and other.layer_norm.epsilon):
        unfit = "layer_norm is given in one direction only, or with two epsilons"

    def together() -> list[Any]:
        return triton.recurrence(kind, problems, implementation is not None)

    def apart() -> list[Any]:
        return [function(x, **arrays, **options) for arrays in directions]

    runs, reason = implementation, f"each direction as {op} has it"
    if implementation is None:
        each = [choose(op, candidates(op, x, **a, **options), None) for a in directions]
        runs = " and ".join(dict.fromkeys(c.implementation for c in each))
        reason += f": {' and '.join(dict.fromkeys(c.formulation for c in each))}"
    return [
        _persistent(kind, tuple(problems), unfit, together),
        Candidate(str(runs), APART, apart, None, reason),
    ]


def _problem(op: str, x: Any, w_input: Any, w_recurrent: Any, bias: Any, states: Any, options: dict) -> tuple:
    """The checked arrays of a request, and what it says beside them."""
    given = dict.fromkeys(STATES[op]) | dict(zip(STATES[op], states))
    given |= {name: options[name] for name in STATES[op] if name in options}
    o = Options(**{name: value for name, value in options.items() if name not in STATES[op]})
    p = check(
        op, x, w_input, w_recurrent, bias, o.recurrent_bias, o.lengths, o.reverse, o.resets, o.recurrent_mask,
        o.layer_norm, **given,
    )  # fmt: skip
    return p, o


class Versions(NamedTuple):
    """The plain JAX versions of an op: the cell, the recurrence with a hand-written derivative, what they refuse."""

    cell: Callable[[], xla.Cell]
    tangent: Callable[..., Any] | None
    unfit: str | None
    """Why the hand-written derivative does not fit."""
    standard: str | None
    """Why oneDNN's version does not fit."""
    persistent: str | None
    """Why the persistent kernel does not fit."""


def _versions(op: str, p: Problem, o: Options) -> tuple[str, Versions]:
    """The kind of kernel that an op is with these activations, and its versions."""
    f, g = activation(o.activation, op), activation(o.recurrent_activation, op)
    kind = op
    if op == "rnn" and f is ACTIVATIONS["relu"]:
        kind = "relu"
    elif p.layer_norm is not None:
        kind = "lnlstm"
    return kind, _VERSIONS[op](p, f, g, o.reset_after)


def _lstm(p: Problem, f: Activation, g: Activation, reset_after: bool) -> Versions:
    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        return xla_tangent.lstm(x, p.w_input, bias, p.w_recurrent, *states, valid, p.reverse)

    unfit = _tanh_and_sigmoid(f, g)

    def cell() -> xla.Cell:
        return xla.lstm_cell(p.w_recurrent, f, g, p.recurrent_mask, p.layer_norm)

    return Versions(cell, tangent, unfit, unfit, unfit)


def _gru(p: Problem, f: Activation, g: Activation, reset_after: bool) -> Versions:
    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        recurrent_bias = _row(p.recurrent_bias, bias)
        inside = platform() == "cpu" and p.w_input.size <= SMALL_GRU
        return xla_tangent.gru(x, p.w_input, bias, p.w_recurrent, recurrent_bias, *states, valid, p.reverse, inside)

    def cell() -> xla.Cell:
        return xla.gru_cell(p.w_recurrent, p.recurrent_bias, f, g, reset_after, p.recurrent_mask)

    unfit = _tanh_and_sigmoid(f, g) if reset_after else "needs reset_after=True"
    return Versions(cell, tangent, unfit, unfit, unfit)


def _rnn(p: Problem, f: Activation, g: Activation, reset_after: bool) -> Versions:
    relu, tanh = f is ACTIVATIONS["relu"], f is ACTIVATIONS["tanh"]

    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        inside = platform() == "cpu" and x.shape[1] == 1 and p.w_input.size <= SMALL_RNN
        return xla_tangent.rnn(x, p.w_input, bias, p.w_recurrent, *states, valid, p.reverse, inside, relu)

    # oneDNN's relu would hide a row that has diverged.
    standard = None if tanh else f"needs activation tanh{'; its relu turns NaN into 0' if relu else ''}"
    unfit = None if tanh or relu else "needs activation tanh or relu"
    return Versions(lambda: xla.rnn_cell(p.w_recurrent, f, p.recurrent_mask), tangent, unfit, standard, unfit)


def _slstm(p: Problem, f: Activation, g: Activation, reset_after: bool) -> Versions:
    return Versions(lambda: xla.slstm_cell(p.w_recurrent, p.recurrent_mask), None, None, "has no sLSTM", None)


_VERSIONS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn, "slstm": _slstm}


def _persistent(kind: str, problems: tuple[Problem, ...], unfit: str | None, run: Callable[[], Any]) -> Candidate:
    cannot = unfit or triton.cannot(kind, *problems)
    if cannot is not None:
        return Candidate("triton", PERSISTENT, run, cannot)
    slower, reason = triton.slower(kind, *problems), triton.reason(kind, *problems)
    return Candidate("triton", PERSISTENT, run, slower, reason, able=True)


def _library(op: str, p: Problem, unfit: str | None, named: bool) -> Candidate:
    cannot = unfit or p.plain or onednn.cannot(op, p)
    slower = onednn.slower(op, p) if cannot is None else None
    reason = "all steps in one call, of oneDNN or of this package; measured fastest on this platform"
    return Candidate(
        "onednn", LIBRARY, lambda: onednn.recurrence(op, p, named), cannot or slower, reason, able=cannot is None
    )


def _scans(
    p: Problem, tangent: Callable[..., Any] | None, cell: Callable[[], xla.Cell], cannot: str | None
) -> list[Candidate]:
    def plain(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        fresh = None if p.resets is None else jnp.swapaxes(p.resets, 0, 1)[..., None]
        projected = xla.normalized_input(xla.project(x, p.w_input), p.layer_norm)
        return xla.scan(cell(), projected + bias[None], states, valid, p.reverse, fresh)

    autodiff = Candidate("xla", PLAIN, lambda: _over_time(p, plain), None, "takes any activation; autodiff's gradient")
    if tangent is None:
        return [autodiff]
    cannot = cannot or p.plain
    one_step = "one step has no loop to save work in" if p.x.shape[1] == 1 else None
    return [
        Candidate(
            "xla",
            TANGENT,
            lambda: _over_time(p, tangent),
            cannot or one_step,
            "one matmul for dU after the reverse scan; measured faster on CPU from two steps on",
            able=cannot is None,
        ),
        autodiff,
    ]


def _tanh_and_sigmoid(f: Activation, g: Activation) -> str | None:
    if f is ACTIVATIONS["tanh"] and g is ACTIVATIONS["sigmoid"]:
        return None
    return "needs activation tanh and recurrent_activation sigmoid"


def _over_time(p: Problem, recurrence: Callable[..., Any]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs the recurrence time-major, its states in high precision, and answers in the caller's layout and dtype."""
    dtype, high = p.x.dtype, xla.state_dtype(p.x.dtype)
    x = jnp.swapaxes(p.x, 0, 1)
    valid = None
    if p.lengths is not None:
        steps = jnp.arange(x.shape[0], dtype=jnp.int32)
        valid = (steps[:, None] < p.lengths.astype(jnp.int32)[None])[..., None]
        # The recurrence skips the padding anyway; but a NaN there would reach w_input's gradient as 0 * NaN.
        x = jnp.where(valid, x, jnp.zeros_like(x))
    bias = _row(p.bias, jnp.zeros((1, p.w_input.shape[1]), high))
    nothing = xla.initial(tuple(jnp.zeros((x.shape[1], p.hidden), high) for _ in p.states))
    states = tuple(zero if s is None else s.astype(high) for s, zero in zip(p.states, nothing))
    ys, final = recurrence(x, bias, states, valid)
    if valid is not None:
        ys = jnp.where(valid, ys, jnp.zeros_like(ys))
    return jnp.swapaxes(ys, 0, 1).astype(dtype), tuple(s.astype(dtype) for s in final)


def _row(bias: jax.Array | None, like: jax.Array) -> jax.Array:
    """A bias `[columns]` as `[1, columns]` in the dtype of the sums; None is zeros."""
    return jnp.zeros_like(like) if bias is None else bias.astype(like.dtype)[None]
