"""Which formulation of a recurrence runs, in the order of preference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._dispatch import Candidate, platform
from llmasos_xla.kernels.activation import ACTIVATIONS, Activation
from llmasos_xla.kernels.rnn import onednn, xla, xla_tangent
from llmasos_xla.kernels.rnn._check import Problem

LIBRARY, TANGENT, PLAIN = "library", "hand-written derivative", "plain scan"

# Up to this many elements of w_input, a forward pass alone is faster on CPU with the input's product inside the loop,
# where its result stays in cache: for a GRU, and for the simple recurrence of a single row.
SMALL_GRU, SMALL_RNN = 2**14, 2**10

Recurrence = Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]


def lstm(
    problem: Problem, activation: Activation, recurrent_activation: Activation, named: bool = False
) -> list[Candidate]:
    """Every way to compute this LSTM."""

    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        w_input, w = problem.w_input, problem.w_recurrent
        return xla_tangent.lstm(x, w_input, bias, w, *states, valid, problem.reverse)

    def cell() -> xla.Cell:
        return xla.lstm_cell(problem.w_recurrent, activation, recurrent_activation)

    unfit = _tanh_and_sigmoid(activation, recurrent_activation)
    return [_library("lstm", problem, unfit, named), *_candidates(problem, tangent, cell, unfit)]


def gru(
    problem: Problem,
    activation: Activation,
    recurrent_activation: Activation,
    reset_after: bool,
    named: bool = False,
) -> list[Candidate]:
    """Every way to compute this GRU."""

    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        recurrent_bias = _row(problem.recurrent_bias, bias)
        w_input, w = problem.w_input, problem.w_recurrent
        inside = platform() == "cpu" and w_input.size <= SMALL_GRU
        return xla_tangent.gru(x, w_input, bias, w, recurrent_bias, *states, valid, problem.reverse, inside)

    def cell() -> xla.Cell:
        w, b = problem.w_recurrent, problem.recurrent_bias
        return xla.gru_cell(w, b, activation, recurrent_activation, reset_after)

    unfit = _tanh_and_sigmoid(activation, recurrent_activation) if reset_after else "needs reset_after=True"
    return [_library("gru", problem, unfit, named), *_candidates(problem, tangent, cell, unfit)]


def rnn(problem: Problem, activation: Activation, named: bool = False) -> list[Candidate]:
    """Every way to compute this simple recurrence."""
    relu = activation is ACTIVATIONS["relu"]

    def tangent(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        w_input, w = problem.w_input, problem.w_recurrent
        inside = platform() == "cpu" and x.shape[1] == 1 and w_input.size <= SMALL_RNN
        return xla_tangent.rnn(x, w_input, bias, w, *states, valid, problem.reverse, inside, relu)

    tanh = activation is ACTIVATIONS["tanh"]
    cell = lambda: xla.rnn_cell(problem.w_recurrent, activation)  # noqa: E731
    # Its relu would hide a row that has diverged.
    needs_tanh = None if tanh else f"needs activation tanh{'; its relu turns NaN into 0' if relu else ''}"
    unfit = None if tanh or relu else "needs activation tanh or relu"
    return [_library("rnn", problem, needs_tanh, named), *_candidates(problem, tangent, cell, unfit)]


def _library(op: str, problem: Problem, unfit: str | None, named: bool) -> Candidate:
    def run() -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return onednn.recurrence(op, problem, named)

    cannot = unfit or onednn.cannot(op, problem)
    slower = onednn.slower(op, problem) if cannot is None else None
    reason = "all steps in one call, of oneDNN or of this package; measured fastest on this platform"
    return Candidate("onednn", LIBRARY, run, cannot or slower, reason, able=cannot is None)


def _candidates(
    problem: Problem, tangent: Recurrence, cell: Callable[[], xla.Cell], cannot: str | None
) -> list[Candidate]:
    def plain(x: jax.Array, bias: jax.Array, states: Any, valid: Any) -> Any:
        return xla.scan(cell(), xla.project(x, problem.w_input) + bias[None], states, valid, problem.reverse)

    one_step = "one step has no loop to save work in" if problem.x.shape[1] == 1 else None
    return [
        Candidate(
            "xla",
            TANGENT,
            lambda: _over_time(problem, tangent),
            cannot or one_step,
            "one matmul for dU after the reverse scan; measured faster on CPU from two steps on",
            able=cannot is None,
        ),
        Candidate("xla", PLAIN, lambda: _over_time(problem, plain), None, "takes any activation; autodiff's gradient"),
    ]


def _tanh_and_sigmoid(activation: Activation, recurrent_activation: Activation) -> str | None:
    if activation is ACTIVATIONS["tanh"] and recurrent_activation is ACTIVATIONS["sigmoid"]:
        return None
    return "needs activation tanh and recurrent_activation sigmoid"


def _over_time(problem: Problem, recurrence: Recurrence) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs the recurrence time-major, its states in high precision, and answers in the caller's layout and dtype."""
    dtype, high = problem.x.dtype, xla.state_dtype(problem.x.dtype)
    x = jnp.swapaxes(problem.x, 0, 1)
    valid = None
    if problem.lengths is not None:
        steps = jnp.arange(x.shape[0], dtype=jnp.int32)
        valid = (steps[:, None] < problem.lengths.astype(jnp.int32)[None])[..., None]
        # The recurrence skips the padding anyway; but a NaN there would reach w_input's gradient as 0 * NaN.
        x = jnp.where(valid, x, jnp.zeros_like(x))
    bias = _row(problem.bias, jnp.zeros((1, problem.w_input.shape[1]), high))
    zeros = jnp.zeros((x.shape[1], problem.w_recurrent.shape[0]), high)
    states = tuple(zeros if s is None else s.astype(high) for s in problem.states)
    ys, final = recurrence(x, bias, states, valid)
    if valid is not None:
        ys = jnp.where(valid, ys, jnp.zeros_like(ys))
    return jnp.swapaxes(ys, 0, 1).astype(dtype), tuple(s.astype(dtype) for s in final)


def _row(bias: jax.Array | None, like: jax.Array) -> jax.Array:
    """A bias `[columns]` as `[1, columns]` in the dtype of the sums; None is zeros."""
    return jnp.zeros_like(like) if bias is None else bias.astype(like.dtype)[None]
