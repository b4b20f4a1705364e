"""Convolutions for the tests of Triton kernels: drawn arrays, float64 results, and a launch as it is compiled."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from kernels import conv_reference as reference
from kernels.triton import aot

from llmasos_xla import kernels
from llmasos_xla.kernels._triton import devices
from llmasos_xla.kernels.activation import activation as activation_named

SMALL = devices.Device("one multiprocessor", 90, 1, 232448)
"""So small that every program of a sum has several blocks to go through."""


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


@contextlib.contextmanager
def compiled_for(device):
    """As `devices.compiling_for`, for a GPU that is not in its table."""
    token = devices._TOLD.set(device)
    try:
        yield
    finally:
        devices._TOLD.reset(token)


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


def reports(function, *arrays, target):
    """What the compiler made of each launch for that target, by the kernel's name."""
    return {
        kernel.fn.__name__: aot.compiled(kernel, p, c, target, o) for kernel, p, c, o in launches(function, *arrays)
    }
