"""A recurrence by persistent Triton kernels as JAX operations, and how they are each other's derivatives.

    y            = inference(arguments)                      what runs where nothing is differentiated
    y, saved     = training(arguments)                       what runs in its place under differentiation
    dy           = tangent(arguments, y, saved, d arguments)
    d arguments  = backward(arguments, y, saved, dy)

`tangent` is linear in its last arrays and its transpose is `backward`, as in `onednn_operations.py`. The kernels hand
out the gates' deltas of all steps; the gradients of x, of the weights and of the biases are matrix products and sums of
these, by XLA.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._operation import in_batch
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn.layer_norm import LayerNorm
from llmasos_xla.kernels.rnn.triton_launches import backward, forward
from llmasos_xla.kernels.rnn.triton_spec import NORMS, STATES, Spec, tiles

Arrays = Sequence[Any]


def plain(s: Spec, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arguments and integers to outputs in plain JAX."""
    a = dict(zip((*s.arguments, *s.integers), arrays))
    directions = s.blocks // s.heads
    results = [_plain_direction(s, d, directions, a) for d in range(directions)]
    whole = [jnp.concatenate(parts, axis=-1) for parts in zip(*results)]
    return tuple(a.astype(s.struct(name).dtype) for name, a in zip(s.outputs, whole))


def _plain_direction(s: Spec, d: int, directions: int, a: dict[str, jax.Array]) -> list[jax.Array]:
    def part(name: str) -> jax.Array:
        return real(jnp.split(a[name], directions, axis=-1)[d])

    def real(a: jax.Array) -> jax.Array:
        """The last axis without units that a normalization may not count."""
        by_head = a.reshape(*a.shape[:-1], -1, s.head)
        return by_head[..., : s.counted].reshape(*a.shape[:-1], -1) if s.counted else a

    x = jnp.swapaxes(a["x"], 0, 1)
    w = a["w_recurrent"][d * s.heads : (d + 1) * s.heads]
    mask = part("mask") if s.mask else None
    norm = None
    if s.kind in ("lstm", "lnlstm"):
        if s.kind == "lnlstm":
            norm = LayerNorm(*(part(name) for name in NORMS), epsilon=s.epsilon)
            w = real(w[:, : s.counted])
        cell = xla.lstm_cell(w, mask=mask, norm=norm)
    elif s.kind == "slstm":
        cell = xla.slstm_cell(w, mask)
    elif s.kind == "gru":
        cell = xla.gru_cell(w, part("recurrent_bias"), mask=mask)
    else:
        cell = xla.rnn_cell(w, jax.nn.relu if s.kind == "relu" else jnp.tanh, mask)
    valid = fresh = None
    if s.lengths:
        valid = (jnp.arange(s.time, dtype=jnp.int32)[:, None] < a["lengths"][None])[..., None]
    if s.resets:
        fresh = (jnp.swapaxes(a["resets"], 0, 1) != 0)[..., None]
    states = tuple(part(f"{name}0") for name in STATES[s.kind])
    p = xla.normalized_input(xla.project(x, part("w_input")), norm) + part("bias")[None, None]
    ys, final = xla.scan(cell, p, states, valid, s.reverse == 1 or d == 1, fresh)
    filling = s.head - s.counted if s.counted else 0
    return [jnp.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, filling)]) for out in (jnp.swapaxes(ys, 0, 1), *final)]


def _structs(s: Spec, *names: str) -> list[jax.ShapeDtypeStruct]:
    return [s.struct(name) for name in names]


def _plain_training(s: Spec, *arrays: jax.Array) -> Arrays:
    # The plain tangent and backward start from the arguments again.
    return *plain(s, *arrays), *(jnp.zeros(a.shape, a.dtype) for a in _structs(s, *s.saved))


def _of_floats(s: Spec, arrays: Arrays) -> tuple[Any, Arrays]:
    """The plain version as a function of the arrays that have gradients, and these arrays."""
    n, m = len(s.arguments), len(s.integers)
    return (lambda *floats: plain(s, *floats, *arrays[n : n + m])), arrays[:n]


def _plain_tangent(s: Spec, *arrays: jax.Array) -> Arrays:
    function, primals = _of_floats(s, arrays)
    return jax.jvp(function, tuple(primals), tuple(arrays[-len(primals) :]))[1]


