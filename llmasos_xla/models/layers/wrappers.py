"""Layers around one layer: in both directions of time, at each step of time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, one_of, short
from llmasos_xla.models.layers._modules import MaskModule, call_module
from llmasos_xla.models.layers.minimal import MinGRU, MinGRUModule
from llmasos_xla.models.layers.recurrent import RecurrentModule, _Recurrent, hidden, row_lengths

MERGES = ("concat", "sum", "mul", "ave")


@dataclasses.dataclass(frozen=True)
class Bidirectional(Layer):
    """A recurrent layer and its like that reads time backwards, their outputs merged (Schuster and Paliwal 1997).

    `merge_mode` is concat, sum, mul or ave. With `return_sequences` both outputs stand in the order of time.

    Arrays: those of the layer, under "forward/" and "backward/".

    >>> from llmasos_xla.models.layers.recurrent import LSTM
    >>> Bidirectional(LSTM(8, return_sequences=True)).output_shape((20, 3))
    (20, 16)
    """

    layer: Layer
    merge_mode: str = "concat"

    def check(self) -> None:
        """Refuses other layers than recurrent ones, and one that goes backwards itself."""
        if not isinstance(self.layer, _Recurrent | MinGRU):
            raise ValueError(f"{self.who}: wants a SimpleRNN, GRU, LSTM or MinGRU, got {short(self.layer)}")
        if self.layer.go_backwards:
            raise ValueError(f"{self.who}: its layer runs in both directions; leave go_backwards out")
        self._set(merge_mode=one_of(self.who, "merge_mode", self.merge_mode, MERGES))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with both directions."""
        self.output_shape(shape)
        return _Bidirectional(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The layer's, its channels twice when they are concatenated."""
        *rest, units = self.layer.output_shape(shape)
        return (*rest, 2 * units if self.merge_mode == "concat" and units is not None else units)


class _Bidirectional(MaskModule):
    def __init__(self, spec: Bidirectional, cin: int, rngs: nnx.Rngs):
        assert isinstance(spec.layer, _Recurrent | MinGRU)
        self.layer = spec.layer
        self.merge_mode = spec.merge_mode
        self.forward, self.backward = (
            MinGRUModule(spec.layer, cin, rngs)
            if isinstance(spec.layer, MinGRU)
            else RecurrentModule(spec.layer, cin, rngs)
            for _ in range(2)
        )

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        lengths = None if mask is None else row_lengths(mask)
        (there, last), (back, first) = self._both(x, lengths, train, rngs)
        if not self.layer.return_sequences:
            return self._merge(hidden(last), hidden(first)), None
        return self._merge(there, back), mask

    def _both(self, x: jax.Array, lengths: jax.Array | None, train: bool, rngs: nnx.Rngs | None) -> Any:
        """The kernel's outputs and states in each direction."""
        layer, given = self.layer, {"train": train, "rngs": rngs}
        directions: Any = (self.forward, self.backward)
        if isinstance(layer, MinGRU):
            return [d.sequence(x, lengths, reverse=reverse, **given) for d, reverse in zip(directions, (False, True))]
        options = {**layer.options, "lengths": lengths}
        if train and layer.dropout:  # each direction drops its own channels of the input
            xs = [d.dropped(x, **given) for d in directions]
            arrays = [d.arrays(x, **given) for d in directions]
            return [layer.op(x, **a, **options, reverse=r) for x, a, r in zip(xs, arrays, (False, True))]
        arrays = [d.arrays(x, **given) for d in directions]
        return kernels.bidirectional(layer.op, x, *arrays, **options)

    def _merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        if self.merge_mode == "concat":
            return jnp.concatenate([a, b], axis=-1)
        if self.merge_mode == "mul":
            return a * b
        return a + b if self.merge_mode == "sum" else (a + b) / 2


@dataclasses.dataclass(frozen=True)
class TimeDistributed(Layer):
    """The same layer at each step: [batch, time, ...] -> [batch, time, ...].

    Arrays: those of the layer, under "layer/".

    >>> from llmasos_xla.models.layers.conv import Conv2D
    >>> TimeDistributed(Conv2D(4, 3)).output_shape((10, 8, 8, 1))
    (10, 6, 6, 4)
    """

    layer: Layer

    @property
    def tokens(self) -> bool:
        """Whether the layer reads ids."""
        return self.layer.tokens

    def check(self) -> None:
        """Refuses what is no layer."""
        if not isinstance(self.layer, Layer):
            raise ValueError(f"{self.who}: wants a layer, got {short(self.layer)}")

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module around the layer's."""
        self.output_shape(shape)
        return _TimeDistributed(self.layer.build(shape[1:], rngs))

    def output_shape(self, shape: Shape) -> Shape:
        """Time, and the layer's."""
        if len(shape) < 1 + (not self.layer.tokens):
            raise ValueError(f"{self.who}: wants samples of shape (time, ...), got {shape}")
        return (shape[0], *self.layer.output_shape(shape[1:]))

    def split_head(self) -> tuple[Layer, str | None]:
        """The layer's head is this one's: it acts on the last axis."""
        layer, head = self.layer.split_head()
        return dataclasses.replace(self, layer=layer), head


class _TimeDistributed(nnx.Module):
    def __init__(self, layer: nnx.Module):
        self.layer = layer

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, time = x.shape[:2]
        y, _ = call_module(self.layer, x.reshape(batch * time, *x.shape[2:]), train=train, rngs=rngs, mask=None)
        return y.reshape(batch, time, *y.shape[1:])
