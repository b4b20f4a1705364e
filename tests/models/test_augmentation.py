"""Random changes of images: each is one of the changes that there are, and nothing changes outside of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.models import layers as L  # noqa: N812


@pytest.mark.parametrize("fill", ["constant", "edge", "reflect"])
def test_a_shifted_image_is_a_window_of_the_padded_one(rng, apply_layer, fill):
    x = rng.normal(size=(64, 5, 6, 2)).astype(np.float32)
    layer = L.RandomShift((1, 2), fill="zeros" if fill == "constant" else fill)
    y, _ = apply_layer(layer, jnp.asarray(x), train=True, key=jax.random.key(0))
    padded = np.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)), mode=fill)
    seen = set()
    for image, around in zip(np.asarray(y), padded, strict=True):
        moves = [(i, j) for i in range(3) for j in range(5) if np.array_equal(image, around[i : i + 5, j : j + 6])]
        assert len(moves) == 1
        seen |= set(moves)
    assert len(seen) == 15  # 64 draws of 15 moves: all but certain


@pytest.mark.parametrize(("mode", "wanted"), [("horizontal", 2), ("vertical", 2), ("both", 4)])
def test_images_are_mirrored_each_by_itself(rng, apply_layer, mode, wanted):
    image = rng.normal(size=(4, 5, 1)).astype(np.float32)
    x = jnp.asarray(np.repeat(image[None], 40, axis=0))
    y, _ = apply_layer(L.RandomFlip(mode), x, train=True, key=jax.random.key(1))
    mirrored = {"same": image, "vertical": image[::-1], "horizontal": image[:, ::-1], "both": image[::-1, ::-1]}
    found = {name for name, m in mirrored.items() for row in np.asarray(y) if np.array_equal(row, m)}
    assert found == {"same", mode} if wanted == 2 else found == set(mirrored)


@pytest.mark.parametrize("layer", [L.RandomFlip("both"), L.RandomShift(3)])
def test_nothing_changes_outside_of_training(rng, apply_layer, layer):
    x = jnp.asarray(rng.normal(size=(3, 5, 6, 2)), jnp.float32)
    np.testing.assert_array_equal(apply_layer(layer, x)[0], x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.RandomFlip("up"), "RandomFlip: unknown mode 'up'; Known: both, horizontal, vertical"),
        (lambda: L.RandomShift(-1), "RandomShift: pixels wants an int of at least 0 or 2 of them, got -1"),
        (lambda: L.RandomShift(5, "reflect").output_shape((5, 9, 1)), "an axis of 5 has no mirror image of 5 pixels"),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
