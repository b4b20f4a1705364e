"""What goes from stage to stage as one array."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llmasos_xla.sharding.pipeline.flat import constrained, padded

_WORDS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Carrier:
    """What goes over each boundary between stages, as one array of words, [rows, width], and its cotangent.

    A word is an unsigned integer as wide as the widest float that is carried, so that masks and ids travel beside
    activations and every value arrives bit for bit. Cotangents are those of the floats alone, as that float. `lies`
    says over which mesh axes rows lie; a row is whole on each device, for the reason that `Arrangement.arrays` gives.
    """

    def __init__(self, boundaries: Sequence[Any], rows: int, lies: P):
        leaves = [leaf for boundary in boundaries for leaf in jax.tree.leaves(boundary)]
        for number, boundary in enumerate(boundaries):
            for leaf in jax.tree.leaves(boundary):
                if leaf.shape[:1] != (rows,):
                    raise ValueError(
                        f"pipeline: stage {number} hands on an array of shape {leaf.shape} for a micro-batch of {rows} "
                        f"rows; the first axis of all that goes from stage to stage is the batch: cut elsewhere"
                    )
                if not (_is_float(leaf) or jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool):
                    raise ValueError(
                        f"pipeline: stage {number} hands on {leaf.dtype}; floats, integers and booleans can travel"
                    )
        with jax.numpy_dtype_promotion("standard"):
            floats = [leaf.dtype for leaf in leaves if _is_float(leaf)]
            self.float = functools.reduce(jnp.promote_types, floats or [jnp.dtype(jnp.float32)])
        self.word = _WORDS[jnp.dtype(self.float).itemsize]
        self.rows = rows
        self.lies = lies
        self.width = max((sum(map(self._words, jax.tree.leaves(b))) for b in boundaries), default=0)
        self.float_width = max(
            (sum(_size(a) for a in jax.tree.leaves(b) if _is_float(a)) for b in boundaries), default=0
        )

    def pack(self, tree: Any) -> jax.Array:
        """The words of what is carried, [rows, width]."""
        return padded(
            [self._to_words(constrained(a, self.lies)) for a in jax.tree.leaves(tree)], self.width, self.word, self.rows
        )

    def unpack(self, words: jax.Array, like: Any) -> Any:
        """The inverse of `pack`; `like` has the tree, shapes and dtypes."""
        leaves, at = [], 0
        for leaf in jax.tree.leaves(like):
            size = self._words(leaf)
            leaves.append(constrained(self._from_words(words[:, at : at + size], leaf), self.lies))
            at += size
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def pack_cotangents(self, cotangents: Sequence[jax.Array]) -> jax.Array:
        """The floats' cotangents, [rows, float_width]."""
        flat = [constrained(c, self.lies).astype(self.float).reshape(self.rows, -1) for c in cotangents]
        return padded(flat, self.float_width, self.float, self.rows)

    def unpack_cotangents(self, buffer: jax.Array, like: Any) -> list[jax.Array]:
        """The inverse of `pack_cotangents`, for the floats of `like`."""
        cotangents, at = [], 0
        for leaf in jax.tree.leaves(like):
            if _is_float(leaf):
                cotangent = buffer[:, at : at + _size(leaf)].reshape(leaf.shape).astype(leaf.dtype)
                cotangents.append(constrained(cotangent, self.lies))
                at += _size(leaf)
        return cotangents

    def _words(self, leaf: Any) -> int:
        wide = 1 if _is_float(leaf) else max(leaf.dtype.itemsize // jnp.dtype(self.word).itemsize, 1)
        return _size(leaf) * wide

    def _to_words(self, a: jax.Array) -> jax.Array:
        if _is_float(a):
            words = jax.lax.bitcast_convert_type(a.astype(self.float), self.word)
        elif a.dtype.itemsize > jnp.dtype(self.word).itemsize:
            words = jax.lax.bitcast_convert_type(a, self.word)
        else:
            words = a.astype(self.word)
        return words.reshape(self.rows, -1)

    def _from_words(self, words: jax.Array, like: Any) -> jax.Array:
        if _is_float(like):
            return jax.lax.bitcast_convert_type(words, self.float).reshape(like.shape).astype(like.dtype)
        if like.dtype.itemsize > words.dtype.itemsize:
            parts = words.reshape(*like.shape, like.dtype.itemsize // words.dtype.itemsize)
            return jax.lax.bitcast_convert_type(parts, like.dtype)
        return words.reshape(like.shape).astype(like.dtype)


def split_floats(tree: Any) -> tuple[list[jax.Array], Any]:
    """The floats of a tree, in order, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def put(floats: Sequence[jax.Array]) -> Any:
        new = list(leaves)
        for i, value in zip(places, floats, strict=True):
            new[i] = value
        return jax.tree.unflatten(structure, new)

    return [leaves[i] for i in places], put


def _is_float(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.floating))


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape[1:])