def _plain_backward(s: Spec, *arrays: jax.Array) -> Arrays:
    if s.groups > 1:
        one = s._replace(batch=s.batch // s.groups, groups=1)
        weights = tuple(None if name in s.shared else 0 for name in s.operands)
        apart = [a if axis is None else s.by_group(a) for a, axis in zip(arrays, weights)]
        found = jax.vmap(partial(_plain_backward, one), weights)(*apart)
        return [g if n in s.shared else g.reshape(s.batch, *g.shape[2:]) for n, g in zip(s.arguments, found)]
    function, primals = _of_floats(s, arrays)
    return jax.vjp(function, *primals)[1](tuple(arrays[-len(s.outputs) :]))


def _differentiated(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    """Outputs and what is saved, and the outputs' tangents."""
    results = _triton.call(TRAINING, s, *primals, named=named)
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents[: len(s.arguments)])]
    return results, _triton.call(TANGENT, s, *primals, *results, *filled, named=named)


def _inference_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    results, out = _differentiated(s, primals, tangents, named)
    return results[: len(s.outputs)], out


def _training_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    results, out = _differentiated(s, primals, tangents, named)
    return results, [*out, *[None] * len(s.saved)]


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    n = len(s.arguments)
    known, sought = arrays[:-n], arrays[-n:]
    gradients = _triton.call(BACKWARD, s, *known, *cotangents, named=named)
    return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]


def _wider(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Spec, list[Any]] | None:
    """The recurrence with a mapped axis in its batch, and its arrays; None where its elements have their own weights.

    Raises:
        NotImplementedError: in that case, if the kernels were asked for by name.
    """
    names = s.operands[: len(arrays)]
    wide = with_batch(s, s.batch * size)
    if wide is None or any(n in s.shared and axis is not None for n, axis in zip(names, axes)):
        if not named:
            return None
        why = "do not fit" if wide is None else "have weights of their own"
        raise NotImplementedError(
            f"implementation='triton' cannot run: under jax.vmap, {size} recurrences of a batch of {s.batch} {why}; "
            "use implementation=None, or call it once with a block of w_recurrent for each"
        )
    return wide, [a if n in s.shared else in_batch(a, axis, size) for n, a, axis in zip(names, arrays, axes)]


def _forward_batch(
    op: str, s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool
) -> tuple[Arrays, Arrays]:
    """The mapped axis joins the batch, unless each element of it has weights of its own."""
    operation, wider = {"rnn": INFERENCE, "rnn training": TRAINING}[op], _wider(s, size, arrays, axes, named)
    if wider is None:
        results = jax.vmap(partial(operation.xla, s), axes)(*arrays)
    else:
        wide, given = wider
        results = [r.reshape(size, s.batch, *r.shape[1:]) for r in _triton.call(operation, wide, *given, named=named)]
    return results, [0] * len(results)


def _backward_batch(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Arrays]:
    """As forward; the gradients of the weights stay apart."""
    wider = _wider(s, size, arrays, axes, named)
    if wider is None:
        results = jax.vmap(partial(_plain_backward, s), axes)(*arrays)
    else:
        wide, given = wider
        results = _triton.call(BACKWARD, wide._replace(groups=size * s.groups), *given, named=named)
        results = [r.reshape(size, *s.gradient(name).shape) for r, name in zip(results, s.arguments)]
    return results, [0] * len(results)


def with_batch(s: Spec, batch: int) -> Spec | None:
    """The same recurrence of another batch, with tiles for it, or None where there are none."""
    cut = [tiles(s.kind, batch, s.blocks, s.head, s.dtype, s.precision, s.device, back) for back in (False, True)]
    return None if None in cut else s._replace(batch=batch, forward=cut[0], backward=cut[1])


def _flops(s: Spec) -> float:
    """Of the products of one pass; the backward pass has two for each of the forward's."""
    return 2.0 * s.batch * s.time * (s.cin + s.head) * s.units * s.gates


INFERENCE = _triton.operation(
    "rnn", Spec, lambda s: _structs(s, *s.outputs), lambda s, *arrays: forward(s, False, arrays), plain,
    batch=partial(_forward_batch, "rnn"), jvp=_inference_jvp, flops=_flops,
)  # fmt: skip
TRAINING = _triton.operation(
    "rnn training", Spec, lambda s: _structs(s, *s.outputs, *s.saved),
    lambda s, *arrays: forward(s, True, arrays), _plain_training,
    batch=partial(_forward_batch, "rnn training"), jvp=_training_jvp, flops=_flops,
)  # fmt: skip
TANGENT = _triton.operation(
    "rnn tangent", Spec, lambda s: _structs(s, *s.outputs), None, _plain_tangent, transpose=_tangent_transpose
)
BACKWARD = _triton.operation(
    "rnn backward", Spec, lambda s: [s.gradient(name) for name in s.arguments], backward, _plain_backward,
    batch=_backward_batch, flops=lambda s: 2 * _flops(s),
)  # fmt: skip
