"""A program spelled in other operators gives what it gave."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla import kernels
from llmasos_xla.deployment.targets import formulas
from llmasos_xla.deployment.targets.to_onnx import RULES


def rewritten(function, *shapes):
    return formulas.in_formulas(jax.make_jaxpr(function)(*shapes), RULES)


def operators(function, *shapes) -> set[str]:
    return {e.primitive.name for e in jax.make_jaxpr(rewritten(function, *shapes))(*shapes).jaxpr.eqns}


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


WHOLE = np.array([[-7, -3, -1, 0, 2, 5, 9]], np.int32)


def counted(x):
    """A loop, a choice and a scan that runs backwards."""

    def step(carry, row):
        carry = carry + jax.nn.relu(row)
        return carry, (carry, jnp.max(row))

    carry, (sums, tops) = jax.lax.scan(step, jnp.zeros_like(x[0]), x, reverse=True)
    n, total = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, carry))
    return jax.lax.cond(jnp.sum(x) > 0, lambda t: t + sums[0], lambda t: t - sums[0], total), sums, tops, n


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (counted, numbers(5, 3)),
        (counted, -np.abs(numbers(5, 3))),
        (lambda x: x // 2 + x % 4, WHOLE),
        (lambda x: jax.lax.rem(x, jnp.int32(3)) + jax.lax.div(x, jnp.int32(2)), WHOLE),
        (lambda x: jnp.where(x > 0, x > 1, x < -1), numbers(4, 3)),
        (lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=3.0), numbers(4, 3)),
        (jax.checkpoint(lambda x: jax.nn.gelu(x) * 2), numbers(4, 3)),
    ],
    ids=["control", "control_other", "floor", "truncated", "boolean", "pad", "checkpoint"],
)
def test_values_stay(function, x):
    jax.tree.map(np.testing.assert_array_equal, tuple(rewritten(function, x)(x)), tuple(jax.tree.leaves(function(x))))


@pytest.mark.parametrize("length", [8, 25, 400])
def test_spectrum_is_that_of_the_transform(length):
    x = numbers(3, length)
    (found,) = rewritten(lambda x: jnp.fft.rfft(x, axis=-1), x)(x)
    np.testing.assert_allclose(found, np.fft.rfft(x), atol=3e-5 * length**0.5)


@pytest.mark.parametrize("config", [(0, 0, 0), (1, 2, 0), (0, 3, 0), (-1, 1, 0), (2, -1, 0)])
def test_padding_of_any_number_of_rows(config):
    (rows,) = jax.export.symbolic_shape("rows")

    def pad(x):
        return jax.lax.pad(x, jnp.float32(-1), ((0, 0, 0), config))

    symbolic = jax.ShapeDtypeStruct((rows, 4), np.float32)
    program = rewritten(pad, symbolic)
    found = {e.primitive.name for e in jax.make_jaxpr(program)(symbolic).jaxpr.eqns}
    assert "pad" not in found
    x = numbers(3, 4)
    exported = jax.export.export(jax.jit(program))(symbolic)
    np.testing.assert_array_equal(exported.call(x)[0], pad(x))


@pytest.mark.parametrize("operator", [jax.lax.max, jax.lax.add])
@pytest.mark.parametrize(
    ("window", "strides", "padding"), [(3, 2, (1, 1)), (2, 2, (0, 0)), (3, 1, (0, 1))], ids=["stem", "tiles", "uneven"]
)
def test_pooling_of_pictures_of_any_size(operator, window, strides, padding):
    nothing = np.float32(-np.inf if operator is jax.lax.max else 0)

    def pool(x):
        sizes, borders = (1, window, window, 1), ((0, 0), padding, padding, (0, 0))
        return jax.lax.reduce_window(x, nothing, operator, sizes, (1, strides, strides, 1), borders)

    rows, height, width = jax.export.symbolic_shape("rows, height, width", constraints=["height >= 3", "width >= 3"])
    symbolic = jax.ShapeDtypeStruct((rows, height, width, 2), np.float32)
    program = rewritten(pool, symbolic)
    assert not any("window" in e.primitive.name for e in jax.make_jaxpr(program)(symbolic).jaxpr.eqns)
    exported = jax.export.export(jax.jit(program))(symbolic)
    for size in ((8, 9), (7, 4)):
        x = numbers(3, *size, 2)
        np.testing.assert_allclose(exported.call(x)[0], pool(x), atol=1e-5)


def test_kernels_are_plain_operators():
    x, w = numbers(2, 16, 16, 8), numbers(3, 3, 8, 16)

    def conv(x):
        return kernels.conv(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), implementation="onednn")

    try:
        chosen = str(jax.make_jaxpr(conv)(x))
    except NotImplementedError as why:
        pytest.skip(str(why))
    assert "onednn[" in chosen
    assert "onednn" not in operators(conv, x)
    np.testing.assert_allclose(rewritten(conv, x)(x)[0], conv(x), atol=1e-4)


def test_both_directions_are_divided_by_xla_too():
    x, w, r, b = numbers(2, 5, 3), numbers(3, 16), numbers(4, 16), numbers(16)
    forward = {"w_input": w, "w_recurrent": r, "bias": b}

    def both(x):
        return kernels.bidirectional(kernels.lstm, x, forward, forward)

    with kernels.dividing_by_xla():
        plain = jax.make_jaxpr(both)(x)
    assert not {"onednn", "triton"} & {e.primitive.name for e in plain.jaxpr.eqns}
