"""A list of layers as one nnx module, and what training needs to know about it."""

from collections.abc import Sequence

from llmasos_xla.models.layers._base import Layer
from llmasos_xla.models.layers._stack import Stack as Stack
from llmasos_xla.models.layers._stack import output_shapes as output_shapes


def split_head(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], str | None]:
    """Takes a last softmax or sigmoid off, so that losses work on logits; predict puts it back.

    Only where it is the very last thing that happens: an LSTM's activation is inside.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> split_head([Dense(3, activation="softmax")])
    ((Dense(units=3),), 'softmax')
    """
    if not layers:
        return (), None
    last, head = layers[-1].split_head()
    return (*layers[:-1], last), head
