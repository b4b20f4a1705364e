"""A small convolutional network: convolutions, each with a maximum over windows of two, and dense layers."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from flax import nnx

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number, whole
from llmasos_xla.models.layers._stack import Stack, output_shapes
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.pooling import MaxPooling2D
from llmasos_xla.models.layers.regularization import Dropout
from llmasos_xla.models.layers.shape import Flatten
from llmasos_xla.models.pretrained.names import Name, after_flattening, conv2d, dense


@dataclasses.dataclass(frozen=True)
class CNNConfig(Config):
    """A convolutional network in the manner of LeNet (LeCun et al. 1998).

    float images [batch, height, width, channels] -> logits [batch, classes]. Height and width are fixed by
    `input_shape`, (28, 28, 1) if not said.

    Args:
        widths: features of each convolution of 3x3 with ReLU, which a maximum over 2x2 follows.
        hidden: features of the dense layers with ReLU.
        classes: number of logits.
        dropout: share that is dropped behind each dense layer in training.

    >>> CNNConfig.seed_cnn().output_shape((28, 28, 1))
    (10,)
    """

    widths: tuple[int, ...] = (32,)
    hidden: tuple[int, ...] = (128,)
    classes: int = 10
    dropout: float = 0.0

    family: ClassVar[str] = "cnn"
    presets: ClassVar[Mapping[str, str]] = {"seed_cnn": "seed_cnn"}

    @classmethod
    def seed_cnn(cls, **sizes: Any) -> "CNNConfig":
        """One convolution of 32 features, one dense layer of 128, 10 classes: 693,962 parameters on 28x28x1."""
        return cls(**sizes)

    def check(self) -> None:
        """Refuses sizes that are no counts."""
        self._set(
            widths=tuple(whole(self.who, "widths", n) for n in self.widths),
            hidden=tuple(whole(self.who, "hidden", n) for n in self.hidden),
        )
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    def sample_shape(self) -> Shape:
        """(28, 28, 1)."""
        return (28, 28, 1)

    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return (*self._features(), Flatten(), *self._head())

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The layers as a stack."""
        return Stack(self.layers(), shape, rngs=rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(classes,)."""
        return output_shapes(self.layers(), shape)[-1]

    def names(self, source: str) -> Iterator[Name]:
        """Those of two torch.nn.Sequential called "features" and "classifier", Flatten and Dropout in it ("torch")."""
        if source != "torch":
            yield from super().names(source)  # raises
        for i in range(len(self.widths)):
            yield from conv2d(f"conv{i}", f"features.{3 * i}")
        height, width, channels = output_shapes(self._features(), self.input_shape or self.sample_shape())[-1]
        assert height is not None
        assert width is not None
        assert channels is not None
        step = 3 if self.dropout else 2
        for i, name in enumerate([*(f"hidden{i}" for i in range(len(self.hidden))), "classifier"]):
            kernel, bias = dense(name, f"classifier.{1 + step * i}")
            yield kernel if i else kernel._replace(layout=after_flattening(height, width, channels))
            yield bias

    def _features(self) -> tuple[Layer, ...]:
        return tuple(
            layer
            for i, n in enumerate(self.widths)
            for layer in (Conv2D(n, 3, activation="relu", name=f"conv{i}"), MaxPooling2D(2))
        )

    def _head(self) -> tuple[Layer, ...]:
        layers: list[Layer] = []
        for i, units in enumerate(self.hidden):
            layers.append(Dense(units, activation="relu", name=f"hidden{i}"))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        return (*layers, Dense(self.classes, name="classifier"))
