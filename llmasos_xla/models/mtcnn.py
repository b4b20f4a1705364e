"""MTCNN (Zhang et al. 2016): three small networks; each looks closer at what the one before took for a face."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.layers._checks import one_of
from llmasos_xla.models.layers._windows import check_space
from llmasos_xla.models.layers.activations import PReLU
from llmasos_xla.models.layers.conv import Conv2D
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.pretrained.names import SAME, Layout, Name, conv2d, dense


class Parts(NamedTuple):
    """What a network of MTCNN says of each window."""

    logits: jax.Array
    """[..., 2]: no face, a face."""
    boxes: jax.Array
    """[..., 4]: how far the edges left, top, right, bottom lie from the window's, in its widths and heights."""
    points: jax.Array | None = None
    """[..., 10], of the output network alone: x of left eye, right eye, nose, mouth's left and right end, then y, in
    widths and heights from the window's corner."""


jax.export.register_namedtuple_serialization(Parts, serialized_name="llmasos_xla.models.mtcnn.Parts")


class _Conv(NamedTuple):
    features: int
    window: int
    pool: int
    """Window of the maximum behind it, by steps of two; 0 for none."""


class _Plan(NamedTuple):
    size: int
    """Height and width of a window."""
    convs: tuple[_Conv, ...]
    hidden: int | None
    """Features of the dense layer; None for a network of convolutions alone, which reads images of any size."""
    heads: tuple[str, ...]


_PLANS = {
    "proposal": _Plan(12, (_Conv(10, 3, 2), _Conv(16, 3, 0), _Conv(32, 3, 0)), None, ("face", "box")),
    "refinement": _Plan(24, (_Conv(28, 3, 3), _Conv(48, 3, 3), _Conv(64, 2, 0)), 128, ("face", "box")),
    "output": _Plan(
        48, (_Conv(32, 3, 3), _Conv(64, 3, 3), _Conv(64, 3, 2), _Conv(128, 2, 0)), 256, ("face", "box", "points")
    ),
}
_UNITS = {"face": 2, "box": 4, "points": 10}

_ALPHA = Layout("alpha", lambda a: a[None, None], lambda a: a[0, 0])
"""One slope a channel."""


