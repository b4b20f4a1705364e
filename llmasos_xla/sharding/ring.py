"""Ring attention: exact attention with the time axis split over devices (Liu et al. 2023).

Each device keeps its own queries. The keys and values go around the ring of the mesh axis "seq", one block a step, and
an online softmax adds each block up (Milakov and Gimelshein 2018): no device ever holds more than one block of another.
The gradient is written out rather than left to autodiff: a scan's derivative would keep the keys and values of every
step, which is the whole ring's. Here they go around once more, and each block's gradient travels with it.

A causal mask leaves a block out whose keys all come after the queries: the device waits. That halves the work but not
the time, since the last device has no such block; a zig-zag order of the time axis would balance it, at the price of
moving queries, keys, values and outputs into that order and back in every layer.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

AXIS = "seq"

SAVED = "ring_attention"
"""What the backward pass reads of the forward one has this name, for policies of `jax.checkpoint`."""


def ring_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch time kv_heads dim"],
    v: Float[Array, "batch time kv_heads value_dim"],
    *,
    mesh: Mesh,
    causal: bool,
    mask: Bool[Array, "batch time"] | None = None,
    batch_axes: tuple[str, ...] = ("data", "fsdp", "expert"),
    head_axis: str = "tensor",
) -> Float[Array, "batch time heads value_dim"]:
    """softmax(q k^T / sqrt(dim)) v for each head, with time split over the mesh axis "seq".

    The arrays are global ones, inside of a program jitted for a mesh of Auto axes (also inside of a shard_map over
    another of its axes). Value and gradients are those of `jax.nn.dot_product_attention`, a row that is all padding
    included: it gives the mean of the values. Softmax and sums are float32. Reverse mode only.

    Args:
        q: queries; `heads` is a multiple of `kv_heads`, whose keys and values several query heads share.
        k: keys.
        v: values.
        mesh: has the axes "seq", `batch_axes` and `head_axis`.
        causal: a step sees itself and earlier ones.
        mask: False where a key is padding.
        batch_axes: the mesh axes over which rows are split.
        head_axis: the one over which heads are split, if it divides them; otherwise each of its devices computes all.

    Raises:
        ValueError: if an axis does not divide.

    >>> from llmasos_xla.sharding import MeshSpec
    >>> x = jnp.ones((2, 6, 4, 8))
    >>> y = ring_attention(x, x[:, :, :2], x[:, :, :2], mesh=MeshSpec().mesh(jax.devices()[:1]), causal=True)
    >>> y.shape
    (2, 6, 4, 8)
    """
    parts, heads, kv_heads = mesh.shape[AXIS], q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"ring_attention: {heads} query heads are no multiple of {kv_heads} key and value heads")
    if q.shape[1] % parts:
        raise ValueError(
            f"ring_attention: {q.shape[1]} steps do not divide into seq={parts} parts; pad the rows to "
            f"{-(-q.shape[1] // parts) * parts} steps"
        )
    # Inside of a shard_map over some axes their arrays are in parts already, and only the other axes are left.
    outer = jax.sharding.get_abstract_mesh()
    taken = set() if outer.empty else set(outer.manual_axes)
    rows = tuple(axis for axis in batch_axes if axis not in taken and mesh.shape[axis] > 1)
    if q.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        product = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in rows)
        raise ValueError(f"ring_attention: {product} does not divide a batch of {q.shape[0]} rows; pad the batch")
    split = 1 if head_axis in taken else mesh.shape[head_axis]
    over = head_axis if split > 1 and heads % split == 0 else None
    if over:
        k, v = shared_out(k, v, heads, split)
    ring = _Ring(mesh, causal, rows or None, over, frozenset(mesh.axis_names) - taken, bool(taken))
    return _attention(ring, q, k, v, mask)


def shared_out(k: jax.Array, v: jax.Array, heads: int, split: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values with each head repeated as often as it takes for `split` devices, which divide the query heads,
    to have heads of their own; as they are where `split` divides their heads already."""
    kv_heads = k.shape[2]
    group = heads // kv_heads
    copies = next(n for n in range(1, group + 1) if group % n == 0 and kv_heads * n % split == 0)
    return (k, v) if copies == 1 else (jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2))


