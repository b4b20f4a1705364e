"""What layers refuse, and in which words: on construction, for an input shape, and from JSON."""

import json

import numpy as np
import pytest

from llmasos_xla.models import layers as L  # noqa: N812

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: L.Dense(0), "Dense: units wants an int of at least 1, got 0"),
        (lambda: L.Dense(1.5), "Dense: units wants an int of at least 1, got 1.5"),
        (lambda: L.Dense(True), "Dense: units wants an int of at least 1, got True"),
        (lambda: L.Dense(10**12), "Dense: units wants an int of at least 1, got 1000000000000"),
        (
            lambda: L.Dense(3, name="out", activation="rulu"),
            "Dense 'out': unknown activation 'rulu'; did you mean 'relu'?",
        ),
        (lambda: L.Dense(3, activation=lambda x: x), "is a function without a known name, so it could not be saved"),
        (lambda: L.Dense(3, kernel_initializer="he"), "Dense: unknown initializer 'he';"),
        (lambda: L.Dense(3, use_bias="no"), "Dense: use_bias wants True or False, got 'no'"),
        (lambda: L.Dense(3, name="a/b"), "Dense: name wants a letter, then letters, digits"),
        (lambda: L.Dense(3, name="_names"), "Dense: name wants a letter, then letters, digits"),
        (lambda: L.Dense(3, input_shape="28"), "Dense: input_shape wants the sizes of one sample"),
        (lambda: L.Dense(3, input_shape=(28, 0)), "Dense: input_shape wants the sizes of one sample"),
        (lambda: L.Conv2D(3, (3, 3, 3)), "Conv2D: kernel_size wants an int of at least 1 or 2 of them, got (3, 3, 3)"),
        (lambda: L.Conv2D(3, 3, strides=0), "Conv2D: strides wants an int of at least 1 or 2 of them, got 0"),
        (lambda: L.Conv2D(3, 3, padding="full"), "Conv2D: unknown padding 'full'; Known: same, valid"),
        (lambda: L.Conv2D(3, 3, padding=-1), "Conv2D: padding at both ends of an axis wants an int of at least 0"),
        (lambda: L.Conv2D(3, 3, padding=(1, 1, 1)), "Conv2D: padding wants an int, 2 of them, or 2 pairs (low, high)"),
        (lambda: L.MaxPooling2D(2, padding="full"), "MaxPooling2D: unknown padding 'full'; Known: same, valid"),
        (lambda: L.Conv2D(3, 3, groups=2), "Conv2D: filters (3) must be a multiple of groups (2)"),
        (
            lambda: L.Conv2DTranspose(3, 3, 2, output_padding=2),
            "output_padding (2, 2) must be less than strides (2, 2)",
        ),
        (lambda: L.MaxPooling1D("2"), "MaxPooling1D: pool_size wants an int of at least 1, got '2'"),
        (lambda: L.Reshape((2, -1, -1)), "Reshape: target_shape wants ints of at least 1, one of them may be -1"),
        (lambda: L.Permute((0, 1)), "Permute: dims wants each of 1, 2, ... once, such as (2, 1), got (0, 1)"),
        (lambda: L.RepeatVector(-1), "RepeatVector: n wants an int of at least 1, got -1"),
        (lambda: L.ZeroPadding2D((1, 2, 3)), "ZeroPadding2D: padding wants an int, 2 of them, or 2 pairs (low, high)"),
        (
            lambda: L.Cropping1D(-1),
            "Cropping1D: cropping at both ends of an axis wants an int of at least 0 or 2 of them",
        ),
        (lambda: L.UpSampling2D(2, interpolation="cubic"), "UpSampling2D: unknown interpolation 'cubic';"),
        (lambda: L.Dropout(1.0), "Dropout: rate wants a finite number of at least 0 and below 1, got 1.0"),
        (lambda: L.Dropout("half"), "Dropout: rate wants a number, got 'half'"),
        (lambda: L.GaussianNoise(float("nan")), "GaussianNoise: stddev wants a finite number, got nan"),
        (lambda: L.LeakyReLU(-0.1), "LeakyReLU: negative_slope wants a finite number of at least 0, got -0.1"),
        (lambda: L.BatchNormalization(momentum=1.5), "momentum wants a number between 0 and 1, got 1.5"),
        (lambda: L.LayerNormalization(epsilon=0), "LayerNormalization: epsilon wants a positive number, got 0"),
        (lambda: L.GroupNormalization(0), "groups (or -1, one a channel) wants an int of at least 1, got 0"),
        (lambda: L.LSTM(4, dropout=1), "LSTM: dropout wants a finite number of at least 0 and below 1, got 1"),
        (lambda: L.LSTM(4, layer_norm=True, epsilon=0), "LSTM: epsilon wants a positive number, got 0"),
        (lambda: L.Bidirectional(L.Dense(3)), "Bidirectional: wants a SimpleRNN, GRU, LSTM or MinGRU, got Dense("),
        (lambda: L.Bidirectional(L.GRU(3, go_backwards=True)), "its layer runs in both directions; leave go_backwards"),
        (
            lambda: L.Bidirectional(L.GRU(3), "average"),
            "Bidirectional: unknown merge_mode 'average'; did you mean 'ave'?",
        ),
        (lambda: L.TimeDistributed("Dense"), "TimeDistributed: wants a layer, got 'Dense'"),
        (lambda: L.MultiHeadAttention(2, 0), "MultiHeadAttention: key_dim wants an int of at least 1, got 0"),
        (lambda: L.Residual([]), "Residual: layers wants at least one layer, got none"),
        (lambda: L.Residual([3]), "Residual: layers wants a list of layers, got [3]"),
        (lambda: L.Add([L.Dense(3)]), "Add: wants two or more branches, each a list of layers"),
        (lambda: L.Subtract([[], [], []]), "Subtract: wants two branches, got 3"),
        (lambda: L.make_layer("Densee", 3), "add_layer: unknown layer 'Densee'; did you mean 'Dense'?"),
    ],
)
def test_construction(make, text):
    with pytest.raises(ValueError) as caught:
        make()
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (L.Dense(3), (4, None), "Dense: axis -1 of its input must have a known size, got samples of shape (4, None)"),
        (L.Dense(3), (), "Dense: axis -1 of its input must have a known size, got samples of shape ()"),
        (L.Conv2D(3, 3), (28, 28), "Conv2D: wants samples of shape (height, width, channels), got (28, 28);"),
        (L.Conv2D(3, 3), (28, 28, None), "Conv2D: axis -1 of its input must have a known size"),
        (L.Conv2D(3, 3), (2, 28, 1), "Conv2D: a window of 3 does not fit an axis of 2; use padding='same'"),
        (L.Conv2D(4, 3, groups=2), (8, 8, 3), "Conv2D: the input's 3 channels are no multiple of groups (2)"),
        (L.MaxPooling2D(3), (2, 2, 1), "MaxPooling2D: a window of 3 does not fit an axis of 2"),
        (L.GlobalMaxPooling1D(), (3,), "GlobalMaxPooling1D: wants samples of shape (time, channels), got (3,)"),
        (L.Reshape((4,)), (3, 2), "Reshape: samples of shape (3, 2) hold 6 values, (4,) wants 4"),
        (L.Reshape((4, -1)), (3, 2), "Reshape: samples of shape (3, 2) hold 6 values, (4, -1) wants 4"),
        (L.Permute((2, 1)), (3,), "Permute: dims (2, 1) order 2 axes, samples are of shape (3,)"),
        (L.Cropping1D(2), (4, 1), "Cropping1D: cropping ((2, 2),) leaves nothing of samples of shape (4, 1)"),
        (L.BatchNormalization(axis=0), (3,), "BatchNormalization: axis 0 is no axis of a sample; the array has 2 axes"),
        (L.LayerNormalization(axis=(1, -1)), (3,), "axis wants one axis or several different ones, got (1, -1)"),
        (L.Softmax(axis=3), (3,), "Softmax: axis 3 is no axis of a sample"),
        (L.GroupNormalization(2), (3,), "GroupNormalization: the input's 3 channels are no multiple of groups (2)"),
        (L.LSTM(3), (3,), "LSTM: wants samples of shape (time, channels), got (3,)"),
        (L.TimeDistributed(L.Dense(3)), (3,), "TimeDistributed: wants samples of shape (time, ...), got (3,)"),
        (L.Residual([L.Dense(3)]), (4,), "Residual: layers give (3,), the shortcut gives (4,); give a shortcut"),
        (L.Add([[], L.Dense(3)]), (4,), "Add: branches must agree in shape; branch 0 gives (4,), branch 1 (3,)"),
        (L.Concatenate([[], L.Flatten()]), (4, 2), "branch 0 gives (4, 2), branch 1 (8,)"),
        (L.Add([[], [L.LSTM(3)]]), (4,), "Add: in branch 1: layer 0 (LSTM) does not fit its input (4,): LSTM: wants"),
    ],
)
def test_input_shape(layer, shape, text):
    with pytest.raises(ValueError) as caught:
        layer.output_shape(shape)
    assert text in str(caught.value)


