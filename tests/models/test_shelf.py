"""One contract for all models of the shelf, on the samples of tests/models/shelf/."""

import functools
import importlib.util
import pathlib
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.core import Variables
from llmasos_xla.models.layers._base import layer_from_json
from llmasos_xla.models.shelf import FAMILIES, SHELF
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.rules import layout


def _samples():
    found = []
    for path in sorted((pathlib.Path(__file__).parent / "shelf").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"shelf_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += module.SAMPLES
    return found


SAMPLES = _samples()
FIRST = {type(sample.config): sample.name for sample in reversed(SAMPLES)}
every_model = pytest.mark.parametrize(
    "sample",
    [
        # The first of each family always.
        pytest.param(s, id=s.name, marks=[] if s.name in FIRST.values() else [pytest.mark.thorough])
        for s in SAMPLES
    ],
    # All laws of a sample one after the other.
    scope="module",
)


@functools.cache
def _made(name):
    """Net, variables, jitted apply and output of a sample: compiled once for all laws."""
    sample = next(s for s in SAMPLES if s.name == name)
    net = sample.config.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    apply = jax.jit(lambda variables, x: net.apply(variables, x, train=False)[0])
    return net, variables, apply, apply(variables, _arrays(sample.x))


def _arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def _close(actual, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1.0))


def test_every_family_has_a_sample():
    assert {type(sample.config) for sample in SAMPLES} == set(FAMILIES)


@every_model
def test_it_says_the_rank_of_each_input(sample):
    given = sample.x if isinstance(sample.x, dict) else {sample.config.inputs[0]: sample.x}
    shapes = sample.config.spec().input_shapes()
    assert {name: np.ndim(a) - 1 for name, a in given.items()} == {name: len(shapes[name]) for name in given}


def test_a_call_takes_lists_and_refuses_other_ranks_in_words():
    model = lm.models.gpt2(vocab=9, context=8, width=8, depth=1, heads=2)
    np.testing.assert_array_equal(model([[1, 2, 3]]), model(np.array([[1, 2, 3]])))
    with pytest.raises(ValueError, match=re.escape("GPT2Config: ids [batch, any] is wanted, got the shape (3,)")):
        model([1, 2, 3])
    with pytest.raises(
        ValueError, match=re.escape("ResNetConfig: images [batch, any, any, 3] is wanted, got the shap")
    ):
        lm.models.resnet20_cifar(depths=(1, 1, 1))(np.zeros((8, 8, 3), np.float32))


def test_every_preset_is_a_configuration():
    for name, make in SHELF.items():
        assert isinstance(make(), tuple(FAMILIES)), name
        assert make.__doc__, name


@every_model
def test_functions_are_pure(sample):
    net, variables, _, output = _made(sample.name)
    again = jax.jit(net.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output))
    shape = sample.config.output_shape(sample.inputs[sample.config.inputs[0]].shape[1:])
    first = jax.tree.leaves(output)[0].shape[1:]
    assert len(shape) == len(first)
    assert all(n in (None, m) for n, m in zip(shape, first))
    assert layer_from_json(sample.config.to_json()) == sample.config


@every_model
def test_jit_is_eager(sample):
    net, variables, _, output = _made(sample.name)
    _close(net.apply(variables, _arrays(sample.x), train=False)[0], output)


@every_model
def test_vmap_is_a_loop(sample):
    _, variables, apply, output = _made(sample.name)
    x = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), _arrays(sample.x))
    mapped = jax.jit(jax.vmap(apply, in_axes=(None, 0)))(variables, x)
    _close(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), mapped), output)


@every_model
def test_gradients_are_finite_and_reach_every_parameter(sample):
    net, variables, _, _ = _made(sample.name)

    def loss(params):
        output, _ = net.apply(Variables(params, variables.state), _arrays(sample.x), train=True, key=jax.random.key(1))
        return sum(jnp.sum(jnp.sin(3.0 * leaf)) for leaf in jax.tree.leaves(output))

    gradients = jax.jit(jax.grad(loss))(variables.params)
    assert all(np.isfinite(g).all() for g in gradients.values())
    idle = {name for name, g in gradients.items() if not np.any(g)}
    assert not [name for name in idle if not any(re.search(pattern, name) for pattern in sample.unused)]