class _Ring(NamedTuple):
    """What is known when the program is traced."""

    mesh: Mesh
    causal: bool
    rows: tuple[str, ...] | None
    heads: str | None
    axes: frozenset[str]
    """Those that are not in parts already."""
    nested: bool

    @property
    def parts(self) -> int:
        return self.mesh.shape[AXIS]

    def call(self, function: Callable, arrays: tuple[Any, ...], axes: str, results: str) -> Any:
        """Runs `function(rank, *arrays)` on each device's part; `axes` has a letter an array, `results` one a result.

        x [batch, time, heads, dim], m [batch, time] or None, s [batch, heads, group, time].
        """
        specs = {
            "x": PartitionSpec(self.rows, AXIS, self.heads, None),
            "m": PartitionSpec(self.rows, AXIS),
            "s": PartitionSpec(self.rows, self.heads, None, AXIS),
        }
        # The rank is read from an array: with other axes in XLA's hands a device's number is not to be had.
        return jax.shard_map(
            functools.partial(function, self),
            mesh=jax.sharding.get_abstract_mesh() if self.nested else self.mesh,
            in_specs=(PartitionSpec(AXIS), *(specs[a] for a in axes)),
            out_specs=tuple(specs[a] for a in results),
            axis_names=set(self.axes),
            check_vma=False,
        )(jnp.arange(self.parts), *arrays)

    def passed_on(self, blocks: Any) -> Any:
        """The blocks of the device before."""
        to = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda a: jax.lax.ppermute(a, AXIS, to), blocks)

    def around(self, rank: jax.Array, add: Callable, carry: Any, blocks: Any) -> tuple[Any, Any]:
        """The carry after `carry, blocks = add(carry, blocks, diagonal)` for each block of the ring, and the last.

        A device begins with its own block, the only one that a causal mask cuts through; the i-th after it is of the
        device i before, or of one behind it in time where there is none.
        """
        carry, blocks = add(carry, blocks, True)
        if self.parts == 1:
            return carry, blocks

        def step(held: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], None]:
            carry, blocks = held[0], self.passed_on(held[1])
            if not self.causal:
                return add(carry, blocks, False), None
            return jax.lax.cond(i <= rank[0], lambda c, b: add(c, b, False), lambda c, b: (c, b), carry, blocks), None

        return jax.lax.scan(step, (carry, blocks), jnp.arange(1, self.parts))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    return _forward(ring, q, k, v, mask)[0]


def _forward(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Any]:
    y, log_sum = (checkpoint_name(a, SAVED) for a in ring.call(_local_forward, (q, k, v, mask), "xxxm", "xs"))
    return y, (q, k, v, mask, y, log_sum)


def _backward(ring: _Ring, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    return (*ring.call(_local_backward, (*saved, dy), "xxxmxsx", "xxx"), None)


_attention.defvjp(_forward, _backward)


def _scores(ring: _Ring, q: jax.Array, k: jax.Array, mask: jax.Array | None, diagonal: bool) -> jax.Array:
    """[batch, kv_heads, group, time, time of the keys] in float32 at least, -inf where a key is not seen."""
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=_wide(q.dtype)) / math.sqrt(q.shape[-1])
    if diagonal and ring.causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return scores if mask is None else jnp.where(mask[:, None, None, None], scores, -jnp.inf)


