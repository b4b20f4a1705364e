"""An LSTM with layer normalization as a persistent kernel, interpreted: value and all gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.triton.test_rnn_kernels import RAGGED, as_dtype, assert_kernel_is_right, drawn
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.rnn.choice import PERSISTENT


def problem(batch, time, cin, hidden, seed=0, epsilon=1e-5):
    rng = np.random.default_rng(seed + 7)
    scales = [1 + 0.5 * rng.standard_normal(size) for size in (4 * hidden, 4 * hidden, hidden)]
    norm = kernels.LayerNorm(*scales, cell_offset=0.5 * rng.standard_normal(hidden), epsilon=epsilon)
    return drawn("lstm", batch, time, cin, 1, hidden, seed) | {"layer_norm": norm}


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((3, 4, 5, 11), {}),
        ((1, 1, 1, 1), {}),
        ((17, 3, 2, 32), {}),
        ((3, 4, 2, 17), {**RAGGED, "reverse": True}),
        ((3, 4, 2, 10), {**RAGGED, "recurrent_mask": 2.0 * np.random.default_rng(3).integers(0, 2, (3, 10))}),
    ],
    ids=["odd", "one", "two-tiles", "ragged-reverse-resets", "mask"],
)
def test_values_and_gradients(sizes, options, interpreted):
    given = {n: jnp.asarray(v, "float32") if n == "recurrent_mask" else v for n, v in options.items()}
    assert_kernel_is_right("lstm", problem(*sizes), given, interpreted, scale=4)


@pytest.mark.parametrize("dtype", slow_but([("bfloat16",)], ["bfloat16", "float16"]))
def test_low_precision(dtype, interpreted):
    assert_kernel_is_right("lstm", problem(3, 5, 4, 24), {"lengths": RAGGED["lengths"]}, interpreted, dtype, scale=2)


def both(problems):
    x, *directions = problems[0].pop("x"), *problems
    directions[1].pop("x")
    return x, *directions


def test_both_directions_in_one_launch(interpreted):
    x, one, other = both([as_dtype(problem(3, 4, 5, 6, seed), "float32") for seed in (1, 2)])

    def loss(x, one, other):
        out = kernels.bidirectional(kernels.lstm, x, one, other, lengths=RAGGED["lengths"])
        return sum(jnp.sum(jnp.sin(leaf) * (i + 1)) for i, leaf in enumerate(jax.tree.leaves(out)))

    expected = jax.value_and_grad(loss, (0, 1, 2))(x, one, other)
    with interpreted() as launches:
        got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, one, other)
        jax.block_until_ready(got)
        assert launches == ["forward", "backward"]
        assert kernels.explain(kernels.bidirectional, kernels.lstm, x, one, other).chosen.formulation == PERSISTENT
    jax.tree.map(lambda a, b: assert_close(a, b, scale=8), got, expected)


def test_directions_that_differ_in_it_run_apart():
    x, one, other = both([as_dtype(problem(2, 3, 4, 5, seed), "float32") for seed in (1, 2)])
    with _dispatch.tracing_for("gpu"):
        for changed in (None, other["layer_norm"]._replace(epsilon=1e-3)):
            ways = kernels.explain(kernels.bidirectional, kernels.lstm, x, one, other | {"layer_norm": changed})
            (persistent,) = [c for c in ways.candidates if c.formulation == PERSISTENT]
            assert persistent.objection == "layer_norm is given in one direction only, or with two epsilons"


def test_scales_that_are_not_given_are_ones(interpreted):
    arrays = as_dtype(problem(2, 3, 4, 5), "float32")
    ones, zeros = jnp.ones(20), jnp.zeros(5)
    whole = kernels.LayerNorm(ones, ones, ones[:5], zeros)
    with interpreted() as launches:
        got = kernels.lstm(**arrays | {"layer_norm": kernels.LayerNorm()})
        expected = kernels.lstm(**arrays | {"layer_norm": whole})
        jax.block_until_ready((got, expected))
        assert launches == ["forward", "forward"]
    jax.tree.map(assert_close, got, expected)


@pytest.mark.thorough
def test_vmap_forward_mode_and_second_derivatives(interpreted):
    arrays = as_dtype(problem(2, 3, 4, 5, epsilon=1e-2), "float32")
    xs = jnp.stack([arrays["x"], 2 * arrays["x"], -arrays["x"]])

    def loss(arrays):
        y, (_, c) = kernels.lstm(**arrays)
        return jnp.sum(jnp.sin(y)) + jnp.sum(c**2)

    def everything():
        directions = jax.tree.map(jnp.ones_like, arrays)
        return (
            jax.vmap(lambda x: kernels.lstm(**arrays | {"x": x})[0])(xs),
            jax.grad(lambda xs: jax.vmap(lambda x: loss(arrays | {"x": x}))(xs).sum())(xs),
            jax.jvp(loss, (arrays,), (directions,)),
            jax.jvp(jax.grad(loss), (arrays,), (directions,)),
        )

    expected = everything()
    with interpreted() as launches:
        got = jax.block_until_ready(everything())
        assert {"forward", "backward"} <= set(launches)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        most = max(1.0, float(jnp.abs(theirs).max()))
        assert_close(mine / most, theirs / most, scale=8)


def test_what_it_refuses_and_in_which_words():
    def objection(dtype="bfloat16", heads=1, hidden=8):
        shapes = {"x": (2, 3, 4), "w_input": (4, 4 * hidden), "w_recurrent": (hidden // heads, 4 * hidden // heads)}
        shapes["w_recurrent"] = (heads, *shapes["w_recurrent"]) if heads > 1 else shapes["w_recurrent"]
        arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
        ways = kernels.explain(kernels.lstm, **arrays, bias=None, layer_norm=kernels.LayerNorm())
        (persistent,) = [c for c in ways.candidates if c.formulation == PERSISTENT]
        return persistent.objection

    assert objection() == "runs on gpu, this is cpu"
    with _dispatch.tracing_for("gpu"):
        assert objection() is None
        assert objection(hidden=128) is None
        assert objection("float32", hidden=64) is None
        assert objection(heads=2) == "layer_norm takes its statistics over 2 heads, which are programs of their own"
        too_wide = "layer_norm takes its statistics inside of one program, and the recurrent weights of 200 units"
        assert objection(hidden=200).startswith(too_wide)