@every_model
def test_saved_is_loaded(sample, tmp_path):
    _, _, _, output = _made(sample.name)
    network = _network(sample)
    network.save(tmp_path / "model.safetensors")
    loaded = lm.load(tmp_path / "model.safetensors")
    assert loaded.config == sample.config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
    jax.tree.map(np.testing.assert_array_equal, loaded(**sample.inputs), network(**sample.inputs))
    assert jax.tree.structure(output) == jax.tree.structure(loaded(**sample.inputs))


def _network(sample):
    from llmasos_xla.api.network import Network

    network = Network(sample.config)
    network.variables = _made(sample.name)[1]
    return network


@every_model
def test_what_it_reads_is_known(sample):
    config = sample.config
    shapes = config.input_shapes(sample.inputs[config.inputs[0]].shape[1:])
    assert list(shapes) == list(config.inputs)
    for name, array in sample.inputs.items():
        assert len(shapes[name]) == array.ndim - 1, name
        assert all(n in (None, m) for n, m in zip(shapes[name], array.shape[1:])), name
        assert (name in config.integers) == np.issubdtype(array.dtype, np.integer), name
    config.check_tokens(sample.x)


@every_model
def test_bfloat16_is_near(sample):
    _, variables, apply, output = _made(sample.name)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, variables.params)
    x = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, _arrays(sample.x))
    near = apply(Variables(half, variables.state), x)
    for a, b in zip(jax.tree.leaves(near), jax.tree.leaves(output), strict=True):
        if jnp.issubdtype(b.dtype, jnp.floating):
            difference = np.asarray(a, np.float32) - np.asarray(b, np.float32)
            assert np.sqrt(np.mean(difference**2)) <= sample.tolerance * max(np.std(b), 1e-6)


@every_model
def test_every_array_has_a_place(sample):
    _, variables, _, _ = _made(sample.name)
    for name, array in {**variables.params, **variables.state}.items():
        for spec in (MeshSpec(tensor=2), MeshSpec(data=2, fsdp=2, tensor=2)):
            layout(name, array.shape, spec)


@every_model
def test_divided_is_whole(sample):
    if not sample.sharded:
        pytest.skip("said not to run divided by data and tensor")
    network = _network(sample)
    network.learner.shard(MeshSpec(data=2, tensor=2))
    _close(network(**sample.inputs), _made(sample.name)[3])


@every_model
def test_it_is_exported(sample):
    net, variables, _, output = _made(sample.name)
    apply = jax.jit(lambda params, state, x: net.apply(Variables(params, state), x, train=False)[0])
    x = _arrays(sample.x)
    exported = jax.export.export(apply, platforms=("cpu", "cuda", "tpu"))(variables.params, variables.state, x)
    again = jax.export.deserialize(exported.serialize())
    _close(again.call(variables.params, variables.state, x), output)


@every_model
@pytest.mark.usefixtures("unchecked")  # the number is no int
def test_it_is_exported_for_any_number_of_rows(sample):
    net, variables, _, output = _made(sample.name)
    apply = jax.jit(lambda variables, x: net.apply(variables, x, train=False)[0])
    (rows,) = jax.export.symbolic_shape("rows")
    x = jax.tree.map(jnp.asarray, _arrays(sample.x))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), x)
    exported = jax.export.export(apply)(variables, shapes)
    again = jax.export.deserialize(exported.serialize())
    _close(again.call(variables, x), output)


@every_model
def test_a_summary_adds_up(sample):
    network = _network(sample)
    network.learner.build()
    lines = network.learner.spec.table(network.variables).splitlines()
    counts = [int(line.split()[-1].replace(",", "")) for line in lines if line.startswith("  ")]
    assert sum(counts) == sum(a.size for a in network.variables.params.values())
