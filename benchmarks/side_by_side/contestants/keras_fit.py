"""Keras by its `fit`, on the backend that KERAS_BACKEND names; compiled as Keras chooses (jit_compile="auto")."""

import os

import keras
from keras import layers

from side_by_side.gate import Gate
from side_by_side.rows import CLASSES, Row


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains by `fit`, verbose=0; a callback waits at the gate after each epoch."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        threads = len(os.sched_getaffinity(0))
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
    inputs = keras.Input(row.shape)
    model = keras.Model(inputs, _MODELS[row.kind](inputs))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = row.data()

    class Wait(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            model.stop_training = not gate.epoch((logs or {})["loss"])

    gate.start()
    model.fit(x, y, epochs=100_000, batch_size=row.batch, callbacks=[Wait()], verbose=0)


def _cnn(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(32, (3, 3), activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D((2, 2))(x))
    return layers.Dense(CLASSES, activation="softmax")(layers.Dense(128, activation="relu")(x))


def _mlp(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Dense(128, activation="relu")(layers.Rescaling(1 / 255)(x))
    return layers.Dense(CLASSES, activation="softmax")(x)


def _lstm(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Dense(CLASSES, activation="softmax")(layers.LSTM(256)(x))


def _resnet(x: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.ReLU()(_normalized(layers.Rescaling(1 / 255)(x), 16, 3, 1))
    for filters in (16, 16, 32, 32, 64, 64):
        strides = 1 if filters == x.shape[-1] else 2
        y = layers.ReLU()(_normalized(x, filters, 3, strides))
        y = _normalized(y, filters, 3, 1)
        x = layers.ReLU()(layers.Add()([y, x if strides == 1 else _normalized(x, filters, 1, strides)]))
    return layers.Dense(CLASSES, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def _normalized(x: keras.KerasTensor, filters: int, size: int, strides: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


_MODELS = {"cnn": _cnn, "mlp": _mlp, "lstm": _lstm, "resnet": _resnet}