def test_numpy_integers_and_lists_are_taken():
    layer = L.Conv2D(np.int64(4), [np.int32(3), 3], input_shape=[8, np.int64(8), 1])
    assert (layer.filters, layer.kernel_size, layer.input_shape) == (4, (3, 3), (8, 8, 1))
    json.dumps(layer.to_json())


def nested(depth: int) -> dict:
    config = {"class": "Dense", "units": 1}
    for _ in range(depth):
        config = {"class": "Residual", "layers": [config]}
    return config


@pytest.mark.parametrize(
    "config",
    [
        None,
        3,
        [],
        "Dense",
        {},
        {"units": 3},
        {"class": "Layer"},
        {"class": "_Conv", "filters": 3, "kernel_size": 3},
        {"class": "__import__"},
        {"class": ["Dense"], "units": 3},
        {"class": {"class": "Dense"}},
        {"class": "Dense"},
        {"class": "Dense", "units": "3"},
        {"class": "Dense", "units": None},
        {"class": "Dense", "units": [3]},
        {"class": "Dense", "units": 1e400},
        {"class": "Dense", "units": 2**62},
        {"class": "Dense", "units": 3, "check": "x"},
        {"class": "Dense", "units": 3, "__class__": "x"},
        {"class": "Dense", "units": 3, "activation": {"class": "Dense", "units": 3}},
        {"class": "Dense", "units": 3, "activation": ["relu"]},
        {"class": "Dense", "units": 3, "kernel_initializer": None},
        {"class": "Dense", "units": 3, "name": "../../etc/passwd"},
        {"class": "Dense", "units": 3, "name": ["a"]},
        {"class": "Dense", "units": 3, "input_shape": {"a": 1}},
        {"class": "Dense", "units": 3, "input_shape": 1.5},
        {"class": "Dropout", "rate": float("nan")},
        {"class": "Dropout", "rate": None},
        {"class": "Conv2D", "filters": 3, "kernel_size": "3"},
        {"class": "Conv2D", "filters": 3, "kernel_size": {"class": "Dense", "units": 3}},
        {"class": "Conv2D", "filters": 3, "kernel_size": [[3, 3], [3, 3]]},
        {"class": "Conv2DTranspose", "filters": 3, "kernel_size": 3, "output_padding": "1"},
        {"class": "ZeroPadding2D", "padding": [[1, 2], [3]]},
        {"class": "Reshape", "target_shape": "12"},
        {"class": "Reshape", "target_shape": [None]},
        {"class": "Permute", "dims": [1, [2]]},
        {"class": "BatchNormalization", "axis": "last"},
        {"class": "LayerNormalization", "axis": [[1]]},
        {"class": "Softmax", "axis": {"class": "Flatten"}},
        {"class": "ReLU", "max_value": "6"},
        {"class": "PReLU", "shared_axes": "12"},
        {"class": "MultiHeadAttention", "num_heads": 1, "key_dim": 1, "value_dim": "3"},
        {"class": "Bidirectional", "layer": "LSTM"},
        {"class": "Bidirectional", "layer": {"class": "Dense", "units": 3}},
        {"class": "Add", "branches": "ab"},
        {"class": "Add", "branches": [[3], [4]]},
        {"class": "Add", "branches": {"class": "Flatten"}},
        {"class": "Residual", "layers": 3},
        nested(200),
    ],
    ids=lambda config: str(config)[:60],
)
def test_hostile_json_is_a_value_error(config):
    def read():
        # What only an input can refute is refuted by the shape, before any array exists.
        L.layer_from_json(config).output_shape((4, 4, 2))

    with pytest.raises(ValueError):
        read()


def test_errors_show_the_value_cut_short():
    with pytest.raises(ValueError) as caught:
        L.Dense([1] * 10**6)
    assert len(str(caught.value)) < 200


def test_layers_print_what_was_given():
    assert repr(L.Dense(3, activation="relu", name="out")) == "Dense(name='out', units=3, activation='relu')"


def test_deep_nesting_is_refused_before_it_is_built():
    assert L.layer_from_json(nested(8)).output_shape((1,)) == (1,)
    with pytest.raises(ValueError, match="more than 64 levels of JSON deep"):
        L.layer_from_json(nested(40))
