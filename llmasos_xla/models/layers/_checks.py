"""Checks of layers' arguments: each returns the value in its one form, or says who, what came and what was wanted."""

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from llmasos_xla.errors import unknown

Shape = tuple[int | None, ...]
PerAxis = Any
"""An int or one for each axis; the tuple of them once the layer is made (`per_axis`)."""
Edges = Any
"""An int, one for each axis, or a pair (low, high) for each; the pairs once the layer is made (`edges`)."""

LARGEST = 2**31 - 1
"""Sizes above it come from a mistake or a hostile file: XLA's own indices are 32 bits wide."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def whole(who: str, what: str, value: Any, least: int = 1) -> int:
    """An integer of at least `least`; NumPy's integers are taken, bools and floats are not.

    >>> whole("Dense", "units", 0)
    Traceback (most recent call last):
    ValueError: Dense: units wants an int of at least 1, got 0
    """
    number = as_int(value)
    if number is None or not least <= number <= LARGEST:
        raise ValueError(f"{who}: {what} wants an int of at least {least}, got {short(value)}")
    return number


def number(who: str, what: str, value: Any, least: float = -math.inf, below: float = math.inf) -> float:
    """A finite real number in [least, below)."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ValueError(f"{who}: {what} wants a number, got {short(value)}")
    try:
        real = float(value)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{who}: {what} wants a number, got {short(value)}") from error
    if not math.isfinite(real) or not least <= real < below:
        low = "" if least == -math.inf else f" of at least {least:g}"
        high = "" if below == math.inf else f"{' and' if low else ''} below {below:g}"
        raise ValueError(f"{who}: {what} wants a finite number{low}{high}, got {short(value)}")
    return real


def flag(who: str, what: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{who}: {what} wants True or False, got {short(value)}")
    return value


def one_of(who: str, what: str, value: Any, known: Iterable[str]) -> str:
    """One of the known words, in lower case."""
    if not isinstance(value, str) or value.lower() not in known:
        raise unknown(who, what, short(value) if not isinstance(value, str) else value, known)
    return value.lower()


def per_axis(who: str, what: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """An int or `rank` of them as a tuple.

    >>> per_axis("Conv2D", "strides", 2, rank=2)
    (2, 2)
    """
    values = (value,) * rank if as_int(value) is not None else _sequence(value)
    numbers = None if values is None else [as_int(v) for v in values]
    if numbers is None or len(numbers) != rank or any(n is None or not least <= n <= LARGEST for n in numbers):
        several = "" if rank == 1 else f" or {rank} of them"
        raise ValueError(f"{who}: {what} wants an int of at least {least}{several}, got {short(value)}")
    return tuple(n for n in numbers if n is not None)


def edges(who: str, what: str, value: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """Amounts at the two ends of each axis, as Keras takes them: an int, one an axis, or a pair an axis.

    >>> edges("ZeroPadding2D", "padding", (1, (2, 3)), rank=2)
    ((1, 1), (2, 3))
    """
    if as_int(value) is not None:
        value = (value,) * rank
    elif rank == 1 and (pair := _sequence(value)) is not None and len(pair) == 2:
        value = (pair,)
    values = _sequence(value)
    if values is None or len(values) != rank:
        wanted = "an int or a pair (low, high)" if rank == 1 else f"an int, {rank} of them, or {rank} pairs (low, high)"
        raise ValueError(f"{who}: {what} wants {wanted}, got {short(value)}")
    pairs = [per_axis(who, f"{what} at both ends of an axis", v, 2, least=0) for v in values]
    return tuple((low, high) for low, high in pairs)


def array_axis(who: str, axis: Any, sample_rank: int) -> int:
    """The axis of the whole array [batch, ...] that `axis` means, counted as Keras does: axis 0 is the batch.

    >>> array_axis("BatchNormalization", -1, sample_rank=3)
    3
    """
    number = as_int(axis)
    if number is None:
        raise ValueError(f"{who}: axis wants an int, got {short(axis)}")
    at = number + sample_rank + 1 if number < 0 else number
    if not 1 <= at <= sample_rank:
        raise ValueError(
            f"{who}: axis {number} is no axis of a sample; the array has {sample_rank + 1} axes, axis 0 is the batch, "
            f"so use 1 to {sample_rank} or -{sample_rank} to -1"
        )
    return at


def known_channels(who: str, shape: Shape, axis: int = -1) -> int:
    """The size of an axis that arrays depend on, the last one by default."""
    size = shape[axis] if shape else None
    if size is None:
        raise ValueError(f"{who}: axis {axis} of its input must have a known size, got samples of shape {shape}")
    return size


def sample_rank(who: str, shape: Shape, names: str) -> None:
    """Refuses samples that have other axes than `names`, such as "time, channels"."""
    axes = names.split(", ")
    if len(shape) != len(axes):
        way_out = "Reshape or Flatten can change the rank"
        if len(shape) == len(axes) - 1 and axes[-1] == "channels":
            whole = (*shape, 1)
            way_out = (
                f"with one channel they are {whole}: input_shape={whole} in the first layer, Reshape({whole}) later"
            )
        raise ValueError(f"{who}: wants samples of shape ({names}), got {shape}; {way_out}")


def as_int(value: Any) -> int | None:
    """The value as a plain int if it is one (a bool is not)."""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _sequence(value: Any) -> Sequence[Any] | None:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def short(value: Any) -> str:
    """The value as errors show it: cut where it is long or deep."""
    return _REPR.repr(value)
