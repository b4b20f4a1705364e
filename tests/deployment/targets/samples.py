"""Small models with random weights, as exports take them."""

import functools

import numpy as np

import llmasos_xla as lm

L = lm.layers


def pictures(rows: int = 40) -> np.ndarray:
    """Bytes [rows, 12, 12, 1], dark at the left."""
    noise = np.random.default_rng(1).integers(0, 128, (rows, 12, 12, 1))
    return (noise + np.arange(12)[:, None] * 10).astype(np.uint8)


def sequences(rows: int = 40) -> np.ndarray:
    """Numbers [rows, 7, 4]."""
    return np.random.default_rng(2).standard_normal((rows, 7, 4)).astype(np.float32)


def words(rows: int = 40) -> np.ndarray:
    """Ids [rows, 7]."""
    return np.random.default_rng(3).integers(1, 24, (rows, 7)).astype(np.int32)


@functools.cache
def cnn() -> lm.Sequential:
    """A convolutional classifier of bytes."""
    model = lm.Sequential(
        [
            L.Conv2D(8, 3, padding="same", activation="relu"),
            L.BatchNormalization(),
            L.MaxPooling2D(2),
            L.Flatten(),
            L.Dense(10, activation="softmax"),
        ]
    )
    model.predict(pictures())
    return model


@functools.cache
def lstm() -> lm.Sequential:
    """A recurrence in both directions."""
    model = lm.Sequential([L.Bidirectional(L.LSTM(8)), L.Dense(3, activation="softmax")])
    model.predict(sequences())
    return model


def resnet() -> lm.Network:
    """Bottlenecks and a max pool with padding."""
    model = lm.Network(lm.models.ResNetConfig((1, 1), (8, 16), classes=6, stem_width=4, input_shape=(19, 21, 3)))
    model.predict(np.random.default_rng(3).standard_normal((3, 19, 21, 3)).astype(np.float32))
    return model


def bert() -> lm.Network:
    """Ids, and a mask and kinds of words that may be missing."""
    sizes = {"vocab": 12, "context": 8, "width": 8, "depth": 2, "heads": 2, "hidden": 12}
    model = lm.Network(lm.models.BertConfig(**sizes, classes=3))
    model.predict(np.arange(1, 7, dtype=np.int32)[None])
    return model


def gpt2() -> lm.Network:
    """A decoder with logits for every place."""
    model = lm.Network(lm.models.GPT2Config(24, context=16, width=12, depth=2, heads=3))
    model.predict(np.arange(1, 8, dtype=np.int32)[None])
    return model


def thinned() -> lm.Network:
    """Shortcuts without arrays, a max pool, and pictures of any size."""
    sizes = {"block": "basic", "shortcut": "padding", "stem_width": 4, "classes": 6}
    model = lm.Network(lm.models.ResNetConfig((1, 1), (8, 16), **sizes))
    model.predict(np.random.default_rng(3).standard_normal((3, 19, 21, 3)).astype(np.float32))
    return model


def t5() -> lm.Network:
    """Relative positions, an encoder and a decoder, each with a length of its own."""
    sizes = {"width": 12, "depth": 1, "heads": 2, "key_dim": 6, "hidden": 16, "buckets": 8, "farthest": 10}
    model = lm.Network(lm.models.T5Config(24, **sizes))
    model.predict({"ids": words(3), "decoder_input_ids": words(3)[:, :5]})
    return model


EVERY = {"cnn": cnn, "lstm": lstm, "resnet": resnet, "bert": bert, "gpt2": gpt2}
