"""Every layer against what Keras itself computed: the fixtures of keras-js (MIT), made with Keras 2 on TensorFlow.

The files hold input, weights and expected output; the layers' arguments are here, in one table (hence the length).
Where Keras 2 meant something else: "hard_sigmoid" was clip(0.2 x + 0.5, 0, 1), GRU reset before the recurrent product,
`channels_first` is a Permute around the layer, and a `stateful` layer was asked twice for one input, which is the
second half of asking once for the input twice. Graphs of several inputs get them stacked and crop their own.

Left out: `merge.Dot` (5 fixtures), since no layer here multiplies branches as matrices.
"""

import dataclasses
import json
import tarfile
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers._base import layer_names
from llmasos_xla.models.stack import Stack, output_shapes

LEFT_OUT = tuple(f"merge.Dot.{i}" for i in range(5))
HARD = "hard_sigmoid_keras2"


@dataclasses.dataclass(frozen=True)
class Case:
    """The layers of one fixture; `order` names the arrays where Keras does not list them layer by layer."""

    layers: Sequence[L.Layer]
    twice: bool = False
    order: Sequence[str] = ()


def channels_first(layer: L.Layer, rank: int, back: bool = True) -> list[L.Layer]:
    last = (*range(2, rank + 2), 1)
    first = (rank + 1, *range(1, rank + 1))
    return [L.Permute(last), layer, *([L.Permute(first)] if back else [])]


def numbered(name: str, *cases) -> dict[str, Case]:
    cases = [c if isinstance(c, Case) else Case(c if isinstance(c, list) else [c]) for c in cases]
    return {f"{name}.{i}": case for i, case in enumerate(cases)}


def pooling(kind: type[L.Layer], rank: int) -> list:
    """Cases 0-9 of the two- and three-dimensional layers differ only in the rank, and 10-12 are channels first."""
    mixed = ((2, 1), (2, 1, 1))[rank - 2], ((2, 1), (1, 2, 1))[rank - 2]
    last = [(2, None, "valid"), (2, 1, "valid"), (2, mixed[0], "valid"), (3, None, "valid"), (3, 3, "valid")]
    last += [(2, None, "same"), (2, 1, "same"), (2, mixed[1], "same"), (3, None, "same"), (3, 3, "same")]
    first = [(3, 2, "valid"), (3, 1, "same"), (2, None, "valid")]
    return [kind(*a) for a in last] + [channels_first(kind(*a), rank) for a in first]


def pooling_1d(kind: type[L.Layer]) -> list:
    arguments = [(2, None, "valid"), (2, 1, "valid"), (2, 3, "valid"), (2, None, "same"), (2, 1, "same")]
    arguments += [(2, 3, "same"), (3, None, "valid"), (3, 1, "same"), (3, 3, "same")]
    return [kind(*a) for a in arguments]


def recurrent(kind: type[L.Layer], use_bias_8: bool) -> list[Case]:
    gate = {} if kind is L.SimpleRNN else {"recurrent_activation": HARD}
    more = {"reset_after": False} if kind is L.GRU else {}
    first = kind(5, activation="sigmoid", **({"recurrent_activation": "sigmoid"} if gate else {}), **more)
    rows = [
        {},
        {"return_sequences": True},
        {"go_backwards": True},
        {"return_sequences": True, "go_backwards": True},
        {"twice": True},
        {"return_sequences": True, "twice": True},
        {"go_backwards": True, "twice": True},
        {"return_sequences": True, "go_backwards": True, "use_bias": use_bias_8, "twice": True},
    ]
    cases = []
    for row in rows:
        row = dict(row)
        twice = row.pop("twice", False)
        cases.append(Case([kind(4, **gate, **more, **row)], twice=twice))
    return [cases[0], Case([first]), *cases[1:]]


def conv(*args, **kwargs) -> L.Layer:
    return L.Conv2D(*args, **{"activation": "relu", **kwargs})


def half(layers: Sequence[L.Layer], which: int, of: int, height: int) -> list[L.Layer]:
    """The branch of one input of several that stand above each other."""
    return [L.Cropping2D(((which * height, (of - 1 - which) * height), 0)), *layers]


