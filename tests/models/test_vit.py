"""ViT: sizes as published, positions of other images, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.models import ViTConfig
from llmasos_xla.models.vit import _bicubic


@pytest.mark.parametrize(("name", "count"), [("vit_tiny", 5_717_416), ("vit_base", 86_567_656)])
def test_it_has_as_many_parameters_as_the_original(name, count):
    variables = jax.eval_shape(getattr(ViTConfig, name)().net().init, jax.random.key(0))
    assert sum(array.size for array in variables.params.values()) == count


def test_pixels_that_fill_no_patch_are_left_out():
    config = ViTConfig(8, 4, width=8, depth=1, heads=2, hidden=12, classes=3, interpolate=True)
    net = config.net()
    variables = net.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 11, 10, 3)), jnp.float32)
    assert_close(net.apply(variables, x)[0], net.apply(variables, x[:, :8, :8])[0])


@pytest.mark.parametrize(("given", "wanted"), [(1, 4), (3, 7), (7, 3), (14, 16)])
def test_interpolation_keeps_a_constant_and_its_own_size(given, wanted):
    np.testing.assert_allclose(_bicubic(given, wanted).sum(1), 1.0)
    np.testing.assert_allclose(_bicubic(given, given), np.eye(given), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(width=10, heads=4), "a width of 10 does not divide into 4 heads"),
        (lambda: ViTConfig(8, 16), "a patch of (16, 16) does not fit an image of (8, 8)"),
        (lambda: ViTConfig(16, 8).output_shape((16, 24, 3)), "positions are for (16, 16); interpolate=True takes any"),
        (lambda: ViTConfig(16, 8, interpolate=True).output_shape((7, 24, 3)), "are smaller than a patch, (8, 8)"),
        (lambda: ViTConfig.from_huggingface({"hidden_act": "silu"}), "hidden_act 'silu' is not built here; known:"),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
