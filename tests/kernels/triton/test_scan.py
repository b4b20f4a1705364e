"""The linear recurrence's kernels, interpreted inside whole JAX programs, against float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from kernels.scan_reference import arrays, assert_equal_to_reference, cotangents, reference
from kernels.triton.aot import CALL
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton import devices, tuned
from llmasos_xla.kernels.scan import triton_spec
from llmasos_xla.kernels.scan.cases import TESTS, Case
from llmasos_xla.kernels.scan.recurrence import Spec


@pytest.fixture
def sized(monkeypatch):
    """Sets the sizes of the kernels, as a table of measurements does; small ones where it is not told."""

    def using(**sizes):
        entry = {"vector": 1, "ahead": 4, "segments": 1, **sizes}
        monkeypatch.setattr(tuned, "replaced", lambda default, *_: default._replace(**entry))

    return using


def text(function, *arrays, platform="cuda"):
    with _dispatch.tracing_for("gpu"):
        return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def loss(a, b, h0):
    h, final = kernels.linear_scan(a, b, h0)
    return jnp.sum(jnp.sin(h)) + jnp.sum(final**2)


def plain_loss(a, b, h0):
    h, final = kernels.linear_scan(a, b, h0, implementation="xla")
    return jnp.sum(jnp.sin(h)) + jnp.sum(final**2)


def three(case, **options):
    return tuple(arrays(case, **options).values())


@pytest.mark.parametrize("case", TESTS, ids=lambda c: c.name)
def test_value_and_gradients(case, interpreted):
    # One step is XLA's, unless asked by name.
    named = "triton" if case.time == 1 else None
    with interpreted() as launches:
        assert_equal_to_reference(case, "float32", implementation=named)
        assert launches == ["walk_kernel"] * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_16_bits(dtype, reverse, fused, interpreted, sized):
    sized(vector=2, segments=2, fused=fused)
    with interpreted():
        assert_equal_to_reference(Case("16", 2, 19, 7, None, reverse), dtype)


CUT = [(1, True, False), (1, False, True), (2, False, False), (2, True, True), (3, True, False), (16, False, True)]


@pytest.mark.parametrize(("segments", "reverse", "fused"), slow_but(CUT, [1, 2, 3, 16], [False, True], [False, True]))
def test_segments(segments, reverse, fused, interpreted, sized):
    sized(segments=segments, fused=fused)
    with interpreted() as launches:
        assert_equal_to_reference(Case("cut", 2, 45, 34, None, reverse), "float32")
        assert launches.count("walk_kernel") == 2
        assert launches.count("ends_kernel") == (0 if segments == 1 else 2)


@pytest.mark.parametrize("gate", [(2, 13, 1), (1, 1, 10), (1, 1, 1), (2, 1, 10), (1, 13, 1)])
@pytest.mark.parametrize("segments", [1, 3])
def test_shared_gates(gate, segments, interpreted, sized):
    sized(ahead=2, segments=segments, fused=True)
    with interpreted():
        assert_equal_to_reference(Case("shared", 2, 13, 10, gate), "float32")


def test_wide_gates_and_state_beside_16_bits(interpreted, sized):
    sized(segments=2)
    case = Case("mixed", 2, 19, 7)
    given, (g, _) = arrays(case), cotangents(case)
    given["b"], g = given["b"].astype("bfloat16"), g.astype("bfloat16")
    gf = jnp.ones((2, 7))
    with interpreted():
        out, pull = jax.vjp(kernels.linear_scan, *given.values())
        gradients = pull((g, gf))
    (h, final), expected = reference(case, given, (g, gf))
    assert [x.dtype for x in (*out, *gradients)] == ["bfloat16", "float32", "float32", "bfloat16", "float32"]
    assert_close(out[0], h)
    assert_close(out[1], final)
    for x, name in zip(gradients, expected):
        # da is made of db and h, which are rounded.
        assert_close(x, expected[name], scale=4, dtype="float32" if name == "h0" else "bfloat16", message=name)


@pytest.mark.parametrize("reverse", [False, True])
def test_gates_of_any_size(reverse, interpreted, sized):
    """Products of a segment's gates overflow, ahead of a gate of 0 and of states of 0; the states are finite."""
    sized(ahead=2, segments=4)
    a, b, h0 = np.full((16, 3), 0.5, np.float32), np.zeros((16, 3), np.float32), np.zeros((1, 3), np.float32)
    a[:, 0] = -1e30
    b[14, 0] = 3e-38
    h0[:, 1] = b[5, 1] = 2e-38
    a[:3, 1], a[4:10, 1] = (1e30, 1e30, 0), (0, 1, 1e30, 1e30, 0, 1e30)
    a[:, 2], b[:, 2] = 0, 7
    a, b = (jnp.asarray(x[:: -1 if reverse else 1])[None] for x in (a, b))
    expected = kernels.linear_scan(a, b, h0, reverse=reverse, implementation="xla")
    assert np.isfinite(expected[0]).all()
    assert np.abs(expected[0]).max() > 1e20
    with interpreted():
        jax.tree.map(assert_close, kernels.linear_scan(a, b, h0, reverse=reverse), expected)


