"""U-Net: sizes as published, that it learns to mark what it sees, what it refuses."""

import jax
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.models import UNetConfig


def test_it_has_as_many_parameters_as_the_original():
    variables = jax.eval_shape(UNetConfig.unet(classes=2).net().init, jax.random.key(0))
    assert sum(array.size for array in variables.params.values()) == 31_037_698


@pytest.mark.thorough
def test_it_learns_to_mark_bright_squares_with_the_dice_loss(rng):
    x = rng.normal(size=(32, 11, 9, 1)).astype(np.float32) * 0.3
    y = np.zeros((32, 11, 9, 1), np.float32)
    for i, (row, column) in enumerate(rng.integers(0, 6, (32, 2))):
        x[i, row : row + 4, column : column + 3] += 2.0
        y[i, row : row + 4, column : column + 3] = 1.0
    model = lm.Sequential([UNetConfig((4, 8), input_shape=(11, 9, 1)), lm.layers.Activation("sigmoid")])
    model.compile(lm.Optimizer("adam", 1e-2), "dice_crossentropy")
    history = model.fit(x, y, epochs=12, batch_size=8, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    said = model.predict(x) > 0.5
    assert (said & (y > 0)).sum() / (said | (y > 0)).sum() > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig((8,)), "UNetConfig: wants the widths of two or more scales, got (8,)"),
        (lambda: UNetConfig().output_shape((8, 64, 3)), "5 scales want images of 16 pixels and more"),
        (lambda: list(UNetConfig().names("huggingface")), "no table of names for weights of the source 'huggingface'"),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
