"""The public functions `rnn`, `gru` and `lstm`: docs and the choice of what runs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._dispatch import Candidate
from llmasos_xla.kernels.activation import activation as activation_by_name
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn._check import Problem, check

Lengths = Int[Array | np.ndarray, " batch"]


def _plain(problem: Problem, cell: xla.Cell, reverse: bool):
    dtype = problem.x.dtype
    high = xla.state_dtype(dtype)
    p = xla.project(problem.x, problem.w_input, problem.bias)
    valid = None if problem.lengths is None else (jnp.arange(p.shape[0])[:, None] < problem.lengths[None])[..., None]
    ys, state = xla.scan(cell, p, tuple(s.astype(high) for s in problem.states), valid, reverse)
    return jnp.swapaxes(ys, 0, 1).astype(dtype), tuple(s.astype(dtype) for s in state)


def _lstm(
    x, w_input, w_recurrent, bias, h0=None, c0=None, *,
    activation="tanh", recurrent_activation="sigmoid", lengths=None, reverse=False,
) -> Sequence[Candidate]:  # fmt: skip
    problem = check("lstm", x, w_input, w_recurrent, bias, {"h0": h0, "c0": c0}, None, lengths)
    cell = xla.lstm_cell(
        problem.w_recurrent, activation_by_name(activation, "lstm"), activation_by_name(recurrent_activation, "lstm")
    )
    return [Candidate("xla", "plain scan", lambda: _plain(problem, cell, reverse))]


@_dispatch.op(_lstm)
def lstm(
    x: Float[Array, "batch time cin"],
    w_input: Float[Array, "cin gates"],
    w_recurrent: Float[Array, "hidden gates"],
    bias: Float[Array, " gates"] | None,
    h0: Float[Array, "batch hidden"] | None = None,
    c0: Float[Array, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    lengths: Lengths | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]]:
    """Long short-term memory over time."""
    kwargs = {"activation": activation, "recurrent_activation": recurrent_activation}
    candidates = _lstm(x, w_input, w_recurrent, bias, h0, c0, **kwargs, lengths=lengths, reverse=reverse)
    return _dispatch.run(lstm, candidates, implementation)


def _gru(
    x, w_input, w_recurrent, bias, h0=None, *, recurrent_bias=None,
    activation="tanh", recurrent_activation="sigmoid", reset_after=True, lengths=None, reverse=False,
) -> Sequence[Candidate]:  # fmt: skip
    problem = check("gru", x, w_input, w_recurrent, bias, {"h0": h0}, recurrent_bias, lengths)
    cell = xla.gru_cell(
        problem.w_recurrent,
        problem.recurrent_bias,
        activation_by_name(activation, "gru"),
        activation_by_name(recurrent_activation, "gru"),
        reset_after,
    )
    return [Candidate("xla", "plain scan", lambda: _one_state(_plain(problem, cell, reverse)))]


@_dispatch.op(_gru)
def gru(
    x: Float[Array, "batch time cin"],
    w_input: Float[Array, "cin gates"],
    w_recurrent: Float[Array, "hidden gates"],
    bias: Float[Array, " gates"] | None,
    h0: Float[Array, "batch hidden"] | None = None,
    *,
    recurrent_bias: Float[Array, " gates"] | None = None,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    reset_after: bool = True,
    lengths: Lengths | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """Gated recurrent units over time."""
    candidates = _gru(
        x, w_input, w_recurrent, bias, h0, recurrent_bias=recurrent_bias, activation=activation,
        recurrent_activation=recurrent_activation, reset_after=reset_after, lengths=lengths, reverse=reverse,
    )  # fmt: skip
    return _dispatch.run(gru, candidates, implementation)


def _rnn(
    x, w_input, w_recurrent, bias, h0=None, *, activation="tanh", lengths=None, reverse=False
) -> Sequence[Candidate]:  # fmt: skip
    problem = check("rnn", x, w_input, w_recurrent, bias, {"h0": h0}, None, lengths)
    cell = xla.rnn_cell(problem.w_recurrent, activation_by_name(activation, "rnn"))
    return [Candidate("xla", "plain scan", lambda: _one_state(_plain(problem, cell, reverse)))]


@_dispatch.op(_rnn)
def rnn(
    x: Float[Array, "batch time cin"],
    w_input: Float[Array, "cin hidden"],
    w_recurrent: Float[Array, "hidden hidden"],
    bias: Float[Array, " hidden"] | None,
    h0: Float[Array, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    lengths: Lengths | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """The simple recurrence over time."""
    candidates = _rnn(x, w_input, w_recurrent, bias, h0, activation=activation, lengths=lengths, reverse=reverse)
    return _dispatch.run(rnn, candidates, implementation)


def _one_state(result: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, jax.Array]:
    y, (h,) = result
    return y, h
