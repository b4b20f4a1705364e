"""Average precision on cases whose value is known, and boxes out of outputs."""

from typing import NamedTuple

import numpy as np
import pytest

from llmasos_xla.training.detection_scores import Boxes, best_boxes, mean_average_precision

pytest.importorskip("pycocotools", reason="the extra vision is not installed")


class Found(NamedTuple):
    logits: np.ndarray
    boxes: np.ndarray


def _targets():
    rng = np.random.default_rng(0)
    targets = np.full((3, 4, 5), -1.0)
    for row, count in enumerate((4, 2, 0)):
        for i in range(count):
            targets[row, i] = [i % 2, 0.15 + 0.2 * i, rng.uniform(0.3, 0.7), 0.1, 0.2]
    return targets


def _as_boxes(rows, score=0.9):
    rows = rows[rows[:, 0] >= 0]
    return Boxes(rows[:, 0].astype(int), np.full(len(rows), score), rows[:, 1:])


def test_what_is_right_is_one():
    targets = _targets()
    scores = mean_average_precision([_as_boxes(rows) for rows in targets], targets)
    assert scores.ap == pytest.approx(1.0)
    assert scores.by_class == {0: pytest.approx(1.0), 1: pytest.approx(1.0)}


def test_boxes_that_are_moved_count_up_to_their_overlap():
    targets = _targets()
    moved = targets.copy()
    # Moved by a quarter of the width: an overlap of 0.75 / 1.25 = 0.6, enough for 0.5, 0.55 and 0.6.
    moved[..., 1] += 0.02501 - 0.0001
    scores = mean_average_precision([_as_boxes(rows) for rows in moved], targets)
    assert scores.ap50 == pytest.approx(1.0)
    assert scores.ap75 == 0.0
    assert scores.ap == pytest.approx(0.3)


def test_surer_mistakes_cost_more():
    targets = _targets()
    wrong = Boxes(np.array([0]), np.array([0.5]), np.array([[0.9, 0.9, 0.1, 0.1]]))
    scores = []
    for sure in (0.1, 0.99):
        with_mistake = wrong._replace(scores=np.array([sure]))
        found = [_as_boxes(targets[0]), _as_boxes(targets[1]), with_mistake]
        scores.append(mean_average_precision(found, targets))
    assert scores[0].ap50 == pytest.approx(1.0)
    # Of class 0, three objects come after a mistake: precision is 3/4 at every recall.
    assert scores[1].by_class[0] == pytest.approx(0.75, abs=1e-3)
    assert scores[1].by_class[1] == pytest.approx(1.0)


def test_nothing_found_is_zero_and_nothing_there_is_refused():
    targets = _targets()
    nothing = [_as_boxes(targets[2])] * 3
    assert mean_average_precision(nothing, targets).ap == 0.0
    with pytest.raises(ValueError, match="hold no objects"):
        mean_average_precision(nothing, np.full((3, 4, 5), -1.0))
    with pytest.raises(ValueError, match="3 images' boxes"):
        mean_average_precision(nothing, targets[:2])


def test_the_best_boxes_are_the_best():
    logits = np.array([[[2.0, -1.0], [-1000.0, 3.0], [0.5, 0.0]]])
    boxes = np.arange(12.0).reshape(1, 3, 4)
    found = best_boxes(Found(logits, boxes), threshold=0.4, limit=3)[0]
    assert found.classes.tolist() == [1, 0, 0]
    assert found.boxes[:, 0].tolist() == [4.0, 0.0, 8.0]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -2.0, -0.5])))
    assert len(best_boxes(Found(logits, boxes), limit=9)[0].scores) == 6