def two(kind: type[L.Layer]) -> Case:
    return Case([kind([half([conv(4, 3)], 0, 2, 8), half([conv(4, 3)], 1, 2, 8)])])


D2, REPEAT = L.Dense(2), L.RepeatVector(3)
BN = L.BatchNormalization
MERGED = {"Add": 3, "Average": 3, "Maximum": 3, "Minimum": 3, "Multiply": 3, "Subtract": 1}
ACTIVATIONS = ("softmax", "elu", "selu", "softplus", "softsign", "relu", "tanh", "sigmoid", HARD, "linear")
BLOCKS = [conv(5, 3, strides=2), BN(), conv(4, 3, padding="same"), BN(), conv(3, 3, padding="same"), BN()]
END = [conv(4, 3, activation=None), BN(), conv(2, 3, padding="same"), BN()]
RNN4 = L.SimpleRNN(4)
RNN4_SEQUENCE = L.SimpleRNN(4, return_sequences=True)

CASES: dict[str, Case] = {
    **{
        key: case
        for name in ACTIVATIONS
        for key, case in numbered(
            f"activations.{'hard_sigmoid' if name == HARD else name}",
            *[L.Activation(name)] * 3,
            *{"elu": [L.ELU(0.5)], "relu": [L.ReLU(0.5), L.ReLU(negative_slope=0.3)]}.get(name, []),
        ).items()
    },
    "advanced_activations.LeakyReLU.0": Case([L.LeakyReLU(0.4)]),
    "advanced_activations.PReLU.0": Case([L.PReLU()]),
    "advanced_activations.ELU.0": Case([L.ELU(1.1)]),
    "advanced_activations.ThresholdedReLU.0": Case([L.ReLU(threshold=0.9)]),
    **numbered(
        "convolutional.Conv1D",
        L.Conv1D(4, 3),
        L.Conv1D(4, 3, use_bias=False),
        L.Conv1D(2, 3, strides=2, padding="same", activation="sigmoid"),
        L.Conv1D(2, 7, padding="same", activation="tanh"),
        L.Conv1D(2, 7, padding="same", dilation_rate=2, activation="tanh"),
    ),
    **numbered(
        "convolutional.Conv2D",
        L.Conv2D(4, 3),
        L.Conv2D(4, 3, use_bias=False),
        conv(4, 3, strides=2),
        conv(5, 4, strides=(2, 1)),
        conv(4, 3, padding="same"),
        conv(4, 3, strides=2, padding="same"),
        conv(4, 3, strides=(3, 2), padding="same"),
        L.Conv2D(4, 3, dilation_rate=2),
        L.Conv2D(4, 3, dilation_rate=2, use_bias=False),
        conv(4, 3, dilation_rate=3),
        conv(3, 4, dilation_rate=2, padding="same"),
        conv(4, 3, dilation_rate=4, padding="same"),
    ),
    **numbered(
        "convolutional.Conv2DTranspose",
        L.Conv2DTranspose(4, 3, use_bias=False),
        L.Conv2DTranspose(4, 3),
        L.Conv2DTranspose(4, 3, strides=2, activation="relu"),
        L.Conv2DTranspose(4, 3, padding="same", activation="relu"),
        L.Conv2DTranspose(5, 3, strides=2, padding="same", activation="relu"),
        L.Conv2DTranspose(3, (2, 3), padding="same", activation="relu"),
    ),
    **numbered(
        "convolutional.Conv3D",
        L.Conv3D(4, 3),
        L.Conv3D(2, 3, activation="sigmoid", use_bias=False),
        L.Conv3D(2, 3, padding="same", activation="relu"),
        L.Conv3D(2, (3, 3, 2), strides=(2, 1, 1), padding="same", activation="relu"),
        L.Conv3D(2, 3, strides=(3, 3, 2), padding="same", activation="relu"),
        L.Conv3D(2, 3, dilation_rate=(2, 1, 1), activation="relu"),
        L.Conv3D(2, 3, dilation_rate=(1, 2, 1), padding="same", activation="relu"),
    ),
    **numbered("convolutional.Cropping1D", L.Cropping1D(1), L.Cropping1D((2, 3)), L.Cropping1D(2)),
    **numbered(
        "convolutional.Cropping2D",
        L.Cropping2D(((1, 1), (1, 1))),
        channels_first(L.Cropping2D(((1, 1), (1, 1))), 2),
        L.Cropping2D(((4, 2), (3, 1))),
        channels_first(L.Cropping2D(((4, 2), (3, 1))), 2),
        L.Cropping2D((2, 3)),
        L.Cropping2D(1),
    ),
    **numbered(
        "convolutional.Cropping3D",
        L.Cropping3D(((1, 1), (1, 1), (1, 1))),
        channels_first(L.Cropping3D(((1, 1), (1, 1), (1, 1))), 3),
        L.Cropping3D(((3, 2), (2, 1), (2, 3))),
        channels_first(L.Cropping3D(((3, 2), (2, 1), (2, 3))), 3),
        L.Cropping3D((1, 2, 3)),
        L.Cropping3D(2),
    ),
    **numbered(
        "convolutional.SeparableConv2D",
        L.SeparableConv2D(4, 3),
        L.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu"),
        L.SeparableConv2D(16, 3, depth_multiplier=3, activation="relu"),
        L.SeparableConv2D(4, 3, strides=2, activation="relu"),
        L.SeparableConv2D(4, 3, padding="same", activation="relu"),
        L.SeparableConv2D(4, 3, padding="same", depth_multiplier=2, activation="relu", use_bias=False),
        L.SeparableConv2D(4, 3, strides=2, padding="same", depth_multiplier=2, activation="relu"),
    ),
    **numbered("convolutional.UpSampling1D", L.UpSampling1D(2), L.UpSampling1D(3)),
    **numbered(
        "convolutional.UpSampling2D",
        L.UpSampling2D(2),
        channels_first(L.UpSampling2D(2), 2),
        L.UpSampling2D((3, 2)),
        channels_first(L.UpSampling2D((1, 3)), 2),
        L.UpSampling2D(2),
    ),
    **numbered(
        "convolutional.UpSampling3D",
        L.UpSampling3D(2),
        channels_first(L.UpSampling3D(2), 3),
        L.UpSampling3D((1, 3, 2)),
        channels_first(L.UpSampling3D((2, 1, 2)), 3),
        L.UpSampling3D(2),
    ),
    **numbered("convolutional.ZeroPadding1D", L.ZeroPadding1D(1), L.ZeroPadding1D(3), L.ZeroPadding1D((3, 2))),
    **numbered(
        "convolutional.ZeroPadding2D",
        L.ZeroPadding2D((1, 1)),
        channels_first(L.ZeroPadding2D((1, 1)), 2),
        L.ZeroPadding2D((3, 2)),
        channels_first(L.ZeroPadding2D((3, 2)), 2),
        L.ZeroPadding2D(((1, 2), (3, 4))),
        L.ZeroPadding2D(2),
    ),
    **numbered(
        "convolutional.ZeroPadding3D",
        L.ZeroPadding3D((1, 1, 1)),
        channels_first(L.ZeroPadding3D((1, 1, 1)), 3),
        L.ZeroPadding3D((3, 2, 2)),
        channels_first(L.ZeroPadding3D((3, 2, 2)), 3),
        L.ZeroPadding3D(((1, 2), (3, 4), (3, 1))),
        L.ZeroPadding3D(2),
    ),
    **numbered("core.Activation", *([L.Dense(2), L.Activation(name)] for name in ACTIVATIONS)),
    **numbered(
        "core.Dense",
        *[L.Dense(2), L.Dense(2, activation="sigmoid"), L.Dense(2, activation="softplus", use_bias=False)] * 2,
    ),
    "core.Dropout.0": Case([L.Dense(2), L.Dropout(0.5)]),
    **numbered("core.Flatten", *[L.Flatten()] * 3),
    **numbered("core.Permute", *(L.Permute(d) for d in [(2, 1), (3, 2, 1), (2, 1, 3), (3, 1, 2, 4)])),
    "core.RepeatVector.0": Case([L.RepeatVector(7)]),
    **numbered("core.Reshape", L.Reshape((2, 3)), L.Reshape((6,)), L.Reshape((4, 3))),
    **numbered("embeddings.Embedding", L.Embedding(5, 3), L.Embedding(20, 5, mask_zero=True), L.Embedding(33, 2)),
    "graph_00": Case([L.Concatenate([half([L.Permute((1, 3, 2))], 0, 2, 3), half([L.Permute((2, 3, 1))], 1, 2, 3)])]),
    "graph_01": two(L.Add),
    "graph_02": two(L.Average),
    "graph_03": two(L.Multiply),
    "graph_04": two(L.Maximum),
    "graph_05": two(L.Concatenate),
    "graph_06": Case(
        [
            L.Concatenate(
                [
                    half([conv(4, 3, padding="same")], 0, 3, 8),
                    half([conv(2, 1), conv(4, 3, padding="same"), conv(2, 1)], 1, 3, 8),
                    half([conv(5, 3, padding="same"), conv(3, 3, padding="same")], 2, 3, 8),
                ]
            )
        ],
        order=[
            f"concatenate/branch_{branch}/{array}"
            for branch, layer in ((1, ""), (1, "_1"), (2, ""), (0, ""), (1, "_2"), (2, "_1"))
            for array in (f"conv2d{layer}/kernel", f"conv2d{layer}/bias")
        ],
    ),
    "graph_07": Case(
        [
            L.Concatenate([half([conv(4, 3, padding="same")] * 2, which, 2, 8) for which in (0, 1)]),
            L.Conv2D(4, 3, padding="same"),
        ],
        order=[
            *(
                f"concatenate/branch_{branch}/conv2d{layer}/{array}"
                for layer in ("", "_1")
                for branch in (0, 1)
                for array in ("kernel", "bias")
            ),
            "conv2d/kernel",
            "conv2d/bias",
        ],
    ),
    **{
        key: case
        for name, count in MERGED.items()
        for key, case in numbered(f"merge.{name}", *(getattr(L, name)([D2] * (2 + i)) for i in range(count))).items()
    },
    **numbered(
        "merge.Concatenate",
        L.Concatenate([D2, D2]),
        L.Concatenate([[D2, REPEAT]] * 2),
        L.Concatenate([[D2, REPEAT]] * 2, axis=-2),
        L.Concatenate([[D2, REPEAT]] * 2, axis=1),
        L.Concatenate([[D2, REPEAT]] * 2, axis=2),
        L.Concatenate([[D2, REPEAT]] * 3),
        L.Concatenate([[D2, REPEAT]] * 4),
    ),
    "noise.GaussianDropout.0": Case([L.Dense(2), L.GaussianDropout(0.5)]),
    "noise.GaussianNoise.0": Case([L.Dense(2), L.GaussianNoise(0.5)]),
    **numbered(
        "normalization.BatchNormalization",
        BN(epsilon=1e-5),
        BN(epsilon=1e-2),
        BN(axis=1, epsilon=1e-5),
        BN(axis=2, epsilon=1e-5),
        BN(axis=3, epsilon=1e-5, scale=False),
        BN(epsilon=1e-5, center=False),
        BN(center=False, scale=False),
    ),
    "pipeline_00": Case([conv(4, 3)] * 3),
    "pipeline_01": Case(
        [
            conv(5, 3, padding="same", strides=2),
            conv(4, 3, padding="same", activation=None),
            conv(2, 3),
            conv(3, 5),
            conv(2, 3, activation=None),
        ]
    ),
    "pipeline_02": Case(
        [
            conv(5, 3, padding="same", strides=2),
            conv(4, 3, activation=None),
            conv(2, 1),
            conv(3, 5, padding="same"),
            conv(2, 3, padding="same", activation=None),
            conv(4, 1),
            conv(2, 3, activation=None),
        ]
    ),
    "pipeline_03": Case([conv(4, 3), BN(epsilon=1e-5)]),
    "pipeline_04": Case(
        [
            conv(5, 3, padding="same", strides=2),
            BN(),
            conv(4, 1, activation=None),
            BN(),
            conv(3, 3, padding="same"),
            BN(),
            conv(2, 3),
            BN(),
        ]
    ),
    "pipeline_05": Case([conv(4, 3), L.MaxPooling2D(2)]),
    "pipeline_06": Case([*BLOCKS, L.MaxPooling2D(2), *END, L.MaxPooling2D(2)]),
    "pipeline_07": Case([conv(4, 3), L.MaxPooling2D(2, strides=1)]),
    "pipeline_08": Case([conv(4, 3, padding="same"), conv(4, 3), L.MaxPooling2D(2, strides=1, padding="same")]),
    "pipeline_09": Case([conv(4, 3), L.AveragePooling2D(2)]),
    "pipeline_10": Case([*BLOCKS, L.AveragePooling2D(2), *END, L.AveragePooling2D(2)]),
    "pipeline_11": Case([conv(4, 3), L.AveragePooling2D(2, strides=1)]),
    "pipeline_12": Case([conv(4, 3, padding="same"), conv(4, 3), L.AveragePooling2D(2, strides=1, padding="same")]),
    "pipeline_13": Case(
        [
            L.Conv2D(2, 3),
            L.Activation("relu"),
            L.Conv2D(2, 3),
            L.Activation("relu"),
            L.MaxPooling2D(2, strides=1),
            L.Dropout(0.25),
            L.Flatten(),
            L.Dense(3),
            L.Activation("relu"),
            L.Dropout(0.5),
            L.Dense(3),
            L.Activation("softmax"),
        ]
    ),
    "pipeline_14": Case([L.SeparableConv2D(2, 3)] * 2),
    "pipeline_15": Case([L.Conv2D(2, 3), BN(), L.Activation("relu"), L.SeparableConv2D(2, 3, padding="same"), BN()]),
    "pipeline_16": Case(
        [
            L.Conv2D(4, 3, strides=2, use_bias=False),
            BN(),
            L.Activation("relu"),
            L.ZeroPadding2D(((0, 1), (0, 1))),
            L.Cropping2D(((1, 0), (1, 0))),
            L.AveragePooling2D(1, strides=2),
        ]
    ),
    **numbered("pooling.AveragePooling1D", *pooling_1d(L.AveragePooling1D)),
    **numbered("pooling.AveragePooling2D", *pooling(L.AveragePooling2D, 2)),
    **numbered("pooling.AveragePooling3D", *pooling(L.AveragePooling3D, 3)),
    **numbered("pooling.MaxPooling1D", *pooling_1d(L.MaxPooling1D)),
    **numbered("pooling.MaxPooling2D", *pooling(L.MaxPooling2D, 2)),
    **numbered("pooling.MaxPooling3D", *pooling(L.MaxPooling3D, 3)),
    **{
        key: case
        for kind in ("Average", "Max")
        for rank in (1, 2, 3)
        for layer in [getattr(L, f"Global{kind}Pooling{rank}D")()]
        for key, case in numbered(
            f"pooling.Global{kind}Pooling{rank}D",
            layer,
            layer if rank == 1 else channels_first(layer, rank, back=False),
            layer,
        ).items()
    },
    **numbered("recurrent.SimpleRNN", *recurrent(L.SimpleRNN, use_bias_8=False)),
    **numbered("recurrent.GRU", *recurrent(L.GRU, use_bias_8=False)),
    **numbered("recurrent.LSTM", *recurrent(L.LSTM, use_bias_8=True)),
    **numbered(
        "wrappers.Bidirectional",
        L.Bidirectional(RNN4, "sum"),
        L.Bidirectional(RNN4, "mul"),
        L.Bidirectional(RNN4, "concat"),
        L.Bidirectional(RNN4, "ave"),
        L.Bidirectional(RNN4_SEQUENCE, "concat"),
        L.Bidirectional(L.GRU(4, recurrent_activation=HARD, reset_after=False, return_sequences=True)),
        L.Bidirectional(L.LSTM(4, recurrent_activation=HARD, return_sequences=True)),
        L.Bidirectional(RNN4_SEQUENCE, "sum"),
    ),
    **numbered("wrappers.TimeDistributed", L.TimeDistributed(L.Dense(4)), L.TimeDistributed(L.Conv2D(6, 3))),
}


