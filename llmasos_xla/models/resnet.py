"""ResNet (He et al. 2015): blocks whose layers learn what is to be added to their input."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.config import Config, class_count
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import one_of, whole
from llmasos_xla.models.layers._modules import Pointwise
from llmasos_xla.models.layers._stack import Stack, output_shapes
from llmasos_xla.models.layers._windows import check_space
from llmasos_xla.models.layers.activations import ReLU
from llmasos_xla.models.layers.combine import Residual
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.global_pooling import GlobalAveragePooling2D
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.pooling import MaxPooling2D
from llmasos_xla.models.pretrained.names import Name, batch_norm, conv2d, dense

REDUCTION = 4
"""How many times narrower a bottleneck is than what comes out of it."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig(Config):
    """ResNet (He et al. 2015, "Deep residual learning for image recognition").

    float images [batch, height, width, channels] -> logits [batch, classes]; images of any size, `input_shape` is
    (None, None, 3) if not said.

    Args:
        depths: number of blocks in each stage; each stage but the first halves height and width.
        widths: features that come out of each stage.
        classes: number of logits.
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1, 3x3 and 1x1 with a quarter of the features between.
        stem: "imagenet", a 7x7 convolution and a maximum, which leave a quarter of height and width, or "cifar", a 3x3
            convolution, which leaves all.
        stem_width: features of the stem; if None those of a basic block of the first stage.
        shortcut: what passes by a block that changes the shape: "projection", a 1x1 convolution (the paper's option B),
            or "padding", every second pixel and features of zeros (option A).
        stride_in_first_stage: whether the first stage halves height and width too.
        stride_in_first_convolution: where a bottleneck halves: in its first 1x1 convolution, as the paper has it, or in
            its 3x3 one, as torchvision and Hugging Face have it.

    >>> import jax
    >>> config = ResNetConfig((1, 1), (4, 8), classes=10, block="basic", stem="cifar")
    >>> net = config.net()
    >>> variables = net.init(jax.random.key(0))
    >>> net.apply(variables, jax.numpy.zeros((2, 9, 12, 3)))[0].shape
    (2, 10)
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    classes: int = 1000
    block: str = "bottleneck"
    stem: str = "imagenet"
    stem_width: int | None = None
    shortcut: str = "projection"
    stride_in_first_stage: bool = False
    stride_in_first_convolution: bool = False

    family: ClassVar[str] = "resnet"
    huggingface: ClassVar[tuple[str, ...]] = ("resnet",)
    ignored: ClassVar[tuple[str, ...]] = (r"num_batches_tracked$",)
    presets: ClassVar[Mapping[str, str]] = {
        name: name
        for name in (
            *(f"resnet{n}" for n in (18, 34, 50, 101, 152)),
            *(f"resnet{n}_cifar" for n in (20, 32, 44, 56)),
        )
    }

    @classmethod
    def resnet18(cls, **sizes: Any) -> "ResNetConfig":
        """18 layers, 11.7 million parameters."""
        return cls(**{"depths": (2, 2, 2, 2), **_BASIC, **sizes})

    @classmethod
    def resnet34(cls, **sizes: Any) -> "ResNetConfig":
        """34 layers, 21.8 million parameters."""
        return cls(**{**_BASIC, **sizes})

    @classmethod
    def resnet50(cls, **sizes: Any) -> "ResNetConfig":
        """50 layers, 25.6 million parameters."""
        return cls(**sizes)

    @classmethod
    def resnet101(cls, **sizes: Any) -> "ResNetConfig":
        """101 layers, 44.5 million parameters."""
        return cls(**{"depths": (3, 4, 23, 3), **sizes})

    @classmethod
    def resnet152(cls, **sizes: Any) -> "ResNetConfig":
        """152 layers, 60.2 million parameters."""
        return cls(**{"depths": (3, 8, 36, 3), **sizes})

    @classmethod
    def resnet20_cifar(cls, **sizes: Any) -> "ResNetConfig":
        """20 layers for images of 32x32, 0.27 million parameters; 10 classes and shortcuts of option A if not said."""
        return cls(**{"depths": (3, 3, 3), **_CIFAR, **sizes})

    @classmethod
    def resnet32_cifar(cls, **sizes: Any) -> "ResNetConfig":
        """32 layers for images of 32x32, 0.46 million parameters."""
        return cls(**{"depths": (5, 5, 5), **_CIFAR, **sizes})

    @classmethod
    def resnet44_cifar(cls, **sizes: Any) -> "ResNetConfig":
        """44 layers for images of 32x32, 0.66 million parameters."""
        return cls(**{"depths": (7, 7, 7), **_CIFAR, **sizes})

    @classmethod
    def resnet56_cifar(cls, **sizes: Any) -> "ResNetConfig":
        """56 layers for images of 32x32, 0.85 million parameters."""
        return cls(**{"depths": (9, 9, 9), **_CIFAR, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "ResNetConfig":
        """That of a config.json of model_type "resnet"; raises ValueError for activations other than ReLU."""
        if config.get("hidden_act", "relu") != "relu":
            raise ValueError(f"ResNetConfig: hidden_act {config['hidden_act']!r} is not built here; relu is")
        channels = config.get("num_channels", 3)
        return cls(
            **{
                "depths": tuple(config.get("depths", cls.depths)),
                "widths": tuple(config.get("hidden_sizes", cls.widths)),
                "classes": class_count(config),
                "block": config.get("layer_type", "bottleneck"),
                "stem_width": config.get("embedding_size", 64),
                "stride_in_first_stage": config.get("downsample_in_first_stage", False),
                "stride_in_first_convolution": config.get("downsample_in_bottleneck", False),
                "input_shape": None if channels == 3 else (None, None, channels),
                **sizes,
            }
        )

    def check(self) -> None:
        """Refuses stages without widths, unknown words, and widths that do not divide into bottlenecks."""
        self._set(
            depths=tuple(whole(self.who, "depths", n) for n in self.depths),
            widths=tuple(whole(self.who, "widths", n) for n in self.widths),
            block=one_of(self.who, "block", self.block, ("basic", "bottleneck")),
            stem=one_of(self.who, "stem", self.stem, ("imagenet", "cifar")),
            shortcut=one_of(self.who, "shortcut", self.shortcut, ("projection", "padding")),
        )
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{self.who}: {len(self.depths)} depths came for {len(self.widths)} widths")
        if self.block == "bottleneck" and any(n % REDUCTION for n in self.widths):
            raise ValueError(
                f"{self.who}: bottlenecks want widths that are multiples of {REDUCTION}, got {self.widths}"
            )
        if self.stem_width is None:
            self._set(stem_width=self.widths[0] // (REDUCTION if self.block == "bottleneck" else 1))

    def sample_shape(self) -> Shape:
        """(None, None, 3)."""
        return (None, None, 3)

    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        large = self.stem == "imagenet"
        assert self.stem_width is not None
        layers: list[Layer] = [*_normalized("stem", self.stem_width, 7 if large else 3, 2 if large else 1), ReLU()]
        if large:
            layers.append(MaxPooling2D(3, strides=2, padding=1))
        for stage, block, cin, cout, stride in self._blocks():
            layers += [self._block(f"stage{stage}_block{block}", cin, cout, stride), ReLU()]
        return (*layers, GlobalAveragePooling2D(), Dense(self.classes, name="classifier"))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The layers as a stack."""
        return Stack(self.layers(), shape, rngs=rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(classes,)."""
        return output_shapes(self.layers(), shape)[-1]

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names, and torchvision's ("torch"); of a "cifar" stem those of Idelbayev's CIFAR models.

        The head may be lacking.
        """
        if source not in ("huggingface", "torch"):
            yield from super().names(source)  # raises
        face = source == "huggingface"
        stem = "resnet.embedder.embedder." if face else ""
        yield from conv2d("stem_conv", f"{stem}{'convolution' if face else 'conv1'}", bias=False)
        yield from batch_norm("stem_norm", f"{stem}{'normalization' if face else 'bn1'}")
        for stage, block, cin, cout, stride in self._blocks():
            here = f"stage{stage}_block{block}"
            there = f"resnet.encoder.stages.{stage}.layers.{block}" if face else f"layer{stage + 1}.{block}"
            for i in range(2 if self.block == "basic" else 3):
                conv, norm = (
                    (f"layer.{i}.convolution", f"layer.{i}.normalization") if face else (f"conv{i + 1}", f"bn{i + 1}")
                )
                yield from conv2d(f"{here}/layers/part{i}_conv", f"{there}.{conv}", bias=False)
                yield from batch_norm(f"{here}/layers/part{i}_norm", f"{there}.{norm}")
            if self._passes_by(cin, cout, stride) == "projection":
                conv, norm = (
                    ("downsample.0", "downsample.1") if self.stem == "imagenet" else ("shortcut.0", "shortcut.1")
                )
                if face:
                    conv, norm = "shortcut.convolution", "shortcut.normalization"
                yield from conv2d(f"{here}/shortcut/projection_conv", f"{there}.{conv}", bias=False)
                yield from batch_norm(f"{here}/shortcut/projection_norm", f"{there}.{norm}")
        head = "classifier.1" if face else "fc" if self.stem == "imagenet" else "linear"
        for name in dense("classifier", head):
            yield name._replace(optional=True)

    def _blocks(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Stage, number in it, features that come in and go out, and stride of each block."""
        assert self.stem_width is not None
        cin = self.stem_width
        for stage, (depth, cout) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                halves = block == 0 and (stage > 0 or self.stride_in_first_stage)
                yield stage, block, cin, cout, 2 if halves else 1
                cin = cout

    def _block(self, name: str, cin: int, cout: int, stride: int) -> Layer:
        if self.block == "basic":
            parts = ((cout, 3, stride), (cout, 3, 1))
        else:
            narrow, early = cout // REDUCTION, self.stride_in_first_convolution
            parts = ((narrow, 1, stride if early else 1), (narrow, 3, 1 if early else stride), (cout, 1, 1))
        layers: list[Layer] = []
        for i, (features, window, step) in enumerate(parts):
            layers += [*_normalized(f"part{i}", features, window, step), ReLU()]
        past = self._passes_by(cin, cout, stride)
        shortcut = {
            "input": (),
            "padding": (_Thinned(stride, cout),),
            "projection": _normalized("projection", cout, 1, stride),
        }
        # The last ReLU comes after the sum.
        return Residual(layers[:-1], shortcut[past], name=name)

    def _passes_by(self, cin: int, cout: int, stride: int) -> str:
        return "input" if cin == cout and stride == 1 else self.shortcut


_BASIC = {"widths": (64, 128, 256, 512), "block": "basic"}
_CIFAR = {"widths": (16, 32, 64), "classes": 10, "block": "basic", "stem": "cifar", "shortcut": "padding"}


def _normalized(name: str, features: int, window: int, stride: int) -> tuple[Layer, Layer]:
    return (
        Conv2D(
            features,
            window,
            strides=stride,
            padding=window // 2,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        ),
        BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_norm"),
    )


@dataclasses.dataclass(frozen=True)
class _Thinned(Layer):
    """Every `stride`-th pixel, with zeros as further features, half of them before: a shortcut without arrays."""

    stride: int
    features: int

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        return Pointwise(self._apply)

    def output_shape(self, shape: Shape) -> Shape:
        cin = check_space(self.who, shape, 2)
        if cin > self.features:
            raise ValueError(
                f"ResNetConfig: shortcut 'padding' adds features of zeros and cannot make {self.features} of {cin}; "
                "use shortcut='projection'"
            )
        return (*(None if n is None else -(-n // self.stride) for n in shape[:-1]), self.features)

    def _apply(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        more = self.features - x.shape[-1]
        widths = ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))
        # Not by indices: of a symbolic height they give another formula of it than the convolution beside does.
        thinned = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
        return jnp.pad(thinned, widths)
