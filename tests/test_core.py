"""A module as pure functions over flat dicts."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llmasos_xla import Variables, layers, pure


class Block(nnx.Module):
    def __init__(self, cin, cout, rngs):
        self.dense = nnx.Linear(cin, cout, rngs=rngs)
        self.norm = nnx.BatchNorm(cout, rngs=rngs)

    def __call__(self, x, train):
        return jax.nn.relu(self.norm(self.dense(x), use_running_average=not train))


class Tower(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(3, 4, rngs), Block(4, 5, rngs)])
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        for block in self.blocks:
            x = block(x, train)
        return self.drop(x, deterministic=not train, rngs=rngs)


@pytest.fixture(scope="module")
def net():
    return pure(Tower)


@pytest.fixture(scope="module")
def variables(net):
    return net.init(jax.random.key(0))


X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def test_arrays_are_named_by_path(variables):
    assert {n for n in variables.params if n.startswith("blocks/0/")} == {
        "blocks/0/dense/kernel",
        "blocks/0/dense/bias",
        "blocks/0/norm/scale",
        "blocks/0/norm/bias",
    }
    assert set(variables.state) == {f"blocks/{i}/norm/{kind}" for i in (0, 1) for kind in ("mean", "var")}
    chex.assert_shape(variables.params["blocks/1/dense/kernel"], (4, 5))


def test_apply_changes_nothing_it_was_given(net, variables):
    before = jax.tree.map(jnp.copy, variables)
    _, state = net.apply(variables, X, train=True, key=jax.random.key(1))
    chex.assert_trees_all_equal(variables, before)
    assert float(jnp.abs(state["blocks/0/norm/mean"] - variables.state["blocks/0/norm/mean"]).max()) > 0


def test_evaluation_keeps_the_state_and_needs_no_key(net, variables):
    _, state = net.apply(variables, X, train=False)
    chex.assert_trees_all_equal(state, variables.state)


def test_jit_and_eager_agree(net, variables):
    def apply(v, x, key):
        return net.apply(v, x, train=True, key=key)

    chex.assert_trees_all_close(
        jax.jit(apply)(variables, X, jax.random.key(2)), apply(variables, X, jax.random.key(2)), rtol=1e-5, atol=1e-6
    )


def test_equal_keys_give_equal_weights(net):
    a, b, c = (net.init(jax.random.key(k)) for k in (7, 7, 8))
    chex.assert_trees_all_equal(a, b)
    assert not jnp.array_equal(a.params["blocks/0/dense/kernel"], c.params["blocks/0/dense/kernel"])


def test_gradients_reach_every_parameter(net, variables):
    def loss(params):
        y, _ = net.apply(Variables(params, variables.state), X, train=True, key=jax.random.key(3))
        return jnp.sum(jnp.sin(y))

    gradients = jax.grad(loss)(variables.params)
    assert gradients.keys() == variables.params.keys()
    chex.assert_tree_all_finite(gradients)


def test_wrong_variables_are_named(net, variables):
    params = {n: a for n, a in variables.params.items() if n != "blocks/0/dense/kernel"} | {"extra": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"missing \['blocks/0/dense/kernel'\], left over \['extra'\]"):
        net.apply(Variables(params, variables.state), X, train=False)


@pytest.mark.usefixtures("unchecked")
def test_an_instance_is_no_constructor():
    with pytest.raises(
        TypeError, match=r"pure: a constructor .* got an instance of Tower: pass pure\(Tower\), or pure"
    ):
        pure(Tower(nnx.Rngs(0)))
    layer = layers.Dense(3)
    with pytest.raises(TypeError, match=r"got an instance of Dense: pass pure\(lambda rngs: layer.build\(sample_shape"):
        pure(layer)
    assert set(pure(lambda rngs: layer.build((4,), rngs)).init(jax.random.key(0)).params) == {"bias", "kernel"}
