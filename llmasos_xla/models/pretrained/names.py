"""How one array is called here and in published weights, and how it lies there: all transposes stand in this file.

A model's table of names is a generator of `Name`s (`Config.names`), one for each of its arrays.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How an array lies in a source and here; both directions, on NumPy arrays, by views where that can be."""

    name: str
    ours: Callable[[np.ndarray], np.ndarray]
    """The source's array as it lies here."""
    theirs: Callable[[np.ndarray], np.ndarray]
    """Ours as it lies in the source."""


class Name(NamedTuple):
    """One array."""

    ours: str
    """"encoder/blocks/0/attention/query/kernel", without the model's own first part."""
    theirs: str | Sequence[str]
    """Its name in the source; several are stacked along a new first axis, in that order."""
    layout: "Layout"
    optional: bool = False
    """Whether a source may lack it, in which case it keeps its initial values (a task's new head)."""
    copies: tuple[str, ...] = ()
    """Under which names a source may have it besides, or instead: a head that is the table of embeddings. Values that
    differ are refused."""

    @property
    def stacked(self) -> bool:
        """Whether several of the source's arrays make one here."""
        return not isinstance(self.theirs, str)

    @property
    def sources(self) -> tuple[str, ...]:
        """Its names in the source."""
        return (self.theirs,) if isinstance(self.theirs, str) else tuple(self.theirs)


SAME = Layout("same", lambda a: a, lambda a: a)
DENSE = Layout("dense", lambda a: a.T, lambda a: a.T)
"""[cout, cin] of torch as [cin, cout]."""
CONV1D = Layout("conv1d", lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0))
"""[cout, cin, width] as [width, cin, cout]."""
CONV2D = Layout("conv2d", lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
"""[cout, cin, height, width] as [height, width, cin, cout]."""
DEPTHWISE2D = Layout("depthwise2d", lambda a: a.transpose(2, 3, 0, 1), lambda a: a.transpose(2, 3, 0, 1))
"""[channels, 1, height, width] as [height, width, channels, 1]."""


def heads_in(heads: int) -> Layout:
    """[heads * dim, cin] of torch as [cin, heads, dim]: query, key and value kernels."""
    return Layout(
        f"heads_in({heads})",
        lambda a: a.T.reshape(a.shape[1], heads, -1),
        lambda a: a.reshape(a.shape[0], -1).T,
    )


def heads_in_turned(heads: int) -> Layout:
    """`heads_in` for queries and keys of a source whose rotary embedding pairs neighbors; here halves are paired."""
    inside = heads_in(heads)

    def ours(a: np.ndarray) -> np.ndarray:
        return inside.ours(a.reshape(heads, -1, 2, a.shape[1]).swapaxes(1, 2).reshape(a.shape))

    def theirs(a: np.ndarray) -> np.ndarray:
        flat = inside.theirs(a)
        return flat.reshape(heads, 2, -1, flat.shape[1]).swapaxes(1, 2).reshape(flat.shape)

    return Layout(f"heads_in_turned({heads})", ours, theirs)


def each(layout: Layout) -> Layout:
    """The layout of each layer's array in a stack of them."""
    return Layout(
        f"each({layout.name})",
        lambda a: np.stack([layout.ours(part) for part in a]),
        lambda a: np.stack([layout.theirs(part) for part in a]),
    )


def heads_out(heads: int) -> Layout:
    """[cout, heads * dim] of torch as [heads, dim, cout]: output kernels."""
    return Layout(
        f"heads_out({heads})",
        lambda a: a.T.reshape(heads, -1, a.shape[0]),
        lambda a: a.reshape(-1, a.shape[-1]).T,
    )


def heads_bias(heads: int) -> Layout:
    """[heads * dim] as [heads, dim]."""
    return Layout(f"heads_bias({heads})", lambda a: a.reshape(heads, -1), lambda a: a.reshape(-1))


def after_flattening(height: int, width: int, channels: int) -> Layout:
    """[cout, channels * height * width], a dense layer behind NCHW maps, as [height * width * channels, cout]."""

    def ours(a: np.ndarray) -> np.ndarray:
        return a.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    def theirs(a: np.ndarray) -> np.ndarray:
        return a.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(a.shape[-1], -1)

    return Layout(f"after_flattening({height}, {width}, {channels})", ours, theirs)


def batch_norm(ours: str, theirs: str) -> Iterator[Name]:
    """The four arrays of torch's BatchNorm."""
    for here, there in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
        yield Name(f"{ours}/{here}", f"{theirs}.{there}", SAME)


def dense(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Name]:
    """The arrays of torch's Linear."""
    yield Name(f"{ours}/kernel", f"{theirs}.weight", DENSE)
    if bias:
        yield Name(f"{ours}/bias", f"{theirs}.bias", SAME)


def layer_norm(ours: str, theirs: str) -> Iterator[Name]:
    """The arrays of torch's LayerNorm."""
    yield Name(f"{ours}/scale", f"{theirs}.weight", SAME)
    yield Name(f"{ours}/bias", f"{theirs}.bias", SAME)


def conv2d(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Name]:
    """The arrays of torch's Conv2d."""
    yield Name(f"{ours}/kernel", f"{theirs}.weight", CONV2D)
    if bias:
        yield Name(f"{ours}/bias", f"{theirs}.bias", SAME)