def test_not_a_number_stays_where_it_is(interpreted, sized):
    sized(segments=4)
    a, b, h0 = three(Case("nan", 2, 32, 3))
    for array in ("a", "b"):
        broken = {"a": a, "b": b} | {array: {"a": a, "b": b}[array].at[1, 13, 2].set(jnp.nan)}
        with interpreted():
            h = np.asarray(kernels.linear_scan(broken["a"], broken["b"], h0)[0])
        assert np.isnan(h[1, 13:, 2]).all()
        assert np.isnan(h).sum() == 19


def test_lengths_and_resets(interpreted, sized):
    sized(segments=2)
    a, b, h0 = three(Case("ragged", 3, 19, 5))
    options = {"lengths": jnp.array([19, 0, 7]), "resets": jnp.arange(57).reshape(3, 19) % 5 == 3}

    def both(implementation):
        def function(a, b, h0):
            h, final = kernels.linear_scan(a, b, h0, **options, implementation=implementation)
            return jnp.sum(jnp.cos(h)) + jnp.sum(final**2), (h, final)

        return jax.value_and_grad(function, (0, 1, 2), has_aux=True)(a, b, h0)

    expected = both("xla")
    with interpreted() as launches:
        jax.tree.map(assert_close, both("triton"), expected)
        assert "walk_kernel" in launches


@pytest.mark.parametrize("fused", [False, True])
def test_jit_equals_eager(fused, interpreted, sized):
    sized(segments=2, fused=fused)
    given = three(Case("jit", 2, 9, 3))
    gradient = jax.grad(loss, (0, 1, 2))
    with interpreted():
        jax.tree.map(np.testing.assert_array_equal, gradient(*given), jax.jit(gradient)(*given))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gate", "fused"),
    [
        (None, True),
        ((1, 9, 1), False),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param((2, 9, 1), False, marks=pytest.mark.slow),
    ],
)
def test_vmap(gate, fused, interpreted, sized):
    sized(ahead=2, segments=2, fused=fused)
    given = three(Case("vmap", 2, 9, 3, gate))
    stacked = [jnp.stack([x, x / 2, -x]) for x in given]
    for mapped in ((0, 0, 0), (None, 0, None), (0, None, None), (None, None, 0)):
        chosen = [s if axis == 0 else x for s, x, axis in zip(stacked, given, mapped)]
        wanted = jax.vmap(jax.grad(plain_loss, (0, 1, 2)), mapped)(*chosen)
        with interpreted() as launches:
            got = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)), mapped))(*chosen)
            jax.tree.map(assert_close, got, wanted)
            assert launches.count("walk_kernel") == 2


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gate", "fused"),
    [
        (None, True),
        pytest.param(None, False, marks=pytest.mark.slow),
        pytest.param((1, 1, 2), False, marks=pytest.mark.slow),
    ],
)
def test_second_derivatives_in_every_mode(gate, fused, interpreted, sized):
    sized(ahead=2, segments=2, fused=fused)
    given = three(Case("second", 1, 4, 2, gate))
    wanted = jax.hessian(plain_loss, (0, 1, 2))(*given)
    with interpreted() as launches:
        for mode in (jax.hessian(loss, (0, 1, 2)), jax.jacrev(jax.grad(loss, (0, 1, 2)), (0, 1, 2))):
            jax.tree.map(lambda x, y: assert_close(x, y, scale=4), jax.jit(mode)(*given), wanted)
        assert len(launches) > 8


