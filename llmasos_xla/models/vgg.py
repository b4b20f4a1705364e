"""VGG (Simonyan and Zisserman 2014): 3x3 convolutions in blocks, each ending in a maximum, and three dense layers."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

from flax import nnx

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number
from llmasos_xla.models.layers._stack import Stack, output_shapes
from llmasos_xla.models.layers.activations import ReLU
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.pooling import MaxPooling2D
from llmasos_xla.models.layers.regularization import Dropout
from llmasos_xla.models.layers.shape import Flatten
from llmasos_xla.models.pretrained.names import SAME, Name, after_flattening, batch_norm, conv2d, dense


@dataclasses.dataclass(frozen=True)
class VGGConfig(Config):
    """VGG (Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition").

    float images [batch, height, width, channels] -> logits [batch, classes]. Height and width are fixed by
    `input_shape`, (224, 224, 3) if not said, and must be multiples of 2 ** len(depths).

    Args:
        depths: number of convolutions in each block.
        widths: features of each block.
        classes: number of logits.
        hidden: features of the two dense layers.
        batch_norm: whether each convolution is normalized.
        dropout: share that the dense layers drop in training.

    >>> import jax
    >>> config = VGGConfig((1, 1), (4, 8), classes=10, hidden=16, input_shape=(8, 8, 3))
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, jax.numpy.zeros((2, 8, 8, 3)))[0].shape
    (2, 10)
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    classes: int = 1000
    hidden: int = 4096
    batch_norm: bool = False
    dropout: float = 0.5

    family: ClassVar[str] = "vgg"
    presets: ClassVar[Mapping[str, str]] = {
        f"vgg{n}{bn}": f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")
    }

    @classmethod
    def vgg11(cls, **sizes) -> "VGGConfig":
        """Configuration A of the paper, 132.9 million parameters."""
        return cls((1, 1, 2, 2, 2), **sizes)

    @classmethod
    def vgg13(cls, **sizes) -> "VGGConfig":
        """Configuration B."""
        return cls((2, 2, 2, 2, 2), **sizes)

    @classmethod
    def vgg16(cls, **sizes) -> "VGGConfig":
        """Configuration D, 138.4 million parameters."""
        return cls((2, 2, 3, 3, 3), **sizes)

    @classmethod
    def vgg19(cls, **sizes) -> "VGGConfig":
        """Configuration E."""
        return cls((2, 2, 4, 4, 4), **sizes)

    @classmethod
    def vgg11_bn(cls, **sizes) -> "VGGConfig":
        """Configuration A with batch normalization."""
        return cls.vgg11(batch_norm=True, **sizes)

    @classmethod
    def vgg13_bn(cls, **sizes) -> "VGGConfig":
        """Configuration B with batch normalization."""
        return cls.vgg13(batch_norm=True, **sizes)

    @classmethod
    def vgg16_bn(cls, **sizes) -> "VGGConfig":
        """Configuration D with batch normalization."""
        return cls.vgg16(batch_norm=True, **sizes)

    @classmethod
    def vgg19_bn(cls, **sizes) -> "VGGConfig":
        """Configuration E with batch normalization."""
        return cls.vgg19(batch_norm=True, **sizes)

    def check(self) -> None:
        """Refuses blocks without widths."""
        self._set(depths=tuple(self.depths), widths=tuple(self.widths))
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{self.who}: {len(self.depths)} depths came for {len(self.widths)} widths")
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    def sample_shape(self) -> Shape:
        """(224, 224, 3)."""
        return (224, 224, 3)

    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        layers: list[Layer] = []
        for block, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                layers.append(Conv2D(width, 3, padding="same", name=f"conv{block}_{i}"))
                if self.batch_norm:
                    layers.append(BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"norm{block}_{i}"))
                layers.append(ReLU())
            layers.append(MaxPooling2D(2))
        layers.append(Flatten())
        for i in range(2):
            layers += [Dense(self.hidden, activation="relu", name=f"hidden{i}"), Dropout(self.dropout)]
        return (*layers, Dense(self.classes, name="classifier"))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The layers as a stack."""
        return Stack(self.layers(), shape, rngs=rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(classes,)."""
        return output_shapes(self.layers(), shape)[-1]

    def names(self, source: str) -> Iterator[Name]:
        """torchvision's names ("torch"); those of Keras' VGG16 and VGG19 ("keras"), which have no normalization."""
        if source == "keras" and not self.batch_norm:
            yield from self._names_of_keras()
            return
        if source != "torch":
            yield from super().names(source)  # raises
        at = 0
        for block, depth in enumerate(self.depths):
            for i in range(depth):
                yield from conv2d(f"conv{block}_{i}", f"features.{at}")
                if self.batch_norm:
                    at += 1
                    yield from batch_norm(f"norm{block}_{i}", f"features.{at}")
                at += 2
            at += 1
        height, width, _ = self.input_shape or self.sample_shape()
        assert height is not None
        assert width is not None
        flattened = after_flattening(height >> len(self.depths), width >> len(self.depths), self.widths[-1])
        yield Name("hidden0/kernel", "classifier.0.weight", flattened)
        yield Name("hidden0/bias", "classifier.0.bias", SAME)
        yield from dense("hidden1", "classifier.3")
        for name in dense("classifier", "classifier.6"):
            yield name._replace(optional=True)

    def _names_of_keras(self) -> Iterator[Name]:
        # Its images are channels last as ours are: nothing lies otherwise.
        layers = [
            (f"conv{block}_{i}", f"block{block + 1}_conv{i + 1}")
            for block, depth in enumerate(self.depths)
            for i in range(depth)
        ]
        for ours, theirs in (*layers, ("hidden0", "fc1"), ("hidden1", "fc2"), ("classifier", "predictions")):
            yield Name(f"{ours}/kernel", f"{theirs}/kernel", SAME)
            yield Name(f"{ours}/bias", f"{theirs}/bias", SAME)
