"""Vision transformer (Dosovitskiy et al. 2020): patches of an image as the words of a sentence."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.models._parts import (
    Dropped,
    FeedForward,
    Projection,
    SelfAttention,
    Table,
    dropping,
    layer_norm,
    or_same,
)
from llmasos_xla.models.config import Config, class_count
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import number, per_axis
from llmasos_xla.models.layers._windows import check_space
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.pretrained import names as n
from llmasos_xla.models.pretrained.names import Name

_DEVIATION = 0.02
"""Of the initial values."""

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}

_WHOLE = n.Layout("whole", lambda a: a[0], lambda a: a[None])
"""[1, rows, width] as [rows, width]."""


@dataclasses.dataclass(frozen=True)
class ViTConfig(Config):
    """Vision transformer (Dosovitskiy et al. 2020, "An image is worth 16x16 words").

    float images [batch, height, width, channels] -> logits [batch, classes]. Pixels at the right and at the bottom that
    fill no patch are left out. Positions are learned for images of `image_size`; for others they are interpolated as
    torch's bicubic interpolation does, if `interpolate` allows it.

    Args:
        image_size: height and width that the table of positions is for.
        patch: height and width of a patch.
        width: features of a patch.
        depth: number of blocks.
        heads: number of attention heads, a divisor of the width.
        hidden: features inside of the feed-forward network.
        classes: number of logits.
        interpolate: whether images may have other sizes; `input_shape` is (None, None, 3) then, if not said.
        qkv_bias: whether queries, keys and values have biases.
        activation: of the feed-forward network.
        epsilon: of the normalizations.
        dropout: share of the embeddings and of each half block's outputs dropped in training.
        attention_dropout: share of attention weights dropped in training.

    >>> config = ViTConfig.vit_tiny(classes=10)
    >>> config.output_shape((224, 224, 3))
    (10,)
    """

    image_size: int | tuple[int, int] = 224
    patch: int | tuple[int, int] = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    classes: int = 1000
    interpolate: bool = False
    qkv_bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0

    family: ClassVar[str] = "vit"
    huggingface: ClassVar[tuple[str, ...]] = ("vit",)
    ignored: ClassVar[tuple[str, ...]] = (r"(^|\.)pooler\.",)
    presets: ClassVar[Mapping[str, str]] = {name: name for name in ("vit_tiny", "vit_small", "vit_base", "vit_large")}

    @classmethod
    def vit_tiny(cls, **sizes: Any) -> "ViTConfig":
        """5.7 million parameters (Touvron et al. 2020)."""
        return cls(**{"width": 192, "heads": 3, "hidden": 768, **sizes})

    @classmethod
    def vit_small(cls, **sizes: Any) -> "ViTConfig":
        """22 million parameters (Touvron et al. 2020)."""
        return cls(**{"width": 384, "heads": 6, "hidden": 1536, **sizes})

    @classmethod
    def vit_base(cls, **sizes: Any) -> "ViTConfig":
        """ViT-B/16, 86.6 million parameters."""
        return cls(**sizes)

    @classmethod
    def vit_large(cls, **sizes: Any) -> "ViTConfig":
        """ViT-L/16, 304 million parameters."""
        return cls(**{"width": 1024, "depth": 24, "heads": 16, "hidden": 4096, **sizes})

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "ViTConfig":
        """Of ViTForImageClassification's config.json; raises ValueError for activations that are not built here."""
        activation, channels = config.get("hidden_act", "gelu"), config.get("num_channels", 3)
        if activation not in _ACTIVATIONS:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise ValueError(f"ViTConfig: hidden_act {activation!r} is not built here; known: {known}")
        given = {
            "image_size": _pair(config.get("image_size", 224)),
            "patch": _pair(config.get("patch_size", 16)),
            "width": config.get("hidden_size", 768),
            "depth": config.get("num_hidden_layers", 12),
            "heads": config.get("num_attention_heads", 12),
            "hidden": config.get("intermediate_size", 3072),
            "classes": class_count(config),
            "qkv_bias": config.get("qkv_bias", True),
            "activation": _ACTIVATIONS[activation],
            "epsilon": config.get("layer_norm_eps", 1e-12),
            "dropout": float(config.get("hidden_dropout_prob", 0.0)),
            "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.0)),
            **sizes,
        }
        made = cls(**given)
        return made if channels == 3 else dataclasses.replace(made, input_shape=(*made.sample_shape()[:2], channels))

    def check(self) -> None:
        """Refuses heads that do not divide the width and patches larger than the image."""
        self._set(
            image_size=per_axis(self.who, "image_size", self.image_size, 2),
            patch=per_axis(self.who, "patch", self.patch, 2),
        )
        if self.width % self.heads:
            raise ValueError(f"{self.who}: a width of {self.width} does not divide into {self.heads} heads")
        if 0 in self.grid:
            raise ValueError(f"{self.who}: a patch of {self.patch} does not fit an image of {self.image_size}")
        for share in ("dropout", "attention_dropout"):
            number(self.who, share, getattr(self, share), least=0.0, below=1.0)
        if number(self.who, "epsilon", self.epsilon, least=0.0) == 0:
            raise ValueError(f"{self.who}: epsilon wants a positive number, got 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width of an image of `image_size`."""
        (height, width), (rows, columns) = _pair(self.image_size), _pair(self.patch)
        return height // rows, width // columns

    def sample_shape(self) -> Shape:
        """`image_size` with 3 channels; of any height and width if positions are interpolated."""
        return (None, None, 3) if self.interpolate else (*_pair(self.image_size), 3)

    def output_shape(self, shape: Shape) -> Shape:
        """(classes,)."""
        check_space(self.who, shape, 2)
        self._check_size(shape)
        return (self.classes,)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _ViT(self, check_space(self.who, shape, 2), rngs)

    def names(self, source: str) -> Iterator[Name]:
        """Hugging Face's names ("huggingface"), of ViTForImageClassification; the head may be lacking."""
        if source != "huggingface":
            yield from super().names(source)  # raises
        yield Name("class_token/embeddings", "vit.embeddings.cls_token", _WHOLE)
        yield Name("positions/embeddings", "vit.embeddings.position_embeddings", _WHOLE)
        yield from n.conv2d("patches", "vit.embeddings.patch_embeddings.projection")
        for i in range(self.depth):
            here, there = f"blocks/{i}", f"vit.encoder.layer.{i}"
            yield from n.layer_norm(f"{here}/attention_norm", f"{there}.layernorm_before")
            for part in ("query", "key", "value"):
                ours, theirs = f"{here}/attention/{part}", f"{there}.attention.attention.{part}"
                yield Name(f"{ours}/kernel", f"{theirs}.weight", n.heads_in(self.heads))
                if self.qkv_bias:
                    yield Name(f"{ours}/bias", f"{theirs}.bias", n.heads_bias(self.heads))
            ours, theirs = f"{here}/attention/output", f"{there}.attention.output.dense"
            yield Name(f"{ours}/kernel", f"{theirs}.weight", n.heads_out(self.heads))
            yield Name(f"{ours}/bias", f"{theirs}.bias", n.SAME)
            yield from n.layer_norm(f"{here}/mlp_norm", f"{there}.layernorm_after")
            yield from n.dense(f"{here}/mlp/up", f"{there}.intermediate.dense")
            yield from n.dense(f"{here}/mlp/down", f"{there}.output.dense")
        yield from n.layer_norm("last_norm", "vit.layernorm")
        for name in n.dense("classifier", "classifier"):
            yield name._replace(optional=True)

    def _check_size(self, shape: Shape) -> None:
        patch, size = _pair(self.patch), _pair(self.image_size)
        for given, least, wanted in zip(shape[:2], patch, size, strict=True):
            if given is not None and given < least:
                raise ValueError(f"{self.who}: images of {shape} are smaller than a patch, {patch}")
            if given not in (None, wanted) and not self.interpolate:
                raise ValueError(
                    f"{self.who}: images of {shape} came, positions are for {size}; interpolate=True takes any size"
                )


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return int(first), int(second)


class _Block(nnx.Module):
    def __init__(self, spec: ViTConfig, rngs: nnx.Rngs):
        self.attention_norm = layer_norm(spec.width, spec.epsilon, rngs)
        sizes = {"bias": spec.qkv_bias, "deviation": _DEVIATION}
        self.attention = SelfAttention(spec.width, spec.heads, rngs, **sizes)
        self.mlp_norm = layer_norm(spec.width, spec.epsilon, rngs)
        self.mlp = FeedForward(spec.width, spec.hidden, spec.activation, rngs, deviation=_DEVIATION)

    def __call__(self, x: jax.Array, dropped: Dropped, dropped_weights: Dropped | None) -> jax.Array:
        x = x + dropped(self.attention(self.attention_norm(x, train=False), None, dropped_weights))
        return x + dropped(self.mlp(self.mlp_norm(x, train=False)))


class _ViT(nnx.Module):
    def __init__(self, spec: ViTConfig, channels: int, rngs: nnx.Rngs):
        self.spec = spec
        patch = Conv2D(spec.width, spec.patch, strides=spec.patch)
        self.patches = patch.build((None, None, channels), rngs)
        rows, columns = spec.grid
        self.class_token = Table(spec.who, 1, spec.width, _DEVIATION, rngs)
        self.positions = Table(spec.who, 1 + rows * columns, spec.width, _DEVIATION, rngs)
        self.blocks = nnx.List([_Block(spec, rngs) for _ in range(spec.depth)])
        self.last_norm = layer_norm(spec.width, spec.epsilon, rngs)
        self.classifier = Projection((spec.width, spec.classes), rngs, deviation=_DEVIATION)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        spec = self.spec
        images = spec.unbind(x)["images"]
        assert images is not None
        spec._check_size(images.shape[1:])
        y: jax.Array = self.patches(images, train=train)
        batch, rows, columns, width = y.shape
        first = self.class_token.embeddings[...]
        y = jnp.concatenate(
            [jnp.broadcast_to(first[None], (batch, 1, width)).astype(y.dtype), y.reshape(batch, -1, width)], axis=1
        )
        dropped = or_same(dropping(spec.who, spec.dropout, train, rngs))
        dropped_weights = dropping(spec.who, spec.attention_dropout, train, rngs)
        y = dropped(y + self._positions(rows, columns).astype(y.dtype)[None])
        for block in self.blocks:
            y = block(y, dropped, dropped_weights)
        return self.classifier(self.last_norm(y[:, :1], train=False)[:, 0])

    def _positions(self, rows: int, columns: int) -> jax.Array:
        table, grid = self.positions.embeddings[...], self.spec.grid
        if (rows, columns) == grid:
            return table
        down, across = (
            jnp.asarray(_bicubic(given, wanted), table.dtype)
            for given, wanted in zip(grid, (rows, columns), strict=True)
        )
        patches = jnp.einsum("ih,jw,hwc->ijc", down, across, table[1:].reshape(*grid, -1))
        return jnp.concatenate([table[:1], patches.reshape(rows * columns, -1)])


def _bicubic(given: int, wanted: int) -> np.ndarray:
    """What each of `wanted` positions takes of `given` ones [wanted, given]: cubic convolution (Keys 1981), a = -3/4.

    Centers of pixels agree, and what would lie outside is the pixel at the border: torch's interpolation.

    >>> bool(np.allclose(_bicubic(3, 3), np.eye(3)))
    True
    """
    a = -0.75
    centers = (np.arange(wanted) + 0.5) * given / wanted - 0.5
    weights = np.zeros((wanted, given))
    for i, center in enumerate(centers):
        for tap in range(-1, 3):
            at = int(np.floor(center)) + tap
            d = abs(center - at)
            inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
            outer = a * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(at, 0), given - 1)] += inner if d <= 1 else outer
    return weights
