"""Recurrence over time, on the kernels `rnn`, `gru` and `lstm`.

A mask [batch, time] is read as right padding: a row ends with its last unmasked step, and what stands after it changes
neither outputs nor state (outputs there are zero). Arrays stand in the kernels' order of gates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, number, sample_rank
from llmasos_xla.models.layers._modules import MaskModule, parameter, random_key
from llmasos_xla.models.layers.regularization import drop


@dataclasses.dataclass(frozen=True)
class _Recurrent(Layer):
    """Base of SimpleRNN, GRU and LSTM: [batch, time, cin] -> [batch, units], or [batch, time, units] as a sequence.

    `go_backwards` reads each row from its end, and a sequence comes out in that order, as in Keras; padding stays at
    the right. In training `dropout` is applied to the input and `recurrent_dropout` to the state on its way into the
    recurrent product, the same channels at all steps (Gal and Ghahramani 2016).
    """

    gates: ClassVar[int]
    op: ClassVar[Callable]
    """The kernel."""

    units: int
    activation: str | None = "tanh"
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    recurrent_initializer: str = "orthogonal"
    bias_initializer: str = "zeros"
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    return_sequences: bool = False
    go_backwards: bool = False

    def check(self) -> None:
        """Refuses dropout outside [0, 1)."""
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        number(self.who, "recurrent_dropout", self.recurrent_dropout, least=0.0, below=1.0)

    @property
    def options(self) -> dict[str, Any]:
        """What the kernel takes beside arrays."""
        names = ("activation", "recurrent_activation", "reset_after")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel, recurrent_kernel and bias."""
        self.output_shape(shape)
        return RecurrentModule(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """`units` channels, over time or at the end."""
        sample_rank(self.who, shape, "time, channels")
        known_channels(self.who, shape)
        return (shape[0], self.units) if self.return_sequences else (self.units,)


@dataclasses.dataclass(frozen=True)
class SimpleRNN(_Recurrent):
    """h' = activation(x W + h U + b).

    Arrays: kernel W [cin, units], recurrent_kernel U [units, units], bias [units].

    >>> SimpleRNN(8).output_shape((20, 3))
    (8,)
    """

    gates: ClassVar[int] = 1
    op: ClassVar[Callable] = staticmethod(kernels.rnn)


@dataclasses.dataclass(frozen=True)
class GRU(_Recurrent):
    """Gated recurrent units (Cho et al. 2014): h' = (1 - z) n + z h with gates r (reset) and z (update).

    n = activation(x W_n + b_n + r * (h U_n + c_n)) with `reset_after`, else activation(x W_n + b_n + (r * h) U_n).

    Arrays, gates in the order r z n (Keras' is z r n; importing from Keras swaps them): kernel [cin, 3 * units],
    recurrent_kernel [units, 3 * units], bias [3 * units] and, with `reset_after`, recurrent_bias c [3 * units]
    (Keras' bias [2, 3 * units] in two).

    >>> GRU(8, return_sequences=True).output_shape((20, 3))
    (20, 8)
    """

    gates: ClassVar[int] = 3
    op: ClassVar[Callable] = staticmethod(kernels.gru)

    recurrent_activation: str | None = "sigmoid"
    reset_after: bool = True


@dataclasses.dataclass(frozen=True)
class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997): c' = f c + i g, h' = o activation(c').

    `unit_forget_bias` starts the forget gate's bias at 1 (Jozefowicz et al. 2015).

    Arrays, gates in the order i f g o (the same as Keras' i f c o): kernel [cin, 4 * units],
    recurrent_kernel [units, 4 * units], bias [4 * units].

    >>> LSTM(8).output_shape((None, 3))
    (8,)
    """

    gates: ClassVar[int] = 4
    op: ClassVar[Callable] = staticmethod(kernels.lstm)

    recurrent_activation: str | None = "sigmoid"
    unit_forget_bias: bool = True


class RecurrentModule(MaskModule):
    """The arrays of a recurrent layer and the call of its kernel."""

    def __init__(self, spec: _Recurrent, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        width = spec.gates * spec.units
        self.kernel = parameter(rngs, spec.kernel_initializer, (cin, width))
        self.recurrent_kernel = parameter(rngs, spec.recurrent_initializer, (spec.units, width))
        self.bias = parameter(rngs, spec.bias_initializer, (width,)) if spec.use_bias else None
        if self.bias is not None and isinstance(spec, LSTM) and spec.unit_forget_bias:
            self.bias[...] = self.bias[...].at[spec.units : 2 * spec.units].set(1.0)
        second = spec.use_bias and isinstance(spec, GRU) and spec.reset_after
        self.recurrent_bias = parameter(rngs, spec.bias_initializer, (width,)) if second else None

    def arrays(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[str, jax.Array | None]:
        """What the kernel takes of this direction, by the names of its arguments."""
        found = {"w_input": self.kernel, "w_recurrent": self.recurrent_kernel, "bias": self.bias}
        if self.recurrent_bias is not None:
            found["recurrent_bias"] = self.recurrent_bias
        arrays = {name: None if a is None else a[...] for name, a in found.items()}
        if train and self.spec.recurrent_dropout:
            ones = jnp.ones((x.shape[0], self.spec.units), x.dtype)
            key = random_key(rngs, self.spec.who)
            arrays["recurrent_mask"] = drop(ones, key, self.spec.recurrent_dropout, ones.shape)
        return arrays

    def dropped(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        """The input under dropout, the same channels at all steps."""
        spec = self.spec
        if not train or not spec.dropout:
            return x
        return drop(x, random_key(rngs, spec.who), spec.dropout, (x.shape[0], 1, x.shape[2]))

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The outputs in the order in which they were computed, or the last state."""
        lengths = None if mask is None else row_lengths(mask)
        spec = self.spec
        x = self.dropped(x, train=train, rngs=rngs)
        arrays = self.arrays(x, train=train, rngs=rngs)
        y, state = spec.op(x, **arrays, **spec.options, lengths=lengths, reverse=spec.go_backwards)
        if not spec.return_sequences:
            return hidden(state), None
        return (reverse_rows(y, lengths) if spec.go_backwards else y), mask


def hidden(state: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    """The h of a kernel's final state."""
    return state[0] if isinstance(state, tuple) else state


def row_lengths(mask: jax.Array) -> jax.Array:
    """The number of steps up to the last unmasked one: [batch, time] -> [batch].

    >>> row_lengths(jnp.array([[True, True, False], [True, False, True]])).tolist()
    [2, 3]
    """
    steps = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, steps[None], 0), axis=1, initial=0)


def reverse_rows(y: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """Turns [batch, time, channels] around in time, each row within its length; padding stays where it is."""
    if lengths is None:
        return jnp.flip(y, axis=1)
    steps = jnp.arange(y.shape[1], dtype=lengths.dtype)[None]
    ends = lengths[:, None]
    return jnp.take_along_axis(y, jnp.where(steps < ends, ends - 1 - steps, steps)[..., None], axis=1)
