"""A mixture of experts against a loop over tokens, and the laws of routing and balance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.compiling import compile
from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812

WIDTH, TIME = 5, 9


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(3, TIME, WIDTH)), jnp.float32)


@functools.cache
def made(spec):
    net, key = pure(lambda rngs: spec.build((TIME, WIDTH), rngs)), jax.random.key(0)
    return compile(net.init, key, what="initial weights", once=True)(key), jax.jit(net.apply, static_argnames="train")


def apply(spec, x, *, variables=None, train=False, **inputs):
    variables_made, run = made(spec)
    variables = variables_made if variables is None else variables
    y, state = run(variables, x, train=train, **inputs)
    return y, Variables(variables.params, state)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def by_token(variables, x, spec, mask=None, factor=None):
    """Token by token, row by row, in float64; the outputs, each expert's load, and how many choices were dropped."""
    p = {n: np.asarray(a, np.float64) for n, a in {**variables.params, **variables.state}.items()}
    x = np.asarray(x, np.float64)
    y, load, dropped = np.zeros_like(x), np.zeros(spec.experts, int), 0
    for row in range(x.shape[0]):
        taken = np.zeros(spec.experts, int)
        for t in range(x.shape[1]):
            if mask is not None and not mask[row, t]:
                continue
            token = x[row, t]
            scores = sigmoid(token @ p["router/kernel"])
            chosen = np.argsort(-(scores + p["router/balance"]), kind="stable")[: spec.experts_per_token]
            total = scores[chosen].sum() if spec.experts_per_token > 1 else 1.0
            for expert in chosen:
                load[expert] += 1
                if factor is not None and taken[expert] >= places(factor, x.shape[1], spec):
                    dropped += 1
                    continue
                taken[expert] += 1
                gate, up, down = (p[f"experts/{n}/kernel"][expert] for n in ("gate", "up", "down"))
                inside = token @ gate
                y[row, t] += scores[expert] / total * ((inside * sigmoid(inside) * (token @ up)) @ down)
    return y, load, dropped


def places(factor, time, spec):
    return int(np.ceil(factor * time * spec.experts_per_token / spec.experts))


