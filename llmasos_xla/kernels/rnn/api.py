"""The public functions `rnn`, `gru` and `lstm`: documentation and dispatch."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Integer

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.rnn import choice
from llmasos_xla.kernels.rnn._check import check

AnyArray = Array | np.ndarray


def _lstm_candidates(
    x: Any,
    w_input: Any,
    w_recurrent: Any,
    bias: Any,
    h0: Any = None,
    c0: Any = None,
    *,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    lengths: Any = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    problem = check("lstm", x, w_input, w_recurrent, bias, None, lengths, reverse, h0=h0, c0=c0)
    activations = activation_named(activation, "lstm"), activation_named(recurrent_activation, "lstm")
    return choice.lstm(problem, *activations, named=implementation is not None)


@_dispatch.op(_lstm_candidates)
def lstm(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin columns"],
    w_recurrent: Float[AnyArray, "hidden columns"],
    bias: Float[AnyArray, " columns"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    c0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    lengths: Integer[AnyArray, " batch"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]]:
    """Long short-term memory over time: the outputs at all steps and the final states, `(y, (h, c))`.

    With a_t = x_t W + h_{t-1} U + b in the gate order i f g o, after Hochreiter and Schmidhuber (1997) with the forget
    gate of Gers et al. (2000):

        c_t = sigmoid(a_f) c_{t-1} + sigmoid(a_i) tanh(a_g)        h_t = sigmoid(a_o) tanh(c_t)

    In bfloat16 and float16 the operands of the matmuls have that dtype; sums, gates and states are float32, and the
    results are rounded once. Sigmoids are computed as (1 + tanh(a / 2)) / 2: exact to the last place near 1, and to an
    absolute, not a relative, one near 0.

    Args:
        x: the input.
        w_input: W, `[cin, 4 * hidden]`.
        w_recurrent: U, `[hidden, 4 * hidden]`.
        bias: b, `[4 * hidden]`; None for none.
        h0: the state to start from; None for zeros.
        c0: the memory to start from; None for zeros.
        activation: in the place of tanh, a name in `kernels.ACTIVATIONS`; others run as the plain scan.
        recurrent_activation: in the place of sigmoid.
        lengths: steps of each row that count, the rest being padding on the right, which is not looked at: `y` is zero
            there, and the final states are those of the last step that counts (of length 0: `h0`, `c0`).
        reverse: from each row's last step that counts to its first. `y` stays aligned with `x`; the final states are
            those after the first step.
        implementation: None chooses; "onednn" or "xla" must run.

    Raises:
        ValueError: if shapes disagree, batch or time is empty, a length known at trace time is not in 0..time, or a
            name is unknown.
        TypeError: if dtypes differ, x is not floating, or lengths are not integers.

    >>> import jax.numpy as jnp
    >>> x, w_input, w_recurrent = jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16))
    >>> y, (h, c) = lstm(x, w_input, w_recurrent, None, lengths=jnp.array([5, 2]))
    >>> y.shape, bool((y[1, 1] == h[1]).all()), float(y[1, 2:].sum())
    ((2, 5, 4), True, 0.0)
    """
    candidates = _lstm_candidates(
        x, w_input, w_recurrent, bias, h0, c0,
        activation=activation, recurrent_activation=recurrent_activation, lengths=lengths, reverse=reverse,
        implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(lstm, candidates, implementation)


def _gru_candidates(
    x: Any,
    w_input: Any,
    w_recurrent: Any,
    bias: Any,
    h0: Any = None,
    *,
    recurrent_bias: Any = None,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    reset_after: bool = True,
    lengths: Any = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    problem = check("gru", x, w_input, w_recurrent, bias, recurrent_bias, lengths, reverse, h0=h0)
    activations = activation_named(activation, "gru"), activation_named(recurrent_activation, "gru")
    return choice.gru(problem, *activations, reset_after, named=implementation is not None)


@_dispatch.op(_gru_candidates)
def gru(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin columns"],
    w_recurrent: Float[AnyArray, "hidden columns"],
    bias: Float[AnyArray, " columns"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    recurrent_bias: Float[AnyArray, " columns"] | None = None,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    reset_after: bool = True,
    lengths: Integer[AnyArray, " batch"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """Gated recurrent units over time: the outputs at all steps and the final state, `(y, h)`.

    With p_t = x_t W + b and q_t = h_{t-1} U + recurrent_bias in the gate order r z n, after Cho et al. (2014) with the
    reset gate applied after the recurrent product, as in cuDNN and PyTorch:

        r = sigmoid(p_r + q_r)   z = sigmoid(p_z + q_z)   n = tanh(p_n + r q_n)   h_t = (1 - z) n + z h_{t-1}

    Low precision, lengths, reverse, the other arguments and what is refused are as in `lstm`.

    Args:
        x: the input.
        w_input: W, `[cin, 3 * hidden]`.
        w_recurrent: U, `[hidden, 3 * hidden]`.
        bias: b, `[3 * hidden]`; None for none.
        h0: the state to start from; None for zeros.
        recurrent_bias: `[3 * hidden]`; None for none.
        activation: in the place of tanh, a name in `kernels.ACTIVATIONS`; others run as the plain scan.
        recurrent_activation: in the place of sigmoid.
        reset_after: False applies the reset gate before the product, as Cho et al. do:
            n = tanh(p_n + (r h_{t-1}) U_n + recurrent_bias_n).
        lengths: steps of each row that count.
        reverse: from each row's last step to its first.
        implementation: None chooses; "onednn" or "xla" must run.

    >>> import jax.numpy as jnp
    >>> y, h = gru(jnp.ones((2, 5, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)), jnp.zeros(12), reverse=True)
    >>> y.shape, bool((y[:, 0] == h).all())
    ((2, 5, 4), True)
    """
    candidates = _gru_candidates(
        x, w_input, w_recurrent, bias, h0, recurrent_bias=recurrent_bias, activation=activation,
        recurrent_activation=recurrent_activation, reset_after=reset_after, lengths=lengths, reverse=reverse,
        implementation=implementation,
    )  # fmt: skip
    y, (h,) = _dispatch.run(gru, candidates, implementation)
    return y, h


def _rnn_candidates(
    x: Any,
    w_input: Any,
    w_recurrent: Any,
    bias: Any,
    h0: Any = None,
    *,
    activation: str | None = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> list[_dispatch.Candidate]:
    problem = check("rnn", x, w_input, w_recurrent, bias, None, lengths, reverse, h0=h0)
    return choice.rnn(problem, activation_named(activation, "rnn"), named=implementation is not None)


@_dispatch.op(_rnn_candidates)
def rnn(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin hidden"],
    w_recurrent: Float[AnyArray, "hidden hidden"],
    bias: Float[AnyArray, " hidden"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    lengths: Integer[AnyArray, " batch"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """The simple recurrence over time: the outputs at all steps and the final state, `(y, h)`.

    h_t = activation(x_t W + h_{t-1} U + b), after Elman (1990).

    Low precision, lengths, reverse, the other arguments and what is refused are as in `lstm`.

    Args:
        x: the input.
        w_input: W.
        w_recurrent: U.
        bias: b; None for none.
        h0: the state to start from; None for zeros.
        activation: a name in `kernels.ACTIVATIONS`; other than tanh and relu run as the plain scan.
        lengths: steps of each row that count.
        reverse: from each row's last step to its first.
        implementation: None chooses; "onednn" or "xla" must run.

    >>> import jax.numpy as jnp
    >>> y, h = rnn(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.eye(4), None, activation="relu")
    >>> h[0].tolist()
    [15.0, 15.0, 15.0, 15.0]
    """
    candidates = _rnn_candidates(
        x, w_input, w_recurrent, bias, h0,
        activation=activation, lengths=lengths, reverse=reverse, implementation=implementation,
    )  # fmt: skip
    y, (h,) = _dispatch.run(rnn, candidates, implementation)
    return y, h
