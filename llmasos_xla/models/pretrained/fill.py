"""Published arrays put where a model has them: every array accounted for, on both sides."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.names import Name

_SHOWN = 12
_COMPARED = 4096
"""Rows that are compared at a time."""


class Piece(NamedTuple):
    """One of the model's arrays as the source has it: nothing is read before a part of it is asked for."""

    parts: tuple[np.ndarray, ...]
    """The source's arrays, laid out as here; views of the source's where that can be."""
    stacked: bool
    """Whether they lie along a new first axis, or are one."""
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return (len(self.parts), *self.parts[0].shape) if self.stacked else self.parts[0].shape

    def __getitem__(self, index: Any) -> np.ndarray:
        """The part at a tuple of slices, in the model's dtype; of the source only that is read."""
        index = tuple(index)
        if not self.stacked:
            return np.asarray(self.parts[0][index]).astype(self.dtype, copy=False)
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        return np.stack([part[rest] for part in self.parts[first]]).astype(self.dtype, copy=False)


class Found(NamedTuple):
    """What of a model's arrays a source has."""

    pieces: dict[str, Piece]
    lacking: tuple[str, ...]
    """Arrays that the source may lack (`Name.optional`) and does."""
    wanted: Variables
    """Shapes and dtypes of all."""


def fill(
    config: Config,
    arrays: Mapping[str, Any],
    source: str,
    *,
    ignored: Sequence[str] = (),
    initial: Variables | None = None,
) -> Variables:
    """The model's variables from the arrays of a source, as NumPy arrays (views of the source's where that can be).

    Args:
        config: the model.
        arrays: the source's arrays by the source's names; only those that are wanted are looked at.
        source: which table of names holds, "huggingface" for instance (`Config.names`).
        ignored: regular expressions, searched for in the source's names, of arrays that may be left over: buffers that
            are no weights.
        initial: variables whose values stand where the source may lack an array (`Name.optional`).

    Raises ValueError that lists the arrays that are missing, those left over, and those of another shape.
    """
    found = match(config, arrays, source, ignored=ignored, optional=initial is not None)
    filled: dict[str, Any] = {name: piece[()] for name, piece in found.pieces.items()}
    if initial is not None:
        filled |= {name: {**initial.params, **initial.state}[name] for name in found.lacking}
    return Variables({n: filled[n] for n in found.wanted.params}, {n: filled[n] for n in found.wanted.state})


def match(
    config: Config, arrays: Mapping[str, Any], source: str, *, ignored: Sequence[str] = (), optional: bool = True
) -> Found:
    """What of the model's arrays the source has, with nothing read yet; arguments and errors are those of `fill`.

    With `optional` a source may lack what the table says it may.
    """
    wanted = jax.eval_shape(config.net().init, jax.random.key(0))
    shapes = {**wanted.params, **wanted.state}
    table = table_of(config, source)
    _check_table(config, table, shapes)
    missing, wrong, differing, pieces, lacking, used = [], [], [], {}, [], set()
    for name in table:
        sources = name.sources
        copies = [copy for copy in name.copies if copy in arrays]
        if copies and sources[0] not in arrays:
            sources, copies = (copies[0],), copies[1:]
        used.update(sources, copies)
        differing += [f"{copy} (from {sources[0]})" for copy in copies if not _equal(arrays[copy], arrays[sources[0]])]
        if absent := [s for s in sources if s not in arrays]:
            if name.optional and optional:
                lacking.append(name.ours)
            else:
                missing += absent
            continue
        try:
            pieces[name.ours] = _piece(name, [np.asarray(arrays[s]) for s in sources], shapes[name.ours])
        except (ValueError, IndexError) as error:
            wrong.append(f"{sources[0]} {np.shape(arrays[sources[0]])}: {error}")
    left = [s for s in arrays if s not in used and not any(re.search(pattern, s) for pattern in ignored)]
    if missing or left or wrong or differing:
        raise ValueError(
            f"{config.who}: the weights ({source}) do not fit the model"
            + _listed("missing", missing)
            + _listed("left over", left)
            + _listed("of another shape", wrong)
            + _listed("of other values than those that they are to share", differing)
        )
    return Found(pieces, tuple(lacking), wanted)


def table_of(config: Config, source: str) -> list[Name]:
    """The model's table of names for a source, ours with the model's own first part."""
    first = f"{config.name or config.base_name}/"
    return [name._replace(ours=first + name.ours) for name in config.names(source)]


def _piece(name: Name, sources: Sequence[np.ndarray], wanted: Any) -> Piece:
    parts = tuple(name.layout.ours(a) for a in sources)
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"the {len(parts)} that are stacked have different shapes, {[p.shape for p in parts][:4]}")
    piece = Piece(parts, name.stacked, wanted.dtype)
    if piece.shape != wanted.shape:
        raise ValueError(f"lies as {piece.shape} here, {name.ours} is {wanted.shape}")
    for part in parts:
        if any(
            jnp.issubdtype(part.dtype, kind) != jnp.issubdtype(wanted.dtype, kind)
            for kind in (jnp.floating, jnp.integer)
        ):
            raise ValueError(f"is of {part.dtype}, {name.ours} is of {wanted.dtype}")
    return piece


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    # Piece by piece: these are tables of large vocabularies, mapped and not in memory.
    some = range(0, len(a), _COMPARED)
    return a.shape == b.shape and all(np.array_equal(a[i : i + _COMPARED], b[i : i + _COMPARED]) for i in some)


def _check_table(config: Config, table: Iterable[Name], shapes: Mapping[str, Any]) -> None:
    ours = [name.ours for name in table]
    if sorted(ours) != sorted(shapes):
        raise AssertionError(
            f"{type(config).__name__}.names: missing {sorted(shapes.keys() - set(ours))[:_SHOWN]}, unknown "
            f"{sorted(set(ours) - shapes.keys())[:_SHOWN]}, twice {sorted({n for n in ours if ours.count(n) > 1})}"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; {len(names)} {what}: {', '.join(sorted(names)[:_SHOWN])}{more}"
