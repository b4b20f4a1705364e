"""A model's variables from a file of published weights, on one device or piece by piece onto a mesh."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.fill import Piece, match, table_of
from llmasos_xla.models.pretrained.reading import read
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.storage.views import Arrays

SOURCES = ("huggingface", "torch", "keras", "llama2.c")
"""Whose names a table may have (`Config.names`)."""

# Files of transformers' early days, BERT's own among them, have TensorFlow's names for these.
_OLD_ENDINGS = ((".gamma", ".weight"), (".beta", ".bias"))


def load(
    config: Config,
    weights: str | os.PathLike | Mapping[str, Any],
    *,
    source: str | None = None,
    ignored: str | Sequence[str] = (),
    key: jax.Array | None = None,
    placement: Placement | None = None,
) -> Variables:
    """The model's variables with the published weights of a file or folder.

    Args:
        config: the model.
        weights: what `read` opens, or what it has opened.
        source: whose names the arrays have, one of `SOURCES`; None takes the table that names most of them.
        ignored: a regular expression, or several, of names that are taken as not there: what may be left over besides
            the model's own (`Config.ignored`), and a head that a new one replaces.
        key: draws what the weights may lack, a task's new head; without it all arrays must be there. Only what lacks is
            drawn.
        placement: where the arrays shall lie on a mesh. Each device's part is read from the file by itself: no array is
            ever whole in memory.

    Raises what `read` raises, and ValueError that lists the arrays that are missing, left over or of another shape.
    """
    arrays = weights if isinstance(weights, Mapping) else read(weights)
    source, names = _as_in_table(config, arrays, source)
    patterns = (ignored,) if isinstance(ignored, str) else tuple(ignored)
    there = {new: old for new, old in names.items() if not any(re.search(p, n) for p in patterns for n in (new, old))}
    wanted = Arrays(source, {new: (lambda old=old: arrays[old]) for new, old in there.items()})
    found = match(config, wanted, source, ignored=config.ignored, optional=key is not None)
    shapes = {**found.wanted.params, **found.wanted.state}
    where = None if placement is None else placement.shardings(shapes, shapes)
    filled = {name: _put(piece, where and where[name]) for name, piece in found.pieces.items()}
    if found.lacking:
        assert key is not None
        filled |= drawn(config, found.lacking, key, where)
    return Variables({n: filled[n] for n in found.wanted.params}, {n: filled[n] for n in found.wanted.state})


def _put(piece: Piece, where: NamedSharding | None) -> jax.Array:
    if where is None:
        # A copy: the mapped file may change or go while the model lives.
        return jnp.array(piece[()], dtype=piece.dtype, copy=True)
    return jax.make_array_from_callback(piece.shape, where, lambda index: np.array(piece[index]), dtype=piece.dtype)


def drawn(
    config: Config, names: Sequence[str], key: jax.Array, where: Mapping[str, Any] | None = None
) -> dict[str, jax.Array]:
    """Some of the initial arrays of a model, the same that `init` gives; the others are not made."""
    init = config.net().init

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        made = init(key)
        return {name: {**made.params, **made.state}[name] for name in names}

    # Compiled, since XLA leaves out what nothing is wanted of: a large model's weights are not drawn for its head.
    out = None if where is None else {name: where[name] for name in names}
    return jax.jit(draw, out_shardings=out)(key)


def _as_in_table(config: Config, arrays: Mapping[str, Any], source: str | None) -> tuple[str, dict[str, str]]:
    """The source whose table fits best, and that table's names of the arrays with their own."""
    found = []
    for candidate in (source,) if source is not None else SOURCES:
        try:
            theirs = {there for name in table_of(config, candidate) for there in (*name.sources, *name.copies)}
        except ValueError:
            if source is not None:
                raise
            continue
        for prefix, add in _prefixes(arrays, theirs):
            names = {_spelled(name, theirs, prefix, add): name for name in arrays}
            if len(names) == len(arrays):
                found.append((len(theirs & names.keys()), candidate, names))
    if not found:
        raise ValueError(f"{config.who}: there is no table of names for it; sources are {', '.join(SOURCES)}")
    # The first of the best, which is the names as they are where these will do.
    _, best, names = max(found, key=lambda f: f[0])
    return best, names


def _prefixes(arrays: Mapping[str, Any], theirs: set[str]) -> list[tuple[str, bool]]:
    """What may have to be left out before names, or added: the same body is saved as itself and as part of a task."""

    def firsts(names: Any) -> list[str]:
        return sorted({name.split(".")[0] + "." for name in names if "." in name})

    return [("", False), *((p, False) for p in firsts(arrays)), *((p, True) for p in firsts(theirs))]


def _spelled(name: str, theirs: set[str], prefix: str, add: bool) -> str:
    spellings = [name, *(name.removesuffix(old) + new for old, new in _OLD_ENDINGS if name.endswith(old))]
    for spelling in spellings:
        other = prefix + spelling if add else spelling.removeprefix(prefix)
        for candidate in (spelling, other):
            if candidate in theirs:
                return candidate
    return name
