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
from jax import lax

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn.triton_spec import STATES, Spec, Tiles, tiles

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
        return jnp.split(a[name], directions, axis=-1)[d]

    x = jnp.swapaxes(a["x"], 0, 1)
    w = a["w_recurrent"][d * s.heads : (d + 1) * s.heads]
    mask = part("mask") if s.mask else None
    if s.kind == "lstm":
        cell = xla.lstm_cell(w, mask=mask)
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
    p = xla.project(x, part("w_input")) + part("bias")[None, None]
    ys, final = xla.scan(cell, p, states, valid, s.reverse == 1 or d == 1, fresh)
    return [jnp.swapaxes(ys, 0, 1), *final]


# The launches.


def constants(s: Spec, t: Tiles) -> dict[str, Any]:
    """What the kernels are compiled for, by the names of their parameters."""
    return {
        "KIND": s.kind, "BATCH": s.batch, "TIME": s.time, "BLOCKS": s.blocks, "HEADS": s.heads, "HEAD": s.head,
        "GATES": s.gates, "REVERSE": s.reverse, "BM": t.rows, "BN": t.units, "BK": t.inner, "SPLITS": t.splits,
        "DEPTH": t.depth, "ROUNDS": t.rounds, "PADDED": t.rounds * t.resident * t.rows,
        "PRECISION": s.precision, "PTX": True,
    }  # fmt: skip


