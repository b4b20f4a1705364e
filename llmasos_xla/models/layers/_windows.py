"""The arithmetic of windows that slide over space, shared by convolution and pooling."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from llmasos_xla.models.layers._checks import Shape, edges, known_channels, one_of, sample_rank
from llmasos_xla.sharding import placement

Padding = str | tuple[tuple[int, int], ...]
"""A word, or zeros at both ends of each axis."""

SPACE = {1: "time", 2: "height, width", 3: "depth, height, width"}


def check_space(who: str, shape: Shape, rank: int) -> int:
    """Refuses an input whose rank does not suit a layer over `rank` spatial axes; returns its channels."""
    sample_rank(who, shape, f"{SPACE[rank]}, channels")
    return known_channels(who, shape)


def check_padding(who: str, padding: Any, rank: int, known: Iterable[str] = ("valid", "same")) -> Padding:
    """A known word, or zeros at both ends of each axis as pairs (low, high).

    >>> check_padding("Conv2D", 1, rank=2)
    ((1, 1), (1, 1))
    """
    return one_of(who, "padding", padding, known) if isinstance(padding, str) else edges(who, "padding", padding, rank)


def window_outputs(
    who: str,
    sizes: Iterable[int | None],
    window: Iterable[int],
    strides: Iterable[int],
    padding: Padding,
    dilation: Iterable[int] | None = None,
) -> tuple[int | None, ...]:
    """How many positions a window takes over each axis of `sizes`.

    >>> window_outputs("Conv2D", (28, 28), window=(3, 3), strides=(1, 2), padding=((0, 0), (1, 1)))
    (26, 14)
    """
    sizes = tuple(sizes)
    paddings = [padding] * len(sizes) if isinstance(padding, str) else padding
    dilation = [1] * len(sizes) if dilation is None else dilation
    return tuple(
        _window_output(who, n, k, s, p, d)
        for n, k, s, p, d in zip(sizes, window, strides, paddings, dilation, strict=True)
    )


def _window_output(
    who: str, size: int | None, window: int, stride: int, padding: str | tuple[int, int], dilation: int
) -> int | None:
    if size is None:
        return None
    reach = (window - 1) * dilation + 1
    if padding in ("same", "causal"):
        return -(-size // stride)
    padded = size if isinstance(padding, str) else size + sum(padding)
    if reach > padded:
        zeros = "" if padded == size else f" with {padded - size} of padding"
        raise ValueError(
            f"{who}: a window of {reach} does not fit an axis of {size}{zeros}; use padding='same' or a smaller window"
        )
    return (padded - reach) // stride + 1


def as_kernels_take_it(padding: Padding) -> str | tuple[tuple[int, int], ...]:
    """A layer's padding in the spelling of `kernels.conv`."""
    return padding.upper() if isinstance(padding, str) else padding


def transposed_extra(window: int, stride: int, padding: str, output_padding: int | None) -> int:
    """How much longer a transposed convolution's output is than `(size - 1) * stride + window`, what it writes to.

    Without `output_padding` the output is `size * stride` long, or, "valid" with overlapping windows, all that is
    written to. With it, "same" cuts half a window at both ends before the padding is put on.
    """
    if output_padding is None:
        return stride - window if padding == "same" else max(stride - window, 0)
    return output_padding - (2 * (window // 2) if padding == "same" else 0)


def transposed_pads(window: int, extra: int) -> tuple[int, int]:
    """Padding (low, high) of the input, with `stride - 1` zeros between its elements, for that extra length.

    What is cut is cut half at the low end, rounded down: where the convolution that this transposes pads.
    """
    low = window - 1 - max(-extra, 0) // 2
    return low, 2 * (window - 1) + extra - low


def over_whole_steps(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function(x)` with all of the first axis that windows slide over on each device, in and out.

    For convolutions: where that axis is divided, over seq, XLA's partitioner gives kernels of strided ones wrong
    gradients (8 steps by twos on 8 devices; jax 0.10.2 and 0.12.0), and all of them wrong values if rows and features
    are divided too (data=2 x tensor=2 x seq=2).
    """
    here = placement.current()
    return function(x) if here is None else here.whole_steps(function(here.whole_steps(x)))
