"""Convolutions for the tests of Triton kernels: drawn arrays, float64 results, and a launch as it is compiled."""

import contextlib
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from kernels import conv_reference as reference
from kernels.triton import aot
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton import devices, tuned
from llmasos_xla.kernels.activation import activation as activation_named
from llmasos_xla.kernels.conv import triton
from llmasos_xla.kernels.conv.geometry import conv_geometry
from llmasos_xla.kernels.conv.triton_operations import FROM_RESULT

SMALL = devices.Device("one multiprocessor", 90, 1, 232448)
"""So small that every program of a sum has several blocks to go through."""

ACTIVATIONS = (None, "relu", "silu", "relu6", "gelu", "leaky_relu", "gelu_tanh", "tanh", "sigmoid", "swish", "softplus")


def mixed(cases):
    """A name of a case and an activation each, every activation once at least."""
    names = list(cases)
    assert len(names) >= len(ACTIVATIONS)
    return [(name, ACTIVATIONS[i % len(ACTIVATIONS)]) for i, name in enumerate(names)]


def but(names, quick):
    """What of each case, target, dtype and activation is not among the quick ones."""
    every = product(names, aot.TARGETS, ("bfloat16", "float32"), (None, "relu", "silu"))
    return [each for each in every if each not in quick]


def drawn(case, dtype, bias=True, seed=0):
    """x, w, b and a cotangent of the result, all of that dtype."""
    rng = np.random.default_rng(seed)
    shapes = [case.lhs, case.rhs, case.rhs[-1:]][: 2 + bias]
    arrays = [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]
    y = jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, **case.arguments_of_lax()), *arrays[:2])
    return arrays, jnp.asarray(rng.standard_normal(y.shape), dtype)


def conv_of(case, activation, **more):
    """`kernels.conv` of a case as a function of x, w and perhaps b."""

    def f(x, w, b=None):
        return kernels.conv(x, w, **case.arguments, bias=b, activation=activation, **more)

    return f


def with_gradients(f):
    """The result of f and its gradients for a cotangent, in one program."""

    @jax.jit
    def both(arrays, dy):
        y, pull = jax.vjp(f, *arrays)
        return y, *pull(dy)

    return both


def in_float64(case, activation, arrays, dy):
    """Result and gradients in float64; the convolution is the one of loops in NumPy."""
    wide = [np.asarray(a, np.float64) for a in arrays]
    with jax.enable_x64(True):

        def f(x, w, b=0.0):
            z = lax.conv_general_dilated(x, w, **case.arguments_of_lax()) + jnp.broadcast_to(b, dy.shape)
            return activation_named(activation)(z)

        results = [np.asarray(r) for r in with_gradients(f)(wide, np.asarray(dy, np.float64))]
        z = reference.conv(*wide[:2], case.stride, case.padding, case.rhs_dilation, groups=case.groups)
        z = z + (wide[2] if len(wide) > 2 else 0)
        np.testing.assert_allclose(results[0], activation_named(activation)(jnp.asarray(z)), 1e-9, 1e-9)
    return results


def check(case, activation, dtype, interpreted, bias=True, device=None):
    """Holds what runs on a GPU, interpreted, to float64; the names of the kernels that ran."""
    arrays, dy = drawn(case, dtype, bias)
    with interpreted() as ran, contextlib.nullcontext() if device is None else devices.compiling_for(device):
        got = jax.block_until_ready(with_gradients(conv_of(case, activation))(arrays, dy))
        ran = list(ran)
    assert ran
    for a, b in zip(got, in_float64(case, activation, arrays, dy)):
        assert a.dtype == dtype
        # Of 16 bits what is kept for the slope is rounded too; sums of gradients are long.
        scale = 1 if dtype == "float32" else 2
        assert_close(a, b, scale=scale * max(1.0, np.abs(b).max() / 4))
    return ran


def text(f, *arrays, platform="cuda"):
    """The program of a function as it is on a GPU."""
    with _dispatch.tracing_for("gpu"):
        return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def explained(case, dtype=jnp.float32, **more):
    """What runs on a GPU, and why not the rest."""
    shapes = jax.ShapeDtypeStruct(case.lhs, dtype), jax.ShapeDtypeStruct(case.rhs, dtype)
    with _dispatch.tracing_for("gpu"):
        return kernels.explain(kernels.conv, *shapes, **(case.arguments | more))


def check_tuned(kind, case, blocks, worded):
    """A table's entry of a class like the case's gives the blocks of all its calls, and the choice of XLA."""
    g = geometry_of(case, "bfloat16")
    key = kind.spec.shape_class(kind.kernels.spec_of(g, True, None))
    assert key.startswith(worded)
    twice = kind.spec.shape_class(kind.kernels.spec_of(g._replace(batch=2 * g.batch), True, None))
    assert tuned.UNMEASURED in explained(case, "bfloat16").chosen.reason
    for table, (field, entry) in blocks.items():
        with tuned.trying({table: {twice: entry}}) as asked:
            s = kind.kernels.spec_of(g, True, None)
            assert (table, key) in asked
            assert entry.items() <= getattr(s, field)._asdict().items()
    with tuned.trying({triton.CHOICE: {twice: {"triton": 2e-3, "xla": 1e-3}}}):
        found = explained(case, "bfloat16")
        assert found.chosen.implementation == "xla"
        assert "takes 2.00 times as long as XLA" in str(found)
    with tuned.trying({triton.CHOICE: {twice: {"triton": 1e-3, "xla": 2e-3}}}):
        assert explained(case, "bfloat16").chosen.implementation == "triton"


