"""Layers that turn ids into vectors, or values into a mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import sample_rank
from llmasos_xla.models.layers._modules import MaskModule, parameter


@dataclasses.dataclass(frozen=True)
class Embedding(Layer):
    """A trained vector for each id: ids [batch, ...] -> [batch, ..., output_dim].

    With `mask_zero` id 0 is padding: the layers that read masks leave those steps out.

    Inside a compiled program nothing can be raised, so an id outside 0 .. input_dim - 1, negative ones included, gives
    a vector of NaN (and no gradient), which the loss shows; `check_tokens` finds it beforehand, in the data.

    Arrays: embeddings [input_dim, output_dim].

    >>> Embedding(1000, 16).output_shape((20,))
    (20, 16)
    """

    input_dim: int
    output_dim: int
    embeddings_initializer: str = "uniform"
    mask_zero: bool = False

    @property
    def tokens(self) -> bool:
        """True: it reads ids."""
        return True

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with the vectors."""
        return _Embedding(self, rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """One more axis, `output_dim`."""
        return (*shape, self.output_dim)

    def check_tokens(self, ids: Int[np.ndarray, "batch ..."]) -> None:
        """Refuses ids that have no vector.

        >>> Embedding(10, 4).check_tokens(np.array([[1, 12]]))
        Traceback (most recent call last):
        ValueError: Embedding: ids must be 0 to 9 (input_dim 10), got 12 in row 0
        """
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{self.who}: wants integer ids, got {ids.dtype}")
        bad = (ids < 0) | (ids >= self.input_dim)
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            last = self.input_dim - 1
            raise ValueError(
                f"{self.who}: ids must be 0 to {last} (input_dim {self.input_dim}), got {ids[at]} in row {at[0]}"
            )
        if self.mask_zero and ids.ndim > 1 and ids.shape[1] > 1:
            inside = (ids[:, :-1] == 0) & (ids[:, 1:] != 0)
            if inside.any():
                # Recurrent layers read a row up to its last id; padding ahead of it would count as data.
                row = int(np.argwhere(inside)[0][0])
                raise ValueError(
                    f"{self.who}: with mask_zero=True a 0 is padding and stands at the right of a row, but row {row} "
                    "has a 0 before other ids; pad at the right (Keras' pad_sequences(padding='post')) or start "
                    "ids at 1"
                )


class _Embedding(MaskModule):
    def __init__(self, spec: Embedding, rngs: nnx.Rngs):
        self.spec = spec
        self.embeddings = parameter(rngs, spec.embeddings_initializer, (spec.input_dim, spec.output_dim))

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        y = look_up(self.embeddings[...], x, self.spec.who)
        made = x != 0 if self.spec.mask_zero and x.ndim == 2 else None
        return y, mask if made is None else made


def look_up(embeddings: jax.Array, ids: jax.Array, who: str) -> jax.Array:
    """The rows of those numbers, [..., output_dim]; NaN for a number that the table does not have."""
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"{who}: wants integer ids, got {ids.dtype} of shape {ids.shape}")
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    # take counts negative ids from the end; here they are as wrong as too large ones.
    ids = jnp.where(ids < 0, embeddings.shape[0], ids)
    return jnp.take(embeddings, ids, axis=0, mode="fill", fill_value=jnp.nan)


@dataclasses.dataclass(frozen=True)
class Masking(Layer):
    """Calls the steps of [batch, time, channels] padding whose channels all equal `mask_value`, and sets them to zero.

    Recurrent layers read a mask as right padding: steps after the last unmasked one are left out.

    >>> Masking().output_shape((None, 3))
    (None, 3)
    """

    mask_value: float = 0.0

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """A module without arrays."""
        self.output_shape(shape)
        return _Masking(self.mask_value)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        sample_rank(self.who, shape, "time, channels")
        return shape


class _Masking(MaskModule):
    def __init__(self, value: float):
        self.value = value

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        made = jnp.any(x != self.value, axis=-1)
        made = made if mask is None else made & mask
        return jnp.where(made[..., None], x, jnp.zeros_like(x)), made
