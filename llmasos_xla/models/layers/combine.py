"""Layers made of branches that read the same input.

A branch is a list of layers; an empty one passes its input on. Branches nest, so any graph of one input and one output
whose paths split and meet again can be written, and it stays a plain value: readable, comparable, saved as JSON.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape, layer_list
from llmasos_xla.models.layers._checks import array_axis, short
from llmasos_xla.models.layers._modules import MaskModule
from llmasos_xla.models.layers._stack import Stack, output_shapes
from llmasos_xla.models.layers.normalization import BatchNormalization

Branch = Any
"""A layer or a sequence of them; the tuple of them once the layer around it is made (`layer_list`)."""


def branch_shape(who: str, what: str, layers: Sequence[Layer], shape: Shape) -> Shape:
    """The shape that comes out of a branch."""
    try:
        return output_shapes(layers, shape)[-1] if layers else shape
    except ValueError as error:
        raise ValueError(f"{who}: in {what}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Branches(Layer):
    branches: Sequence[Branch]

    def check(self) -> None:
        """Refuses fewer than two branches and what is no list of layers."""
        if not isinstance(self.branches, Sequence) or isinstance(self.branches, str) or len(self.branches) < 2:
            raise ValueError(
                f"{self.who}: wants two or more branches, each a list of layers, got {short(self.branches)}"
            )
        self._set(branches=tuple(layer_list(self.who, f"branch {i}", b) for i, b in enumerate(self.branches)))

    @property
    def tokens(self) -> bool:
        """Whether a branch starts with ids."""
        return any(branch[0].tokens for branch in self.branches if branch)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with the branches."""
        self.output_shape(shape)
        return _BranchesModule(self.branches, shape, self._combiner(shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The branches' common shape."""
        shapes = self._shapes(shape)
        for number, other in enumerate(shapes):
            if other != shapes[0]:
                raise ValueError(
                    f"{self.who}: branches must agree in shape; branch 0 gives {shapes[0]}, branch {number} {other}"
                )
        return shapes[0]

    def _shapes(self, shape: Shape) -> list[Shape]:
        return [branch_shape(self.who, f"branch {i}", branch, shape) for i, branch in enumerate(self.branches)]

    def _combiner(self, shape: Shape) -> Callable[[list[jax.Array]], jax.Array]:
        raise NotImplementedError(f"{type(self).__name__} does not define _combiner")


@dataclasses.dataclass(frozen=True)
class _Elementwise(_Branches):
    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]]

    def _combiner(self, shape: Shape) -> Callable[[list[jax.Array]], jax.Array]:
        return functools.partial(functools.reduce, type(self).function)


class _BranchesModule(MaskModule):
    def __init__(
        self,
        branches: Sequence[Sequence[Layer]],
        shape: Shape,
        combine: Callable[[list[jax.Array]], jax.Array],
        rngs: nnx.Rngs,
    ):
        self.count = len(branches)
        self.combine = combine
        for number, branch in enumerate(branches):
            setattr(self, f"branch_{number}", Stack(branch, shape, rngs=rngs))

    def masked(
        self, x: Any, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        results = [
            getattr(self, f"branch_{number}").masked(x, mask, train=train, rngs=rngs) for number in range(self.count)
        ]
        y = self.combine([y for y, _ in results])
        return y, joint_mask(y, [mask for _, mask in results])


def joint_mask(y: jax.Array, masks: list[jax.Array | None]) -> jax.Array | None:
    """The steps that no branch calls padding, if all branches that know padding still have y's time axis."""
    fitting = [mask for mask in masks if mask is not None and y.ndim >= 3 and mask.shape == y.shape[:2]]
    return functools.reduce(jnp.logical_and, fitting) if fitting else None


@dataclasses.dataclass(frozen=True)
class Add(_Elementwise):
    """The sum of the branches' outputs, which must be of one shape.

    Arrays: those of the branches, under "branch_0/", "branch_1/", ...

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Add([[Dense(8), Dense(4)], [Dense(4)]]).output_shape((6,))
    (4,)
    """

    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]] = staticmethod(jnp.add)


@dataclasses.dataclass(frozen=True)
class Multiply(_Elementwise):
    """The product of the branches' outputs, value by value.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Multiply([[], [Dense(6, activation="sigmoid")]]).output_shape((6,))
    (6,)
    """

    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]] = staticmethod(jnp.multiply)


@dataclasses.dataclass(frozen=True)
class Maximum(_Elementwise):
    """The largest of the branches' outputs, value by value.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Maximum([Dense(4), Dense(4)]).output_shape((6,))
    (4,)
    """

    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]] = staticmethod(jnp.maximum)


@dataclasses.dataclass(frozen=True)
class Minimum(_Elementwise):
    """The smallest of the branches' outputs, value by value.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Minimum([Dense(4), Dense(4)]).output_shape((6,))
    (4,)
    """

    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]] = staticmethod(jnp.minimum)


