"""RT-DETR's module, and what it gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.models.layers._base import Shape
from llmasos_xla.models.rtdetr.backbone import Backbone
from llmasos_xla.models.rtdetr.decoder import Decoder, prior
from llmasos_xla.models.rtdetr.encoder import Encoder
from llmasos_xla.models.rtdetr.parts import ConvNorm, Linear, Perceptron, draw, layer_norm

if TYPE_CHECKING:
    from llmasos_xla.models.rtdetr.config import RTDETRConfig

_ANCHOR = 0.05
"""Width and height of the finest map's anchors, as shares of the image; each next map's are twice as large."""
_MARGIN = 0.01
_BEYOND = 1e4
"""A logit whose sigmoid is 1, of anchors that reach over the border."""


class Detections(NamedTuple):
    """What a detector gives; there is no order and no suppression of queries."""

    logits: jax.Array
    """[batch, queries, classes]; a sigmoid makes scores of them."""
    boxes: jax.Array
    """[batch, queries, 4]: center x, center y, width and height, as shares of the image."""
    early_logits: jax.Array
    """[batch, depth, queries, classes]: of the encoder's choice and of all decoder layers but the last."""
    early_boxes: jax.Array
    """[batch, depth, queries, 4]."""


jax.export.register_namedtuple_serialization(Detections, serialized_name="llmasos_xla.Detections")


class Network(nnx.Module):
    """The module. Arrays: backbone/..., inputs/<map>, encoder/..., memory/<map>, choice/..., decoder/..."""

    def __init__(self, spec: "RTDETRConfig", shape: Shape, rngs: nnx.Rngs):
        channels = shape[-1]
        assert channels is not None
        self.spec = spec
        self.backbone = Backbone(spec, channels, rngs)
        self.inputs = nnx.List([ConvNorm(w, spec.encoder_width, 1, rngs) for w in spec.widths[-spec.maps :]])
        self.encoder = Encoder(spec, rngs)
        self.memory = nnx.List(
            [ConvNorm(spec.encoder_width, spec.width, 1, rngs, epsilon=spec.epsilon) for _ in range(spec.maps)]
        )
        self.choice = Choice(spec, rngs)
        self.decoder = Decoder(spec, rngs)
        draw(self, rngs.params())

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None = None) -> Detections:
        """images [batch, height, width, channels] -> what is seen."""
        images = self.spec.unbind(x)["images"]
        maps = self.backbone(images, train=train)
        maps = [conv(m, train=train) for conv, m in zip(self.inputs, maps, strict=True)]
        maps = self.encoder(maps, train=train)
        maps = [conv(m, train=train) for conv, m in zip(self.memory, maps, strict=True)]
        sizes = [(m.shape[1], m.shape[2]) for m in maps]
        memory = jnp.concatenate([m.reshape(m.shape[0], -1, m.shape[-1]) for m in maps], axis=1)
        features, logits, boxes = self.choice(memory, sizes)
        # The decoder learns to describe what it is shown, the choice from its own loss.
        all_logits, all_boxes = self.decoder(jax.lax.stop_gradient(features), boxes.astype(jnp.float32), memory, sizes)
        return Detections(
            all_logits[:, -1],
            all_boxes[:, -1],
            jnp.concatenate([logits[:, None], all_logits[:, :-1]], axis=1),
            jnp.concatenate([boxes[:, None].astype(all_boxes.dtype), all_boxes[:, :-1]], axis=1),
        )


class Choice(nnx.Module):
    """The positions whose features promise most become queries, with their first boxes.

    Arrays: features, features_norm, classes, boxes (a perceptron).
    """

    def __init__(self, spec: "RTDETRConfig", rngs: nnx.Rngs):
        self.spec, width = spec, spec.width
        self.features = Linear((width, width))
        self.features_norm = layer_norm(width, spec.norm_epsilon, rngs)
        self.classes = Linear((width, spec.classes), bias=prior(spec))
        self.boxes = Perceptron((width, width, width, 4))

    def __call__(self, memory: jax.Array, sizes: Sequence[tuple[int, int]]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Features [batch, queries, width], logits and boxes (float32) of the chosen positions."""
        if memory.shape[1] < self.spec.queries:
            raise ValueError(
                f"{self.spec.who}: the images' maps {list(sizes)} have {memory.shape[1]} positions, of which "
                f"queries={self.spec.queries} are to be chosen; give larger images or set fewer queries"
            )
        anchors, valid = anchor_logits(sizes)
        memory = jnp.where(valid[None], memory, jnp.zeros((), memory.dtype))
        features = self.features_norm(self.features(memory), train=False)  # pyright: ignore[reportCallIssue]
        logits = self.classes(features)
        _, best = jax.lax.top_k(jnp.max(logits, axis=-1), self.spec.queries)

        def chosen(a: jax.Array) -> jax.Array:
            return jnp.take_along_axis(a, best[:, :, None], axis=1)

        features, logits = chosen(features), chosen(logits)
        anchors = jnp.take(jnp.asarray(anchors), best, axis=0)
        boxes = jax.nn.sigmoid(self.boxes(features).astype(jnp.float32) + anchors)
        return features, logits, boxes


def anchor_logits(sizes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Inverse sigmoids of each position's anchor box, [positions, 4], and whether it lies in the image, [positions, 1].

    >>> anchors, valid = anchor_logits([(2, 2), (1, 1)])
    >>> anchors.shape, bool(valid.all())
    ((5, 4), True)
    """
    boxes = []
    for level, (height, width) in enumerate(sizes):
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        extent = np.full_like(x, _ANCHOR * 2.0**level)
        boxes.append(np.stack([x, y, extent, extent], axis=-1).reshape(-1, 4))
    anchors = np.concatenate(boxes)
    valid = np.all((anchors > _MARGIN) & (anchors < 1.0 - _MARGIN), axis=-1, keepdims=True)
    inside = np.clip(anchors, 1e-6, 1.0 - 1e-6)
    return np.where(valid, np.log(inside / (1.0 - inside)), _BEYOND).astype(np.float32), np.asarray(valid)
