"""Programs compiled ahead of time, with what is known of them."""

import jax
import jax.numpy as jnp
import numpy as np

import llmasos_xla as lm
from llmasos_xla import compiling

NHWC = ("NHWC", "HWIO", "NHWC")


def test_the_record_tells_the_bytes_of_the_arguments():
    log = []
    program = compiling.compile(lambda a, b: a @ b, jnp.ones((8, 16)), jnp.ones((16, 4)), what="product", log=log)
    assert log[0].argument_bytes == 4 * (8 * 16 + 16 * 4)
    assert log[0].flops >= 8 * 16 * 4
    assert "product: " in str(log[0])
    np.testing.assert_array_equal(program(jnp.ones((8, 16)), jnp.ones((16, 4))), np.full((8, 4), 16.0))


def test_operations_are_known_without_compiling():
    assert compiling.operations(lambda a, b: a @ b, jnp.ones((8, 16)), jnp.ones((16, 4))) >= 2 * 8 * 16 * 4


def test_a_program_that_runs_once_gives_the_same_values():
    def draw(key):
        return jax.random.normal(key, (64, 3)) @ jnp.ones((3, 2))

    key = jax.random.key(0)
    quick = compiling.compile(draw, key, what="draw", once=True)(key)
    np.testing.assert_allclose(quick, draw(key), rtol=1e-6)


def test_donated_arguments_are_gone():
    program = compiling.compile(lambda a: a + 1, jnp.ones(1024), what="increment", donate=(0,))
    x = jnp.ones(1024)
    program(x)
    assert x.is_deleted()


def test_nothing_is_compiled_under_disable_jit():
    def double(x):
        seen.append(x)
        return x * 2 if x.sum() > 0 else x

    seen, log = [], []
    with jax.disable_jit():
        program = compiling.compile(double, jnp.ones(3), what="double", log=log)
        np.testing.assert_array_equal(program(np.ones(3, np.float32)), np.full(3, 2.0))
        assert compiling.operations(double, jnp.ones(3)) == -1
    assert isinstance(seen[0], jax.Array)
    assert not log


def test_a_program_may_be_made_under_disable_jit_and_run_without_and_the_other_way_round():
    x = jnp.arange(3.0)
    with jax.disable_jit():
        early = compiling.compile(lambda x: x + 1, x, what="early", log=(log := []))
    late = compiling.compile(lambda x: x + 1, x, what="late")
    np.testing.assert_array_equal(early(x), early(x + 0))
    assert [record.what for record in log] == ["early"]
    with jax.disable_jit():
        np.testing.assert_array_equal(late(x), early(x))


def test_unknown_options_are_left_out(monkeypatch):
    monkeypatch.setattr(compiling, "_CPU_OPTIONS", {"xla_no_such_option": "1"})
    assert compiling.compiler_options("cpu") == {}
    assert compiling.compiler_options("tpu") == {}
    assert jax.default_backend() == "cpu"


def test_operations_of_foreign_calls_count_as_those_of_xla():
    def train(conv):
        return lambda x, w: jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))(x, w)

    def ours(x, w):
        return lm.kernels.conv(x, w, 1, "SAME", dimension_numbers=NHWC)

    def plain(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    x, w = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8, 8))
    # XLA leaves out the products with padding, and counts the three convolutions of a training step.
    wanted, counted = (compiling.operations(train(f), x, w) for f in (plain, ours))
    assert 0.9 * wanted < counted < 1.3 * wanted