@dataclasses.dataclass(frozen=True)
class MTCNNConfig(Config):
    """One of the networks of MTCNN (Zhang et al. 2016, "Joint face detection and alignment using multitask
    cascaded convolutional networks").

    float images [batch, height, width, 3], pixels p as (p - 127.5) / 128, RGB -> `Parts`. `FaceDetector` is all three
    of them, one after the other.

    Args:
        stage: "proposal" reads images of any size and answers for each window of 12x12, by steps of two pixels;
            "refinement" reads 24x24, "output" 48x48.

    >>> MTCNNConfig("proposal").output_shape((64, 80, 3))
    (27, 35, 2)
    """

    stage: str = "proposal"

    family: ClassVar[str] = "mtcnn"
    presets: ClassVar[Mapping[str, str]] = {name: name for name in ("mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet")}

    @classmethod
    def mtcnn_pnet(cls, **sizes: Any) -> "MTCNNConfig":
        """The first network, 6,632 parameters."""
        return cls("proposal", **sizes)

    @classmethod
    def mtcnn_rnet(cls, **sizes: Any) -> "MTCNNConfig":
        """The second, 100,178 parameters."""
        return cls("refinement", **sizes)

    @classmethod
    def mtcnn_onet(cls, **sizes: Any) -> "MTCNNConfig":
        """The third, 389,040 parameters."""
        return cls("output", **sizes)

    def check(self) -> None:
        """Refuses unknown stages."""
        self._set(stage=one_of(self.who, "stage", self.stage, _PLANS))

    @property
    def plan(self) -> _Plan:
        """Its sizes."""
        return _PLANS[self.stage]

    def sample_shape(self) -> Shape:
        """(None, None, 3), or the one size that it reads."""
        return (None, None, 3) if self.plan.hidden is None else (self.plan.size, self.plan.size, 3)

    def output_shape(self, shape: Shape) -> Shape:
        """That of the logits."""
        check_space(self.who, shape, 2)
        size = self.plan.size
        if any(n is not None and n < size for n in shape[:2]):
            raise ValueError(
                f"{self.who}: the {self.stage} network reads windows of {size}x{size}, got images of {shape}"
            )
        if self.plan.hidden is not None:
            if shape[:2] != (size, size):
                raise ValueError(f"{self.who}: the {self.stage} network reads images of {size}x{size}, got {shape}")
            return (2,)
        return (*(None if n is None else _after(n, self.plan.convs) for n in shape[:2]), 2)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module."""
        self.output_shape(shape)
        return _MTCNN(self, check_space(self.who, shape, 2), rngs)

    def names(self, source: str) -> Iterator[Name]:
        """Those of facenet-pytorch ("torch")."""
        if source != "torch":
            yield from super().names(source)  # raises
        for i in range(len(self.plan.convs)):
            yield from conv2d(f"conv{i}", f"conv{i + 1}")
            yield Name(f"slope{i}/alpha", f"prelu{i + 1}.weight", _ALPHA)
        # Layers are counted on through dense ones there.
        at = len(self.plan.convs) + 1
        if self.plan.hidden is not None:
            yield from dense("hidden", f"dense{at}")
            yield Name("hidden_slope/alpha", f"prelu{at}.weight", SAME)
            at += 1
        for i, head in enumerate(self.plan.heads, 1):
            yield from (conv2d(head, f"conv{at}_{i}") if self.plan.hidden is None else dense(head, f"dense{at}_{i}"))


def _after(size: int, convs: tuple[_Conv, ...]) -> int:
    for conv in convs:
        size -= conv.window - 1
        if conv.pool:
            size = -(-(size - conv.pool) // 2) + 1
    return size


def _pooled(x: jax.Array, window: int) -> jax.Array:
    """The maximum over windows by steps of two; a window that the image's end cuts counts too."""
    pads = [(0, 2 * -(-(n - window) // 2) + window - n) for n in x.shape[1:3]]
    return kernels.max_pool(x, window, 2, pads)


class _MTCNN(nnx.Module):
    def __init__(self, spec: MTCNNConfig, channels: int, rngs: nnx.Rngs):
        self.spec = spec
        plan = spec.plan
        for i, conv in enumerate(plan.convs):
            layer = Conv2D(conv.features, conv.window, kernel_initializer="he_normal")
            setattr(self, f"conv{i}", layer.build((None, None, channels), rngs))
            channels = conv.features
            setattr(self, f"slope{i}", PReLU("zeros", shared_axes=(1, 2)).build((None, None, channels), rngs))
        if plan.hidden is not None:
            flat = channels * _after(plan.size, plan.convs) ** 2
            self.hidden = Dense(plan.hidden, kernel_initializer="he_normal").build((flat,), rngs)
            self.hidden_slope = PReLU("zeros").build((plan.hidden,), rngs)
            channels = plan.hidden
        for head in plan.heads:
            units = _UNITS[head]
            layer = Conv2D(units, 1).build((None, None, channels), rngs) if plan.hidden is None else None
            setattr(self, head, layer or Dense(units).build((channels,), rngs))

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> Parts:
        y = self.spec.unbind(x)["images"]
        assert y is not None
        self.spec.output_shape(y.shape[1:])
        for i, conv in enumerate(self.spec.plan.convs):
            y = getattr(self, f"slope{i}")(getattr(self, f"conv{i}")(y, train=train), train=train)
            y = _pooled(y, conv.pool) if conv.pool else y
        if self.spec.plan.hidden is not None:
            # The published networks were trained on images that lie on their side in memory.
            y = jnp.swapaxes(y, 1, 2).reshape(y.shape[0], -1)
            y = self.hidden_slope(self.hidden(y, train=train), train=train)
        return Parts(*(getattr(self, head)(y, train=train) for head in self.spec.plan.heads))
