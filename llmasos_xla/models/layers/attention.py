"""Self-attention."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, number, sample_rank, whole
from llmasos_xla.models.layers._modules import MaskModule, parameter, random_key
from llmasos_xla.models.layers.dense import affine
from llmasos_xla.models.layers.regularization import drop
from llmasos_xla.sharding import placement
from llmasos_xla.sharding.ring import ring_attention


@dataclasses.dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """Each step looks at all steps: softmax(Q K^T / sqrt(key_dim)) V for each head (Vaswani et al. 2017).

    Query, key and value are all made of the input (self-attention): [batch, time, cin] -> [batch, time, cin]. With
    `causal` a step sees itself and earlier ones. Steps that a mask calls padding are not looked at; their own outputs
    are there and mean nothing. `dropout` drops attention weights in training. The softmax is float32. Where time is
    split over devices this is ring attention, which has no dropout.

    Arrays: query/kernel and key/kernel [cin, num_heads, key_dim], value/kernel [cin, num_heads, value_dim],
    output/kernel [num_heads, value_dim, cin], and a bias for each, as Keras has them.

    >>> MultiHeadAttention(4, 16).output_shape((20, 64))
    (20, 64)
    """

    num_heads: int
    key_dim: int
    value_dim: int | None = None
    dropout: float = 0.0
    use_bias: bool = True
    causal: bool = False
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"

    def check(self) -> None:
        """Refuses dropout outside [0, 1); the values' size defaults to the keys'."""
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        if self.value_dim is not None:
            self._set(value_dim=whole(self.who, "value_dim", self.value_dim))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with four projections."""
        self.output_shape(shape)
        return _MultiHeadAttention(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        sample_rank(self.who, shape, "time, channels")
        known_channels(self.who, shape)
        return shape


class _Projection(nnx.Module):
    """A dense layer between axes: the first `inputs` axes of the kernel meet the last ones of x."""

    def __init__(self, spec: MultiHeadAttention, shape: tuple[int, ...], inputs: int, rngs: nnx.Rngs):
        self.inputs = inputs
        # Drawn as the matrix that it is: an initializer would read three axes as a convolution's.
        matrix = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        self.kernel = nnx.Param(parameter(rngs, spec.kernel_initializer, matrix)[...].reshape(shape))
        self.bias = parameter(rngs, spec.bias_initializer, shape[inputs:]) if spec.use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        inputs, outputs = kernel.shape[: self.inputs], kernel.shape[self.inputs :]
        x = x.reshape(*x.shape[: -self.inputs], math.prod(inputs))
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        y = affine(x, kernel.reshape(x.shape[-1], -1), bias)
        return y.reshape(*x.shape[:-1], *outputs)


class _MultiHeadAttention(MaskModule):
    def __init__(self, spec: MultiHeadAttention, cin: int, rngs: nnx.Rngs):
        self.spec = spec
        value_dim = spec.value_dim or spec.key_dim
        self.query = _Projection(spec, (cin, spec.num_heads, spec.key_dim), 1, rngs)
        self.key = _Projection(spec, (cin, spec.num_heads, spec.key_dim), 1, rngs)
        self.value = _Projection(spec, (cin, spec.num_heads, value_dim), 1, rngs)
        self.output = _Projection(spec, (spec.num_heads, value_dim, cin), 2, rngs)

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        spec = self.spec
        query, key, value = self.query(x), self.key(x), self.value(x)
        here = placement.current()
        if here is not None and here.spec.seq > 1:
            return self.output(self._around_the_ring(query, key, value, mask, train, here)), mask
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) / math.sqrt(spec.key_dim)
        # The smallest number rather than -inf: a row that is all padding gives a mean, not NaN.
        weights = jax.nn.softmax(jnp.where(self._seen(scores, mask), scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = weights.astype(value.dtype)
        if train and spec.dropout:
            weights = drop(weights, random_key(rngs, spec.who), spec.dropout, weights.shape)
        return self.output(jnp.einsum("bhqk,bkhd->bqhd", weights, value)), mask

    def _around_the_ring(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        train: bool,
        here: placement.Placement,
    ) -> jax.Array:
        if train and self.spec.dropout:
            raise ValueError(
                f"{self.spec.who}: with time over seq={here.spec.seq} devices no device sees all attention weights, of "
                f"which dropout={self.spec.dropout} would drop some; set dropout=0.0 and put a Dropout layer behind it"
            )
        return ring_attention(
            query, key, value, mesh=here.mesh, causal=self.spec.causal, mask=mask, batch_axes=here.batch_axes
        )

    def _seen(self, scores: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Which query may look at which key, [batch or 1, 1, time, time]."""
        time = scores.shape[-1]
        seen = jnp.ones((1, 1, time, time), bool)
        seen = jnp.tril(seen) if self.spec.causal else seen
        return seen if mask is None else seen & mask[:, None, None, :]
