"""A Triton kernel in JAX programs: what is compiled for which platform, and what is done to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from kernels.triton import toy
from kernels.triton.aot import CALL
from kernels.triton.toy import product
from tolerances import assert_close

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import compiler, devices


@pytest.fixture
def arrays(rng):
    return jnp.asarray(rng.normal(size=(37, 70)), jnp.float32), jnp.asarray(rng.normal(size=(70, 45)), jnp.float32)


def text(function, *arrays, platforms=("cuda",)):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=platforms).as_text()


def loss(x, w):
    return jnp.sum(jnp.tanh(product(x, w)))


def test_kernel_stands_in_a_cuda_program_alone(arrays):
    assert text(product, *arrays).count(f"@{CALL}") == 1
    assert CALL not in text(product, *arrays, platforms=("cpu",))
    assert "dot_general" in text(product, *arrays, platforms=("tpu",))


def test_cpu_runs_the_plain_version(arrays):
    assert_close(product(*arrays), arrays[0] @ arrays[1])


def test_interpreted_program_equals_the_plain_one(arrays, interpreted):
    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays)
    with interpreted() as launches:
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays)
        jax.block_until_ready(got)
        assert launches == ["product_kernel"] * 3
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert_close(a, b)


def test_gradient_holds_three_launches(arrays):
    assert text(jax.grad(loss, (0, 1)), *arrays).count(f"@{CALL}") == 3


def test_second_derivatives_and_forward_mode(arrays):
    x, w = arrays

    def plain(x, w):
        return jnp.sum(jnp.tanh(x @ w))

    directions = jnp.ones_like(x), jnp.ones_like(w)
    for f in (loss, plain):
        assert jax.jvp(f, arrays, directions)[1].shape == ()
    assert_close(jax.jvp(loss, arrays, directions)[1], jax.jvp(plain, arrays, directions)[1])
    hvp = [jax.jvp(jax.grad(f), arrays, directions)[1] for f in (loss, plain)]
    assert_close(*hvp)


def test_vmap_scan_and_remat(arrays):
    x, w = arrays
    xs = jnp.stack([x, 2 * x])
    assert_close(jax.vmap(product, (0, None))(xs, w), xs @ w)

    def looped(x, w):
        step = jax.checkpoint(lambda h, _: (jnp.tanh(product(h, w)), None))
        return jax.lax.scan(step, x, None, length=3)[0].sum()

    # Small: where tanh is near one, 1 - tanh² has lost its digits, and two right programs differ.
    square = w[:45] / 7
    lowered = text(jax.grad(looped), x[:, :45], square)
    assert CALL in lowered
    assert_close(jax.grad(looped)(x[:, :45], square), jax.grad(_looped_plain)(x[:, :45], square))


def _looped_plain(x, w):
    for _ in range(3):
        x = jnp.tanh(x @ w)
    return x.sum()


def test_shard_map_launches_on_each_part(arrays):
    x, w = jnp.concatenate([arrays[0][:36]] * 2), arrays[1]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    @jax.jit
    def sharded(x, w):
        return jax.shard_map(product, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec("data"))(x, w)

    assert_close(sharded(x, w), x @ w)
    lowered = sharded.trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    assert CALL in lowered
    assert "tensor<9x70xf32>" in lowered


def test_partitioned_by_xla_it_is_plain(arrays):
    x, w = jnp.concatenate([arrays[0][:36]] * 2), arrays[1]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    lowered = jax.jit(product, in_shardings=(rows, None)).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    assert CALL not in lowered


def test_one_export_for_three_platforms_runs_on_cpu(arrays):
    checks = [export.DisabledSafetyCheck.custom_call(CALL)]

    def named(x, w):
        return product(x, w, named=True)

    made = export.export(jax.jit(named), platforms=("cuda", "cpu", "tpu"), disabled_checks=checks)(*arrays)
    assert CALL in made.mlir_module()
    again = export.deserialize(made.serialize())
    assert again.platforms == ("cuda", "cpu", "tpu")
    assert_close(again.call(*arrays), arrays[0] @ arrays[1])


def test_unnamed_export_needs_no_kernel(arrays):
    made = export.export(jax.jit(product), platforms=("cuda", "cpu"))(*arrays)
    assert CALL not in made.mlir_module()


def test_named_it_is_refused_elsewhere(arrays):
    with pytest.raises(
        NotImplementedError, match=r"implementation='triton' cannot run: toy product .* compiled for cpu"
    ):
        jax.jit(lambda x, w: product(x, w, named=True))(*arrays)


def test_launch_alone_has_no_derivative_and_no_batch(arrays):
    spec = toy.Spec(37, 70, 45, "float32")

    def bare(x, w):
        return toy.build(spec, x, w)[0]

    with pytest.raises(NotImplementedError, match="a launch has no derivative of its own"):
        jax.jvp(bare, arrays, arrays)
    with pytest.raises(NotImplementedError, match="a launch cannot be mapped"):
        jax.vmap(bare, (0, None))(jnp.stack([arrays[0]] * 2), arrays[1])
    with pytest.raises(NotImplementedError, match="runs on cuda alone"):
        jax.jit(bare)(*arrays)


def test_parameters_must_be_named_in_order(arrays):
    given, made = dict(zip(("x_ptr", "w_ptr"), arrays)), {"y_ptr": jax.ShapeDtypeStruct((37, 45), jnp.float32)}
    constants = {"M": 1, "N": 1, "BLOCK": 16}
    with pytest.raises(ValueError, match=r"product_kernel: takes \['x_ptr', 'w_ptr', 'y_ptr', 'K'\] in this order"):
        _triton.launch(
            toy.product_kernel, (1,), given, made, constants, device=_triton.current(), options=compiler.Options()
        )


def test_what_triton_refuses_is_told_with_the_request(arrays):
    with pytest.raises(RuntimeError, match=r"toy.product_kernel: Triton cannot compile .* 'BLOCK': 24"):
        compiler.compile_kernel(
            _triton.primitive.Kernel.of(toy.product_kernel), dict.fromkeys(("x_ptr", "w_ptr", "y_ptr"), np.dtype("f4")),
            {"M": 8, "N": 8, "K": 8, "BLOCK": 24}, compiler.Target("cuda", 90), compiler.Options(),
        )  # fmt: skip


def test_device_can_be_named(arrays):
    with devices.compiling_for("NVIDIA A100-SXM4-80GB") as device:
        assert _triton.current() == device
        text(product, *arrays)
    with pytest.raises(ValueError, match="unknown GPU 'H1000'"), devices.compiling_for("H1000"):
        pass


def test_old_gpus_are_refused():
    said = devices.described("Tesla V100-SXM2-16GB", "7.0", 80)
    assert said == "Tesla V100-SXM2-16GB has compute capability 7.0; the kernels need 8.0 or newer"


def test_without_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert _triton.refusal() == 'Triton is not installed: pip install "llmasos_xla[gpu]", or implementation="xla"'
