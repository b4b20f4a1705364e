"""A family as small as one can be, with all that a table of names has: stacks, heads, a head that may lack."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.models.pretrained.names import DENSE, SAME, Name, heads_in


class _Module(nnx.Module):
    def __init__(self, config: "ToyConfig", rngs: nnx.Rngs):
        c, draw = config, jax.random.normal
        self.embeddings = nnx.Param(draw(rngs.params(), (c.vocab, c.width)))
        shape = (c.depth, c.width, c.heads, c.width // c.heads)
        self.query = nnx.Dict(kernel=nnx.Param(0.1 * draw(rngs.params(), shape)))
        self.norm = nnx.Dict(mean=nnx.BatchStat(jnp.zeros(c.width)))
        self.classifier = nnx.Dict(
            kernel=nnx.Param(draw(rngs.params(), (c.width, c.classes))), bias=nnx.Param(jnp.zeros(c.classes))
        )

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.embeddings[...][x].mean(1) - self.norm["mean"][...][None]
        for kernel in self.query["kernel"][...]:
            y = y + jnp.tanh(jnp.einsum("bc,chd->bhd", y, kernel)).reshape(y.shape)
        return y @ self.classifier["kernel"][...] + self.classifier["bias"][...][None]


@dataclasses.dataclass(frozen=True)
class ToyConfig(Config):
    """Embeddings, a stack of products, a classifier."""

    vocab: int = 64
    width: int = 32
    depth: int = 2
    heads: int = 4
    classes: int = 3

    family: ClassVar[str] = "toy"
    inputs: ClassVar[tuple[str, ...]] = ("ids",)
    huggingface: ClassVar[tuple[str, ...]] = ("toy-net",)
    ignored: ClassVar[tuple[str, ...]] = (r"position_ids$",)
    presets: ClassVar[Mapping[str, str]] = {}

    @property
    def tokens(self) -> bool:
        return True

    def sample_shape(self) -> tuple[int | None, ...]:
        return (None,)

    def build(self, shape: Any, rngs: nnx.Rngs) -> nnx.Module:
        return _Module(self, rngs)

    def output_shape(self, shape: Any) -> Any:
        return (self.classes,)

    def names(self, source: str) -> Iterator[Name]:
        if source != "huggingface":
            yield from super().names(source)
        yield Name("embeddings", "toy.embeddings.weight", SAME)
        layers = [f"toy.layers.{i}.q.weight" for i in range(self.depth)]
        yield Name("query/kernel", layers, heads_in(self.heads))
        yield Name("norm/mean", "toy.LayerNorm.weight", SAME)
        yield Name("classifier/kernel", "classifier.weight", DENSE, optional=True)
        yield Name("classifier/bias", "classifier.bias", SAME, optional=True)

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "ToyConfig":
        return cls(**{"width": config["hidden_size"], "depth": config.get("num_layers", 2), **sizes})


# A layer of tests is none of the package's.
LAYERS.pop("ToyConfig")


def published(config: ToyConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Arrays as the toy's makers would have saved them."""
    rng = np.random.default_rng(0)
    c = config
    shapes = {
        "toy.embeddings.weight": (c.vocab, c.width),
        **{f"toy.layers.{i}.q.weight": (c.width, c.width) for i in range(c.depth)},
        "toy.LayerNorm.weight": (c.width,),
        "classifier.weight": (c.classes, c.width),
        "classifier.bias": (c.classes,),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
