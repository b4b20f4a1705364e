"""Keras on the backend that KERAS_BACKEND names, compiled as Keras chooses (jit_compile="auto")."""

import functools
import os

import keras
from keras import layers

from side_by_side.steps.architectures import (
    BASIC_BLOCKS,
    EPSILON,
    HIDDEN,
    LABELS,
    RESNET50,
    VGG11,
    VGG11_DENSE,
    weights,
)
from side_by_side.steps.gate import Gate
from side_by_side.steps.rows import CLASSES, Row

_MINE = {
    "kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains by `fit`, verbose=0, where a callback waits at the gate; or predicts by `predict_on_batch`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        threads = len(os.sched_getaffinity(0))
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
    if row.precision != "float32":
        keras.mixed_precision.set_global_policy(f"mixed_{row.precision}")
    inputs = keras.Input(row.shape)
    # In inference the reference is of logits.
    labels, activation = (CLASSES, "softmax") if row.trains else (LABELS[row.kind], None)
    # Probabilities and losses are float32, as Keras' guide to mixed precision says.
    head = layers.Dense(labels, activation=activation, dtype="float32" if row.trains else None, name="head")
    model = keras.Model(inputs, head(_MODELS[row.kind](inputs)))
    if row.trains:
        _train(model, row, gate)
    else:
        _predict(model, row, gate)


def _train(model: keras.Model, row: Row, gate: Gate) -> None:
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = row.data()

    class Wait(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            model.stop_training = not gate.epoch((logs or {})["loss"])

    gate.start()
    model.fit(x, y, epochs=100_000, batch_size=row.batch, callbacks=[Wait()], verbose=0)


def _predict(model: keras.Model, row: Row, gate: Gate) -> None:
    model.compile()
    given = weights(row.kind)
    for layer in model.layers:
        for variable in layer.weights:
            own = _MINE.get(variable.name, variable.name)
            variable.assign(given[f"{layer.name.removesuffix('_norm').replace('-', '/')}/{own}"])
    x, _ = row.data()
    gate.start()
    while True:
        found = [model.predict_on_batch(x[first : first + row.batch]) for first in range(0, len(x), row.batch)]
        if not gate.epoch(found[0][0]):
            return


def _cnn(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(32, (3, 3), activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D((2, 2))(x))
    return layers.Dense(128, activation="relu")(x)


def _mlp(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Dense(128, activation="relu")(layers.Rescaling(1 / 255)(x))


def _lstm(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.LSTM(HIDDEN, name="lstm")(x)


def _gru(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.GRU(HIDDEN)(x)


def _basic_blocks(kind: str, x: keras.KerasTensor) -> keras.KerasTensor:
    widths = BASIC_BLOCKS[kind]
    x = layers.ReLU()(_normalized(layers.Rescaling(1 / 255)(x), "stem", widths[0], 3, 1))
    for number, filters in enumerate(widths):
        strides = 1 if filters == x.shape[-1] else 2
        y = layers.ReLU()(_normalized(x, f"{number}-a", filters, 3, strides))
        y = _normalized(y, f"{number}-b", filters, 3, 1)
        shortcut = x if strides == 1 else _normalized(x, f"{number}-shortcut", filters, 1, strides)
        x = layers.ReLU()(layers.Add()([y, shortcut]))
    return layers.GlobalAveragePooling2D()(x)


def _vgg11(x: keras.KerasTensor) -> keras.KerasTensor:
    x, number = layers.Rescaling(1 / 255)(x), 0
    for entry in VGG11:
        if isinstance(entry, int):
            x = layers.Conv2D(entry, 3, padding="same", activation="relu", name=f"conv{number}")(x)
            number += 1
        else:
            x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for number, width in enumerate(VGG11_DENSE):
        x = layers.Dense(width, activation="relu", name=f"dense{number}")(x)
    return x


def _resnet50(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.ReLU()(_normalized(layers.Rescaling(1 / 255)(x), "stem", 64, 7, 2))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for block in RESNET50:
        y = layers.ReLU()(_normalized(x, f"{block.name}-a", block.width, 1, 1))
        y = layers.ReLU()(_normalized(y, f"{block.name}-b", block.width, 3, block.stride))
        y = _normalized(y, f"{block.name}-c", block.cout, 1, 1)
        shortcut = _normalized(x, f"{block.name}-shortcut", block.cout, 1, block.stride) if block.projects else x
        x = layers.ReLU()(layers.Add()([y, shortcut]))
    return layers.GlobalAveragePooling2D()(x)


def _normalized(x: keras.KerasTensor, name: str, filters: int, size: int, strides: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_norm")(x)


_MODELS = {
    "cnn": _cnn,
    "mlp": _mlp,
    "lstm": _lstm,
    "gru": _gru,
    "resnet": functools.partial(_basic_blocks, "resnet"),
    "resnet18": functools.partial(_basic_blocks, "resnet18"),
    "vgg11": _vgg11,
    "resnet50": _resnet50,
}
