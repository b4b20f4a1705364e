"""Two small models of several inputs, for tests."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.models.layers._modules import parameter


@dataclasses.dataclass(frozen=True)
class TinyTagger(Config):
    """Ids, with a mask and types if there are -> logits of each row, or of each step where `steps`."""

    vocab: int = 20
    width: int = 8
    classes: int = 3
    steps: bool = False

    inputs: ClassVar[tuple[str, ...]] = ("ids", "attention_mask", "type_ids")
    family: ClassVar[str] = "tiny_tagger"

    @property
    def integers(self):
        return {**super().integers, "type_ids": 2}

    def sample_shape(self):
        return (None,)

    def output_shape(self, shape):
        return (*shape, self.classes) if self.steps else (self.classes,)

    def build(self, shape, rngs):
        return _Tagger(self, rngs)


class _Table(nnx.Module):
    def __init__(self, rows, width, rngs):
        self.embeddings = parameter(rngs, "normal", (rows, width))

    def __call__(self, ids):
        return jnp.take(self.embeddings[...], ids, axis=0)


class _Tagger(nnx.Module):
    def __init__(self, config, rngs):
        self.config = config
        # Two tables, so called that the layouts have a rule for them.
        self.words = _Table(config.vocab, config.width, rngs)
        self.types = _Table(2, config.width, rngs)
        self.kernel = parameter(rngs, "glorot_uniform", (config.width, config.classes))

    def __call__(self, x, *, train, rngs=None):
        ids, mask, types = self.config.unbind(x).values()
        mask = jnp.ones_like(ids) if mask is None else mask
        types = jnp.zeros_like(ids) if types is None else types
        w = mask[..., None].astype(self.kernel[...].dtype)
        y = (self.words(ids) + self.types(types)) * w
        context = y.sum(1, keepdims=True) / jnp.maximum(w.sum(1, keepdims=True), 1)
        y = jnp.tanh(y + context) if self.config.steps else jnp.tanh(context[:, 0])
        return jax.lax.dot_general(y, self.kernel[...], (((y.ndim - 1,), (0,)), ((), ())))


@dataclasses.dataclass(frozen=True)
class TinyScan(Config):
    """An image and an age, both needed, and notes if there are -> one number."""

    inputs: ClassVar[tuple[str, ...]] = ("images", "age", "note_ids")
    needed: ClassVar[int] = 2
    family: ClassVar[str] = "tiny_scan"

    def sample_shape(self):
        return (4, 4, 1)

    def input_shapes(self, shape):
        return {"images": shape, "age": (1,), "note_ids": (None,)}

    def output_shape(self, shape):
        return (1,)

    def build(self, shape, rngs):
        return _Scan(self, rngs)


class _Scan(nnx.Module):
    def __init__(self, config, rngs):
        self.config = config
        self.kernel = parameter(rngs, "glorot_uniform", (17, 1))
        self.notes = _Table(9, 1, rngs)

    def __call__(self, x, *, train, rngs=None):
        images, age, notes = self.config.unbind(x).values()
        y = jnp.concatenate([images.reshape(len(images), -1), age], axis=1) @ self.kernel[...]
        return y if notes is None else y + self.notes(notes).mean(1)


# Not among the package's own layers, of which other tests have lists; a test that reads files puts them there.
REGISTERED = {name: LAYERS.pop(name) for name in ("TinyTagger", "TinyScan")}