SPECS = [
    L.MixtureOfExperts(4, 6),
    L.MixtureOfExperts(3, 2, experts_per_token=1, capacity_factor=0.5),
    L.MixtureOfExperts(5, 3, experts_per_token=3, capacity_factor=0.6, prediction_capacity_factor=0.4),
    L.MixtureOfExperts(2, 3, experts_per_token=2),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_outputs_and_drops_are_those_of_a_loop_over_tokens(spec, train, masked, x):
    mask = np.arange(TIME)[None] < np.array([TIME, 4, 0])[:, None] if masked else None
    variables, _ = made(spec)
    tilt = jnp.linspace(0.0, 0.2, spec.experts)
    variables = variables._replace(state={**variables.state, "router/balance": tilt})
    y, after = apply(spec, x, variables=variables, train=train, mask=None if mask is None else jnp.asarray(mask))
    factor = spec.capacity_factor if train else spec.prediction_capacity_factor
    expected, load, dropped = by_token(variables, x, spec, mask, factor)
    assert_close(y, expected)
    if not train:
        np.testing.assert_array_equal(after.state["router/balance"], tilt)
        return
    assert int(after.state["router/dropped"]) == dropped
    over = np.sign(load - load.mean())
    assert_close(after.state["router/balance"], np.asarray(tilt) - spec.balance_rate * over)
    if spec.capacity_factor < 1 and not masked:
        assert dropped > 0


def test_gradients_are_those_of_all_experts_run_on_all_tokens(x):
    """With places for everybody the choice is a weight of zero for those who are not chosen."""
    spec = L.MixtureOfExperts(4, 6, capacity_factor=4.0)
    variables, run = made(spec)

    def ours(params, x):
        return jnp.sum(jnp.square(run(Variables(params, variables.state), x, train=True)[0]))

    def dense(params, x):
        scores = jax.nn.sigmoid(x @ params["router/kernel"])
        least = jnp.sort(scores, axis=-1)[..., -2:-1]
        weights = jnp.where(scores >= least, scores, 0.0)
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        gate, up = (jnp.einsum("btw,ewh->bteh", x, params[f"experts/{n}/kernel"]) for n in ("gate", "up"))
        answers = jnp.einsum("bteh,ehw->btew", jax.nn.silu(gate) * up, params["experts/down/kernel"])
        return jnp.sum(jnp.square(jnp.einsum("bte,btew->btw", weights, answers)))

    got = jax.jit(jax.grad(ours, (0, 1)))(variables.params, x)
    wanted = jax.jit(jax.grad(dense, (0, 1)))(variables.params, x)
    jax.tree.map(lambda a, b: assert_close(a, b, scale=3), got, wanted)


@pytest.mark.parametrize("train", [False, True])
def test_a_row_gives_the_same_in_any_company(x, train):
    spec = L.MixtureOfExperts(4, 6, capacity_factor=0.6)
    together, _ = apply(spec, x, train=train)
    for row in range(3):
        alone, _ = apply(spec, x[row : row + 1], train=train)
        assert_close(alone[0], together[row])


def test_places_go_to_earlier_tokens_first(x):
    """All tokens alike want the same experts: the first that fit are served, the others get nothing."""
    spec = L.MixtureOfExperts(4, 6, capacity_factor=0.9)
    same = jnp.broadcast_to(x[:, :1], x.shape)
    y, after = apply(spec, same, train=True)
    room = places(0.9, TIME, spec)
    assert_close(y[:, :room], jnp.broadcast_to(y[:, :1], (3, room, WIDTH)))
    assert np.any(y[:, 0])
    np.testing.assert_array_equal(y[:, room:], 0)
    assert int(after.state["router/dropped"]) == 3 * 2 * (TIME - room)
    whole, _ = apply(spec, same)
    assert_close(whole, jnp.broadcast_to(y[:, :1], y.shape))


def test_padding_takes_no_place(x):
    spec = L.MixtureOfExperts(4, 6, capacity_factor=0.6)
    mask = jnp.broadcast_to(jnp.arange(TIME)[None] < 6, (3, TIME))
    y, after = apply(spec, x, train=True, mask=mask)
    other, again = apply(spec, jnp.where(mask[..., None], x, 7.0), train=True, mask=mask)
    np.testing.assert_array_equal(other, y)
    np.testing.assert_array_equal(y[:, 6:], 0)
    assert {n: np.asarray(a).tolist() for n, a in after.state.items()} == {
        n: np.asarray(a).tolist() for n, a in again.state.items()
    }


def unevenness(spec, variables, x):
    """How far the fullest expert is above the mean: the violation that Wang et al. 2024 measure."""
    _, load, _ = by_token(variables, x, spec)
    return load.max() / load.mean() - 1


def test_balancing_evens_a_crooked_load_without_any_gradient():
    spec = L.MixtureOfExperts(4, 6, balance_rate=0.02)
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(16, TIME, WIDTH)) + 1.5, jnp.float32)
    variables, _ = made(spec)
    before = unevenness(spec, variables, x)
    still = dataclasses.replace(spec, balance_rate=0.0)
    _, unmoved = apply(still, x, variables=variables, train=True)
    assert not np.any(unmoved.state["router/balance"])
    for _ in range(60):
        _, variables = apply(spec, x, variables=variables, train=True)
    after = unevenness(spec, variables, x)
    assert before > 0.4
    assert after < 0.1
    assert variables.params is made(spec)[0].params


def test_the_balance_chooses_and_does_not_weigh(x):
    """Where all experts are chosen it changes nothing."""
    spec = SPECS[-1]
    y, variables = apply(spec, x)
    tilted = variables._replace(state={**variables.state, "router/balance": jnp.array([5.0, -5.0])})
    assert_close(apply(spec, x, variables=tilted)[0], y)


def test_experts_are_interchangeable(x):
    spec = L.MixtureOfExperts(4, 6, capacity_factor=0.8)
    y, variables = apply(spec, x, train=True)
    order = jnp.array([2, 0, 3, 1])
    turned = {n: a[:, order] if n == "router/kernel" else a[order] for n, a in variables.params.items()}
    again, _ = apply(spec, x, variables=Variables(turned, made(spec)[0].state), train=True)
    assert_close(again, y)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: L.MixtureOfExperts(2, 8, experts_per_token=3), "experts_per_token is 3, of experts there are 2"),
        (lambda: L.MixtureOfExperts(2, 8, capacity_factor=0.0), "capacity_factor wants a positive number, got 0"),
        (
            lambda: L.MixtureOfExperts(2, 8, balance_rate=-1.0),
            "balance_rate wants a finite number of at least 0",
        ),
        (lambda: L.MixtureOfExperts(2, 8).output_shape((8,)), r"MixtureOfExperts: wants samples of shape \(time, chan"),
    ],
    ids=["few", "factor", "rate", "rank"],
)
def test_refusals(make, says, unchecked):
    with pytest.raises(ValueError, match=says):
        make()
