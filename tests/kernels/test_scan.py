"""The linear recurrence in plain JAX: values and derivatives against NumPy, the laws of its arguments, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from kernels.scan_reference import arrays, assert_equal_to_reference, computed, cotangents, reference
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels.scan.cases import TESTS, Case
from llmasos_xla.kernels.scan.xla import ASSOCIATIVE, IN_PLACE, STEPS

each_formulation = pytest.mark.parametrize("formulation", [IN_PLACE, ASSOCIATIVE, STEPS])
A, B, H0 = jnp.ones((2, 5, 3)), jnp.ones((2, 5, 3)), jnp.ones((2, 3))


def loss(formulation, a, b, h0, **options):
    with _dispatch.forced(formulation):
        h, final = kernels.linear_scan(a, b, h0, **options)
    return jnp.sum(jnp.sin(h)) + jnp.sum(final**2)


def close(got, wanted, **options):
    jax.tree.map(functools.partial(assert_close, **options), got, wanted)


@each_formulation
@pytest.mark.parametrize("case", TESTS, ids=lambda c: c.name)
def test_value_and_gradients(case, formulation):
    with _dispatch.forced(formulation):
        assert_equal_to_reference(case, "float32")


@each_formulation
def test_float64_is_exact(formulation):
    with jax.enable_x64(True), _dispatch.forced(formulation):
        assert_equal_to_reference(Case("wide", 2, 21, 5, None, True), "float64")


LOW = [(f, dtype, dtype == "float16") for f in (IN_PLACE, ASSOCIATIVE, STEPS) for dtype in ("bfloat16", "float16")]


@pytest.mark.parametrize(
    ("formulation", "dtype", "reverse"),
    slow_but(LOW, [IN_PLACE, ASSOCIATIVE, STEPS], ["bfloat16", "float16"], [False, True]),
)
def test_16_bits(formulation, dtype, reverse):
    with _dispatch.forced(formulation):
        assert_equal_to_reference(Case("16", 3, 21, 5, None, reverse), dtype)


@each_formulation
def test_the_state_is_not_rounded_between_steps(formulation):
    """1000 steps that each add less than bfloat16 tells apart at the sum."""
    a, b = jnp.ones((1, 1, 1), jnp.bfloat16), jnp.full((1, 1000, 1), 0.01, jnp.bfloat16)
    with _dispatch.forced(formulation):
        h, final = kernels.linear_scan(a, b)
    assert (h.dtype, final.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert float(final[0, 0]) == pytest.approx(1000 * float(b[0, 0, 0]), rel=1e-2)


@each_formulation
def test_gates_and_state_may_be_wider_than_b(formulation):
    case = Case("mixed", 2, 19, 7)
    given, (g, _) = arrays(case), cotangents(case)
    given["b"], cotangent = given["b"].astype("bfloat16"), (g.astype("bfloat16"), jnp.ones((2, 7)))
    with _dispatch.forced(formulation):
        (h, final), gradients = computed(case, given, cotangent)
    expected, expected_gradients = reference(case, given, cotangent)
    assert (h.dtype, final.dtype) == ("bfloat16", "float32")
    assert {name: x.dtype.name for name, x in gradients.items()} == {"a": "float32", "b": "bfloat16", "h0": "float32"}
    close([h, final], expected)
    for name, x in gradients.items():
        # da is made of db and h, which are rounded.
        assert_close(x, expected_gradients[name], scale=4, dtype="bfloat16", message=name)


def test_a_row_in_parts_is_the_row():
    a, b, h0 = (x.astype("bfloat16") for x in arrays(Case("parts", 2, 24, 3)).values())
    whole, final = kernels.linear_scan(a, b, h0.astype("float32"))
    state, parts = h0.astype("float32"), []
    for i in range(0, 24, 8):
        h, state = kernels.linear_scan(a[:, i : i + 8], b[:, i : i + 8], state)
        parts.append(h)
    np.testing.assert_array_equal(jnp.concatenate(parts, 1), whole)
    np.testing.assert_array_equal(state, final)


@each_formulation
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_not_looked_at(formulation, reverse):
    a, b, h0 = arrays(Case("ragged", 3, 6, 4)).values()
    lengths = np.array([6, 2, 0])
    bad = np.arange(6)[None, :, None] >= lengths[:, None, None]
    a, b = (jnp.where(bad, jnp.nan, x) for x in (a, b))

    def both(a, b, h0):
        return loss(formulation, a, b, h0, lengths=lengths, reverse=reverse)

    with _dispatch.forced(formulation):
        h, final = kernels.linear_scan(a, b, h0, lengths=lengths, reverse=reverse)
        alone = [
            kernels.linear_scan(a[i : i + 1, :n], b[i : i + 1, :n], h0[i : i + 1], reverse=reverse)
            for i, n in enumerate(lengths[:2])
        ]
    for i, (row, end) in enumerate(alone):
        close((h[i, : lengths[i]], final[i]), (row[0], end[0]))
    assert not np.any(np.where(bad, h, 0))
    np.testing.assert_array_equal(final[2], h0[2])
    for gradient in jax.grad(both, (0, 1, 2))(a, b, h0):
        assert np.isfinite(gradient).all()


@each_formulation
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_starts_a_new_row(formulation, reverse):
    a, b, h0 = arrays(Case("packed", 1, 9, 4)).values()
    resets = jnp.zeros((1, 9), bool).at[0, 4 if not reverse else 3].set(True)
    with _dispatch.forced(formulation):
        h, final = kernels.linear_scan(a, b, h0, resets=resets, reverse=reverse)
        first, second = (a[:, :4], b[:, :4]), (a[:, 4:], b[:, 4:])
        starts = (None, h0) if reverse else (h0, None)
        left, right = (kernels.linear_scan(*x, start, reverse=reverse) for x, start in zip((first, second), starts))
    close(h, jnp.concatenate([left[0], right[0]], 1))
    close(final, (left if reverse else right)[1])


FORMULATIONS, GATES = [IN_PLACE, ASSOCIATIVE], [None, (1, 1, 2), (2, 4, 1)]


@pytest.mark.parametrize(
    ("formulation", "gate"), slow_but([(IN_PLACE, None), (ASSOCIATIVE, (1, 1, 2))], FORMULATIONS, GATES)
)
def test_second_derivatives_in_every_mode(formulation, gate):
    with jax.enable_x64(True):
        given = arrays(Case("second", 2, 4, 2, gate, True), "float64").values()
        f, plain = (functools.partial(loss, how, reverse=True) for how in (formulation, STEPS))
        wanted = jax.jit(jax.hessian(plain, (0, 1, 2)))(*given)
        for mode in (
            jax.hessian(f, (0, 1, 2)),
            jax.jacrev(jax.grad(f, (0, 1, 2)), (0, 1, 2)),
            jax.jacfwd(jax.jacfwd(f, (0, 1, 2)), (0, 1, 2)),
        ):
            close(jax.jit(mode)(*given), wanted)


@pytest.mark.parametrize("formulation", [IN_PLACE, ASSOCIATIVE])
def test_derivatives_under_remat_vmap_and_scan(formulation):
    f, plain = (functools.partial(loss, how) for how in (formulation, STEPS))
    given = tuple(arrays(Case("transforms", 2, 7, 3, (2, 7, 1))).values())
    stacked = tuple(jnp.stack([x, x / 2, -x]) for x in given)
    gradient = jax.jit(jax.grad(plain, (0, 1, 2)))
    wanted = jax.vmap(gradient)(*stacked)
    close(jax.jit(jax.vmap(jax.grad(f, (0, 1, 2))))(*stacked), wanted)
    close(jax.lax.scan(lambda c, x: (c, jax.grad(f, (0, 1, 2))(*x)), 0, stacked)[1], wanted)
    close(jax.grad(jax.checkpoint(f), (0, 1, 2))(*given), gradient(*given))
    close(jax.grad(f, (0, 1, 2))(*given), gradient(*given))
    for axes in ((None, 0, None), (1, None, None), (None, None, 2)):
        mapped = [x if axis is None else jnp.stack([x, x / 2, -x], axis) for x, axis in zip(given, axes)]
        close(jax.vmap(f, axes)(*mapped), jax.vmap(plain, axes)(*mapped))


@pytest.mark.parametrize("formulation", [IN_PLACE, ASSOCIATIVE])
def test_only_the_gates_and_h_are_kept(formulation):
    a, b, h0 = arrays(Case("kept", 4, 64, 32)).values()
    with _dispatch.forced(formulation):
        _, pull = jax.vjp(kernels.linear_scan, a, b, h0)
    kept = sum(x.nbytes for x in jax.tree.leaves(pull))
    assert kept < 2 * b.nbytes + 4 * h0.nbytes + 64


@pytest.mark.parametrize("formulation", [IN_PLACE, ASSOCIATIVE])
def test_shard_map(formulation):
    a, b, h0 = arrays(Case("sharded", 8, 7, 3, (1, 7, 3))).values()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    f = functools.partial(loss, formulation)

    def whole(a, b, h0):
        local = jax.shard_map(
            lambda *x: jax.lax.psum(f(*x), "data"),
            mesh=mesh,
            in_specs=(spec(), spec("data"), spec("data")),
            out_specs=spec(),
        )
        return local(a, b, h0)

    close(jax.jit(jax.grad(whole, (0, 1, 2)))(a, b, h0), jax.grad(f, (0, 1, 2))(a, b, h0))


def test_explicitly_sharded_and_symbolic_arrays_are_taken_by_the_steps():
    a, b, _ = arrays(Case("explicit", 8, 5, 3)).values()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        put = jax.device_put(a, rows), jax.device_put(b, rows)
        assert kernels.explain(kernels.linear_scan, *put).chosen.formulation == STEPS
    batch, time = export.symbolic_shape("batch, time")
    shape = jax.ShapeDtypeStruct((batch, time, 3), jnp.float32)
    made = export.export(jax.jit(kernels.linear_scan))(shape, shape)
    close(made.call(a, b), kernels.linear_scan(a, b))


def test_what_runs_where():
    with _dispatch.tracing_for("cpu"):
        found = kernels.explain(kernels.linear_scan, A, B)
        assert found.chosen.formulation == IN_PLACE
        assert "triton: walk (runs on gpu, this is cpu)" in str(found)
    with _dispatch.tracing_for("tpu"):
        assert kernels.explain(kernels.linear_scan, A, B).chosen.formulation == ASSOCIATIVE
        shape = jax.ShapeDtypeStruct((1 << 20, 1, 64), jnp.float32)
        assert kernels.explain(kernels.linear_scan, shape, shape).chosen.formulation == IN_PLACE


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": B[0]}, ValueError, "b is (5, 3), expects 3 axes: [batch, time, channels]"),
        ({"a": A[0]}, ValueError, "a is (5, 3), expects 3 axes: [batch, time, channels]"),
        (
            {"b": B[:, :0]},
            ValueError,
            "b (2, 0, 3) = batch, time, channels has an empty axis, expects at least one element",
        ),
        (
            {"a": A[:, :4]},
            ValueError,
            "a is (2, 4, 3), expects [batch, time, channels] = (2, 5, 3) as b, or 1 on an axis that it is shared along",
        ),
        ({"h0": H0[:1]}, ValueError, "h0 is (1, 3), expects [batch, channels] = (2, 3)"),
        ({"resets": np.ones((2, 4), bool)}, ValueError, "resets is (2, 4), expects [batch, time] = (2, 5)"),
        (
            {"lengths": np.ones(3, int)},
            ValueError,
            "lengths is (3,), expects [batch] = (2,), one length for each row of b",
        ),
        (
            {"lengths": np.array([5, 6])},
            ValueError,
            "lengths run from 5 to 6, b has 5 steps; expects 0 <= length <= 5 (pad b, or clip the lengths)",
        ),
        ({"b": B.astype(int)}, TypeError, "b is int32, expects a real floating dtype"),
        ({"b": B.astype("complex64")}, TypeError, "b is complex64, expects a real floating dtype"),
        (
            {"a": A.astype("bfloat16")},
            TypeError,
            "a is bfloat16, b is float32: expects float32; convert it with .astype",
        ),
        (
            {"b": B.astype("bfloat16"), "h0": H0.astype("float16")},
            TypeError,
            "h0 is float16, b is bfloat16: expects bfloat16 or float32; convert it with .astype",
        ),
        ({"resets": np.ones((2, 5))}, TypeError, "resets is float32, expects bool: True where a new sequence starts"),
        ({"lengths": np.ones(2)}, TypeError, "lengths is float32, expects an integer dtype"),
        ({"implementation": "cudnn"}, ValueError, "unknown implementation 'cudnn'; Known: triton, xla"),
    ],
)
def test_refusals(change, error, message):
    with pytest.raises(error) as raised:
        kernels.linear_scan(**{"a": A, "b": B, **change})
    assert str(raised.value) == f"linear_scan: {message}"
