"""MobileNetV2 (Sandler et al. 2018): depthwise convolutions between a widening and a narrowing of the features."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from flax import nnx

from llmasos_xla.models.config import Config, class_count
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import number, one_of, per_axis
from llmasos_xla.models.layers._stack import Stack, output_shapes
from llmasos_xla.models.layers.activations import ReLU
from llmasos_xla.models.layers.combine import Residual
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.global_pooling import GlobalAveragePooling2D
from llmasos_xla.models.layers.normalization import BatchNormalization
from llmasos_xla.models.layers.regularization import Dropout
from llmasos_xla.models.layers.separable import DepthwiseConv2D
from llmasos_xla.models.pretrained.names import DEPTHWISE2D, Name, batch_norm, conv2d, dense

Stages = Sequence[Sequence[int]]

# Table 2 of the paper: expansion, features, blocks, stride of the first.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_DIVISOR = 8


class _Block(NamedTuple):
    number: int
    cin: int
    middle: int
    cout: int
    stride: int

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.cin == self.cout

    @property
    def expands(self) -> bool:
        return self.cin != self.middle

    @property
    def prefix(self) -> str:
        """What the names of its arrays start with."""
        return f"block{self.number}/layers/" if self.residual else f"block{self.number}_"


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config(Config):
    """MobileNetV2 (Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks").

    float images [batch, height, width, channels] -> logits [batch, classes]; images of any size, `input_shape` is
    (None, None, 3) if not said.

    Args:
        multiplier: how many times as many features as in the paper, rounded to multiples of 8.
        classes: number of logits.
        stages: (expansion, features, blocks, stride of the first block) of each stage.
        stem_width: features of the first convolution.
        last_width: features before the classifier, which a multiplier below 1 does not lessen.
        padding: where strided convolutions pad: "torch", both ends, or "same", as TensorFlow does.
        epsilon: of the normalizations.
        dropout: share that is dropped before the classifier in training.

    >>> config = MobileNetV2Config(0.35, classes=10)
    >>> config.output_shape((96, 96, 3))
    (10,)
    """

    multiplier: float = 1.0
    classes: int = 1000
    stages: Stages = _STAGES
    stem_width: int = 32
    last_width: int = 1280
    padding: str = "torch"
    epsilon: float = 1e-5
    dropout: float = 0.2

    family: ClassVar[str] = "mobilenet_v2"
    presets: ClassVar[Mapping[str, str]] = {"mobilenet_v2": "mobilenet_v2"}
    huggingface: ClassVar[tuple[str, ...]] = ("mobilenet_v2",)
    ignored: ClassVar[tuple[str, ...]] = (r"num_batches_tracked$",)

    @classmethod
    def mobilenet_v2(cls, multiplier: float = 1.0, **sizes: Any) -> "MobileNetV2Config":
        """The paper's and torchvision's, 3.5 million parameters."""
        return cls(multiplier, **sizes)

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "MobileNetV2Config":
        """Of MobileNetV2ForImageClassification's config.json; raises ValueError for what is not built here."""
        for name, usual in (
            ("output_stride", 32),
            ("first_layer_is_expansion", True),
            ("finegrained_output", True),
            ("hidden_act", "relu6"),
            ("expand_ratio", 6),
            ("depth_divisible_by", 8),
            ("min_depth", 8),
        ):
            if config.get(name, usual) != usual:
                raise ValueError(f"MobileNetV2Config: {name}={config[name]!r} is not built here; {usual!r} is")
        channels = config.get("num_channels", 3)
        given = {
            "multiplier": float(config.get("depth_multiplier", 1.0)),
            "classes": class_count(config),
            "padding": "same" if config.get("tf_padding", True) else "torch",
            "epsilon": config.get("layer_norm_eps", 1e-3),
            "dropout": float(config.get("classifier_dropout_prob", 0.8)),
            "input_shape": None if channels == 3 else (None, None, channels),
        }
        return cls(**{**given, **sizes})

    def check(self) -> None:
        """Refuses numbers out of range."""
        stages = tuple(per_axis(self.who, "each of stages", stage, 4) for stage in self.stages)
        self._set(stages=stages, padding=one_of(self.who, "padding", self.padding, ("torch", "same")))
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        for name in ("multiplier", "epsilon"):
            if number(self.who, name, getattr(self, name), least=0.0) == 0:
                raise ValueError(f"{self.who}: {name} wants a positive number, got 0")

    def sample_shape(self) -> Shape:
        """(None, None, 3)."""
        return (None, None, 3)

    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        layers = self._convolution("stem", self._wide(self.stem_width), 3, 2)
        for block in self._blocks():
            # Without names the layers are those of a block by itself.
            prefix = "" if block.residual else block.prefix
            parts = self._convolution(f"{prefix}expand", block.middle, 1) if block.expands else []
            parts += self._convolution(f"{prefix}depthwise", None, 3, block.stride)
            parts += self._convolution(f"{prefix}project", block.cout, 1)[:-1]
            layers += [Residual(parts, name=f"block{block.number}")] if block.residual else parts
        layers += self._convolution("last", self._last, 1)
        return (*layers, GlobalAveragePooling2D(), Dropout(self.dropout), Dense(self.classes, name="classifier"))

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The layers as a stack."""
        return Stack(self.layers(), shape, rngs=rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """(classes,)."""
        return output_shapes(self.layers(), shape)[-1]

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names, and torchvision's ("torch"); the head may be lacking."""
        if source not in ("huggingface", "torch"):
            yield from super().names(source)  # raises
        face = source == "huggingface"
        yield from _pair("stem", ("mobilenet_v2.conv_stem.first_conv" if face else "features.0"), face)
        count = 0
        for block in self._blocks():
            count += 1
            there = f"mobilenet_v2.layer.{block.number - 1}" if block.number else "mobilenet_v2.conv_stem"
            parts = ["expand", "depthwise", "project"] if block.expands else ["depthwise", "project"]
            for i, part in enumerate(parts):
                if face:
                    spelled = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}[part]
                    yield from _pair(block.prefix + part, f"{there}.{spelled}", True)
                elif part != "project":
                    yield from _pair(block.prefix + part, f"features.{block.number + 1}.conv.{i}", False)
                else:
                    # Its convolution and normalization stand in the block itself.
                    theirs = f"features.{block.number + 1}.conv"
                    yield from conv2d(f"{block.prefix}{part}_conv", f"{theirs}.{i}", bias=False)
                    yield from batch_norm(f"{block.prefix}{part}_norm", f"{theirs}.{i + 1}")
        yield from _pair("last", "mobilenet_v2.conv_1x1" if face else f"features.{count + 1}", face)
        for name in dense("classifier", "classifier" if face else "classifier.1"):
            yield name._replace(optional=True)

    @property
    def _last(self) -> int:
        return _rounded(self.last_width * max(self.multiplier, 1.0))

    def _wide(self, features: int) -> int:
        return _rounded(features * self.multiplier)

    def _blocks(self) -> Iterator[_Block]:
        cin, at = self._wide(self.stem_width), 0
        for expansion, features, blocks, stride in self.stages:
            for i in range(blocks):
                cout = self._wide(features)
                yield _Block(at, cin, cin * expansion, cout, stride if i == 0 else 1)
                cin, at = cout, at + 1

    def _convolution(self, name: str, features: int | None, window: int, stride: int = 1) -> list[Layer]:
        """Convolution, depthwise if `features` is None, normalization and ReLU6."""
        padding: Any = "same" if self.padding == "same" else window // 2
        conv = (
            DepthwiseConv2D(
                window,
                strides=stride,
                padding=padding,
                use_bias=False,
                depthwise_initializer="he_normal",
                name=f"{name}_conv",
            )
            if features is None
            else Conv2D(
                features,
                window,
                strides=stride,
                padding=padding,
                use_bias=False,
                kernel_initializer="he_normal",
                name=f"{name}_conv",
            )
        )
        norm = BatchNormalization(epsilon=self.epsilon, momentum=0.9, name=f"{name}_norm")
        return [conv, norm, ReLU(max_value=6.0)]


def _rounded(features: float) -> int:
    """The nearest multiple of 8 that is no more than a tenth less, as the paper's program has it.

    >>> _rounded(33.6), _rounded(11.2)
    (32, 16)
    """
    features = round(features)
    rounded = max(_DIVISOR, (features + _DIVISOR // 2) // _DIVISOR * _DIVISOR)
    return rounded + _DIVISOR if rounded < 0.9 * features else rounded


def _pair(ours: str, theirs: str, face: bool) -> Iterator[Name]:
    """Convolution and normalization, which torchvision numbers."""
    conv, norm = ("convolution", "normalization") if face else ("0", "1")
    if ours.endswith("depthwise"):
        yield Name(f"{ours}_conv/kernel", f"{theirs}.{conv}.weight", DEPTHWISE2D)
    else:
        yield from conv2d(f"{ours}_conv", f"{theirs}.{conv}", bias=False)
    yield from batch_norm(f"{ours}_norm", f"{theirs}.{norm}")
