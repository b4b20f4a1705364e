"""This package through its front door: `fit` on arrays, `predict` on batches."""

from typing import Any

import jax.numpy as jnp

import llmasos_xla as lm
from llmasos_xla import layers
from llmasos_xla.core import Variables
from llmasos_xla.training.callbacks import Event
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


def run(row: Row, gate: Gate, variant: str) -> None:
    """Trains by `Sequential.fit`, verbose=0, a callback waiting at the gate; or predicts by `Sequential.predict`."""
    stack = _MODELS[row.kind](row)
    if row.trains:
        head = layers.Dense(CLASSES, activation="softmax")
    else:
        head = layers.Dense(LABELS[row.kind], name="head")
    model = lm.Sequential([*stack, head])
    model.compile(
        optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"], precision=row.precision
    )
    if row.trains:
        _train(model, row, gate)
    else:
        _predict(model, row, gate)


def _train(model: lm.Sequential, row: Row, gate: Gate) -> None:
    x, y = row.data()

    def wait(event: Event) -> str | None:
        return "stop" if event.kind == "epoch" and not gate.epoch(event.logs["loss"]) else None

    gate.start()
    model.fit(x, y, epochs=100_000, batch_size=row.batch, callbacks=[wait], verbose=0)


def _predict(model: lm.Sequential, row: Row, gate: Gate) -> None:
    x, _ = row.data()
    given, now = weights(row.kind), model.variables

    def told(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: jnp.asarray(given[_layer(name)]) for name in arrays}

    model.variables = Variables(told(now.params), told(now.state))
    gate.start()
    while True:
        found = [model.predict(x[first : first + row.batch]) for first in range(0, len(x), row.batch)]
        if not gate.epoch(found[0][0]):
            return


def _layer(name: str) -> str:
    """The architectures' name for an array: "block0/layers/a_norm/scale" is "block0/a/scale"."""
    parts = (part.removesuffix("_norm") for part in name.split("/"))
    return "/".join(part for part in parts if part not in ("layers", "path"))


def _cnn(row: Row) -> list[Any]:
    return [
        layers.Conv2D(32, (3, 3), activation="relu", input_shape=row.shape),
        layers.MaxPooling2D((2, 2)),
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
    ]


def _mlp(row: Row) -> list[Any]:
    return [layers.Dense(128, activation="relu", input_shape=row.shape)]


def _lstm(row: Row) -> list[Any]:
    return [layers.LSTM(HIDDEN, name="lstm", input_shape=row.shape)]


def _gru(row: Row) -> list[Any]:
    return [layers.GRU(HIDDEN, input_shape=row.shape)]


def _basic_blocks(row: Row) -> list[Any]:
    channels, *_ = widths = BASIC_BLOCKS[row.kind]
    stack = [*_normalized("stem", channels, 3, 1, input_shape=row.shape), layers.Activation("relu")]
    for filters in widths:
        strides = 1 if filters == channels else 2
        body = [*_normalized("a", filters, 3, strides), layers.Activation("relu"), *_normalized("b", filters, 3, 1)]
        shortcut = _normalized("c", filters, 1, strides) if filters != channels else []
        stack += [layers.Residual(body, shortcut=shortcut), layers.Activation("relu")]
        channels = filters
    return [*stack, layers.GlobalAveragePooling2D()]


def _vgg11(row: Row) -> list[Any]:
    stack: list[Any] = []
    for entry in VGG11:
        if isinstance(entry, int):
            name = f"conv{sum(isinstance(layer, layers.Conv2D) for layer in stack)}"
            shape = None if stack else row.shape
            stack.append(layers.Conv2D(entry, 3, padding="same", activation="relu", name=name, input_shape=shape))
        else:
            stack.append(layers.MaxPooling2D(2))
    dense = [layers.Dense(width, activation="relu", name=f"dense{i}") for i, width in enumerate(VGG11_DENSE)]
    return [*stack, layers.Flatten(), *dense]


def _resnet50(row: Row) -> list[Any]:
    stack = [
        *_normalized("stem", 64, 7, 2, input_shape=row.shape),
        layers.Activation("relu"),
        layers.MaxPooling2D(3, 2, padding="same"),
    ]
    for block in RESNET50:
        body = [
            *_normalized("a", block.width, 1, 1),
            layers.Activation("relu"),
            *_normalized("b", block.width, 3, block.stride),
            layers.Activation("relu"),
            *_normalized("c", block.cout, 1, 1),
        ]
        shortcut = _normalized("path", block.cout, 1, block.stride) if block.projects else []
        stack += [layers.Residual(body, shortcut=shortcut, name=block.name), layers.Activation("relu")]
    return [*stack, layers.GlobalAveragePooling2D()]


def _normalized(name: str, filters: int, size: int, strides: int, **options: Any) -> list[Any]:
    return [
        layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name, **options),
        layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_norm"),
    ]


_MODELS = {
    "cnn": _cnn,
    "mlp": _mlp,
    "lstm": _lstm,
    "gru": _gru,
    "resnet": _basic_blocks,
    "resnet18": _basic_blocks,
    "vgg11": _vgg11,
    "resnet50": _resnet50,
}
