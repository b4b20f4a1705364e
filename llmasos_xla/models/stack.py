"""A list of layers as one nnx module."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape, layer_names

HEADS = ("softmax", "sigmoid")


class Stack(nnx.Module):
    """Layers applied one after the other.

    Submodules are attributes named as `layer_names` says, so arrays are called "conv2d/kernel", "dense_1/bias".
    A mask [batch, time] that a layer makes (Embedding with mask_zero) goes on to the layers that read one, for as
    long as the time axis is there.
    """

    def __init__(self, layers: Sequence[Layer], shape: Shape, *, rngs: nnx.Rngs):
        self.names = layer_names(layers)
        for name, layer in zip(self.names, layers, strict=True):
            setattr(self, name, layer.build(shape, rngs))
            shape = layer.output_shape(shape)

    def __call__(
        self,
        x: Any,
        *,
        train: bool,
        rngs: nnx.Rngs | None = None,
        mask: jax.Array | None = None,
        watch: Callable[[str, Any], None] | None = None,
    ) -> Any:
        """Maps [batch, *shape] to the last layer's output; `watch(name, y)` sees each layer's output on the way."""
        for name in self.names:
            x, mask = call_layer(getattr(self, name), x, train=train, rngs=rngs, mask=mask)
            if watch is not None:
                watch(name, x)
        return x


def call_layer(
    module: nnx.Module, x: Any, *, train: bool, rngs: nnx.Rngs | None, mask: jax.Array | None
) -> tuple[Any, jax.Array | None]:
    """Calls one layer's module and says which mask holds after it."""
    if getattr(module, "makes_mask", False):
        mask = module.compute_mask(x)
    y = module(x, train=train, rngs=rngs, **({"mask": mask} if getattr(module, "reads_mask", False) else {}))
    keeps_time = mask is not None and y.ndim >= 3 and y.shape[:2] == mask.shape
    return y, mask if keeps_time else None


def split_head(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], str | None]:
    """Takes a last softmax or sigmoid off, so that losses work on logits; predict puts it back.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> split_head([Dense(3, activation="softmax")])
    ((Dense(input_shape=None, name=None, units=3, activation=None, ...),), 'softmax')
    """
    layers = tuple(layers)
    head = getattr(layers[-1], "activation", None) if layers else None
    if head not in HEADS:
        return layers, None
    return (*layers[:-1], dataclasses.replace(layers[-1], activation=None)), head


def output_shapes(layers: Sequence[Layer], shape: Shape) -> list[Shape]:
    """The output shape of each layer; an error names the layer that refuses its input."""
    shapes = []
    for number, layer in enumerate(layers):
        try:
            shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"layer {number} ({type(layer).__name__}) does not fit its input {shape}: {error}") from error
        shapes.append(shape)
    return shapes
