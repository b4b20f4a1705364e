"""Small models of each kind, with data to learn."""

import numpy as np

import llmasos_xla as lm

L = lm.layers


def mlp():
    return [
        L.Dense(64, activation="relu", input_shape=(20,)),
        L.Dropout(0.2),
        L.Dense(64, activation="relu"),
        L.Dense(4, activation="softmax"),
    ]


def cnn():
    # No bias ahead of a normalization: its gradient is nothing but rounding, which Adam would make steps of.
    return [
        L.Conv2D(16, 3, use_bias=False, input_shape=(10, 10, 3)),
        L.BatchNormalization(),
        L.ReLU(),
        L.MaxPooling2D(2),
        L.Conv2D(32, 3, activation="relu"),
        L.GlobalAveragePooling2D(),
        L.Dense(4, activation="softmax"),
    ]


def lstm():
    return [L.LSTM(32, input_shape=(8, 12)), L.Dense(4, activation="softmax")]


def decoder():
    return [
        L.Embedding(40, 32, input_shape=(16,)),
        L.Decoder(4, num_heads=4, kv_heads=2),
        L.RMSNormalization(),
        L.Dense(40, use_bias=False, activation="softmax"),
    ]


def mixture():
    return [
        L.Embedding(40, 32, input_shape=(16,)),
        L.Decoder(2, num_heads=4, experts=4),
        L.Dense(40, use_bias=False, activation="softmax"),
    ]


MODELS = {
    "mlp": (mlp, (20,)),
    "cnn": (cnn, (10, 10, 3)),
    "lstm": (lstm, (8, 12)),
    "decoder": (decoder, None),
    "mixture": (mixture, None),
}


def problem(kind: str, rows: int, optimizer="adam"):
    """A compiled model and data for it: classes, or the next ids of rows of ids."""
    layers, shape = MODELS[kind]
    rng = np.random.default_rng(0)
    if shape is None:
        ids = rng.integers(0, 40, (rows, 17)).astype("int32")
        x, y = ids[:, :-1], ids[:, 1:]
    else:
        x = rng.normal(size=(rows, *shape)).astype("float32")
        y = rng.integers(0, 4, rows).astype("int32")
    model = lm.Sequential(layers(), seed=3)
    model.compile(optimizer, metrics=["accuracy"])
    return model, x, y
