"""The persistent recurrences compiled for GPUs that are not here: registers, shared memory, instructions, programs."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import export
from kernels.triton import aot
from kernels.triton.aot import CALL
from repetitions import slow_but
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton.compiler import Options
from llmasos_xla.kernels.rnn import triton_backward_kernels, triton_forward_kernels, triton_launches, triton_spec
from llmasos_xla.kernels.rnn.cases import GPU_BENCH
from llmasos_xla.kernels.rnn.triton_spec import Spec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def spec(target, kind, batch, heads, head, dtype, options=(), directions=1):
    """What the public functions would run there, or None where there are no tiles."""
    device, blocks = aot.DEVICES[target], heads * directions
    precisions = ("ieee",) if dtype != "float32" or target == "gfx942" else ("tf32x3", "ieee")
    for precision in precisions:
        cut = [triton_spec.tiles(kind, batch, blocks, head, dtype, precision, device, back) for back in (False, True)]
        if None not in cut:
            asked = ("lengths" in options, "resets" in options, "mask" in options)
            reverse = 2 if directions == 2 else 0
            norm = (head - 3, 1e-5) if kind == "lnlstm" else ()
            return Spec(kind, batch, 40, 8, blocks, heads, head, reverse, dtype, *asked, precision, device, *cut, *norm)
    return None


def report(s, target, backward):
    """The compiled kernel of a training pass."""
    kernel = triton_backward_kernels.backward if backward else triton_forward_kernels.forward
    tiles = s.backward if backward else s.forward
    low, high = BFLOAT16 if s.dtype == "bfloat16" else np.dtype(s.dtype), np.dtype("float32")
    states = {f"{n}{end}" for n in triton_spec.STATES[s.kind] for end in ("", "0")}
    if backward:
        states = {f"d{name}" for name in states} - {"dm", "dm0"}
        given = dict.fromkeys(("r", "dy", "gates", "dp", *s.saved), low) | dict.fromkeys(states, high)
        if s.kind != "gru":
            del given["previous"]
    else:
        given = dict.fromkeys(("ra", "y", *s.saved), low) | dict.fromkeys(("p", "bias", *states), high)
        given |= {"rb": low} if s.gates > 1 else {}
        given |= {"recurrent_bias": high} if s.kind == "gru" else {}
    if s.kind == "lnlstm":
        given |= dict.fromkeys(("recurrent_scale", "cell_scale", "cell_offset", "rates"), high)
        given |= dict.fromkeys(("dq", "dnorm"), low) if backward else {}
        given.pop("bias", None)
    given |= {"lengths": np.dtype("int32")} if s.lengths else {}
    given |= {"resets": np.dtype("uint8")} if s.resets else {}
    given |= {"mask": high} if s.mask else {}
    given |= {"exchange": low, "counter": np.dtype("int32")} if tiles.splits > 1 else {}
    names = [p.name for p in kernel.params if p.name.endswith("_ptr")]
    constants = triton_launches.constants(s, tiles) | {n: None for n in names if n[:-4] not in given}
    constants["PTX"] = target != "gfx942"
    pointers = {n: given[n[:-4]] for n in names if n[:-4] in given}
    return aot.compiled(kernel, pointers, constants, target, Options(tiles.warps, registers=255))


def assert_fast(s, target):
    for backward in (False, True):
        got = report(s, target, backward)
        what = f"{s.kind} {s.batch} x {s.blocks} x {s.head} {s.dtype}, {'backward' if backward else 'forward'}"
        assert got.spilled == 0, f"{what}: {got.spilled} bytes spilled, {s.backward if backward else s.forward}"
        assert got.shared_memory <= aot.SHARED_MEMORY[target], what
        assert got.matrix_instructions > 0 or (s.dtype == "float32" and s.precision == "ieee"), what


ALL = ("lengths", "resets", "mask")


PROBLEMS = {
    ("lstm", 16, 12, 64, "bfloat16"): "sm100",
    ("lstm", 16, 1, 256, "bfloat16", ALL): "sm90",
    ("gru", 20, 1, 176, "float16"): "gfx942",
    ("slstm", 16, 4, 32, "bfloat16"): "gfx942",
    ("lstm", 16, 2, 48, "float32"): "sm80",
    ("rnn", 16, 1, 512, "bfloat16", (), 2): "sm100",
    ("lnlstm", 16, 1, 16, "bfloat16", ALL, 2): "sm80",
    ("lnlstm", 16, 1, 16, "float32", ALL): "sm90",
}
"""Problems, and for which GPU each is compiled always."""


@pytest.mark.parametrize(
    ("problem", "target"),
    slow_but(PROBLEMS.items(), PROBLEMS, aot.DEVICES),
    ids=lambda p: p if isinstance(p, str) else "-".join(map(str, p[:5])),
)
def test_compiles_without_spilling(target, problem):
    s = spec(target, *problem)
    assert s is not None
    assert_fast(s, target)


BATCHES = ((1, 1), (16, 4), (64, 1), (300, 1))


@pytest.mark.slow
@pytest.mark.parametrize("head", [16, 128, 336, 768, 1024, 1152, 1664])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "slstm", "rnn"])
def test_every_size_compiles_without_spilling(dtype, kind, head):
    """Blocks from 16 units to the largest that fit, batches from one row to more than can be resident."""
    cuts = [spec("sm90", kind, batch, heads, head, dtype, ALL if head == 336 else ()) for batch, heads in BATCHES]
    for s in {(s.forward, s.backward): s for s in cuts if s is not None}.values():
        assert_fast(s, "sm90")


@pytest.mark.thorough
@pytest.mark.parametrize("target", slow_but([("sm90",)], ["sm80", "sm90", "sm100"]))  # gfx942 has not the shared memory
def test_the_widest_layer_normalization_compiles_without_spilling(target):
    assert_fast(spec(target, "lnlstm", 16, 1, 128, "bfloat16", ALL), target)


@pytest.mark.slow
@pytest.mark.parametrize("head", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", ["sm80", "sm90", "sm100"])
def test_every_size_of_a_layer_normalization_compiles_without_spilling(target, dtype, head):
    """Batches up to those that take tiles of many rows."""
    cuts = [spec(target, "lnlstm", batch, 1, head, dtype, ALL) for batch in (16, 3000, 20000)]
    assert (cuts[0] is None) == (dtype == "float32" and head > 64)
    if target == "sm80" and dtype == "float32" and head > 32:
        return  # two to four registers too few, which is no reason to leave the kernel
    for s in {(s.forward[:6], s.backward[:6]): s for s in cuts if s is not None}.values():
        assert_fast(s, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm80", "sm100", "gfx942"])
@pytest.mark.parametrize("head", [16, 128, 336, 768])
@pytest.mark.parametrize("kind", ["lstm", "gru", "slstm", "rnn"])
def test_other_gpus_too(target, kind, head):
    cuts = [spec(target, kind, batch, heads, head, "bfloat16") for batch, heads in BATCHES[1:3]]
    for s in {(s.forward, s.backward): s for s in cuts if s is not None}.values():
        assert_fast(s, target)


@pytest.mark.slow
@pytest.mark.parametrize("case", GPU_BENCH[:20:3], ids=lambda c: f"{c.name}-{c.dtype}")
def test_what_tuning_may_try_compiles_without_spilling(case):
    head = -(-case.hidden // case.heads // 16) * 16
    s = spec("sm90", case.op, case.batch, case.heads, head, case.dtype)
    for back, name in enumerate(("forward", "backward")):
        shape = s.kind, s.batch, s.blocks, s.head, s.dtype, s.precision, s.device
        for cut in triton_spec.allowed(*shape, bool(back))[1:12:4]:
            got = report(s._replace(**{name: cut}), "sm90", bool(back))
            assert got.spilled == 0, cut
            assert got.shared_memory <= aot.SHARED_MEMORY["sm90"], cut


def test_sizes_that_people_train_have_tiles():
    for problem in (
        ("lstm", 16, 1, 768), ("lstm", 16, 3, 256), ("lstm", 64, 1, 1024), ("lstm", 8, 1, 1536), ("gru", 32, 1, 1024),
        ("rnn", 16, 1, 1760), ("lstm", 80, 1, 1152), ("lstm", 62, 1, 176), ("lstm", 512, 1, 1024),
    ):  # fmt: skip
        s = spec("sm90", *problem, "bfloat16")
        assert s is not None, problem
        for tiles in (s.forward, s.backward):
            # All programs that wait for each other run at a time.
            assert tiles.splits == 1 or tiles.splits * s.blocks * tiles.resident <= s.device.multiprocessors
            assert tiles.rows * tiles.resident * tiles.rounds >= s.batch
            assert tiles.units * tiles.splits >= s.head


# In programs.


@pytest.fixture
def arrays(rng):
    shapes = {"x": (2, 3, 4), "w_input": (4, 20), "w_recurrent": (5, 20), "bias": (20,)}
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def lowered(function, arrays, platform):
    return jax.jit(function).trace(arrays).lower(lowering_platforms=(platform,)).as_text()


def test_cuda_programs_hold_one_launch_a_pass(arrays):
    with _dispatch.tracing_for("gpu"):
        assert kernels.explain(kernels.lstm, **arrays).chosen.implementation == "triton"

        def forward(a):
            return kernels.lstm(**a)[0].sum()

        assert lowered(forward, arrays, "cuda").count(f"@{CALL}") == 1
        assert lowered(jax.grad(forward), arrays, "cuda").count(f"@{CALL}") == 2
        assert CALL not in lowered(jax.grad(forward), arrays, "cpu")
        assert "while" in lowered(forward, arrays, "tpu")


def test_cpu_runs_what_was_traced_for_a_gpu(arrays):
    def loss(a):
        return jnp.sum(jnp.sin(kernels.lstm(**a)[0]))

    expected = jax.grad(loss)(arrays)
    with _dispatch.tracing_for("gpu"):
        got = jax.jit(jax.grad(loss))(arrays)
    jax.tree.map(assert_close, got, expected)


def test_one_export_for_three_platforms(arrays):
    checks = [export.DisabledSafetyCheck.custom_call(CALL)]
    with _dispatch.tracing_for("gpu"):
        named = jax.jit(lambda a: kernels.lstm(**a, implementation="triton")[0])
        made = export.export(named, platforms=("cuda", "cpu", "tpu"), disabled_checks=checks)(arrays)
    assert CALL in made.mlir_module()
    assert_close(export.deserialize(made.serialize()).call(arrays), kernels.lstm(**arrays)[0])


def test_each_device_of_a_mesh_launches_on_its_rows(arrays):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    arrays["x"] = jnp.concatenate([arrays["x"]] * 8)

    def outputs(a):
        return kernels.lstm(**a)[0]

    rows = {name: spec("data") if name == "x" else spec() for name in arrays}
    sharded = jax.jit(jax.shard_map(outputs, mesh=mesh, in_specs=(rows,), out_specs=spec("data")))
    with _dispatch.tracing_for("gpu"):
        text = sharded.trace(arrays).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count(f"@{CALL}") == 1
        assert_close(sharded(arrays), outputs(arrays))


def test_a_gpu_can_be_named(arrays):
    def forward(a):
        return kernels.lstm(**a)[0]

    with kernels.tracing_for("gpu", "NVIDIA B200"):
        other = lowered(forward, arrays, "cuda")
    with kernels.tracing_for("gpu"):
        assert lowered(lambda a: forward(a), arrays, "cuda") != other
    with pytest.raises(ValueError, match="unknown GPU 'GeForce'"), kernels.tracing_for("gpu", "GeForce"):
        pass
    with pytest.raises(ValueError, match="names a GPU, the platform is 'cpu'"), kernels.tracing_for("cpu", "H200"):
        pass


def test_float32_is_tf32_only_where_jax_is_told_so(arrays):
    def precision():
        chosen = jax.make_jaxpr(lambda a: kernels.lstm(**a)[0])(arrays)
        (eqn,) = [e for e in chosen.eqns if e.primitive.name == "triton"]
        return eqn.params["spec"].precision

    with _dispatch.tracing_for("gpu"):
        assert precision() == "tf32x3"
        with jax.default_matmul_precision("tensorfloat32"):
            assert precision() == "tf32"