def _local_forward(
    ring: _Ring, rank: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The outputs of a device's queries, and the logarithm of their softmax's denominator."""
    batch, time, heads, kv_heads = *q.shape[:3], k.shape[2]
    grouped, wide = _grouped(q, kv_heads), _wide(q.dtype)

    def add(carry: Any, blocks: Any, diagonal: bool) -> Any:
        (y, largest, total), (k, v, mask) = carry, blocks
        scores = _scores(ring, grouped, k, mask, diagonal)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1))
        # Where nothing is seen yet the largest is -inf, and -inf - -inf no number.
        base = jnp.where(jnp.isneginf(new), 0.0, new)
        weights, shrink = jnp.exp(scores - base[..., None]), jnp.exp(largest - base)
        summand = jnp.einsum("bkgts,bskd->bkgtd", weights.astype(v.dtype), v, preferred_element_type=wide)
        return (y * shrink[..., None] + summand, new, total * shrink + jnp.sum(weights, axis=-1)), blocks

    rows = (batch, kv_heads, heads // kv_heads, time)
    start = jnp.zeros((*rows, v.shape[-1]), wide), jnp.full(rows, -jnp.inf, wide), jnp.zeros(rows, wide)
    (y, largest, total), _ = ring.around(rank, add, start, (k, v, mask))
    y = y / jnp.where(total == 0, 1.0, total)[..., None]
    # Infinite where no key is seen: the weights exp(score - infinity) are zeros in the backward pass too.
    log_sum = jnp.where(total == 0, jnp.inf, largest + jnp.log(total))
    if mask is not None:
        mean = jax.lax.psum(jnp.sum(v, axis=1, dtype=wide), AXIS) / (time * ring.parts)
        y = jnp.where((total == 0)[..., None], mean[:, :, None, None], y)
    return _flat(y).astype(q.dtype), log_sum


def _local_backward(
    ring: _Ring,
    rank: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    y: jax.Array,
    log_sum: jax.Array,
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of a device's queries, keys and values (Dao 2023, algorithm 2, with blocks that travel)."""
    kv_heads, wide = k.shape[2], _wide(q.dtype)
    grouped, out, cotangent = (_grouped(a, kv_heads) for a in (q, y, dy))
    # Of softmax: ds = p (dp - sum(p dp)), and sum(p dp) = dy . y.
    inner = jnp.einsum("btkgd,btkgd->bkgt", cotangent, out, preferred_element_type=wide)

    def add(dq: jax.Array, blocks: Any, diagonal: bool) -> Any:
        k, v, mask, dk, dv = blocks
        weights = jnp.exp(_scores(ring, grouped, k, mask, diagonal) - log_sum[..., None])
        product = functools.partial(jnp.einsum, preferred_element_type=wide)
        dweights = product("btkgd,bskd->bkgts", cotangent, v)
        dscores = (weights * (dweights - inner[..., None]) / math.sqrt(q.shape[-1])).astype(q.dtype)
        dv = dv + product("bkgts,btkgd->bskd", weights.astype(v.dtype), cotangent)
        dk = dk + product("bkgts,btkgd->bskd", dscores, grouped)
        return dq + product("bkgts,bskd->btkgd", dscores, k), (k, v, mask, dk, dv)

    zeros = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
    dq, (_, _, _, dk, dv) = ring.around(rank, add, jnp.zeros(grouped.shape, wide), (k, v, mask, *zeros))
    if ring.parts > 1:
        # After a whole round but one step each block is one device from home.
        dk, dv = ring.passed_on((dk, dv))
    if mask is not None:
        blind = jnp.isposinf(log_sum).transpose(0, 3, 1, 2)[..., None]
        of_mean = jnp.sum(jnp.where(blind, cotangent.astype(wide), 0.0), axis=(1, 3))
        dv = dv + (jax.lax.psum(of_mean, AXIS) / (q.shape[1] * ring.parts))[:, None]
    return dq.reshape(q.shape).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _wide(dtype: Any) -> Any:
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def _grouped(a: jax.Array, kv_heads: int) -> jax.Array:
    """[batch, time, heads, dim] -> [batch, time, kv_heads, group, dim]."""
    return a.reshape(*a.shape[:2], kv_heads, a.shape[2] // kv_heads, a.shape[3])


def _flat(y: jax.Array) -> jax.Array:
    """[batch, kv_heads, group, time, dim] -> [batch, time, heads, dim]."""
    return y.transpose(0, 3, 1, 2, 4).reshape(y.shape[0], y.shape[3], -1, y.shape[4])