def _run(s: Spec, t: Tiles, kernel: Any, arrays: dict[str, Any], results: dict[str, Any], columns: int) -> list[Any]:
    """Launches a kernel on its tiles; pointers whose array is None are left out. `columns` are exchanged each step."""
    static = constants(s, t)
    for given in (arrays, results):
        static |= {f"{name}_ptr": None for name, a in given.items() if a is None}
    made = {f"{name}_ptr": a for name, a in results.items() if a is not None}
    if t.splits > 1:
        wide = -(-columns // (t.inner * t.depth)) * t.inner * t.depth
        row_tiles = t.rounds * t.resident
        made["exchange_ptr"] = jax.ShapeDtypeStruct((2, s.blocks, row_tiles * t.rows, wide), jnp.dtype(s.dtype))
        made["counter_ptr"] = jax.ShapeDtypeStruct((row_tiles * s.blocks,), jnp.dtype(jnp.int32))
    else:
        static |= {"exchange_ptr": None, "counter_ptr": None}
    out = _triton.launch(
        kernel,
        (t.splits, s.blocks, t.resident),
        {f"{name}_ptr": a for name, a in arrays.items() if a is not None},
        made,
        static,
        device=s.device,
        options=Options(t.warps, registers=255),
        zeroed=("exchange_ptr", "counter_ptr"),
    )
    return list(out[: len(out) - 2 * (t.splits > 1)])


def _forward(s: Spec, saving: bool, arrays: Arrays) -> list[jax.Array]:
    from llmasos_xla.kernels.rnn.triton_kernels import forward

    a = dict(zip((*s.arguments, *s.integers), arrays))
    rows = a["x"].reshape(s.batch * s.time, s.cin)
    given = {"p": xla.matmul(rows, _in_pairs(s, a["w_input"]))}
    given |= dict(zip(("ra", "rb"), _pairs(s, a["w_recurrent"].reshape(s.blocks, s.head, s.gates, s.head))))
    given |= {name: _in_pairs(s, a[name]) if name in a else None for name in ("bias", "recurrent_bias")}
    given |= {name: a.get(name) for name in ("lengths", "resets", "mask", "h0", "c0", "n0", "m0")}
    made = {name: s.struct(name) if name in s.outputs else None for name in ("y", "h", "c", "n", "m")}
    saved = ("gates", "previous", "cells", "counts")
    made |= {name: s.struct(name) if saving and name in s.saved else None for name in saved}
    return _run(s, s.forward, forward, given, made, s.head)


def _pairs(s: Spec, a: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """`[..., gates, units]` as the kernel's first product has it, two gates interleaved, and its second."""
    parts = []
    for gates in (a[..., :2, :], a[..., 2:, :]):
        wide = jnp.swapaxes(gates, -1, -2)
        parts.append(wide.reshape(*wide.shape[:-2], -1) if gates.shape[-2] else None)
    return parts[0], parts[1]


def _in_pairs(s: Spec, a: jax.Array) -> jax.Array:
    """The columns of all directions, gate by gate, as the kernel reads them."""
    by_gate = a.reshape(*a.shape[:-1], s.blocks // s.heads, s.gates, s.heads * s.head)
    parts = [part for part in _pairs(s, by_gate) if part is not None]
    return jnp.concatenate(parts, axis=-1).reshape(a.shape)


def _backward(s: Spec, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    from llmasos_xla.kernels.rnn.triton_kernels import backward

    names = (*s.arguments, *s.integers, *s.outputs, *s.saved, *(f"d{name}" for name in s.outputs))
    a = dict(zip(names, arrays))
    given = {name: a.get(name) for name in ("dy", "dh", "dc", "dn")}
    given |= {"r": a["w_recurrent"]} | {name: a.get(name) for name in ("lengths", "resets", "mask", "gates")}
    given |= {"previous": a["previous"] if s.kind == "gru" else None}
    given |= {name: a.get(name) for name in ("cells", "counts")}
    made: dict[str, Any] = {"dp": jax.ShapeDtypeStruct((s.batch * s.time, s.gates * s.units), jnp.dtype(s.dtype))}
    made |= {f"d{n}0": s.struct(n) if n in s.outputs else None for n in ("h", "c", "n")}
    dp, *states = _run(s, s.backward, backward, given, made, s.gates * s.head)

    high = jnp.dtype(jnp.float32)
    x, w_input = a["x"].reshape(s.batch * s.time, s.cin), a["w_input"]
    out = {
        "x": lax.dot_general(dp, w_input, (((1,), (1,)), ((), ()))).reshape(a["x"].shape),
        "w_input": lax.dot_general(x, dp, (((0,), (0,)), ((), ())), preferred_element_type=high),
        "bias": jnp.sum(dp, axis=0, dtype=high),
    }
    dq = dp.reshape(-1, s.blocks // s.heads, s.gates, s.heads, s.head)
    if s.kind == "gru":  # the reset gate stands between n and the recurrent product
        r = a["gates"][:, :, 0].reshape(-1, s.blocks // s.heads, 1, s.heads, s.head)
        dq = jnp.concatenate([dq[:, :, :2], dq[:, :, 2:] * r], axis=2)
        out["recurrent_bias"] = jnp.sum(dq, axis=0, dtype=high).reshape(-1)
    # [steps, blocks, gates, head]: what a block's product gave, gate by gate.
    dq = jnp.swapaxes(dq, 2, 3).reshape(-1, s.blocks, s.gates * s.head)
    previous = a["previous"].reshape(-1, s.blocks, s.head)
    entered = previous
    if s.mask:
        scale = a["mask"].reshape(s.batch, 1, s.blocks, s.head)
        entered = (previous.reshape(s.batch, s.time, s.blocks, s.head) * scale).astype(dp.dtype).reshape(previous.shape)
        back = lax.dot_general(dq, a["w_recurrent"], (((2,), (2,)), ((1,), (0,))), preferred_element_type=high)
        back = jnp.moveaxis(back, 0, 1) * previous.astype(high)
        out["mask"] = jnp.sum(back.reshape(s.batch, s.time, s.units), axis=1)
    by_block = (((0,), (0,)), ((1,), (1,)))
    out["w_recurrent"] = lax.dot_general(entered, dq, by_block, preferred_element_type=high)
    out |= dict(zip(("h0", "c0", "n0"), states))
    out["m0"] = jnp.zeros((s.batch, s.units), high)
    return tuple(out[name].astype(s.struct(name).dtype) for name in s.arguments)


# The operations.


def _structs(s: Spec, *names: str) -> list[jax.ShapeDtypeStruct]:
    return [s.struct(name) for name in names]


def _inference(s: Spec, *arrays: jax.Array) -> list[jax.Array]:
    return _forward(s, False, arrays)


def _training(s: Spec, *arrays: jax.Array) -> list[jax.Array]:
    return _forward(s, True, arrays)


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


def _inference_batch(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Arrays]:
    """The mapped axis joins the batch, unless each element of it has weights of its own."""
    shared = [name in ("w_input", "w_recurrent", "bias", "recurrent_bias") for name in (*s.arguments, *s.integers)]
    wide = with_batch(s, s.batch * size)
    if wide is None or any(is_weight and axis is not None for is_weight, axis in zip(shared, axes)):
        results = jax.vmap(partial(plain, s), axes)(*arrays)
        return results, [0] * len(results)
    joined = [a if is_weight else _joined(a, axis, size) for a, axis, is_weight in zip(arrays, axes, shared)]
    results = _triton.call(INFERENCE, wide, *joined, named=named)
    return [r.reshape(size, s.batch, *r.shape[1:]) for r in results], [0] * len(results)


def _joined(a: jax.Array, axis: int | None, size: int) -> jax.Array:
    a = jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
    return a.reshape(-1, *a.shape[2:])


def with_batch(s: Spec, batch: int) -> Spec | None:
    """The same recurrence of another batch, with tiles for it, or None where there are none."""
    cut = [tiles(s.kind, batch, s.blocks, s.head, s.dtype, s.precision, s.device, back) for back in (False, True)]
    return None if None in cut else s._replace(batch=batch, forward=cut[0], backward=cut[1])


def _flops(s: Spec) -> float:
    """Of the products of one pass; the backward pass has two for each of the forward's."""
    return 2.0 * s.batch * s.time * (s.cin + s.head) * s.units * s.gates


INFERENCE = _triton.operation(
    "rnn", Spec, lambda s: _structs(s, *s.outputs), _inference, plain,
    batch=_inference_batch, jvp=_inference_jvp, flops=_flops,
)  # fmt: skip
TRAINING = _triton.operation(
    "rnn training", Spec, lambda s: _structs(s, *s.outputs, *s.saved), _training, _plain_training,
    jvp=_training_jvp, flops=_flops,
)  # fmt: skip
TANGENT = _triton.operation(
    "rnn tangent", Spec, lambda s: _structs(s, *s.outputs), None, _plain_tangent, transpose=_tangent_transpose
)
BACKWARD = _triton.operation(
    "rnn backward", Spec, lambda s: _structs(s, *s.arguments), _backward, _plain_backward,
    flops=lambda s: 2 * _flops(s),
)  # fmt: skip
