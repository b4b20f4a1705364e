"""A recurrence as language models use it: torch's two biases, states that come in and go out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._modules import parameter
from llmasos_xla.models.pretrained.names import DENSE, SAME, Name

GATES = {"lstm": 4, "gru": 3}
"""Recurrence -> gates of a unit."""

State = dict[str, jax.Array]
"""The state after a step: "h" and, of an LSTM, "c", each [batch, hidden]."""


class Recurrence(nnx.Module):
    """An LSTM or a GRU over time.

    Arrays: kernel [cin, gates * hidden], recurrent_kernel [hidden, gates * hidden], bias [2, gates * hidden]: of the
    input's product and of the state's.
    """

    def __init__(self, cell: str, cin: int, hidden: int, rngs: nnx.Rngs):
        self.cell, width = cell, GATES[cell] * hidden
        self.kernel = parameter(rngs, "glorot_uniform", (cin, width))
        self.recurrent_kernel = parameter(rngs, "orthogonal", (hidden, width))
        self.bias = parameter(rngs, "zeros", (2, width))
        if cell == "lstm":
            # What is remembered at first stays (Jozefowicz et al. 2015).
            self.bias[...] = self.bias[...].at[0, hidden : 2 * hidden].set(1.0)

    def __call__(
        self, x: jax.Array, state: State | None, lengths: jax.Array | None = None, *, reverse: bool = False
    ) -> tuple[jax.Array, State]:
        """[batch, time, cin] -> the outputs of all steps, zero after a row's length, and the state after its last."""
        dtype = jnp.result_type(x, self.kernel[...])
        given = {} if state is None else {f"{name}0": a.astype(dtype) for name, a in state.items()}
        kernel, recurrent, bias = (a[...].astype(dtype) for a in (self.kernel, self.recurrent_kernel, self.bias))
        x = x.astype(dtype)
        if self.cell == "lstm":
            y, (h, c) = kernels.lstm(x, kernel, recurrent, bias[0] + bias[1], **given, lengths=lengths, reverse=reverse)
            return y, {"h": h, "c": c}
        y, h = kernels.gru(
            x, kernel, recurrent, bias[0], **given, recurrent_bias=bias[1], lengths=lengths, reverse=reverse
        )
        return y, {"h": h}


def empty(cell: str, batch: int, hidden: int, dtype: Any) -> State:
    """The state before the first step."""
    return {name: jnp.zeros((batch, hidden), dtype) for name in ("hc" if cell == "lstm" else "h")}


def torch_names(ours: str, theirs: str, ending: str) -> list[Name]:
    """The arrays of torch's LSTM and GRU, whose gates stand in the same order; `ending` is "l0", "l0_reverse"."""
    return [
        Name(f"{ours}/kernel", f"{theirs}.weight_ih_{ending}", DENSE),
        Name(f"{ours}/recurrent_kernel", f"{theirs}.weight_hh_{ending}", DENSE),
        Name(f"{ours}/bias", (f"{theirs}.bias_ih_{ending}", f"{theirs}.bias_hh_{ending}"), SAME),
    ]


def at_the_left(x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [batch, time, ...] whose real steps stand at the right, moved to the left, and how many they are."""
    lengths = jnp.sum(real.astype(jnp.int32), axis=1)
    steps = jnp.arange(x.shape[1], dtype=jnp.int32)[None] - lengths[:, None]
    at = jnp.mod(steps, x.shape[1]).reshape(*steps.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, jnp.broadcast_to(at, x.shape), axis=1), lengths
