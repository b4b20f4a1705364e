"""U-Net (Ronneberger et al. 2015): what is seen at each scale, put together again from the coarsest to the finest."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number, whole
from llmasos_xla.models.layers._stack import Stack
from llmasos_xla.models.layers._windows import check_space
from llmasos_xla.models.layers.activations import ReLU
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.conv_transpose import Conv2DTranspose
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.pooling import MaxPooling2D
from llmasos_xla.models.layers.regularization import SpatialDropout2D
from llmasos_xla.models.pretrained.names import CONV2D, SAME, Name, batch_norm, conv2d


@dataclasses.dataclass(frozen=True)
class UNetConfig(Config):
    """U-Net (Ronneberger et al. 2015, "U-Net: convolutional networks for biomedical image segmentation").

    float images [batch, height, width, channels] -> logits of each pixel [batch, height, width, classes]; images of any
    size, `input_shape` is (None, None, 3) if not said. Convolutions are padded and normalized. Where an axis is odd and
    halved, what comes back is one short and gets zeros at its end.

    Args:
        widths: features at each scale, finest first; every scale but the first has half of height and width.
        classes: number of logits; 1 goes with a sigmoid.
        dropout: share of the features that the coarsest scale drops in training.

    >>> config = UNetConfig((4, 8), classes=2)
    >>> config.output_shape((13, 10, 3))
    (13, 10, 2)
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    classes: int = 1
    dropout: float = 0.0

    family: ClassVar[str] = "unet"
    presets: ClassVar[Mapping[str, str]] = {"unet": "unet", "unet_small": "unet_small"}
    ignored: ClassVar[tuple[str, ...]] = (r"num_batches_tracked$",)

    @classmethod
    def unet(cls, **sizes: Any) -> "UNetConfig":
        """The paper's widths, 31.0 million parameters."""
        return cls(**sizes)

    @classmethod
    def unet_small(cls, **sizes: Any) -> "UNetConfig":
        """A quarter of the paper's widths, 1.9 million parameters."""
        return cls(**{"widths": (16, 32, 64, 128, 256), **sizes})

    def check(self) -> None:
        """Refuses fewer than two scales."""
        self._set(widths=tuple(whole(self.who, "widths", n) for n in self.widths))
        if len(self.widths) < 2:
            raise ValueError(f"{self.who}: wants the widths of two or more scales, got {self.widths}")
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)

    def sample_shape(self) -> Shape:
        """(None, None, 3)."""
        return (None, None, 3)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _UNet(self, check_space(self.who, shape, 2), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(height, width, classes)."""
        check_space(self.who, shape, 2)
        least = 2 ** (len(self.widths) - 1)
        if any(n is not None and n < least for n in shape[:2]):
            raise ValueError(
                f"{self.who}: {len(self.widths)} scales want images of {least} pixels and more along height and width, "
                f"got samples of {shape}"
            )
        return (*shape[:2], self.classes)

    def names(self, source: str) -> Iterator[Name]:
        """Those of Pytorch-UNet (milesial) with transposed convolutions ("torch"); the head may be lacking."""
        if source != "torch":
            yield from super().names(source)  # raises
        last = len(self.widths) - 1
        for i in range(last + 1):
            yield from _both(f"down/{i}", f"down{i}.maxpool_conv.1" if i else "inc")
        for i in range(last):
            # There the coarsest comes first.
            there = f"up{last - i}"
            yield Name(f"up/{i}/conv2d_transpose/kernel", f"{there}.up.weight", CONV2D)
            yield Name(f"up/{i}/conv2d_transpose/bias", f"{there}.up.bias", SAME)
            yield from _both(f"join/{i}", f"{there}.conv")
        for name in conv2d("classifier", "outc.conv"):
            yield name._replace(optional=True)


def _twice(features: int) -> tuple[Layer, ...]:
    """Two convolutions, each with normalization and ReLU."""
    layers: list[Layer] = []
    for i in range(2):
        conv = Conv2D(features, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"part{i}_conv")
        layers += [conv, BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"part{i}_norm"), ReLU()]
    return tuple(layers)


def _both(ours: str, theirs: str) -> Iterator[Name]:
    for i in range(2):
        yield from conv2d(f"{ours}/part{i}_conv", f"{theirs}.double_conv.{3 * i}", bias=False)
        yield from batch_norm(f"{ours}/part{i}_norm", f"{theirs}.double_conv.{3 * i + 1}")


class _UNet(nnx.Module):
    def __init__(self, spec: UNetConfig, channels: int, rngs: nnx.Rngs):
        self.spec = spec
        down, up, join = [], [], []
        for i, features in enumerate(spec.widths):
            layers = (MaxPooling2D(2), *_twice(features)) if i else _twice(features)
            last = i == len(spec.widths) - 1
            layers = (*layers, SpatialDropout2D(spec.dropout)) if last and spec.dropout else layers
            down.append(Stack(layers, (None, None, channels), rngs=rngs))
            channels = features
        for features, coarser in zip(spec.widths, spec.widths[1:], strict=False):
            grown = Conv2DTranspose(features, 2, strides=2)
            up.append(Stack((grown,), (None, None, coarser), rngs=rngs))
            join.append(Stack(_twice(features), (None, None, 2 * features), rngs=rngs))
        self.down, self.up, self.join = nnx.List(down), nnx.List(up), nnx.List(join)
        self.classifier = Conv2D(spec.classes, 1).build((None, None, spec.widths[0]), rngs)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.spec.unbind(x)["images"]
        assert y is not None
        self.spec.output_shape(y.shape[1:])
        seen = []
        for stack in self.down:
            y = stack(y, train=train, rngs=rngs)
            seen.append(y)
        for i in reversed(range(len(self.up))):
            fine = seen[i]
            y = self.up[i](y, train=train, rngs=rngs)
            missing = [(0, n - m) for n, m in zip(fine.shape[1:3], y.shape[1:3], strict=True)]
            y = jnp.pad(y, ((0, 0), *missing, (0, 0)))
            y = self.join[i](jnp.concatenate([fine, y], axis=-1), train=train, rngs=rngs)
        return self.classifier(y, train=train)
