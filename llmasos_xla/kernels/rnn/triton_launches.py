"""What the persistent kernels are launched with: their arrays packed as they read them, and what is left of a gradient.

Arrays as `triton_language` describes them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.rnn import xla
from llmasos_xla.kernels.rnn.layer_norm import normalize
from llmasos_xla.kernels.rnn.triton_spec import COUNTER_LINE, SAVED_GATES, Spec, Tiles


def constants(s: Spec, t: Tiles) -> dict[str, Any]:
    """What the kernels are compiled for, by the names of their parameters."""
    return {
        "KIND": s.kind, "BATCH": s.batch, "TIME": s.time, "BLOCKS": s.blocks, "HEADS": s.heads, "HEAD": s.head,
        "GATES": s.gates, "SAVED": SAVED_GATES[s.kind], "REVERSE": s.reverse, "BM": t.rows, "BN": t.units,
        "BK": t.inner, "SPLITS": t.splits, "DEPTH": t.depth, "HELD": t.held, "ROUNDS": t.rounds,
        "PADDED": t.rounds * t.resident * t.rows, "A": s.together, "COUNTED": s.counted, "EPSILON": s.epsilon,
        "PRECISION": s.precision, "LINE": COUNTER_LINE, "PTX": True,
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
        made["counter_ptr"] = jax.ShapeDtypeStruct((row_tiles * s.blocks, COUNTER_LINE), jnp.dtype(jnp.int32))
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


def forward(s: Spec, saving: bool, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs, and what is saved for backward."""
    from llmasos_xla.kernels.rnn import triton_forward_kernels

    a = dict(zip((*s.arguments, *s.integers), arrays))
    rows = a["x"].reshape(s.batch * s.time, s.cin)
    projected = xla.matmul(rows, _in_pairs(s, a["w_input"]))
    given = {"p": projected}
    given |= dict(zip(("ra", "rb"), _pairs(s, a["w_recurrent"].reshape(s.blocks, s.head, s.gates, s.head))))
    vectors = ("bias", "recurrent_bias", "recurrent_scale")
    given |= {name: _in_pairs(s, a[name]) if name in a else None for name in vectors}
    given |= {name: a.get(name) for name in ("cell_scale", "cell_offset", "lengths", "resets", "mask")}
    given |= {name: a.get(name) for name in ("h0", "c0", "n0", "m0")}
    if s.kind == "lnlstm":
        # What p passes through anyway adds the bias too: its columns would take registers in the kernel.
        scale, bias = (_in_pairs(s, a[name]) for name in ("input_scale", "bias"))
        given |= {"p": _normalized(s, 2, projected, scale) + bias[None], "bias": None}
    made = {name: s.struct(name) if name in s.outputs else None for name in ("y", "h", "c", "n", "m")}
    saved = ("gates", "previous", "cells", "counts", "rates")
    made |= {name: s.struct(name) if saving and name in s.saved else None for name in saved}
    return _run(s, s.forward, triton_forward_kernels.forward, given, made, s.head)