@pytest.mark.parametrize("fused", [False, True])
def test_remat_and_scan(fused, interpreted, sized):
    sized(fused=fused)
    a, b, h0 = three(Case("remat", 2, 9, 3))

    def looped(function):
        def step(state, _):
            h, state = function(a, b, state)
            return state, h

        def run(h0):
            final, h = jax.lax.scan(jax.checkpoint(step), h0, None, length=3)
            return jnp.sum(jnp.sin(h)) + jnp.sum(final)

        return jax.jit(jax.grad(run))

    wanted = looped(lambda *x: kernels.linear_scan(*x, implementation="xla"))(h0)
    with interpreted():
        assert_close(looped(kernels.linear_scan)(h0), wanted)


def test_shard_map_launches_on_each_part(interpreted):
    a, b, h0 = three(Case("sharded", 8, 9, 3))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def sharded(a, b, h0):
        function = jax.shard_map(kernels.linear_scan, mesh=mesh, in_specs=rows, out_specs=rows)
        return jnp.sum(jnp.sin(function(a, b, h0)[0]))

    lowered = text(jax.grad(sharded, (0, 1, 2)), a, b, h0)
    assert lowered.count(f"@{CALL}") >= 1
    assert "tensor<1x9x3xf32>" in lowered
    got = jax.jit(jax.grad(sharded, (0, 1, 2)))(a, b, h0)
    wanted = jax.grad(lambda *x: jnp.sum(jnp.sin(kernels.linear_scan(*x)[0])), (0, 1, 2))(a, b, h0)
    jax.tree.map(assert_close, got, wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_one_export_for_three_platforms_runs_on_cpu(fused, sized):
    sized(segments=2, fused=fused)
    given, platforms = three(Case("export", 2, 19, 7)), ("cuda", "cpu", "tpu")
    checks = [export.DisabledSafetyCheck.custom_call(CALL)]

    def named(a, b, h0):
        h, final = kernels.linear_scan(a, b, h0, implementation="triton")
        return jnp.sum(jnp.sin(h)) + jnp.sum(final**2)

    with _dispatch.tracing_for("gpu"):
        gradient = jax.jit(jax.value_and_grad(named, (0, 1, 2)))
        made = export.export(gradient, platforms=platforms, disabled_checks=checks)(*given)
        unnamed = export.export(jax.jit(jax.value_and_grad(loss, (0, 1, 2))), platforms=platforms)(*given)
    assert CALL in made.mlir_module()
    assert "custom_call" not in unnamed.mlir_module()
    wanted = jax.value_and_grad(plain_loss, (0, 1, 2))(*given)
    for each in (made, unnamed):
        jax.tree.map(assert_close, export.deserialize(each.serialize()).call(*given), wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_kernels_stand_in_cuda_programs_alone(fused, sized):
    sized(segments=2, fused=fused)
    given = three(Case("lowered", 2, 19, 7))
    assert text(kernels.linear_scan, *given).count(f"@{CALL}") == 2
    assert text(jax.value_and_grad(loss, (0, 1, 2)), *given).count(f"@{CALL}") == 4
    for platform in ("cpu", "tpu"):
        assert CALL not in text(jax.grad(loss, (0, 1, 2)), *given, platform=platform)


def test_a_gradient_that_is_not_sought_is_not_computed(sized):
    sized(fused=True)
    given = three(Case("lowered", 2, 19, 7))
    # One kernel forward, one backward that reads a and the cotangents.
    assert text(jax.grad(loss, 1), *given).count(f"@{CALL}") == 2


def test_chosen_on_a_gpu_and_refused_elsewhere():
    given = three(Case("chosen", 2, 19, 7))
    with _dispatch.tracing_for("gpu"):
        found = kernels.explain(kernels.linear_scan, *given)
        assert (found.chosen.implementation, found.chosen.formulation) == ("triton", "walk")
        assert found.chosen.reason.endswith(tuned.UNMEASURED)
        wide = [jax.ShapeDtypeStruct(x.shape, "float64") for x in given]
        assert "takes float32, bfloat16, float16, b is float64" in str(kernels.explain(kernels.linear_scan, *wide))
        many = jax.ShapeDtypeStruct((1 << 26, 2, 2048), "bfloat16")
        said = "67108864 rows of 2048 channels are more than a launch has programs for"
        assert said in str(kernels.explain(kernels.linear_scan, many, many))
        one = three(Case("one", 2, 1, 7))
        assert kernels.explain(kernels.linear_scan, *one).chosen.implementation == "xla"
        assert kernels.explain(kernels.linear_scan, *one, implementation="triton").chosen.implementation == "triton"
    with pytest.raises(NotImplementedError, match="runs on gpu, this is cpu"):
        kernels.linear_scan(*given, implementation="triton")


def test_named_it_is_never_replaced():
    given = three(Case("named", 2, 19, 7))
    with (
        _dispatch.tracing_for("gpu"),
        pytest.raises(
            NotImplementedError, match="linear scan was asked for by name, and the program is compiled for cpu"
        ),
    ):
        jax.jit(lambda *x: kernels.linear_scan(*x, implementation="triton"))(*given)


def test_sizes_follow_the_shape_and_the_device():
    def config(case, device="NVIDIA H100 80GB HBM3"):
        s = Spec(*case.shape, case.a, case.dtype, case.dtype, case.reverse, False, None)
        with devices.compiling_for(device):
            how = triton_spec.configured(s).how
        assert how.device.name == device
        return how

    assert config(Case("many", 256, 512, 1024))[1:] == (4, 8, 1, False)
    assert config(Case("bf16", 256, 512, 1024, dtype="bfloat16"))[1:] == (8, 8, 1, False)
    few = config(Case("few", 1, 65536, 256))
    assert (few.vector, few.ahead) == (1, 32)
    assert few.segments > 16
    assert config(Case("short", 4, 3, 8))[1:] == (1, 4, 1, False)
    small = Case("device", 16, 1024, 512)
    assert config(small, "NVIDIA L4").segments <= config(small, "NVIDIA H100 80GB HBM3").segments


def test_a_table_of_measurements_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    s = Spec(2, 19, 7, (2, 19, 7), "float32", "float32", False, False, None)
    ops = {
        triton_spec.TABLE: {"b=2 t=19 c=7 float32 gate=btc float32": {"ahead": 2, "fused": True}},
        triton_spec.CHOICE: {"b=64 t=19 c=7 float32 gate=btc float32": {"triton": 3e-3, "xla": 2e-3}},
    }
    table = {"format": tuned.FORMAT, "date": "2026-01-01", "ops": ops}
    (tmp_path / "nvidia-h100-80gb-hbm3.json").write_text(json.dumps(table))
    with _dispatch.tracing_for("gpu", "NVIDIA H100 80GB HBM3"):
        assert triton_spec.configured(s).how[1:] == (1, 2, 1, True)
        assert triton_spec.configured(s._replace(batch=99, gate=(99, 19, 7))).how[1:] == (1, 32, 1, False)
        found = kernels.explain(kernels.linear_scan, *three(Case("known", 2, 19, 7)))
        assert found.chosen.reason == ("reads a and b once, writes h once; tuned on NVIDIA H100 80GB HBM3, 2026-01-01")
        slow = kernels.explain(kernels.linear_scan, *three(Case("slower", 64, 19, 7)))
        assert slow.chosen.implementation == "xla"
        assert "triton: walk (takes 1.50 times as long as XLA; tuned on" in str(slow)
