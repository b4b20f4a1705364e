"""The train and evaluation steps as pure functions."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla import Optimizer, Variables
from llmasos_xla.training.losses import loss_by_name
from llmasos_xla.training.metrics import metric_by_name
from llmasos_xla.training.step import make_eval_step, make_train_step, new_state, over_group, precision_by_name

KEY = jax.random.key(0)


def start(objective, variables, batch, optimizer="sgd", **options):
    transformation = Optimizer(optimizer, lr=0.1, **options).build()
    state = new_state(variables, transformation, options.get("ema"))
    return transformation, (state, objective.empty(batch["y"], batch["x"], variables))


def test_the_update_is_the_gradient_of_the_mean_loss(objective, variables, batch):
    transformation, carry = start(objective, variables, batch)
    state, totals = make_train_step(objective, transformation)(carry, batch, KEY)

    def loss(params):
        logits, _ = objective.net.apply(Variables(params, variables.state), batch["x"], train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), batch["y"]])

    gradients = jax.grad(loss)(variables.params)
    for name, gradient in gradients.items():
        assert_close(state.variables.params[name], variables.params[name] - 0.1 * gradient, message=name)
    assert float(totals.loss / totals.count) == pytest.approx(float(loss(variables.params)), rel=1e-5)
    assert int(state.step) == 1


def test_padding_and_weights(objective, variables, batch):
    """Three rows padded to six of any content equal three rows; a weight of two counts a row twice."""
    # Batch statistics see every row, so this law is for evaluation-mode normalization: the evaluation step.
    step = make_eval_step(objective)
    small = {**{k: batch[k][:3] for k in ("x", "y", "weight")}, "count": jnp.int32(3)}
    padded = {**batch, "weight": batch["weight"].at[3:].set(0.0), "count": jnp.int32(3)}
    empty = objective.empty(batch["y"], batch["x"], variables)
    few = step(objective.empty(small["y"], small["x"], variables), small, variables).read(objective.metrics)
    same = step(empty, padded, variables).read(objective.metrics)
    assert few["loss"] == pytest.approx(same["loss"], rel=1e-6)
    assert few["accuracy"] == same["accuracy"]
    twice = {**padded, "weight": padded["weight"] * 2.0}
    assert step(empty, twice, variables).read(objective.metrics)["loss"] == pytest.approx(2 * few["loss"], rel=1e-6)


def test_class_weights_weigh_the_loss_only(objective, variables, batch):
    weighted = dataclasses.replace(objective, class_weight=(1.0, 0.0, 3.0))
    logits, _ = objective.forward(variables, batch["x"], train=False)
    plain = objective.losses(logits, batch["y"], batch["weight"])
    assert_close(weighted.losses(logits, batch["y"], batch["weight"]), plain * jnp.array([1.0, 0.0, 3.0])[batch["y"]])


def test_a_group_equals_its_steps_one_by_one(objective, variables, batch):
    transformation, carry = start(objective, variables, batch, "adam")
    step = make_train_step(objective, transformation)
    group = jax.tree.map(lambda a: jnp.stack([a, a[::-1] if a.ndim else a, a]), batch)
    together = jax.jit(over_group(step))(carry, group, 2, KEY)
    one_by_one = carry
    for i in range(2):
        one_by_one = jax.jit(step)(one_by_one, jax.tree.map(lambda a, i=i: a[i], group), KEY)
    chex.assert_trees_all_close(together, one_by_one, rtol=1e-5, atol=1e-6)
    assert int(together[0].step) == 2


def test_from_the_first_bad_loss_on_nothing_changes(objective, variables, batch):
    transformation, carry = start(objective, variables, batch, "adam")
    step = jax.jit(make_train_step(objective, transformation))
    good = step(carry, batch, KEY)
    bad = step(good, {**batch, "x": batch["x"].at[2, 1].set(jnp.nan)}, KEY)
    after = step(bad, batch, KEY)
    assert int(bad[1].bad_step) == int(after[1].bad_step) == 1
    chex.assert_trees_all_equal(after[0].variables, good[0].variables)
    assert int(after[0].step) == int(good[0].step)
    assert float(after[1].count) == float(good[1].count)
    chex.assert_tree_all_finite(after[0])


def test_the_average_follows_the_weights(objective, variables, batch):
    transformation, carry = start(objective, variables, batch, ema=0.75)
    state, _ = make_train_step(objective, transformation, 0.75)(carry, batch, KEY)
    for name, now in state.variables.params.items():
        assert_close(state.average[name], 0.75 * variables.params[name] + 0.25 * now)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights(objective, variables, batch):
    transformation, carry = start(objective, variables, batch)
    low = dataclasses.replace(objective, precision=precision_by_name("mixed_bfloat16"))
    state, totals = make_train_step(low, transformation)(carry, batch, KEY)
    _, reference = make_train_step(objective, transformation)(carry, batch, KEY)
    assert {a.dtype for a in jax.tree.leaves(state.variables)} == {jnp.dtype("float32")}
    assert float(totals.loss) == pytest.approx(float(reference.loss), rel=3e-2)
    assert float(totals.loss) != float(reference.loss)


def test_metrics_are_summed_over_batches(objective, variables, batch):
    step = make_eval_step(objective)
    totals = objective.empty(batch["y"], batch["x"], variables)
    for _ in range(3):
        totals = step(totals, batch, variables)
    logits, _ = objective.forward(variables, batch["x"], train=False)
    assert totals.read(objective.metrics)["accuracy"] == pytest.approx(
        float(np.mean(np.argmax(logits, -1) == np.asarray(batch["y"]))), rel=1e-6
    )


def test_unknown_precision():
    with pytest.raises(ValueError, match="unknown precision 'float8'"):
        precision_by_name("float8")


def test_float64_is_refused_where_jax_has_no_64_bits():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        precision_by_name("float64")


@pytest.mark.parametrize("form", ["ids", "floats", "column", "one-hot"])
def test_class_weights_read_every_form_of_label(objective, variables, batch, form):
    ids = batch["y"]
    y = {
        "ids": ids,
        "floats": ids.astype(jnp.float32),
        "column": ids[:, None],
        "one-hot": jax.nn.one_hot(ids, 3),
    }[form]
    loss = loss_by_name(lambda outputs, y: outputs[:, 0])
    plain = dataclasses.replace(objective, loss=loss)
    weighted = dataclasses.replace(plain, class_weight=(1.0, 0.0, 3.0))
    logits, _ = objective.forward(variables, batch["x"], train=False)
    wanted = plain.losses(logits, y, batch["weight"]) * jnp.array([1.0, 0.0, 3.0])[ids]
    assert_close(weighted.losses(logits, y, batch["weight"]), wanted)


@pytest.mark.usefixtures("unchecked")
def test_a_metric_that_does_not_fit_is_named(objective, variables, batch):
    wrong = dataclasses.replace(objective, metrics=(metric_by_name("r2", objective.loss),))
    with pytest.raises(ValueError, match=r"metric 'r2' does not fit outputs \('batch', 3\) and labels \('batch',\)"):
        wrong.empty(batch["y"], batch["x"], variables)