def _pairs(s: Spec, a: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """`[..., gates, units]` as the kernel's first product has it, two gates interleaved, and its second."""
    parts = []
    n = s.together
    for gates in (a[..., :n, :], a[..., n:, :]):
        wide = jnp.swapaxes(gates, -1, -2)
        parts.append(wide.reshape(*wide.shape[:-2], -1) if gates.shape[-2] else None)
    return parts[0], parts[1]


def _in_pairs(s: Spec, a: jax.Array) -> jax.Array:
    """The columns of all directions, gate by gate, as the kernel reads them."""
    by_gate = a.reshape(*a.shape[:-1], s.blocks // s.heads, s.gates, s.heads * s.head)
    parts = [part for part in _pairs(s, by_gate) if part is not None]
    return jnp.concatenate(parts, axis=-1).reshape(a.shape)


def _normalized(s: Spec, together: int, a: jax.Array, scale: jax.Array) -> jax.Array:
    """The projected input `[rows, columns]` of a layer normalization; the columns of so many gates are interleaved."""
    directions = s.blocks // s.heads
    real = np.tile(np.repeat(np.arange(s.head) < s.counted, together), s.gates // together)
    by_direction = a.reshape(len(a), directions, -1)
    return normalize(by_direction, s.epsilon, scale.reshape(directions, -1), real=real).reshape(a.shape)


def backward(s: Spec, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The gradients of the arguments."""
    a = dict(zip(s.operands, arrays))
    deltas, states = _deltas(s, a)
    if s.groups == 1:
        out = _gradients(s, a, deltas)
    else:
        of_rows = {name: s.by_group(array) for name, array in a.items() if name not in s.shared}
        one, weights = s._replace(batch=s.batch // s.groups, groups=1), {n: a[n] for n in s.shared}
        out = jax.vmap(lambda rows, deltas: _gradients(one, rows | weights, deltas))(
            of_rows, {name: s.by_group(array) for name, array in deltas.items()}
        )
        out = {n: g if n in s.shared else g.reshape(s.batch, *g.shape[2:]) for n, g in out.items()}
    out |= states | {"m0": jnp.zeros((s.batch, s.units), jnp.float32)}
    return tuple(out[name].astype(s.struct(name).dtype) for name in s.arguments)


def _deltas(s: Spec, a: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """What the kernel makes: the deltas of all steps, and the gradients of the initial states."""
    from llmasos_xla.kernels.rnn import triton_backward_kernels

    norm = s.kind == "lnlstm"
    given = {name: a.get(name) for name in ("dy", "dh", "dc", "dn")} | {"r": a["w_recurrent"]}
    given |= {name: a.get(name) for name in ("recurrent_scale", "cell_scale", "cell_offset")}
    given |= {name: a.get(name) for name in ("lengths", "resets", "mask", "gates")}
    given |= {"previous": a["previous"] if s.kind == "gru" else None}
    given |= {name: a.get(name) for name in ("cells", "counts", "rates")}
    deltas = jax.ShapeDtypeStruct((s.batch, s.time, s.gates * s.units), jnp.dtype(s.dtype))
    made = {"dp": deltas} | ({"dq": deltas, "dnorm": s.struct("y")} if norm else {})
    made |= {f"d{n}0": s.struct(n) for n in ("h", "c", "n") if n in s.outputs}
    results = {name: made.get(name) for name in ("dp", "dq", "dnorm", "dh0", "dc0", "dn0")}
    got = dict(zip(made, _run(s, s.backward, triton_backward_kernels.backward, given, results, s.gates * s.head)))
    return got, {name[1:]: got.pop(name) for name in made if name.endswith("0")}


def _gradients(s: Spec, a: dict[str, jax.Array], deltas: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """All other gradients, as matrix products of the deltas."""
    high = jnp.dtype(jnp.float32)
    dp = deltas["dp"].reshape(s.batch * s.time, s.gates * s.units)
    x, w_input = a["x"].reshape(s.batch * s.time, s.cin), a["w_input"]
    out = {"bias": jnp.sum(dp, axis=0, dtype=high)}
    norm = s.kind == "lnlstm"
    dq = da = dp
    if norm:
        dq = deltas["dq"]
        of_norms, da = _norm_gradients(s, xla.matmul(x, w_input), a, dp, deltas["dnorm"])
        out |= of_norms
    out["x"] = lax.dot_general(da, w_input, (((1,), (1,)), ((), ()))).reshape(a["x"].shape)
    out["w_input"] = lax.dot_general(x, da, (((0,), (0,)), ((), ())), preferred_element_type=high)
    dq = dq.reshape(-1, s.blocks // s.heads, s.gates, s.heads, s.head)
    if s.kind == "gru":  # the reset gate stands between n and the recurrent product
        r = a["gates"][:, :, 0].reshape(-1, s.blocks // s.heads, 1, s.heads, s.head)
        dq = jnp.concatenate([dq[:, :, :2], dq[:, :, 2:] * r], axis=2)
        out["recurrent_bias"] = jnp.sum(dq, axis=0, dtype=high).reshape(-1)
    # [steps, blocks, gates, head]: what a block's product gave, gate by gate.
    dq = jnp.swapaxes(dq, 2, 3).reshape(-1, s.blocks, s.gates * s.head)
    entered = a["previous"].reshape(s.batch, s.time, s.blocks, s.head).astype(high)
    if norm:
        entered = entered * a["rates"][..., :1]
    if s.mask:
        back = lax.dot_general(dq, a["w_recurrent"], (((2,), (2,)), ((1,), (0,))), preferred_element_type=high)
        back = jnp.moveaxis(back, 0, 1).reshape(entered.shape) * entered
        out["mask"] = jnp.sum(back, axis=1).reshape(s.batch, s.units)
        entered = entered * a["mask"].reshape(s.batch, 1, s.blocks, s.head)
    entered = entered.astype(dp.dtype).reshape(-1, s.blocks, s.head)
    by_block = (((0,), (0,)), ((1,), (1,)))
    out["w_recurrent"] = lax.dot_general(entered, dq, by_block, preferred_element_type=high)
    return out


def _norm_gradients(
    s: Spec, projected: jax.Array, a: dict[str, jax.Array], dp: jax.Array, dnorm: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The gradients of a layer normalization's scales and offset, and of the projected input."""
    high = jnp.dtype(jnp.float32)
    dprojected, input_scale = jax.vjp(partial(_normalized, s, 1), projected, a["input_scale"])[1](dp.astype(high))
    normal = a["gates"].astype(high)
    of_gates = normal[:, :, 4:8].reshape(s.batch, s.time, s.gates, s.blocks, s.head).swapaxes(2, 3)
    found = {
        "input_scale": input_scale,
        "recurrent_scale": jnp.sum(of_gates * dp.astype(high).reshape(of_gates.shape), axis=(0, 1)).reshape(-1),
        "cell_scale": jnp.sum(normal[:, :, 8] * dnorm.astype(high), axis=(0, 1)),
        "cell_offset": jnp.sum(dnorm, axis=(0, 1), dtype=high),
    }
    return found, dprojected.astype(dp.dtype)