@dataclasses.dataclass(frozen=True)
class Average(_Branches):
    """The mean of the branches' outputs, value by value.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Average([Dense(4), Dense(4), Dense(4)]).output_shape((6,))
    (4,)
    """

    def _combiner(self, shape: Shape) -> Callable[[list[jax.Array]], jax.Array]:
        return lambda outputs: functools.reduce(jnp.add, outputs) / len(outputs)


@dataclasses.dataclass(frozen=True)
class Subtract(_Elementwise):
    """The first of two branches' outputs minus the second.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> Subtract([Dense(4), Dense(4)]).output_shape((6,))
    (4,)
    """

    function: ClassVar[Callable[[jax.Array, jax.Array], jax.Array]] = staticmethod(jnp.subtract)

    def check(self) -> None:
        """Refuses other than two branches."""
        super().check()
        if len(self.branches) != 2:
            raise ValueError(f"{self.who}: wants two branches, got {len(self.branches)}")


@dataclasses.dataclass(frozen=True)
class Concatenate(_Branches):
    """The branches' outputs one after the other along `axis` (0 is the batch and refused).

    >>> from llmasos_xla.models.layers.conv import Conv2D
    >>> Concatenate([Conv2D(4, 1), Conv2D(8, 3, padding="same")]).output_shape((7, 7, 3))
    (7, 7, 12)
    """

    axis: int = dataclasses.field(default=-1, metadata={"checked": False})

    def output_shape(self, shape: Shape) -> Shape:
        """Sizes add up along the axis and must be equal along the others."""
        shapes = self._shapes(shape)
        at = self._at(shapes)
        for number, other in enumerate(shapes):
            if len(other) != len(shapes[0]) or any(a != b for i, (a, b) in enumerate(zip(shapes[0], other)) if i != at):
                raise ValueError(
                    f"{self.who}: along axis {self.axis} branches may differ, along the others not; "
                    f"branch 0 gives {shapes[0]}, branch {number} {other}"
                )
        sizes = [s[at] for s in shapes]
        total = None if None in sizes else sum(n for n in sizes if n is not None)
        return (*shapes[0][:at], total, *shapes[0][at + 1 :])

    def _at(self, shapes: list[Shape]) -> int:
        return array_axis(self.who, self.axis, len(shapes[0])) - 1

    def _combiner(self, shape: Shape) -> Callable[[list[jax.Array]], jax.Array]:
        axis = self._at(self._shapes(shape)) + 1
        return lambda outputs: jnp.concatenate(outputs, axis=axis)


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """layers(x) + shortcut(x); the empty shortcut is x itself (He et al. 2016).

    Arrays: those of the layers, under "layers/", and of the shortcut, under "shortcut/".

    >>> from llmasos_xla.models.layers.conv import Conv2D
    >>> block = Residual([Conv2D(8, 3, strides=2, padding="same")], shortcut=[Conv2D(8, 1, strides=2)])
    >>> block.output_shape((32, 32, 3))
    (16, 16, 8)
    """

    layers: Branch
    shortcut: Branch = ()

    def check(self) -> None:
        """Refuses what is no list of layers, and no layers at all."""
        self._set(
            layers=layer_list(self.who, "layers", self.layers), shortcut=layer_list(self.who, "shortcut", self.shortcut)
        )
        if not self.layers:
            raise ValueError(f"{self.who}: layers wants at least one layer, got none")

    @property
    def tokens(self) -> bool:
        """Whether a path starts with ids."""
        return any(path[0].tokens for path in (self.layers, self.shortcut) if path)

    @property
    def fuses_activation(self) -> bool:
        """Whether the last of its layers can add the shortcut and apply an activation in its own pass over memory."""
        return isinstance(self.layers[-1], BatchNormalization)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with both paths."""
        self.output_shape(shape)
        return _Residual(self, shape, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """Both paths' shape."""
        main = branch_shape(self.who, "layers", self.layers, shape)
        short = branch_shape(self.who, "shortcut", self.shortcut, shape)
        if main != short:
            raise ValueError(
                f"{self.who}: layers give {main}, the shortcut gives {short}; give a shortcut that ends in the same "
                "shape, such as shortcut=[Conv2D(filters, 1, strides=...)]"
            )
        return main


class _Residual(MaskModule):
    def __init__(self, spec: Residual, shape: Shape, rngs: nnx.Rngs):
        self.layers = Stack(spec.layers, shape, rngs=rngs)
        self.shortcut = Stack(spec.shortcut, shape, rngs=rngs)

    def masked(
        self,
        x: Any,
        mask: jax.Array | None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
        activation: str | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The sum and its mask; with an activation, the last layer does both (see `Stack`)."""
        masks = []

        def shortcut() -> jax.Array:
            y, mask_after = self.shortcut.masked(x, mask, train=train, rngs=rngs)
            masks.append(mask_after)
            return y

        # Either way the shortcut comes after the layers that may draw random keys.
        def ending() -> dict[str, Any]:
            return {"residual": shortcut(), "activation": activation}

        if activation is None:
            y, mask_after = self.layers.masked(x, mask, train=train, rngs=rngs)
            y = y + shortcut()
        else:
            y, mask_after = self.layers.masked(x, mask, train=train, rngs=rngs, ending=ending)
        return y, joint_mask(y, [mask_after, *masks])
