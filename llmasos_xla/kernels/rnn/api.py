"""The public functions `rnn`, `gru`, `lstm`, `slstm` and `bidirectional`: documentation and dispatch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from llmasos_xla.errors import unknown
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._rows import Rows
from llmasos_xla.kernels.rnn._check import STATES
from llmasos_xla.kernels.rnn.choice import both_directions, candidates
from llmasos_xla.kernels.rnn.layer_norm import LayerNorm

AnyArray = Array | np.ndarray

_ROWS = Rows(("x", "h0", "c0", "n0", "m0", "lengths", "resets", "recurrent_mask"))


@_dispatch.op(partial(candidates, "lstm"), _ROWS)
def lstm(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin columns"],
    w_recurrent: Float[AnyArray, "*block block_columns"],
    bias: Float[AnyArray, " columns"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    c0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    lengths: Integer[AnyArray, " batch"] | None = None,
    resets: Bool[AnyArray, "batch time"] | None = None,
    recurrent_mask: Float[AnyArray, "batch hidden"] | None = None,
    layer_norm: LayerNorm | None = None,
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
        w_recurrent: U, `[hidden, 4 * hidden]`; or `[heads, head, 4 * head]` of a block-diagonal U, with
            hidden = heads * head: units of one head see the state of their own head alone.
        bias: b, `[4 * hidden]`; None for none.
        h0: the state to start from; None for zeros.
        c0: the memory to start from; None for zeros.
        activation: in the place of tanh, a name in `kernels.ACTIVATIONS`; others run as the plain scan.
        recurrent_activation: in the place of sigmoid.
        lengths: steps of each row that count, the rest being padding on the right, which is not looked at: `y` is zero
            there, and the final states are those of the last step that counts (of length 0: `h0`, `c0`).
        resets: where True, the step starts from zero states: several sequences in one row, or episodes.
        recurrent_mask: what multiplies h_{t-1} on its way into the product with U, the same at all steps: a dropout
            mask over its share (Gal and Ghahramani 2016).
        layer_norm: normalizes x W, h U and, on its way into h, c (Ba et al. 2016), over all units of a row:
            a_t = input_scale N(x_t W) + recurrent_scale N(h_{t-1} U) + b and
            h_t = sigmoid(a_o) tanh(cell_scale N(c_t) + cell_offset); None for neither.
        reverse: from each row's last step that counts to its first. `y` stays aligned with `x`; the final states are
            those after the first step.
        implementation: None chooses; "triton", "onednn" or "xla" must run.

    Raises:
        ValueError: if shapes disagree, batch or time is empty, a length known at trace time is not in 0..time, a name
            is unknown, or an epsilon is not positive.
        TypeError: if dtypes differ, x is not floating, lengths are not integers, or layer_norm is no LayerNorm.

    >>> import jax.numpy as jnp
    >>> x, w_input, w_recurrent = jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16))
    >>> y, (h, c) = lstm(x, w_input, w_recurrent, None, lengths=jnp.array([5, 2]))
    >>> y.shape, bool((y[1, 1] == h[1]).all()), float(y[1, 2:].sum())
    ((2, 5, 4), True, 0.0)
    """
    ways = candidates(
        "lstm", x, w_input, w_recurrent, bias, h0, c0,
        activation=activation, recurrent_activation=recurrent_activation, lengths=lengths, resets=resets,
        recurrent_mask=recurrent_mask, layer_norm=layer_norm, reverse=reverse, implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(lstm, ways, implementation)


@_dispatch.op(partial(candidates, "gru"), _ROWS)
def gru(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin columns"],
    w_recurrent: Float[AnyArray, "*block block_columns"],
    bias: Float[AnyArray, " columns"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    recurrent_bias: Float[AnyArray, " columns"] | None = None,
    activation: str | None = "tanh",
    recurrent_activation: str | None = "sigmoid",
    reset_after: bool = True,
    lengths: Integer[AnyArray, " batch"] | None = None,
    resets: Bool[AnyArray, "batch time"] | None = None,
    recurrent_mask: Float[AnyArray, "batch hidden"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """Gated recurrent units over time: the outputs at all steps and the final state, `(y, h)`.

    With p_t = x_t W + b and q_t = h_{t-1} U + recurrent_bias in the gate order r z n, after Cho et al. (2014) with the
    reset gate applied after the recurrent product, as in cuDNN and PyTorch:

        r = sigmoid(p_r + q_r)   z = sigmoid(p_z + q_z)   n = tanh(p_n + r q_n)   h_t = (1 - z) n + z h_{t-1}

    Low precision, heads, lengths, resets, reverse, the other arguments and what is refused are as in `lstm`.

    Args:
        x: the input.
        w_input: W, `[cin, 3 * hidden]`.
        w_recurrent: U, `[hidden, 3 * hidden]` or `[heads, head, 3 * head]`.
        bias: b, `[3 * hidden]`; None for none.
        h0: the state to start from; None for zeros.
        recurrent_bias: `[3 * hidden]`; None for none.
        activation: in the place of tanh, a name in `kernels.ACTIVATIONS`; others run as the plain scan.
        recurrent_activation: in the place of sigmoid.
        reset_after: False applies the reset gate before the product, as Cho et al. do:
            n = tanh(p_n + (r h_{t-1}) U_n + recurrent_bias_n).
        lengths: steps of each row that count.
        resets: where a step starts from a zero state.
        recurrent_mask: what multiplies h_{t-1} on its way into the product.
        reverse: from each row's last step to its first.
        implementation: None chooses; "triton", "onednn" or "xla" must run.

    >>> import jax.numpy as jnp
    >>> y, h = gru(jnp.ones((2, 5, 3)), jnp.ones((3, 12)), jnp.ones((4, 12)), jnp.zeros(12), reverse=True)
    >>> y.shape, bool((y[:, 0] == h).all())
    ((2, 5, 4), True)
    """
    ways = candidates(
        "gru", x, w_input, w_recurrent, bias, h0,
        recurrent_bias=recurrent_bias, activation=activation, recurrent_activation=recurrent_activation,
        reset_after=reset_after, lengths=lengths, resets=resets, recurrent_mask=recurrent_mask, reverse=reverse,
        implementation=implementation,
    )  # fmt: skip
    y, (h,) = _dispatch.run(gru, ways, implementation)
    return y, h


@_dispatch.op(partial(candidates, "rnn"), _ROWS)
def rnn(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin hidden"],
    w_recurrent: Float[AnyArray, "*block block_columns"],
    bias: Float[AnyArray, " hidden"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    activation: str | None = "tanh",
    lengths: Integer[AnyArray, " batch"] | None = None,
    resets: Bool[AnyArray, "batch time"] | None = None,
    recurrent_mask: Float[AnyArray, "batch hidden"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    """The simple recurrence over time: the outputs at all steps and the final state, `(y, h)`.

    h_t = activation(x_t W + h_{t-1} U + b), after Elman (1990).

    Low precision, heads, lengths, resets, reverse, the other arguments and what is refused are as in `lstm`.

    Args:
        x: the input.
        w_input: W.
        w_recurrent: U, `[hidden, hidden]` or `[heads, head, head]`.
        bias: b; None for none.
        h0: the state to start from; None for zeros.
        activation: a name in `kernels.ACTIVATIONS`; other than tanh and relu run as the plain scan.
        lengths: steps of each row that count.
        resets: where a step starts from a zero state.
        recurrent_mask: what multiplies h_{t-1} on its way into the product.
        reverse: from each row's last step to its first.
        implementation: None chooses; "triton", "onednn" or "xla" must run.

    >>> import jax.numpy as jnp
    >>> y, h = rnn(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), jnp.eye(4), None, activation="relu")
    >>> h[0].tolist()
    [15.0, 15.0, 15.0, 15.0]
    """
    ways = candidates(
        "rnn", x, w_input, w_recurrent, bias, h0,
        activation=activation, lengths=lengths, resets=resets, recurrent_mask=recurrent_mask, reverse=reverse,
        implementation=implementation,
    )  # fmt: skip
    y, (h,) = _dispatch.run(rnn, ways, implementation)
    return y, h


@_dispatch.op(partial(candidates, "slstm"), _ROWS)
def slstm(
    x: Float[AnyArray, "batch time cin"],
    w_input: Float[AnyArray, "cin columns"],
    w_recurrent: Float[AnyArray, "*block block_columns"],
    bias: Float[AnyArray, " columns"] | None,
    h0: Float[AnyArray, "batch hidden"] | None = None,
    c0: Float[AnyArray, "batch hidden"] | None = None,
    n0: Float[AnyArray, "batch hidden"] | None = None,
    m0: Float[AnyArray, "batch hidden"] | None = None,
    *,
    lengths: Integer[AnyArray, " batch"] | None = None,
    resets: Bool[AnyArray, "batch time"] | None = None,
    recurrent_mask: Float[AnyArray, "batch hidden"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], tuple[Float[Array, "batch hidden"], ...]]:
    """The LSTM with exponential gating of xLSTM (Beck et al. 2024): `(y, (h, c, n, m))`.

    With a_t = x_t W + h_{t-1} U + b in the gate order i f z o:

        m_t = max(log sigmoid(a_f) + m_{t-1}, a_i)             i = exp(a_i - m_t)
        f = sigmoid(a_f) exp(m_{t-1} - m_t)                    c_t = f c_{t-1} + i tanh(a_z)
        n_t = f n_{t-1} + i                                    h_t = sigmoid(a_o) c_t / n_t

    m keeps the exponents from overflowing and cancels in h, so that derivatives take it for a constant. In 16-bit
    dtypes the final states come back in that dtype too: hand on float32 states, or c and n lose their last bits.

    Low precision, heads, lengths, resets, reverse, the other arguments and what is refused are as in `lstm`.

    Args:
        x: the input.
        w_input: W, `[cin, 4 * hidden]`.
        w_recurrent: U, `[hidden, 4 * hidden]` or `[heads, head, 4 * head]`.
        bias: b, `[4 * hidden]`; None for none.
        h0: the state to start from; None for zeros.
        c0: the memory to start from; None for zeros.
        n0: the normalizer to start from; None for zeros.
        m0: the stabilizer to start from; None for minus infinity, which stands as -1e30.
        lengths: steps of each row that count.
        resets: where a step starts from nothing.
        recurrent_mask: what multiplies h_{t-1} on its way into the product.
        reverse: from each row's last step to its first.
        implementation: None chooses; "triton" or "xla" must run.

    >>> import jax.numpy as jnp
    >>> y, (h, c, n, m) = slstm(jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((2, 2, 8)), None)
    >>> y.shape, bool((y[:, -1] == h).all())
    ((2, 5, 4), True)
    """
    ways = candidates(
        "slstm", x, w_input, w_recurrent, bias, h0, c0, n0, m0,
        lengths=lengths, resets=resets, recurrent_mask=recurrent_mask, reverse=reverse, implementation=implementation,
    )  # fmt: skip
    return _dispatch.run(slstm, ways, implementation)


OPS: dict[str, Callable] = {"lstm": lstm, "gru": gru, "rnn": rnn, "slstm": slstm}


@_dispatch.op(both_directions, _ROWS)
def bidirectional(
    op: Callable,
    x: Float[AnyArray, "batch time cin"],
    forward: Mapping[str, Any],
    backward: Mapping[str, Any],
    *,
    lengths: Integer[AnyArray, " batch"] | None = None,
    implementation: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A recurrence over time in both directions (Schuster and Paliwal 1997): what `op` gives forward, and backward.

    The same as `op(x, **forward, ...)` and `op(x, **backward, reverse=True, ...)`; on a GPU in one launch.

    Args:
        op: `kernels.lstm`, `gru`, `rnn` or `slstm`.
        x: the input of both.
        forward: the arrays of the direction forward in time, by the names of `op`'s arguments: w_input, w_recurrent
            and, where they are given, bias, recurrent_bias, recurrent_mask, layer_norm and the initial states.
        backward: those of the other direction.
        lengths: steps of each row that count, as in `lstm`.
        implementation: None chooses; a name must run.
        options: what `op` takes by name beside these, activations and reset_after, for both.

    Raises:
        ValueError: if op is none of these, an array has another name, or shapes do not fit.
        TypeError: if dtypes differ.

    >>> import jax.numpy as jnp
    >>> arrays = {"w_input": jnp.ones((3, 16)), "w_recurrent": jnp.ones((4, 16))}
    >>> (y, (h, c)), (y_back, _) = bidirectional(lstm, jnp.ones((2, 5, 3)), arrays, arrays)
    >>> bool(jnp.allclose(y[:, -1], y_back[:, 0], atol=1e-6))
    True
    """
    name = getattr(op, "__name__", str(op))
    if OPS.get(name) is not op:
        raise unknown("bidirectional", "op", name, OPS)
    known = ("w_input", "w_recurrent", "bias", "recurrent_bias", "recurrent_mask", *STATES[name])
    known += ("layer_norm",) if name == "lstm" else ()
    for which, arrays in (("forward", forward), ("backward", backward)):
        missing = [n for n in known[:2] if n not in arrays]
        strange = [n for n in arrays if n not in known]
        if missing or strange:
            raise ValueError(
                f"bidirectional: {which} has {sorted(arrays)}, "
                + (f"expects {' and '.join(missing)} too" if missing else f"{name} takes {', '.join(known)}")
            )
    options = {**options, "lengths": lengths, "implementation": implementation}
    ways = both_directions(op, x, forward, backward, **options)
    there, back = _dispatch.run(bidirectional, ways, implementation)
    return there, back
