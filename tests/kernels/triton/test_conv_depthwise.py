"""Depthwise convolution by Triton: interpreted it equals float64 and its gradients; compiled it fits the GPUs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

from llmasos_xla import kernels
from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels.conv import triton, triton_depthwise
from llmasos_xla.kernels.conv.cases import DEPTHWISE_TESTS, GPU_BENCH, Case

CASES = {case.name: case for case in DEPTHWISE_TESTS}


@pytest.mark.parametrize(("name", "activation"), mixed(CASES))
def test_value_and_gradients_equal_float64(name, activation, interpreted):
    check(CASES[name], activation, "float32", interpreted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["odd", "stride", "1d-causal"])
def test_sums_of_16_bits_are_float32(name, dtype, interpreted):
    check(CASES[name], "silu", dtype, interpreted, bias=dtype == "bfloat16")


@pytest.mark.parametrize(("name", "batch"), [("strips", 7), ("1d-causal", 41), ("many-channels", 3)])
def test_programs_with_several_blocks(name, batch, interpreted):
    case = CASES[name]
    check(case._replace(lhs=(batch, *case.lhs[1:])), "relu", "float32", interpreted, device=SMALL)


@pytest.mark.parametrize("name", ["odd", "1d-causal"])
def test_offsets_of_64_bits(name, interpreted, monkeypatch):
    check_offsets(triton_depthwise, CASES[name])
    monkeypatch.setattr(triton_depthwise, "wide", lambda s: True)
    check(CASES[name], "gelu", "float32", interpreted)


@pytest.mark.parametrize(
    ("name", "activation", "expected"),
    [
        ("odd", None, ["slide_kernel", "slide_kernel", "taps_kernel"]),
        ("odd", "silu", ["slide_kernel", "slide_kernel", "taps_kernel"]),
        ("1d-causal", "silu", ["slide_kernel", "short_backward_kernel"]),
    ],
)
def test_a_short_convolution_over_time_has_its_gradient_in_one_pass(name, activation, expected, interpreted):
    assert check(CASES[name], activation, "float32", interpreted) == expected


@pytest.mark.parametrize("sought", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("name", ["odd", "1d-causal"])
def test_some_gradients_are_those_among_all(name, sought, interpreted):
    check_some_gradients(CASES[name], "silu", sought, interpreted)


def test_what_is_not_finite_stays_where_the_sums_are(interpreted):
    # Rows that no result reads, and the places beyond the last one.
    x = np.ones((2, 9, 2), np.float32)
    x[1, 8] = np.nan
    case = Case("", x.shape, (3, 1, 2), 1, ((0, -1),), groups=2)
    w = jnp.ones(case.rhs)
    with interpreted():
        got = with_gradients(conv_of(case, "silu"))([jnp.asarray(x), w], jnp.ones((2, 6, 2)))
    assert all(np.isfinite(a).all() for a in got)
    case = Case("", (2, 8, 8, 2), (3, 3, 1, 2), 2, "VALID", groups=2)
    x = np.ones(case.lhs, np.float32)
    x[:, 7] = x[:, :, 7] = np.inf
    with interpreted():
        got = with_gradients(conv_of(case, None))([jnp.asarray(x), jnp.ones(case.rhs)], jnp.ones((2, 3, 3, 2)))
    assert all(np.isfinite(a).all() for a in got)


@pytest.mark.parametrize("taps", [9, 31])
def test_no_future_through_taps_that_are_not_there(taps, interpreted):
    """Long windows are taken in parts of eight taps: those beyond the last are none."""
    case = Case("", (1, 40, 2), (taps, 1, 2), 1, ((taps - 1, 0),), groups=2)
    x = np.ones(case.lhs, np.float32)
    x[:, 35] = np.inf
    with interpreted():
        y, dx, _ = with_gradients(conv_of(case, None))([jnp.asarray(x), jnp.ones(case.rhs)], jnp.asarray(x))
    np.testing.assert_array_equal(np.isfinite(y[0, :, 0]), np.arange(40) < 35)
    assert np.isfinite(dx[:, : 36 - taps]).all()
    assert np.isfinite(dx[:, 36:]).all()


@pytest.mark.parametrize(
    ("lhs", "rhs", "strides", "pads"),
    [
        ((2, 1, 20, 3), (1, 4, 1, 3), (2, 1), ((1, 0), (3, 0))),
        ((2, 20, 1, 3), (4, 1, 1, 3), (1, 2), ((3, 0), (1, 0))),
    ],
)
def test_one_row_that_reads_padding_alone(lhs, rhs, strides, pads, interpreted):
    case = Case("", lhs, rhs, strides, pads, groups=3)
    x, w = jnp.linspace(-1, 1, math.prod(lhs)).reshape(lhs), jnp.linspace(-1, 2, math.prod(rhs)).reshape(rhs)
    with interpreted() as launches:
        y = jax.eval_shape(conv_of(case, None), x, w)
        got = with_gradients(conv_of(case, None))([x, w], jnp.ones(y.shape))
        assert launches
    assert all(not np.any(a) for a in got)


# Through JAX.


@pytest.mark.parametrize("name", ["odd", "1d-causal"])
@pytest.mark.parametrize("axes", [(0, None, None), (1, 0, None), (None, 0, 0)])
def test_vmap_of_value_and_gradients_is_one_call(name, axes, interpreted):
    pairs = [drawn(CASES[name], "float32", seed=seed) for seed in range(2)]
    each = [list(arrays) for arrays, _ in pairs]
    stacked = [
        each[0][i] if axis is None else jnp.stack([arrays[i] for arrays in each], axis) for i, axis in enumerate(axes)
    ]
    one = [[each[0][i] if axis is None else each[j][i] for i, axis in enumerate(axes)] for j in range(2)]
    dy = jnp.stack([dy for _, dy in pairs])
    both = with_gradients(conv_of(CASES[name], "relu"))
    wanted = [both(arrays, dy[j]) for j, arrays in enumerate(one)]
    with interpreted() as ran:
        got = jax.jit(jax.vmap(lambda *a: both(list(a[:3]), a[3]), (*axes, 0)))(*stacked, dy)
        jax.block_until_ready(got)
        assert len(ran) == (3 if name == "odd" else 2)
    for a, b in zip(got, zip(*wanted)):
        assert_close(a, jnp.stack(b), scale=4)


@pytest.mark.parametrize("name", ["odd", "1d-causal"])
@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_second_derivatives_and_forward_mode_equal_those_of_the_plain_version(name, activation, interpreted):
    check_derivatives(CASES[name], activation, interpreted)


def test_eager_remat_and_scan_give_the_same(interpreted):
    case = CASES["1d-causal"]
    (x, w, b), _ = drawn(case, "float32")
    f = conv_of(case, "silu")

    def loss(x, step):
        return jax.lax.scan(lambda h, _: (step(h, w, b), None), x, None, length=2)[0].sum()

    with interpreted():
        assert_close(f(x, w, b), jax.jit(f)(x, w, b))
        plain = jax.jit(jax.grad(lambda x: f(f(x, w, b), w, b).sum()))(x)
        assert_close(jax.jit(jax.grad(lambda x: loss(x, jax.checkpoint(f))))(x), plain)


def test_calls_stand_in_a_cuda_program_alone():
    arrays, dy = drawn(CASES["odd"], "float32")
    both = with_gradients(conv_of(CASES["odd"], "silu"))
    assert text(both, arrays, dy).count(f"@{CALL}") == 3
    assert "stablehlo.convolution" not in text(both, arrays, dy)
    assert CALL not in text(both, arrays, dy, platform="cpu")


# The choice.


def test_it_is_chosen_on_gpu_alone():
    check_chosen_on_gpu_alone(CASES["stride"], "depthwise kernel")


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (
            "stride",
            {
                "depthwise forward": ("forward", {"rows": 1, "warps": 8}),
                "depthwise input gradient": ("back", {"rows": 8, "warps": 2}),
                "depthwise kernel gradient": ("sums", {"programs": 7}),
            },
        ),
        ("1d-causal", {"depthwise gradient": ("short", {"rows": 16, "programs": 3})}),
    ],
)
def test_a_tuned_table_has_the_last_word(name, blocks):
    check_tuned(triton.DEPTHWISE, CASES[name], blocks, "depthwise 16-bit")


def test_tuned_blocks_compute_the_same(interpreted):
    arrays, dy = drawn(CASES["stride"], "float32")
    both, g = with_gradients(conv_of(CASES["stride"], None)), geometry_of(CASES["stride"], "float32")
    key = triton.DEPTHWISE.spec.shape_class(triton_depthwise.spec_of(g, True, None))
    with interpreted():
        wanted = both(arrays, dy)
    entries = {"forward": {"rows": 3}, "input gradient": {"rows": 4, "warps": 2}, "kernel gradient": {"programs": 9}}
    with interpreted(), tuned.trying({f"depthwise {table}": {key: entry} for table, entry in entries.items()}):
        for a, b in zip(jax.block_until_ready(both(arrays, dy)), wanted):
            assert_close(a, b, scale=4)


def test_a_factor_for_each_channel_is_no_convolution():
    found = explained(Case("", (2, 5, 5, 4), (1, 1, 1, 4), 2, groups=4))
    assert found.chosen.formulation == "depthwise multiply-adds"
    assert "triton: depthwise kernel (a kernel of size one is a plain product)" in str(found)


@pytest.mark.parametrize(
    ("case", "more", "why"),
    [
        (Case("", (1, 5, 5, 4), (3, 3, 2, 4), groups=2), {}, "has 2 input channel(s) in each of 2 group(s)"),
        (Case("", (1, 5, 5, 4), (3, 3, 1, 8), groups=4), {}, "has 2 output channels for each input channel"),
        (Case("", (1, 5, 5, 5, 2), (3, 3, 3, 1, 2), groups=2), {}, "has 3 spatial axes"),
        (CASES["odd"]._replace(lhs_dilation=2), {}, "lhs_dilation is above 1"),
        (Case("", (1, 50, 2), (33, 1, 2), groups=2), {}, "the kernel is 33; it takes at most 31 along an axis"),
        (CASES["odd"]._replace(stride=2, rhs_dilation=2), {}, "stride and dilation are both above 1"),
        (CASES["odd"]._replace(stride=9), {}, "the stride is (9, 9); it takes at most 8"),
        (CASES["odd"], {"preferred_element_type": jnp.float64}, "the result is float64, not float32 as the operands"),
        (
            Case("", (1, 4, 5, 6), (3, 3, 1, 4), groups=4),
            {"dimension_numbers": ("NCHW", "HWIO", "NCHW")},
            "channels are not last: it would transpose the arrays",
        ),
    ],
)
def test_it_says_why_not(case, more, why):
    with jax.enable_x64("preferred_element_type" in more):
        assert f"triton: depthwise kernel ({why})" in str(explained(case, **more))


def test_by_name_it_runs_in_any_order_of_dimensions_or_raises_its_reason(interpreted):
    case = CASES["odd"]
    (x, w), _ = drawn(case, "float32", bias=False)
    numbers = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    with interpreted() as ran:
        y = kernels.conv(
            x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), **(case.arguments | numbers), implementation="triton"
        )
        assert ran == ["slide_kernel"]
    assert_close(y.transpose(0, 2, 3, 1), conv_of(case, None)(x, w))
    with pytest.raises(NotImplementedError, match="implementation='triton' cannot run: .*runs on gpu, this is cpu"):
        kernels.conv(x, w, **case.arguments, implementation="triton")


# Compiled ahead of time.

ROWS = {case.name: case for case in GPU_BENCH if case.groups == case.lhs[-1] > 1}
BENCH = dict(ROWS)
BENCH["conv1d-long"] = Case("conv1d-long", (32, 1000, 256), (31, 1, 256), groups=256)
BENCH["efficientnet-down"] = Case("efficientnet-down", (128, 28, 28, 240), (5, 5, 1, 240), 2, groups=240)
BENCH["past-32-bits"] = Case("past-32-bits", (4096, 112, 112, 64), (3, 3, 1, 64), groups=64)
SWEEP = (
    ("mamba-causal-depthwise", "sm90", "bfloat16", "silu"),
    ("efficientnet-down", "sm80", "float32", "silu"),
    ("convnext-depthwise-7", "sm100", "float32", None),
    ("past-32-bits", "gfx942", "bfloat16", "relu6"),
)
ELSE = [*but(BENCH, SWEEP), ("mamba-causal-depthwise", "gfx942", "float16", "silu")]


def check_compiled(name, target, dtype, activation=None, bias=True):
    forward, backward = compiled(triton_depthwise, BENCH[name], dtype, activation, target, bias)
    for report in (*forward.values(), *backward.values()):
        assert report.spilled == 0
        assert report.registers <= (512 if target == "gfx942" else 255)
        assert report.shared_memory <= 4096
    # Channels lie side by side in a thread, so that a load is of 16 bytes in the pass that is all loads.
    if target != "gfx942":
        assert "ld.global.v4.b32" in forward["slide_kernel"].text


@pytest.mark.parametrize(("name", "target", "dtype", "activation"), SWEEP)
def test_it_compiles_without_spills(name, target, dtype, activation):
    check_compiled(name, target, dtype, activation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "dtype", "activation"), ELSE)
def test_every_configuration_compiles_without_spills(name, target, dtype, activation):
    check_compiled(name, target, dtype, activation)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "dtype"), slow_but([("convnext-depthwise-56", "bfloat16")], ROWS, ("bfloat16", "float32"))
)
def test_what_the_benchmark_runs_compiles(name, dtype):
    """As it stands there: no bias, no activation."""
    check_compiled(name, "sm90", dtype, bias=False)
