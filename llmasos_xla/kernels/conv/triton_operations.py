"""A convolution by Triton as JAX operations, and how they are each other's derivatives.

    y        = inference(x, w, b)            what runs where nothing is differentiated
    y, z     = training(x, w, b)             in its place, where the slope needs the activation's argument z
    dy       = tangent(x, w, b, kept, d arguments)
    d arguments = backward(x, w, b, kept, dy)

`tangent` is linear in its last arrays and its transpose is `backward`. Where it really runs, in forward mode, it is
plain JAX, and so are the derivatives of `backward`. What is kept is y where the slope is known from it, z elsewhere,
and nothing where the kernel computes z again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.conv.xla import plain_convolution

Arrays = Sequence[Any]

# Activations inside of the kernels: those whose slope their result says, and those whose slope needs their argument.
FROM_RESULT: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": lambda y: (y > 0).astype(y.dtype),
    "relu6": lambda y: ((y > 0) & (y < 6)).astype(y.dtype),
    "leaky_relu": lambda y: jnp.where(y < 0, jnp.full_like(y, 0.2), jnp.ones_like(y)),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}
FROM_ARGUMENT = ("silu", "gelu", "gelu_tanh")


def fused(activation: str | None) -> str:
    """The activation as the kernels know it, "" for none or one that they do not know."""
    name = "silu" if activation == "swish" else activation
    return name if name in FROM_RESULT or name in FROM_ARGUMENT else ""


class Family(NamedTuple):
    """The operations of one kind of convolution."""

    inference: _triton.Operation
    training: _triton.Operation
    tangent: _triton.Operation
    backward: _triton.Operation


def family(
    name: str,
    spec: type,
    forward: Callable[..., Arrays],
    backward: Callable[..., dict[str, Any]],
    batch: Callable[..., Any],
    flops: Callable[[Any], float],
) -> Family:
    """Makes the operations of a kind of convolution.

    Args:
        name: of the first operation; the others' names begin with it.
        spec: what describes one: `geometry`, `struct(array's name)`, `arguments`, `activation`, `keep`, `sought`, and
            `recomputes`, True where its backward pass computes z again.
        forward: `(s, x, w, b, whether z is given too)` to y, or to y and z, with launches.
        backward: `(s, x, w, b, kept, dy)` to the gradients of the arguments in `s.sought` by name, with launches.
        batch: `(s, axis size, names of the arrays, arrays, axes, names of the results)` to arrays and description of
            one call and how its results are taken apart again, or None.
        flops: of the forward pass.
    """

    def build_backward(s: Any, x: Any, w: Any, *rest: Any) -> Arrays:
        found = backward(s, x, w, rest[0] if s.bias else None, rest[-2] if s.keep else None, rest[-1])
        return [found[n] for n in s.sought]

    def differentiated(op: Any, s: Any, keep: str, primals: Arrays, tangents: Arrays, named: bool) -> Any:
        """The operation's results, of which the last is kept, and the tangent of y."""
        results = _triton.call(op, s, *primals, named=named)
        sought = tuple(n for n, t in zip(s.arguments, tangents) if t is not None)
        moved = [t for t in tangents if t is not None]
        kept = results[-1:] if keep else ()
        s = s._replace(keep=keep, sought=sought)
        return results, _triton.call(tangent, s, *primals, *kept, *moved, named=named)

    def inference_jvp(s: Any, primals: Arrays, tangents: Arrays, named: bool) -> Any:
        if not s.activation or s.recomputes:
            return differentiated(inference, s, "", primals, tangents, named)
        if s.activation in FROM_RESULT:
            return differentiated(inference, s, "y", primals, tangents, named)
        results, moved = differentiated(training, s, "z", primals, tangents, named)
        return results[:1], moved

    def training_jvp(s: Any, primals: Arrays, tangents: Arrays, named: bool) -> Any:
        # What reads z starts from the arguments again where it is differentiated.
        results, moved = differentiated(training, s, "z", primals, tangents, named)
        return results, [*moved, None]

    def tangent_transpose(s: Any, arrays: Arrays, cotangents: Arrays, named: bool) -> Arrays:
        known, sought = arrays[: -len(s.sought)], arrays[-len(s.sought) :]
        gradients = _triton.call(pull, s, *known, *cotangents, named=named)
        return [None] * len(known) + [g if a is None else None for g, a in zip(gradients, sought)]

    def batched(which: str, s: Any, size: int, arrays: Arrays, axes: Sequence[Any], named: bool) -> Any:
        op = _triton.ENGINE.operations[which]
        given, made = s.arguments, {name: ("y",), f"{name} training": ("y", "z")}.get(which, s.sought)
        if op is pull:
            given = (*given, *(("z",) if s.keep else ()), "y")
        packed = batch(s, size, given, arrays, axes, made)
        if packed is None and named:
            raise NotImplementedError(
                f"implementation='triton' cannot run: under jax.vmap, {size} convolutions of the kind {name!r} have "
                "kernels of their own; use implementation=None"
            )
        if packed is None:
            results = jax.vmap(lambda *a: tuple(op.xla(s, *a)), axes)(*arrays)
            return results, [0] * len(results)
        s, arrays, apart = packed
        results = [apart(r) for r in _triton.call(op, s, *arrays, named=named)]
        return results, [0] * len(results)

    make = partial(_triton.operation, spec=spec)
    inference = make(
        name, results=lambda s: [s.struct("y")], build=lambda s, x, w, b=None: forward(s, x, w, b, False),
        xla=lambda s, *a: (_plain(s, *a),), batch=partial(batched, name), jvp=inference_jvp, flops=flops,
    )  # fmt: skip
    training = make(
        f"{name} training", results=lambda s: [s.struct("y"), s.struct("z")],
        build=lambda s, x, w, b=None: forward(s, x, w, b, True), xla=_plain_training,
        batch=partial(batched, f"{name} training"), jvp=training_jvp, flops=flops,
    )  # fmt: skip
    tangent = make(
        f"{name} tangent", results=lambda s: [s.struct("y")], build=None, xla=_plain_tangent,
        transpose=tangent_transpose,
    )  # fmt: skip
    pull = make(
        f"{name} backward", results=lambda s: [s.struct(n) for n in s.sought], build=build_backward,
        xla=_plain_backward, batch=partial(batched, f"{name} backward"),
        flops=lambda s: flops(s) * len({*s.sought} - {"b"}),
    )  # fmt: skip
    return Family(inference, training, tangent, pull)


