"""The first front door: `Sequential([...])`, compiled and fitted as in Keras."""

from collections.abc import Iterable, Mapping
from typing import Any

from llmasos_xla.api.fitted import Fitted
from llmasos_xla.models.layers._base import Layer
from llmasos_xla.models.spec import StackSpec


class Sequential(Fitted):
    """A model from a list of layers.

    Args:
        layers: the layers, first to last; the first may say `input_shape=`.
        seed: of the initial weights, the data's order and dropout; equal seeds give equal weights.

    >>> import numpy as np
    >>> import llmasos_xla as lm
    >>> model = lm.Sequential([lm.layers.Dense(3, activation="softmax", input_shape=(4,))])
    >>> model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> model.predict(np.zeros((2, 4), "float32")).shape
    (2, 3)
    """

    def __init__(self, layers: Iterable[Layer] = (), *, seed: int = 0):
        super().__init__(StackSpec(()), seed=seed)
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer) -> None:
        """Appends a layer."""
        self._append(layer)

    def _door(self) -> dict[str, Any]:
        return {"door": "Sequential"}

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Sequential":
        return cls()
