"""Matching against SciPy's, boxes, and the detection loss against its laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import llmasos_xla as lm
from llmasos_xla.api.network import Network
from llmasos_xla.models import RTDETRConfig
from llmasos_xla.models.rtdetr import Detections
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.training.detection import check_boxes, corners, detection_loss, overlaps, set_loss
from llmasos_xla.training.matching import assignment


@pytest.mark.parametrize(("queries", "objects"), [(1, 1), (7, 7), (20, 6), (40, 23)])
def test_assignment_costs_what_scipys_does(queries, objects):
    rng = np.random.default_rng(queries)
    # Small whole numbers have ties, normal ones have none, and repeated columns want to be pushed aside.
    costs = np.stack(
        [
            rng.integers(0, 4, (queries, objects)),
            rng.standard_normal((queries, objects)),
            np.repeat(rng.standard_normal((queries, 1)), objects, 1) + 0.01 * rng.standard_normal((queries, objects)),
        ]
    ).astype(np.float32)
    found = np.asarray(jax.jit(jax.vmap(assignment))(jnp.asarray(costs)))
    for cost, query in zip(costs, found, strict=True):
        assert len(set(query.tolist())) == objects
        rows, columns = linear_sum_assignment(cost)
        np.testing.assert_allclose(cost[query, np.arange(objects)].sum(), cost[rows, columns].sum(), rtol=1e-5)


def test_padding_is_matched_with_nobody_and_changes_nothing():
    rng = np.random.default_rng(3)
    cost = rng.standard_normal((9, 6)).astype(np.float32)
    real = np.array([True, False, True, True, False, True])
    found = np.asarray(assignment(jnp.asarray(cost), jnp.asarray(real)))
    assert (found[~real] == -1).all()
    assert found[real].tolist() == assignment(jnp.asarray(cost[:, real])).tolist()


def test_costs_that_are_no_numbers_come_last():
    cost = jnp.array([[jnp.nan, jnp.inf], [1.0, 2.0], [5.0, -jnp.inf], [2.0, 4.0]])
    assert assignment(cost).tolist() == [3, 1]
    with pytest.raises(ValueError, match="3 objects came for 2 queries"):
        assignment(jnp.zeros((2, 3)))


def test_overlaps_of_pixels_counted():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (np.sort(rng.integers(0, 9, (2, 2)), axis=0) for _ in range(2))
        a[1], b[1] = np.maximum(a[1], a[0] + 1), np.maximum(b[1], b[0] + 1)
        cover = np.zeros((2, 10, 10), bool)
        for layer, box in zip(cover, (a, b), strict=True):
            layer[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]] = True
        hull = np.prod(np.maximum(a[1], b[1]) - np.minimum(a[0], b[0]))
        union, common = (cover[0] | cover[1]).sum(), (cover[0] & cover[1]).sum()
        boxes = [jnp.asarray(np.concatenate([box.mean(0), box[1] - box[0]]) / 10, jnp.float32) for box in (a, b)]
        iou, giou = overlaps(*boxes)
        assert float(iou) == pytest.approx(common / union, abs=1e-5)
        assert float(giou) == pytest.approx(common / union - (hull - union) / hull, abs=1e-5)
    assert corners(jnp.array([0.5, 0.25, 0.5, 0.5])).tolist() == [0.25, 0.0, 0.75, 0.5]


def _case(seed=0, objects=4):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0.2, 0.6, (8, 4)).astype(np.float32)
    targets = np.concatenate([rng.integers(0, 3, (objects, 1)), rng.uniform(0.2, 0.6, (objects, 4))], axis=1)
    return jnp.asarray(rng.standard_normal((8, 3)), jnp.float32), jnp.asarray(boxes), jnp.asarray(targets, jnp.float32)


def test_the_order_of_objects_and_padding_change_nothing():
    logits, boxes, targets = _case()
    loss = jax.jit(jax.value_and_grad(set_loss, (0, 1)))
    value, gradients = loss(logits, boxes, targets)
    padding = jnp.full((2, 5), 0.3).at[:, 0].set(-1.0)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 101):
        shuffled = jnp.concatenate([targets, padding])[jnp.asarray(order)]
        again, others = loss(logits, boxes, shuffled)
        assert float(again) == pytest.approx(float(value), rel=1e-5)
        for a, b in zip(gradients, others, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_no_objects_are_learnt_from():
    logits, boxes, _ = _case()
    value, gradient = jax.value_and_grad(set_loss)(logits, boxes, jnp.full((3, 5), -1.0))
    assert float(value) > 0
    assert np.all(np.asarray(gradient) > 0)
    assert not np.any(jax.grad(set_loss, 1)(logits, boxes, jnp.full((3, 5), -1.0)))


def test_what_is_right_costs_next_to_nothing():
    _, _, targets = _case()
    boxes = jnp.concatenate([targets[:, 1:], jnp.full((2, 4), 0.5)])
    logits = jnp.full((6, 3), -12.0).at[jnp.arange(4), targets[:, 0].astype(int)].set(12.0)
    assert float(set_loss(logits, boxes, targets)) < 1e-3


def test_every_layer_counts():
    logits, boxes, targets = _case()
    found = Detections(
        logits[None], boxes[None], jnp.stack([logits, 2 * logits])[None], jnp.stack([boxes, boxes])[None]
    )
    parts = [set_loss(a, boxes, targets) for a in (logits, 2 * logits, logits)]
    np.testing.assert_allclose(detection_loss(found, targets[None]), [sum(map(float, parts))], rtol=1e-5)
    with pytest.raises(ValueError, match="the loss reads detections"):
        detection_loss(logits[None], targets[None])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y[..., :4], "wants float targets"),
        (lambda y: np.tile(y, (1, 5, 1)), "more than the model's 6 queries"),
        (lambda y: np.where(y == 0, 3.0, y), "is of class 3; the model has classes 0 to 2"),
        (lambda y: y * [1, 640, 1, 1, 1], "divide pixels by the image's size"),
        (lambda y: y * [1, 1, 1, 0, 1], "with an area"),
    ],
)
def test_targets_that_are_none_are_refused(change, says):
    y = np.array([[[0, 0.5, 0.5, 0.2, 0.2], [-1, 0, 0, 0, 0]]])
    check_boxes(y, (6, 3))
    with pytest.raises(ValueError, match=says):
        check_boxes(change(y), (6, 3))


TINY = RTDETRConfig.rtdetr_r18(
    depths=(1, 1, 1), widths=(8, 12, 16), stem=8, maps=2, attended=(1,), classes=2, queries=8, width=16, depth=1,
    heads=2, points=2, hidden=16, encoder_width=16, encoder_heads=2, encoder_hidden=16, input_shape=(32, 32, 3),
)  # fmt: skip


def _rectangles(rows, seed=0):
    """Bright rectangles, wide ones of class 0 and high ones of class 1, on noise."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.05, (rows, 32, 32, 3)).astype(np.float32)
    targets = np.full((rows, 2, 5), -1, np.float32)
    for row in range(rows):
        for i in range(1 + row % 2):
            kind = (row + i) % 2
            size = np.array([6, 12]) if kind else np.array([12, 6])
            corner = rng.integers([16 * i, 0], [16 * i + 5, 20])
            images[row, corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] += 1.0
            targets[row, i] = [kind, *((corner + size / 2) / 32), *(size / 32)]
    return images, targets


@pytest.mark.slow
def test_a_detector_learns_through_the_front_door():
    images, targets = _rectangles(8)
    model = Network(TINY)
    model.compile(lm.Optimizer("adamw", learning_rate=3e-3, clip_norm=1.0), loss="detection")
    history = model.fit(images, targets, epochs=30, batch_size=8, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    found = model.predict(images[:5])
    assert isinstance(found, Detections)
    assert found.boxes.shape == (5, 8, 4)
    assert found.logits.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("spec", [MeshSpec(data=2), MeshSpec(fsdp=2)])
def test_divided_fits_match_as_a_single_one_does(spec):
    images, targets = _rectangles(8)
    losses = []
    for shard in (None, spec):
        model = Network(TINY)
        model.compile(lm.Optimizer("sgd", 1e-2), "detection")
        losses.append(model.fit(images, targets, epochs=3, batch_size=8, verbose=0, shard=shard).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