def geometry_of(case, dtype):
    """A case as the candidates see it."""
    a = case.arguments
    return conv_geometry(
        "conv", jax.ShapeDtypeStruct(case.lhs, dtype), jax.ShapeDtypeStruct(case.rhs, dtype), a["window_strides"],
        a["padding"], None, a["rhs_dilation"], a["dimension_numbers"], a["feature_group_count"], 1, None, None,
    )  # fmt: skip


def passes(operations, case, dtype, activation=None, bias=True):
    """The launches of the forward pass, and those of the gradients of all that a kernel has the gradient of."""
    s = operations.spec_of(geometry_of(case, dtype), bias, activation)
    keep = "z" if s.activation and not s.recomputes else ""
    sought = tuple(n for n in s.arguments if n != "x" or s.struct("x").shape[-1] > 4)
    s = s._replace(keep=keep and ("y" if s.activation in FROM_RESULT else "z"), sought=sought)
    arrays, y = [s.struct(n) for n in s.arguments], s.struct("y")
    kept, family = [y] if keep else [], operations.OPERATIONS
    forward = launches(lambda *a: family.inference.build(s, *a), *arrays)
    return forward, launches(lambda *a: family.backward.build(s, *a), *arrays, *kept, y)


def compiled(operations, case, dtype, activation, target, bias=True):
    """What the compiler makes of the forward pass and of the gradients, by the kernels' names."""
    with devices.compiling_for(aot.DEVICES[target]):
        forward, backward = passes(operations, case, dtype, activation, bias)
    return reports(forward, target), reports(backward, target)


def check_offsets(operations, case):
    """Offsets are of 64 bits in all kernels from 2**30 elements of x or y on: they may lie in the padding around it."""
    elements = max(operations.spec_of(geometry_of(case, "float32"), True, None).struct(n).size for n in "xy")
    fewest = -(-(2**30) // (elements // case.lhs[0]))
    for batch, wide in ((fewest - 1, False), (fewest, True)):
        forward, backward = passes(operations, case._replace(lhs=(batch, *case.lhs[1:])), "float32")
        found = [constants["WIDE"] for _, _, constants, _ in (*forward, *backward)]
        assert len(found) > 1
        assert set(found) == {wide}


def launches(function, *arrays):
    """The launches in a function: kernel, dtypes of its pointers, constants and options of each."""
    found = []
    for eqn in jax.make_jaxpr(function)(*arrays).eqns:
        if "kernel" in eqn.params:
            avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
            pointers = {n: np.dtype(a.dtype) for n, a in zip(eqn.params["names"], avals)}
            constants = dict(eqn.params["constants"])
            found.append((eqn.params["kernel"].jit, pointers, constants, eqn.params["options"]))
    return found


def reports(found, target):
    """What the compiler makes of launches for that target, by the kernels' names."""
    return {kernel.fn.__name__: aot.compiled(kernel, p, c, target, o) for kernel, p, c, o in found}


def check_some_gradients(case, activation, sought, interpreted):
    """Gradients of some arguments alone are those among all."""
    arrays, dy = drawn(case, "float32")
    wanted = in_float64(case, activation, arrays, dy)

    def some(*values):
        given = dict(zip(sought, values))
        return conv_of(case, activation)(*(given.get(i, a) for i, a in enumerate(arrays)))

    with interpreted():
        _, *got = with_gradients(some)([arrays[i] for i in sought], dy)
    for i, g in zip(sought, got):
        assert_close(g, wanted[1 + i], scale=max(1.0, np.abs(wanted[1 + i]).max() / 4))


def check_derivatives(case, activation, interpreted):
    """Forward mode and second derivatives equal those of the plain version."""
    arrays, _ = drawn(case, "float32")
    directions, _ = drawn(case, "float32", seed=1)

    def derivatives(*arrays):
        f = conv_of(case, activation)
        forward = jax.jvp(f, arrays, tuple(directions))[1]
        return forward, jax.jvp(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2)), arrays, tuple(directions))[1]

    wanted = jax.jit(derivatives)(*arrays)
    with interpreted() as ran:
        got = jax.block_until_ready(jax.jit(derivatives)(*arrays))
        assert ran
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        assert_close(a, b, scale=max(4.0, np.abs(b).max()))


def check_chosen_on_gpu_alone(case, formulation):
    """The kernel runs on gpu without being asked for, and says elsewhere why it does not."""
    found = explained(case)
    assert (found.chosen.implementation, found.chosen.formulation) == ("triton", formulation)
    shapes = jax.ShapeDtypeStruct(case.lhs, "float32"), jax.ShapeDtypeStruct(case.rhs, "float32")
    on_cpu = kernels.explain(kernels.conv, *shapes, **case.arguments)
    assert f"triton: {formulation} (runs on gpu, this is cpu)" in str(on_cpu)
