"""Optimizer specifications: names, arguments, what they build, and what they refuse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close

from llmasos_xla import Optimizer, Schedule
from llmasos_xla.training.optimizers import OPTIMIZERS, with_standard_promotion

PARAMS = {"dense/kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "dense/bias": jnp.ones(3)}
GRADIENTS = jax.tree.map(lambda p: jnp.cos(p) * 3.0, PARAMS)


def run(optimizer, steps=3):
    transformation = optimizer.build() if isinstance(optimizer, Optimizer) else with_standard_promotion(optimizer)
    state, params = transformation.init(PARAMS), PARAMS
    for _ in range(steps):
        updates, state = transformation.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_quadratic(name):
    transformation = Optimizer(name, lr=0.05).build()
    params = {"x": jnp.array([1.0, -2.0, 0.5])}
    state = transformation.init(params)

    @jax.jit
    def step(params, state):
        updates, state = transformation.update(params, state, params)
        return optax.apply_updates(params, updates), state

    before = float(jnp.sum(params["x"] ** 2))
    for _ in range(60):
        params, state = step(params, state)
    assert float(jnp.sum(params["x"] ** 2)) < before


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_json_round_trip(name):
    optimizer = Optimizer(name, lr=0.01, clip_norm=1.0, weight_decay=0.1, decay_exclude="bias", accumulate=2)
    again = Optimizer.from_json(json.loads(json.dumps(optimizer.to_json())))
    assert repr(again) == repr(optimizer)


def test_adam_is_adam_with_the_keras_epsilon():
    expected = run(optax.adam(0.001, eps=1e-7))
    for spelled in (Optimizer("Adam", lr=0.001), Optimizer("adam", learning_rate=0.001), Optimizer("ADAM")):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), run(spelled), expected))


def test_keras_spellings_of_arguments():
    assert_close(
        run(Optimizer("adam", 0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-3))["dense/kernel"],
        run(optax.adam(0.01, b1=0.8, b2=0.9, eps=1e-3))["dense/kernel"],
    )
    assert_close(
        run(Optimizer("rmsprop", 0.01, rho=0.8))["dense/bias"],
        run(optax.rmsprop(0.01, decay=0.8, eps=1e-7))["dense/bias"],
    )


def test_clip_norm_scales_all_gradients_together():
    updates = {n: p - PARAMS[n] for n, p in run(Optimizer("sgd", lr=1.0, global_clipnorm=0.5), steps=1).items()}
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)


def test_clip_value_cuts_each():
    after = run(Optimizer("sgd", lr=1.0, clipvalue=0.25), steps=1)
    assert_close(after["dense/bias"] - PARAMS["dense/bias"], -np.full(3, 0.25))


def test_weight_decay_for_an_optimizer_without_one():
    plain = run(Optimizer("sgd", lr=0.1), steps=1)
    decayed = run(Optimizer("sgd", lr=0.1, weight_decay=0.5, decay_exclude="bias"), steps=1)
    assert_close(decayed["dense/kernel"], plain["dense/kernel"] - 0.1 * 0.5 * PARAMS["dense/kernel"])
    assert_close(decayed["dense/bias"], plain["dense/bias"])


def test_accumulation_updates_every_other_step():
    optimizer = Optimizer("sgd", lr=0.1, gradient_accumulation_steps=2)
    assert_close(run(optimizer, steps=1)["dense/bias"], PARAMS["dense/bias"])
    assert_close(run(optimizer, steps=2)["dense/bias"], run(Optimizer("sgd", lr=0.1), steps=1)["dense/bias"])


def test_schedule_is_optax_and_survives_json():
    schedule = Schedule("warmup_cosine_decay", init_value=0.0, peak_value=0.1, warmup_steps=3, decay_steps=10)
    reference = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10)
    again = Optimizer.from_json(json.loads(json.dumps(Optimizer("sgd", schedule).to_json()))).arguments["learning_rate"]
    for step in (0, 1, 3, 7, 12):
        with jax.numpy_dtype_promotion("standard"):
            assert float(schedule(step)) == pytest.approx(float(reference(step)), abs=1e-8)
        assert float(again(step)) == float(schedule(step))


BAD = [
    (lambda: Optimizer("adamm"), "unknown optimizer 'adamm'; did you mean 'adam"),
    (lambda: Optimizer("adam", momentum=0.9), "Optimizer 'adam': unknown argument 'momentum'.*Known: .*b1"),
    (lambda: Optimizer("sgd", lr=-1.0), "learning_rate wants a number >= 0 or a Schedule, got -1.0"),
    (lambda: Optimizer("sgd", lr="fast"), "learning_rate wants a number >= 0 or a Schedule, got 'fast'"),
    (lambda: Optimizer("sgd", accumulate=0), "accumulate wants a whole number of steps >= 1, got 0"),
    (lambda: Optimizer("sgd", ema=1.5), "ema wants a momentum between 0 and 1, got 1.5"),
    (lambda: Optimizer("sgd", clip_norm=-1.0), "clip_norm wants a number > 0, got -1.0"),
    (lambda: Optimizer("sgd", clip_norm="1"), "clip_norm wants a number > 0, got '1'"),
    (lambda: Optimizer("adam", b1=1.5), "b1 wants a number from 0 to 1, got 1.5"),
    (lambda: Optimizer("sgd", weight_decay="0.1"), "weight_decay wants a number from 0 to inf, got '0.1'"),
    (lambda: Optimizer("adamw", decay_exclude="bias("), r"decay_exclude wants a regular expression.*got 'bias\('"),
    (lambda: Schedule("cosine"), "unknown schedule 'cosine'; did you mean 'cosine_"),
    (lambda: Schedule("linear", start=1.0), "Schedule 'linear'.*it takes init_value"),
    (lambda: Optimizer("sgd", lambda step: 0.1).to_json(), "learning_rate is a function and cannot be saved"),
]


@pytest.mark.parametrize(("make", "text"), BAD)
def test_refusals(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("name", ["AdamW", "AdaGrad", "AdaBelief", "RMSprop", "NAdam", "SGD", "ada_max"])
def test_names_as_classes_are_called(name):
    assert Optimizer(name).name == name.replace("_", "").lower()


def test_schedules_as_classes_are_called():
    assert Schedule("ExponentialDecay", init_value=0.1, transition_steps=5, decay_rate=0.5).name == "exponential_decay"


def test_a_number_of_numpys_is_a_number():
    assert Optimizer("sgd", np.float32(0.5)).to_json() == {"name": "sgd", "learning_rate": 0.5}
