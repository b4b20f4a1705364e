"""Recurrences whose gates do not look at the state, so that all steps are computed at once, on `kernels.linear_scan`.

A mask [batch, time] is read as right padding, as in `recurrent.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.kernels.activation import activation
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, number, sample_rank
from llmasos_xla.models.layers._modules import MaskModule, parameter, random_key
from llmasos_xla.models.layers.recurrent import reverse_rows, row_lengths
from llmasos_xla.models.layers.regularization import drop


@dataclasses.dataclass(frozen=True)
class MinGRU(Layer):
    """A GRU whose gate and candidate do not depend on the state (Feng et al. 2024, "Were RNNs All We Needed?").

        z = sigmoid(x W_z + b_z)        n = activation(x W_n + b_n)        h' = (1 - z) h + z n

    [batch, time, cin] -> [batch, units], or [batch, time, units] as a sequence. Its steps are computed at once, where a
    GRU's wait for one another; as its gates do not see the state, it wants depth where a GRU has that. `go_backwards`
    and `dropout` are as in `GRU`. Gates and state are float32 where the input is 16-bit.

    Arrays, in the order z n: kernel [cin, 2 * units], bias [2 * units].

    >>> MinGRU(8, return_sequences=True).output_shape((20, 3))
    (20, 8)
    """

    units: int
    activation: str | None = None
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"
    dropout: float = 0.0
    return_sequences: bool = False
    go_backwards: bool = False

    def check(self) -> None:
        """Refuses dropout outside [0, 1)."""
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with kernel and bias."""
        self.output_shape(shape)
        return MinGRUModule(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """`units` channels, over time or at the end."""
        sample_rank(self.who, shape, "time, channels")
        known_channels(self.who, shape)
        return (shape[0], self.units) if self.return_sequences else (self.units,)


class MinGRUModule(MaskModule):
    """The arrays of a MinGRU and the call of its kernels."""

    def __init__(self, spec: MinGRU, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        self.kernel = parameter(rngs, spec.kernel_initializer, (cin, 2 * spec.units))
        self.bias = parameter(rngs, spec.bias_initializer, (2 * spec.units,)) if spec.use_bias else None

    def sequence(
        self, x: jax.Array, lengths: jax.Array | None, *, reverse: bool, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array]:
        """All outputs [batch, time, units] in the order of time, and the last state [batch, units]."""
        spec = self.spec
        if train and spec.dropout:
            x = drop(x, random_key(rngs, spec.who), spec.dropout, (x.shape[0], 1, x.shape[2]))
        p = kernels.dense(x, self.kernel[...], None if self.bias is None else self.bias[...])
        p_z, p_n = jnp.split(p.astype(jnp.float32 if p.dtype.itemsize < 4 else p.dtype), 2, axis=-1)
        # sigmoid(-p) = 1 - z without its rounding: in 16 bits a gate near 1 would forget everything or nothing.
        entering = jax.nn.sigmoid(p_z) * activation(spec.activation, spec.who)(p_n)
        return kernels.linear_scan(jax.nn.sigmoid(-p_z), entering.astype(x.dtype), lengths=lengths, reverse=reverse)

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The outputs in the order in which they were computed, or the last state."""
        lengths = None if mask is None else row_lengths(mask)
        y, h = self.sequence(x, lengths, reverse=self.spec.go_backwards, train=train, rngs=rngs)
        if not self.spec.return_sequences:
            return h, None
        return (reverse_rows(y, lengths) if self.spec.go_backwards else y), mask