def start(
    device: _triton.Device,
    kernel: Any,
    programs: int,
    arrays: dict,
    results: dict,
    constants: dict,
    warps: int,
    registers: int | None = None,
) -> tuple[Any, ...]:
    """Launches a kernel; arrays and results that are None are constants of that value."""
    absent = {name: None for name, value in (arrays | results).items() if value is None}
    return _triton.launch(
        kernel,
        (programs,),
        {n: a for n, a in arrays.items() if a is not None},
        {n: r for n, r in results.items() if r is not None},
        constants | absent,
        device=device,
        options=Options(warps=warps, registers=registers),
    )


def wide(s: Any) -> bool:
    """Whether an offset passes 32 bits, those of the rows of padding around the array among them."""
    return max(s.struct(name).size for name in "xy") >= 2**30


def summed(s: Any, parts: jax.Array, with_bias: bool) -> dict[str, jax.Array]:
    """The gradients of w and b from the programs' parts of them, `[programs, taps and bias, channels]`."""
    total = jnp.sum(parts, 0)
    w = s.struct("w")
    of_kernel = total[:-1] if with_bias else total
    return {"w": of_kernel.reshape(w.shape).astype(w.dtype), "b": total[-1].astype(w.dtype)}


def ahead_of_activation(s: Any, kept: jax.Array | None, dy: jax.Array) -> jax.Array:
    """The gradient of z from that of y."""
    if kept is None:
        return dy
    if s.keep == "y":
        return dy * FROM_RESULT[s.activation](kept)
    (dz,) = jax.vjp(ACTIVATIONS[s.activation], kept.astype(jnp.float32))[1](dy.astype(jnp.float32))
    return dz.astype(dy.dtype)


def _plain_argument(s: Any, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
    z = plain_convolution(x, w, s.geometry)
    return z if b is None else z + b.reshape((1,) * (z.ndim - 1) + (-1,))


def _plain(s: Any, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    z = _plain_argument(s, x, w, b)
    return ACTIVATIONS[s.activation](z) if s.activation else z


def _plain_training(s: Any, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> Arrays:
    z = _plain_argument(s, x, w, b)
    return ACTIVATIONS[s.activation](z), z


def _of_sought(s: Any, arguments: Arrays) -> tuple[Any, list[Any]]:
    """The forward pass as a function of the arguments that are sought, and these."""

    def f(*values: jax.Array) -> jax.Array:
        given: dict[str, Any] = dict(zip(s.sought, values))
        return _plain(s, *(given.get(n, a) for n, a in zip(s.arguments, arguments)))

    return f, [a for n, a in zip(s.arguments, arguments) if n in s.sought]


def _plain_tangent(s: Any, *arrays: jax.Array) -> Arrays:
    f, primals = _of_sought(s, arrays[: len(s.arguments)])
    return (jax.jvp(f, primals, list(arrays[-len(primals) :]))[1],)


def _plain_backward(s: Any, *arrays: jax.Array) -> Arrays:
    f, primals = _of_sought(s, arrays[: len(s.arguments)])
    return jax.vjp(f, *primals)[1](arrays[-1])