def keras_arrays(layers: Sequence[L.Layer], prefix: str = "") -> Iterator[tuple[str, L.Layer]]:
    """Our names of the arrays in the order in which Keras lists its weights, with the layer that each is of."""
    for name, layer in zip(layer_names(layers), layers, strict=True):
        yield from layer_arrays(layer, f"{prefix}{name}/")


def layer_arrays(layer: L.Layer, at: str) -> Iterator[tuple[str, L.Layer]]:
    names: list[str] = []
    match layer:
        case L.Bidirectional():
            yield from layer_arrays(layer.layer, f"{at}forward/")
            yield from layer_arrays(layer.layer, f"{at}backward/")
        case L.TimeDistributed():
            yield from layer_arrays(layer.layer, f"{at}layer/")
        case L.Add() | L.Average() | L.Concatenate() | L.Maximum() | L.Minimum() | L.Multiply() | L.Subtract():
            for number, branch in enumerate(layer.branches):
                yield from keras_arrays(branch, f"{at}branch_{number}/")
        case L.BatchNormalization():
            names = ["scale"] * layer.scale + ["bias"] * layer.center + ["mean", "var"]
        case L.SeparableConv2D():
            names = ["depthwise_kernel", "pointwise_kernel"] + ["bias"] * layer.use_bias
        case L.SimpleRNN() | L.GRU() | L.LSTM():
            names = ["kernel", "recurrent_kernel"] + ["bias"] * layer.use_bias
        case L.Embedding():
            names = ["embeddings"]
        case L.PReLU():
            names = ["alpha"]
        case L.Dense() | L.Conv1D() | L.Conv2D() | L.Conv3D() | L.Conv2DTranspose():
            names = ["kernel"] + ["bias"] * layer.use_bias
    yield from ((at + name, layer) for name in names)


