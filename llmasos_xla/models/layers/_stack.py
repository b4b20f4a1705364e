"""A list of layers as one nnx module."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.layers._base import Layer, Shape, layer_names
from llmasos_xla.models.layers._modules import MaskModule, call_module
from llmasos_xla.models.layers.activations import Activation, ReLU
from llmasos_xla.models.layers.conv import Conv1D, Conv2D, Conv3D
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.pooling import MaxPooling1D, MaxPooling2D, MaxPooling3D
from llmasos_xla.models.layers.separable import DepthwiseConv2D


class Stack(MaskModule):
    """Layers applied one after the other.

    Submodules are attributes named as `layer_names` says, so arrays are called "conv2d/kernel", "dense_1/bias".
    A mask [batch, time] that a layer makes (Embedding with mask_zero) goes on to the layers that read one, for as
    long as the time axis is there. Errors say which layer refused what.
    """

    def __init__(self, layers: Sequence[Layer], shape: Shape, *, rngs: nnx.Rngs):
        output_shapes(layers, shape)
        self._names = layer_names(layers)
        self._pooled = frozenset(i for i, pair in enumerate(pairwise(layers)) if _pools_first(*pair))
        self._folded = frozenset(i for i, pair in enumerate(pairwise(layers)) if _folds(*pair))
        self._activated = frozenset(i for i, pair in enumerate(pairwise(layers)) if _activates(*pair))
        for name, layer in zip(self._names, layers, strict=True):
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
        return self.masked(x, mask, train=train, rngs=rngs, watch=watch)[0]

    def masked(
        self,
        x: Any,
        mask: jax.Array | None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
        watch: Callable[[str, Any], None] | None = None,
        ending: Callable[[], dict[str, Any]] | None = None,
    ) -> tuple[Any, jax.Array | None]:
        """The output and the mask that holds for it.

        `ending` is called, just before the last layer's module, for what that is told besides.
        """
        done = -1
        for number, name in enumerate(self._names):
            if number <= done:
                continue
            try:
                module: Any = getattr(self, name)
                if number in self._pooled and mask is None and watch is None:
                    pool = partial(getattr(self, self._names[number + 1]), train=train, rngs=rngs)
                    x, done = module(x, train=train, rngs=rngs, then=pool), number + 1
                elif number in self._folded and not train and mask is None and watch is None and module.absorbs(x):
                    x, done = self._normalized(number, x, ending)
                elif number in self._activated and watch is None:
                    x, mask = module.masked(x, mask, train=train, rngs=rngs, activation="relu")
                    done = number + 1
                elif ending is not None and name == self._names[-1]:
                    x, mask = module.masked(x, mask, train=train, rngs=rngs, **ending())
                else:
                    x, mask = call_module(module, x, train=train, rngs=rngs, mask=mask)
            except Exception as error:
                raise _located(error, number, name, x) from error
            if watch is not None:
                watch(name, x)
        return x, mask

    def _normalized(self, number: int, x: Any, ending: Callable[[], dict[str, Any]] | None) -> tuple[Any, int]:
        """Convolution `number` with the normalization behind it in its kernel, and what follows; the last one done."""
        convolution, norm = (getattr(self, self._names[i]) for i in (number, number + 1))
        if ending is not None and number + 2 == len(self._names):
            y = convolution.normalized(x, *norm.affine(), None)
            after = ending()
            return kernels.activation(after["activation"])(y + after["residual"]), number + 1
        relu = number + 1 in self._activated
        return convolution.normalized(x, *norm.affine(), "relu" if relu else None), number + 1 + relu


def _folds(layer: Layer, after: Layer) -> bool:
    """Whether the normalization is one of a convolution's output features, which no activation stands before."""
    if not isinstance(layer, Conv1D | Conv2D | Conv3D | DepthwiseConv2D) or not isinstance(after, BatchNormalization):
        return False
    return layer.activation in (None, "linear") and after.axis in (-1, len(layer.kernel_size) + 1)


def _pools_first(layer: Layer, after: Layer) -> bool:
    """Whether a maximum may be taken ahead of the convolution's bias and activation.

    Both grow with their argument, so the values are the same to the bit, and bias and activation then work on a
    fraction of the elements. Other activations saturate: they make ties where the gradient would go another way.
    """
    conv = isinstance(layer, Conv1D | Conv2D | Conv3D) and layer.activation in (None, "linear", "relu")
    return conv and isinstance(after, MaxPooling1D | MaxPooling2D | MaxPooling3D)


def _activates(layer: Layer, after: Layer) -> bool:
    """Whether the layer can apply the ReLU that follows it."""
    if isinstance(after, ReLU):
        relu = dataclasses.replace(after, input_shape=None, name=None) == ReLU()
    else:
        relu = isinstance(after, Activation) and after.activation == "relu"
    return layer.fuses_activation and relu


def output_shapes(layers: Sequence[Layer], shape: Shape) -> list[Shape]:
    """The output shape of each layer; an error names the layer that refuses its input."""
    shapes = []
    for number, layer in enumerate(layers):
        try:
            shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(
                f"layer {number} ({type(layer).__name__}) does not fit its input {shape}: {error}"
            ) from error
        shapes.append(shape)
    return shapes


def _located(error: Exception, number: int, name: str, x: Any) -> Exception:
    """The error with the place where it happened: in its text where that is all it is, otherwise as a note."""
    where = (
        f"layer {number} ({name}), called with {x.dtype}{list(x.shape)}"
        if hasattr(x, "dtype")
        else f"layer {number} ({name})"
    )
    if type(error) in (ValueError, TypeError) and len(error.args) == 1:
        return type(error)(f"{where}: {error}")
    error.add_note(where)
    return error
