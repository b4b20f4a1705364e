"""ResNet: published sizes, published weights, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla import models
from llmasos_xla.models import ResNetConfig, pretrained
from llmasos_xla.models.shelf import SHELF

# As counted in torchvision and in He et al.'s table 6.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet152", "resnet20_cifar", "resnet56_cifar"])
def test_it_has_as_many_parameters_as_the_original(name):
    variables = jax.eval_shape(SHELF[name]().net().init, jax.random.key(0))
    assert sum(array.size for array in variables.params.values()) == PARAMETERS[name]


def test_published_weights_give_the_published_logits(shared_data):
    folder = shared_data / "weights_resnet20_cifar"
    config = ResNetConfig.resnet20_cifar()
    variables = pretrained.load(config, folder / "resnet20-12fca82f.th")
    with np.load(folder / "ref.npz") as file:
        images, wanted, labels = file["images_uint8_nhwc"], file["logits"], file["labels"]
        x = ((images / np.float32(255) - file["mean"]) / file["std"]).astype(np.float32)
    logits = jax.jit(config.net().apply)(variables, jnp.asarray(x))[0]
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=1e-4)
    assert np.mean(np.argmax(logits, -1) == labels) > 0.7


def test_other_classes_get_a_head_of_their_own(shared_data):
    arrays = pretrained.read(shared_data / "weights_resnet20_cifar" / "resnet20-12fca82f.th")
    body = {name: arrays[name] for name in arrays if "linear" not in name}
    config = ResNetConfig.resnet20_cifar(classes=3)
    with pytest.raises(ValueError, match=r"2 missing: linear\.bias, linear\.weight"):
        pretrained.load(config, body)
    variables = pretrained.load(config, body, key=jax.random.key(0))
    assert variables.params["resnet/classifier/kernel"].shape == (64, 3)
    stem = variables.params["resnet/stem_conv/kernel"]
    np.testing.assert_array_equal(stem, np.transpose(arrays["conv1.weight"], (2, 3, 1, 0)))


def test_models_of_equal_seeds_are_equal():
    a, b = (models.ResNetConfig((1,), (4,), block="basic").net().init(jax.random.key(3)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
def test_a_block_of_zeros_passes_its_input_on(shortcut):
    config = ResNetConfig((1, 1), (4, 8), classes=3, block="basic", stem="cifar", shortcut=shortcut)
    net = config.net()
    variables = net.init(jax.random.key(0))
    silent = {n: a * (0.0 if "part1_norm" in n else 1.0) for n, a in variables.params.items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 7, 3)), jnp.float32)
    logits, _ = net.apply(variables._replace(params=silent), x)
    features = silent["resnet/classifier/kernel"].shape[0]
    assert features == 8
    if shortcut == "padding":
        # What the stem gives, thinned, stands in the middle of the features; the classifier's outer rows see zeros.
        kernel = silent["resnet/classifier/kernel"].at[jnp.array([0, 1, 6, 7])].set(9.0)
        again, _ = net.apply(variables._replace(params={**silent, "resnet/classifier/kernel": kernel}), x)
        assert_close(again, logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetConfig((2, 2), (8,)), "ResNetConfig: 2 depths came for 1 widths"),
        (lambda: ResNetConfig((2,), (6,)), "bottlenecks want widths that are multiples of 4, got (6,)"),
        (lambda: ResNetConfig(block="dense"), "unknown block 'dense'; Known: basic, bottleneck"),
        (lambda: ResNetConfig.from_huggingface({"hidden_act": "gelu"}), "hidden_act 'gelu' is not built here; relu is"),
        (
            lambda: ResNetConfig((1, 1), (8, 4), block="basic", shortcut="padding").net(),
            "shortcut 'padding' adds features of zeros and cannot make 4 of 8",
        ),
        (lambda: list(ResNetConfig().names("keras")), "there is no table of names for weights of the source 'keras'"),
    ],
)
def test_it_refuses_in_words(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