def from_keras(weight: np.ndarray, layer: L.Layer | None) -> np.ndarray:
    if not isinstance(layer, L.GRU):
        return weight
    update, reset, new = np.split(weight, 3, axis=-1)
    return np.concatenate([reset, update, new], axis=-1)


def array(entry: dict) -> np.ndarray:
    return np.asarray(entry["data"], np.float32).reshape(entry["shape"])


@pytest.fixture(scope="session")
def fixtures(shared_data) -> dict[str, dict]:
    archive = shared_data / "keras_layer_fixtures" / "keras_layer_fixtures.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} among the data sets")
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                found.update(json.load(tar.extractfile(member)))
    return found


def test_every_fixture_is_checked_or_left_out_by_name(fixtures):
    assert fixtures.keys() == CASES.keys() | set(LEFT_OUT)


@pytest.mark.parametrize("key", CASES)
def test_fixture(fixtures, key):
    case, fixture = CASES[key], fixtures[key]
    x = np.concatenate([array(i) for i in fixture["inputs"]]) if "inputs" in fixture else array(fixture["input"])
    expected = array(fixture["expected"])
    if case.layers[0].tokens:
        x = x.astype(np.int32)
    if case.twice:
        x = np.concatenate([x, x])
    names = [(n, None) for n in case.order] or list(keras_arrays(case.layers))
    arrays = {
        name: jnp.asarray(from_keras(array(weight), layer))
        for (name, layer), weight in zip(names, fixture.get("weights", []), strict=True)
    }

    state = {name: value for name, value in arrays.items() if name.endswith(("/mean", "/var"))}
    params = {name: value for name, value in arrays.items() if name not in state}

    net = pure(lambda rngs: Stack(case.layers, x.shape, rngs=rngs))
    y, _ = jax.jit(net.apply)(Variables(params, state), jnp.asarray(x)[None])

    assert y.shape[1:] == output_shapes(case.layers, x.shape)[-1]
    y = y[0, -len(expected) :] if case.twice and expected.ndim == 2 else y[0]
    # The files are rounded to six digits.
    assert_close(y, expected)
