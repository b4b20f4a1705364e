"""ResNet-D (He et al. 2018, "Bag of tricks"): a stem of three small convolutions, shortcuts that average before 1 x 1.

Where it halves an image, a block's shortcut takes the mean of 2 x 2 pixels, so that none of them goes unread.
"""

from typing import TYPE_CHECKING

import jax
from flax import nnx

from llmasos_xla import kernels
from llmasos_xla.models.rtdetr.parts import ConvNorm

if TYPE_CHECKING:
    from llmasos_xla.models.rtdetr.config import RTDETRConfig

REDUCTION = 4
"""How many times narrower a bottleneck is than what it gives."""


class Backbone(nnx.Module):
    """images [batch, height, width, channels] -> the maps of the last stages, finest first.

    Arrays: stem/0..2/..., stages/<stage>/<block>/convs/<i>/..., stages/<stage>/<block>/shortcut/...
    """

    def __init__(self, spec: "RTDETRConfig", channels: int, rngs: nnx.Rngs):
        self.maps = spec.maps
        half, frozen = spec.stem // 2, spec.frozen_norms
        stem = ((channels, half, 2), (half, half, 1), (half, spec.stem, 1))
        self.stem = nnx.List([ConvNorm(cin, cout, 3, rngs, strides=s, frozen=frozen) for cin, cout, s in stem])
        stages, cin = [], spec.stem
        for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            blocks = []
            for block in range(depth):
                strides = 2 if stage and not block else 1
                blocks.append(Block(spec.bottleneck, cin, width, strides, not block, frozen, rngs))
                cin = width
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """The maps."""
        for conv in self.stem:
            x = conv(x, train=train, activation="relu")
        x = kernels.max_pool(x, 3, 2, ((1, 1), (1, 1)))
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x, train=train)
            maps.append(x)
        return maps[-self.maps :]


class Block(nnx.Module):
    """relu(convolutions(x) + shortcut(x)): two of 3 x 3, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1."""

    def __init__(self, bottleneck: bool, cin: int, cout: int, strides: int, first: bool, frozen: bool, rngs: nnx.Rngs):
        if bottleneck:
            inner = cout // REDUCTION
            sizes = ((cin, inner, 1, 1), (inner, inner, 3, strides), (inner, cout, 1, 1))
        else:
            sizes = ((cin, cout, 3, strides), (cout, cout, 3, 1))
        self.convs = nnx.List([ConvNorm(a, b, window, rngs, strides=s, frozen=frozen) for a, b, window, s in sizes])
        self.projected, pooled = projects(bottleneck, cin, cout, strides, first)
        self.pooled = pooled
        if self.projected:
            self.shortcut = ConvNorm(cin, cout, 1, rngs, strides=1 if pooled else strides, frozen=frozen)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, cin] -> [batch, height', width', cout]."""
        # The last window of an odd size is cut, and its mean that of what is there.
        short = kernels.avg_pool(x, 2, 2, "SAME") if self.pooled else x
        if self.projected:
            short = self.shortcut(short, train=train)
        *ahead, last = self.convs
        for conv in ahead:
            x = conv(x, train=train, activation="relu")
        return last(x, train=train, activation="relu", residual=short)


def projects(bottleneck: bool, cin: int, cout: int, strides: int, first: bool) -> tuple[bool, bool]:
    """Whether a block's shortcut is a convolution, and whether it takes means of 2 x 2 pixels ahead of it.

    A stage's first block of two 3 x 3 always projects, which is where these differ from the usual ResNet-18 and 34.
    """
    if bottleneck:
        return cin != cout or strides != 1, strides == 2
    return first, first and strides == 2 and cin != cout
