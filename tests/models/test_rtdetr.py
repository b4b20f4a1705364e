"""RT-DETR's parts: deformable attention against its definition, sizes that do not halve evenly, folded convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from jax.test_util import check_grads

from llmasos_xla.models import RTDETRConfig
from llmasos_xla.models.rtdetr.deformable import deformable_attention
from llmasos_xla.models.rtdetr.encoder import doubled
from llmasos_xla.models.rtdetr.network import Detections, anchor_logits
from llmasos_xla.training.detection import detection_loss

TINY = RTDETRConfig.rtdetr_r18(
    depths=(1, 1), widths=(4, 8), stem=4, maps=2, attended=(1,), classes=3, queries=6, width=8, depth=1, heads=2,
    points=2, hidden=8, encoder_width=8, encoder_heads=2, encoder_hidden=8,
)  # fmt: skip
SIZES = ((3, 5), (2, 1))


def _problem(seed=0, spread=0.4):
    rng = np.random.default_rng(seed)
    value = rng.standard_normal((2, 17, 3, 4))
    points = rng.uniform(-spread, 1.0 + spread, (2, 5, 3, 2, 2, 2))
    return value, points, rng.standard_normal((2, 5, 3, 2, 2))


def _by_definition(value, points, weights):
    out = np.zeros((2, 5, 3, 4))
    for b, q, h, m, p in np.ndindex(weights.shape):
        height, width = SIZES[m]
        start = sum(a * c for a, c in SIZES[:m])
        x, y = points[b, q, h, m, p] * (width, height) - 0.5
        for i in range(height):
            for j in range(width):
                share = max(0.0, 1.0 - abs(x - j)) * max(0.0, 1.0 - abs(y - i))
                out[b, q, h] += weights[b, q, h, m, p] * share * value[b, start + i * width + j, h]
    return out


def test_deformable_attention_is_its_definition():
    value, points, weights = _problem()
    with jax.enable_x64():
        got = deformable_attention(jnp.asarray(value), SIZES, jnp.asarray(points), jnp.asarray(weights))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, _by_definition(value, points, weights), rtol=1e-12, atol=1e-12)


def test_deformable_attention_has_the_gradient_of_finite_differences():
    value, points, weights = _problem(1)
    with jax.enable_x64():
        arguments = [jnp.asarray(a) for a in (value, points, weights)]

        def attend(*arguments):
            value, points, weights = map(jnp.asarray, arguments)
            return deformable_attention(value, SIZES, points, weights)

        check_grads(attend, arguments, order=1, eps=1e-7, rtol=1e-5)


def test_a_point_on_a_pixel_has_the_slope_to_its_right():
    value = jnp.array([1.0, 4.0, 9.0]).reshape(1, 3, 1, 1)
    one = jnp.ones((1, 1, 1, 1, 1))

    def at(x):
        return deformable_attention(value, [(1, 3)], jnp.stack([x, 0.5]).reshape(1, 1, 1, 1, 1, 2), one)[0, 0, 0, 0]

    assert float(at(jnp.float32(0.5))) == 4.0
    assert float(jax.grad(at)(jnp.float32(0.5))) == pytest.approx(5.0 * 3)


def test_maps_that_do_not_fit_are_refused():
    value, points, weights = (jnp.asarray(a, jnp.float32) for a in _problem())
    with pytest.raises(ValueError, match="17 positions and points on 2 maps"):
        deformable_attention(value, [(3, 5), (2, 2)], points, weights)


def test_maps_of_odd_sizes_meet():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    assert doubled(x, 3, 5)[0, :, :, 0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


@pytest.mark.thorough
@pytest.mark.parametrize("size", [(17, 23), (24, 9)])
def test_any_size_will_do(size):
    net = TINY.net()
    variables = jax.jit(net.init)(jax.random.key(0))
    found, _ = jax.jit(lambda v, x: net.apply(v, x, train=False))(variables, jnp.ones((1, *size, 3)))
    assert found.logits.shape == (1, 6, 3)
    assert found.early_boxes.shape == (1, 1, 6, 4)
    assert np.all((found.boxes > 0) & (found.boxes < 1))


def test_too_few_positions_are_refused():
    net = TINY.net()
    with pytest.raises(ValueError, match=r"have 5 positions, of which queries=6"):
        jax.eval_shape(lambda key: net.apply(net.init(key), jnp.ones((1, 8, 8, 3)), train=False), jax.random.key(0))


def test_anchors_over_the_border_are_none():
    anchors, valid = anchor_logits([(64, 1), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)])
    boxes = 1.0 / (1.0 + np.exp(-anchors[valid[:, 0]]))
    # 1/128 is nearer to the border than 0.01; the sixth map's anchors are larger than the image.
    assert valid[:, 0].tolist() == [False, *[True] * 62, False, *[True] * 7, False]
    np.testing.assert_allclose(boxes[0], [0.5, 1.5 / 64, 0.05, 0.05], rtol=1e-5)


@pytest.mark.parametrize("name", ["rtdetr_basic", "rtdetr_bottleneck"])
def test_the_loss_is_the_originals(name):
    case = read(folder() / f"{name}.npz").cases[0]
    found = Detections(*(jnp.asarray(case[part]) for part in Detections._fields))
    # The original divides by the objects of the whole batch; here each image has as many.
    loss = jnp.mean(detection_loss(found, jnp.asarray(case["targets"])))
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)


def test_what_is_not_built_is_refused():
    with pytest.raises(ValueError, match="normalize_before=True of the config.json is not built here"):
        RTDETRConfig.from_huggingface({"normalize_before": True})
    with pytest.raises(ValueError, match="maps wants 2 to 4"):
        RTDETRConfig(maps=5)
    with pytest.raises(ValueError, match="does not divide into 8 heads"):
        RTDETRConfig(width=100)
