"""This package through its front door: `fit` on arrays."""

from typing import Any

import llmasos_xla as lm
from llmasos_xla import layers
from llmasos_xla.training.callbacks import Event
from side_by_side.gate import Gate
from side_by_side.rows import CLASSES, Row


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains by `Sequential.fit`, verbose=0; a callback waits at the gate after each epoch."""
    model = lm.Sequential(_MODELS[row.kind](row))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = row.data()

    def wait(event: Event) -> str | None:
        return "stop" if event.kind == "epoch" and not gate.epoch(event.logs["loss"]) else None

    gate.start()
    model.fit(x, y, epochs=100_000, batch_size=row.batch, callbacks=[wait], verbose=0)


def _cnn(row: Row) -> list[Any]:
    return [
        layers.Conv2D(32, (3, 3), activation="relu", input_shape=row.shape),
        layers.MaxPooling2D((2, 2)),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(CLASSES, activation="softmax"),
    ]


def _mlp(row: Row) -> list[Any]:
    return [
        layers.Dense(128, activation="relu", input_shape=row.shape),
        layers.Dense(CLASSES, activation="softmax"),
    ]


def _lstm(row: Row) -> list[Any]:
    return [layers.LSTM(256, input_shape=row.shape), layers.Dense(CLASSES, activation="softmax")]


def _resnet(row: Row) -> list[Any]:
    stack = [*_normalized(16, 3, 1, input_shape=row.shape), layers.Activation("relu")]
    channels = 16
    for filters in (16, 16, 32, 32, 64, 64):
        strides = 1 if filters == channels else 2
        body = [*_normalized(filters, 3, strides), layers.Activation("relu"), *_normalized(filters, 3, 1)]
        shortcut = _normalized(filters, 1, strides) if filters != channels else []
        stack += [layers.Residual(body, shortcut=shortcut), layers.Activation("relu")]
        channels = filters
    return [*stack, layers.GlobalAveragePooling2D(), layers.Dense(CLASSES, activation="softmax")]


def _normalized(filters: int, size: int, strides: int, **options: Any) -> list[Any]:
    return [
        layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, **options),
        layers.BatchNormalization(),
    ]


_MODELS = {"cnn": _cnn, "mlp": _mlp, "lstm": _lstm, "resnet": _resnet}
