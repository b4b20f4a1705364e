"""First layers by Triton: interpreted they equal float64 and their gradients; compiled they fit the GPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.triton import aot
from kernels.triton.aot import CALL
from kernels.triton.conv_problems import (
    SMALL,
    but,
    check,
    check_chosen_on_gpu_alone,
    check_derivatives,
    check_offsets,
    check_some_gradients,
    check_tuned,
    compiled,
    conv_of,
    drawn,
    explained,
    geometry_of,
    mixed,
    text,
    with_gradients,
)
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton.precision import dot_precision
from llmasos_xla.kernels.conv import triton, triton_first
from llmasos_xla.kernels.conv.cases import FIRST_LAYER_TESTS, GPU_BENCH, Case

CASES = {case.name: case for case in FIRST_LAYER_TESTS}


@pytest.mark.parametrize(("name", "activation"), mixed(CASES))
def test_value_and_gradients_equal_float64(name, activation, interpreted):
    assert check(CASES[name], activation, "float32", interpreted) == ["first_kernel", "first_sums_kernel"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mnist", "stem", "1d"])
def test_sums_of_16_bits_are_float32(name, dtype, interpreted):
    check(CASES[name], "relu", dtype, interpreted, bias=dtype == "bfloat16")


@pytest.mark.parametrize(("name", "batch"), [("mnist", 41), ("stem", 11)])
def test_programs_with_several_blocks(name, batch, interpreted):
    case = CASES[name]
    check(case._replace(lhs=(batch, *case.lhs[1:])), "relu", "float32", interpreted, device=SMALL)


def test_offsets_of_64_bits(interpreted, monkeypatch):
    check_offsets(triton_first, CASES["stem"])
    monkeypatch.setattr(triton_first, "wide", lambda s: True)
    check(CASES["stem"], "gelu", "float32", interpreted)


@pytest.mark.parametrize("sought", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_some_gradients_are_those_among_all(activation, sought, interpreted):
    check_some_gradients(CASES["mnist"], activation, sought, interpreted)


def test_what_no_window_reads_has_no_part_in_the_sums(interpreted):
    case = Case("", (2, 8, 8, 3), (3, 3, 3, 2), 2, "VALID")
    x = np.ones(case.lhs, np.float32)
    x[:, 7] = x[:, :, 7] = np.inf
    with interpreted():
        got = with_gradients(conv_of(case, None))([jnp.asarray(x), jnp.ones(case.rhs)], jnp.ones((2, 3, 3, 2)))
    assert all(np.isfinite(a).all() for a in got)


@pytest.mark.parametrize("axes", [(0, None, None), (1, 0, None)])
def test_vmap(axes, interpreted):
    case = CASES["mnist"]
    each = [drawn(case, "float32", seed=seed)[0] for seed in range(2)]
    stacked = [each[0][i] if a is None else jnp.stack([e[i] for e in each], a) for i, a in enumerate(axes)]
    one = [[each[0][i] if a is None else e[i] for i, a in enumerate(axes)] for e in each]
    f = conv_of(case, "relu")

    def both(x, w, b):
        return f(x, w, b), jax.grad(lambda x: (f(x, w, b) ** 2).sum())(x)

    wanted = [both(*arrays) for arrays in one]
    with interpreted() as ran:
        got = jax.block_until_ready(jax.jit(jax.vmap(both, axes))(*stacked))
        assert ("first_kernel" in ran) == (axes[1] is None)
    for a, b in zip(got, zip(*wanted)):
        assert_close(a, jnp.stack(b), scale=4)


def test_by_name_kernels_of_their_own_are_refused_under_vmap():
    case = CASES["mnist"]
    (x, w, _), _ = drawn(case, "float32")
    with _dispatch.tracing_for("gpu"):
        f = conv_of(case, None, implementation="triton")
        with pytest.raises(NotImplementedError, match="under jax.vmap, 2 convolutions .* have kernels of their own"):
            jax.eval_shape(jax.vmap(f, (None, 0)), x, jnp.stack([w, w]))


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_second_derivatives_and_forward_mode_equal_those_of_the_plain_version(activation, interpreted):
    check_derivatives(CASES["mnist"], activation, interpreted)


def test_eager_equals_jit_and_calls_stand_in_a_cuda_program_alone(interpreted):
    arrays, dy = drawn(CASES["stem"], "float32")
    f = conv_of(CASES["stem"], "relu")
    with interpreted():
        assert_close(f(*arrays), jax.jit(f)(*arrays))
    both = with_gradients(f)
    assert text(both, arrays, dy).count(f"@{CALL}") == 2
    assert text(both, arrays, dy).count("stablehlo.convolution") == 1  # the gradient of x is XLA's
    assert CALL not in text(both, arrays, dy, platform="cpu")


def test_products_of_float32_are_float32_unless_jax_is_told_else():
    def of(**more):
        return triton_first.spec_of(geometry_of(CASES["stem"], "float32")._replace(**more), True, None).precision

    assert of() == "tf32x3"
    assert of(precision=jax.lax.Precision.HIGHEST) == "ieee"
    assert of(precision=(jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST)) == "ieee"
    with jax.default_matmul_precision("tensorfloat32"):
        assert of() == "tf32"
        assert dot_precision("float16") == "ieee"


def test_it_is_chosen_on_gpu_alone():
    check_chosen_on_gpu_alone(CASES["stem"], "first layer kernel")


def test_a_tuned_table_has_the_last_word():
    blocks = {
        "first layer forward": ("forward", {"block_m": 128, "warps": 8}),
        "first layer kernel gradient": ("sums", {"programs": 3}),
    }
    check_tuned(triton.FIRST_LAYER, CASES["stem"], blocks, "first layer 16-bit 7x7x3/2x2/1x1 b=2")


@pytest.mark.parametrize(
    ("case", "more", "why"),
    [
        (Case("", (1, 5, 5, 4), (3, 3, 2, 4), groups=2), {}, "has 2 groups"),
        (Case("", (1, 5, 5, 5), (3, 3, 5, 8)), {}, "has 5 input channels; it is for 4 at most"),
        (Case("", (1, 5, 5, 5, 2), (3, 3, 3, 2, 2)), {}, "has 3 spatial axes"),
        (Case("", (1, 32, 32, 3), (16, 16, 3, 8), 16), {}, "a window has 768 elements; it takes at most 512"),
        (Case("", (1, 5, 5, 3), (1, 1, 3, 8)), {}, "a kernel of size one is a plain product"),
        (CASES["stem"]._replace(lhs_dilation=2), {}, "lhs_dilation is above 1"),
        (CASES["stem"], {"batch_group_count": 2}, "batch_group_count=2"),
    ],
)
def test_it_says_why_not(case, more, why):
    assert f"triton: first layer kernel ({why})" in str(explained(case, **more))


# Compiled ahead of time.

ROWS = {case.name: case for case in GPU_BENCH if case.lhs[-1] <= 4}
BENCH = dict(ROWS)
BENCH["convnext-patchify"] = Case("convnext-patchify", (128, 224, 224, 3), (4, 4, 3, 96), 4, "VALID")
BENCH["audio"] = Case("audio", (16, 16000, 1), (10, 1, 512), 5, "VALID")
SWEEP = (
    ("mnist-first-layer", "sm90", "bfloat16", "relu"),
    ("resnet-stem", "sm90", "bfloat16", None),
    ("resnet-stem", "sm80", "float32", "relu"),
    ("spectrogram-stem", "sm100", "float16", "silu"),
    ("audio", "sm90", "bfloat16", None),
    ("resnet-stem", "gfx942", "bfloat16", "relu"),
)


def check_compiled(name, target, dtype, activation=None, bias=True):
    if target == "gfx942" and dtype == "float32":
        pytest.skip("float32 products are three of TF32, which gfx942 has not; JAX launches none there")
    forward, backward = compiled(triton_first, BENCH[name], dtype, activation, target, bias)
    for report in (*forward.values(), *backward.values()):
        assert report.spilled == 0
        assert report.shared_memory <= aot.SHARED_MEMORY[target]
        assert report.matrix_instructions > 0


@pytest.mark.parametrize(("name", "target", "dtype", "activation"), SWEEP)
def test_it_compiles_to_matrix_instructions_without_spills(name, target, dtype, activation):
    check_compiled(name, target, dtype, activation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "dtype", "activation"), but(BENCH, SWEEP))
def test_every_configuration_compiles(name, target, dtype, activation):
    check_compiled(name, target, dtype, activation)


@pytest.mark.parametrize(("name", "dtype"), slow_but([("resnet-stem", "bfloat16")], ROWS, ("bfloat16", "float32")))
def test_what_the_benchmark_runs_compiles(name, dtype):
    """As it stands there: no bias, no activation."""
    check_compiled(name, "sm90", dtype, bias=False)
