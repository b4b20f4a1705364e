"""A recurrence by oneDNN as JAX operations, and how they are each other's derivatives.

    y            = inference(arguments)              what runs where nothing is differentiated
    y, workspace = training(arguments)               what runs in its place under differentiation
    dy           = tangent(arguments, y, workspace, d arguments)
    d arguments  = backward(arguments, y, workspace, dy)

`tangent` is linear in its last arrays, and its transpose is `backward`. In reverse mode it is only ever transposed;
where it really runs, in forward mode, it is plain JAX, and so are the derivatives of `tangent` and `backward`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._operation import in_batch
from llmasos_xla.kernels.rnn import onednn_plans as plans
from llmasos_xla.kernels.rnn import xla, xla_tangent
from llmasos_xla.kernels.rnn._check import GATE_ORDER
from llmasos_xla.kernels.rnn.onednn_spec import INITIAL, Spec

Arrays = Sequence[Any]


def plain(s: Spec, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arguments to outputs in plain JAX."""
    given = dict(zip(s.arguments, arrays))
    x = jnp.swapaxes(given["x"], 0, 1)
    w_input, w, bias = given["w_input"], given["w_recurrent"], given["bias"][None]
    high = xla.state_dtype(x.dtype)
    zeros = jnp.zeros((s.batch, s.hidden), high)
    states = tuple(given[name].astype(high) if s.initial else zeros for name in INITIAL[s.op])
    if s.op == "lstm":
        ys, final = xla_tangent.lstm(x, w_input, bias, w, *states, None, s.reverse)
    elif s.op == "gru":
        bias, recurrent = _split_bias(bias)
        w_input, w = exchange_gates(w_input), exchange_gates(w)
        ys, final = xla_tangent.gru(x, w_input, bias, w, recurrent, *states, None, s.reverse, False)
    else:
        ys, final = xla_tangent.rnn(x, w_input, bias, w, *states, None, s.reverse, False, False)
    outputs = jnp.swapaxes(ys, 0, 1), *final
    return tuple(a.astype(s.struct(name).dtype) for name, a in zip(s.outputs, outputs))


def exchange_gates(a: jax.Array) -> jax.Array:
    """A GRU's columns r z n as z r n, and back."""
    first, second, last = jnp.split(a, 3, axis=-1)
    return jnp.concatenate([second, first, last], axis=-1)


def _split_bias(bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """oneDNN's bias z r n and recurrent n as bias and recurrent bias r z n."""
    z, r, n, recurrent = jnp.split(bias, 4, axis=-1)
    nothing = jnp.zeros_like(n)
    return jnp.concatenate([r, z, n], axis=-1), jnp.concatenate([nothing, nothing, recurrent], axis=-1)


def _outputs(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [s.struct(name) for name in s.outputs]


def _arguments(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [s.struct(name) for name in s.arguments]


def _workspace(s: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((s.workspace,), jnp.dtype(jnp.uint8))


def _plain_training(s: Spec, *arrays: jax.Array) -> Arrays:
    # The plain tangent and backward start from the arguments again.
    return *plain(s, *arrays), jnp.zeros(s.workspace, jnp.uint8)


def _plain_tangent(s: Spec, *arrays: jax.Array) -> Arrays:
    n = len(s.arguments)
    _, tangents = jax.jvp(partial(plain, s), arrays[:n], arrays[-n:])
    return tangents


def _plain_backward(s: Spec, *arrays: jax.Array) -> Arrays:
    _, pull = jax.vjp(partial(plain, s), *arrays[: len(s.arguments)])
    return pull(tuple(arrays[-len(s.outputs) :]))


def _differentiated(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    """Outputs and workspace, and the outputs' tangents."""
    results = _onednn.call(TRAINING, s, *primals, named=named)
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents)]
    return results, _onednn.call(TANGENT, s, *primals, *results, *filled, named=named)


def _inference_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    try:
        s = s._replace(workspace=plans.workspace_bytes(s))
        refused = _onednn.refusal(TRAINING, s) or _onednn.refusal(BACKWARD, s)
    except _onednn.Refused as why:
        refused = str(why)
    if refused is None:
        results, out = _differentiated(s, primals, tangents, named)
        return results[:-1], out
    if named:
        raise NotImplementedError(f"{s.op}: implementation='onednn' cannot be differentiated: {refused}")
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(primals, tangents)]
    return jax.jvp(partial(plain, s), tuple(primals), tuple(filled))


def _training_jvp(s: Spec, primals: Arrays, tangents: Arrays, named: bool) -> tuple[Arrays, Arrays]:
    results, out = _differentiated(s, primals, tangents, named)
    return results, [*out, None]


def _tangent_transpose(s: Spec, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
    n = len(s.arguments)
    known, sought = arrays[:-n], arrays[-n:]
    gradients = _onednn.call(BACKWARD, s, *known, *cotangents, named=named)
    return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]


def _inference_batch(s: Spec, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> tuple[Arrays, Arrays]:
    """The mapped axis joins the batch, unless each element of it has weights of its own."""
    is_weight = [name in ("w_input", "w_recurrent", "bias") for name in s.arguments]
    if any(shared and axis is not None for shared, axis in zip(is_weight, axes)):
        results = jax.vmap(partial(plain, s), axes)(*arrays)
        return results, [0] * len(results)
    given = [a if shared else in_batch(a, axis, size) for a, axis, shared in zip(arrays, axes, is_weight)]
    results = _onednn.call(INFERENCE, s._replace(batch=s.batch * size), *given, named=named)
    return [r.reshape(size, s.batch, *r.shape[1:]) for r in results], [0] * len(results)


def _flops(s: Spec) -> float:
    """Of the products of one pass; the backward pass has two for each of the forward's."""
    return 2.0 * s.batch * s.time * (s.cin + s.hidden) * s.hidden * len(GATE_ORDER[s.op])


INFERENCE = _onednn.operation(
    "rnn", Spec, _outputs, plans.build_inference, plain, batch=_inference_batch, jvp=_inference_jvp, flops=_flops
)
TRAINING = _onednn.operation(
    "rnn training", Spec, lambda s: [*_outputs(s), _workspace(s)], plans.build_training, _plain_training,
    jvp=_training_jvp, flops=_flops,
)  # fmt: skip
TANGENT = _onednn.operation("rnn tangent", Spec, _outputs, None, _plain_tangent, transpose=_tangent_transpose)
BACKWARD = _onednn.operation(
    "rnn backward", Spec, _arguments, plans.build_backward, _plain_backward, flops=lambda s: 2 * _flops(s)
)
