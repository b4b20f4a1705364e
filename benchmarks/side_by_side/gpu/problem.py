"""One problem of an op, as everybody here sees it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORWARD, BOTH = "forward", "forward + backward"
PARTS = (FORWARD, BOTH)

# Arrays, and JAX's precision of products of them: float32 means float32 for everybody, tf32 is a dtype of its own here,
# and so is what each takes for float32 who is told nothing.
DTYPES = {
    "bfloat16": ("bfloat16", None),
    "float16": ("float16", None),
    "float32": ("float32", "highest"),
    "tf32": ("float32", "tensorfloat32"),
    "float32-default": ("float32", None),
}

_MOST_TRIED = 12
# No multiple of what axes have.
_DRAWN = 4194319


class Work(NamedTuple):
    """What one part of a problem takes at least."""

    flops: float
    bytes: float
    """Every array read or written once."""
    serial: tuple[tuple[int, int], ...] = ()
    """Steps that wait for one another, and how many programs each needs: a pair for each pass."""


class Trial(NamedTuple):
    """What tuning may try for one table and shape class."""

    table: str
    key: str
    part: str
    """The part of the problem that shows the difference."""
    groups: list[list[dict[str, Any]]]
    """Entries of which one is best; those of a later group join the best of the earlier ones."""

    def tried(self, tiny: bool) -> list[list[dict[str, Any]]]:
        """The most promising entries of each group."""
        return [group[: 2 if tiny else _MOST_TRIED] for group in self.groups]


class Row(NamedTuple):
    """A problem by name."""

    op: str
    name: str
    dtype: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.op}/{self.name} {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of an op.

    Attributes:
        row: its name.
        names: of the floating arrays, in the order in which the ways take them.
        shapes: of these.
        draw: values for one of these, by its name and shape.
        ways: by name, a function of the arrays to a tuple of results. "ours" is the public function as it chooses,
            "triton" and "xla" the same asked for by name.
        explain: the public function's choice, as `kernels.explain` has it.
        work: the work that each part is, with the sizes that the kernels choose for themselves.
        torch: the same for PyTorch, in plain values, or why it has no such thing.
        over_time: whether results are rounded again and again on the way to others.
    """

    row: Row
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    draw: Callable[[np.random.Generator, str, tuple[int, ...]], np.ndarray]
    ways: Mapping[str, Callable[..., tuple[jax.Array, ...]]]
    explain: Callable[[], Any]
    work: Callable[[], Mapping[str, Work]]
    torch: dict[str, Any] | str
    over_time: bool

    @property
    def dtype(self) -> np.dtype:
        """Of the arrays."""
        return jnp.dtype(DTYPES[self.row.dtype][0])

    def structs(self, dtype: Any = None) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays."""
        return [jax.ShapeDtypeStruct(self.shapes[n], dtype or self.dtype) for n in self.names]

    def arrays(self, seed: int = 0) -> list[np.ndarray]:
        """The arrays, in the problem's dtype."""
        rng = np.random.default_rng(seed)
        return [self.draw(rng, n, self.shapes[n]).astype(self.dtype) for n in self.names]

    def cotangents(self, seed: int = 1) -> list[np.ndarray]:
        """Of all results, in the problem's dtype."""
        rng = np.random.default_rng(seed)
        found = jax.eval_shape(self.ways["xla"], *self.structs())
        return [normal(rng, f.shape).astype(f.dtype) for f in found]


def normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Of that standard deviation, in float32. Large arrays repeat themselves: they are drawn in no time."""
    drawn = rng.standard_normal(min(math.prod(shape), _DRAWN), np.float32) * np.float32(scale)
    return np.resize(drawn, shape)
