"""MobileNetV2 and the small CNN: sizes as published, what they refuse."""

import jax
import pytest

from llmasos_xla.models import CNNConfig, MobileNetV2Config


# As counted in torchvision, and in the seeds' summary.
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (MobileNetV2Config.mobilenet_v2(), 3_504_872),
        (MobileNetV2Config.mobilenet_v2(0.5), 1_968_680),
        (MobileNetV2Config.mobilenet_v2(1.4), 6_108_776),
        (CNNConfig.seed_cnn(), 693_962),
    ],
)
def test_it_has_as_many_parameters_as_the_original(config, count):
    variables = jax.eval_shape(config.net().init, jax.random.key(0))
    assert sum(array.size for array in variables.params.values()) == count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MobileNetV2Config(0.0), "MobileNetV2Config: multiplier wants a positive number, got 0"),
        (lambda: MobileNetV2Config(stages=((1, 8, 1),)), "each of stages wants an int of at least 1 or 4 of them"),
        (lambda: MobileNetV2Config(padding="valid"), "unknown padding 'valid'; Known: same, torch"),
        (lambda: MobileNetV2Config.from_huggingface({"output_stride": 8}), "output_stride=8 is not built here; 32 is"),
        (lambda: CNNConfig((8, 0)), "CNNConfig: widths wants an int of at least 1, got 0"),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
