"""The shelf's models as doors: `lm.models.resnet50(weights=...)`."""

import os
from collections.abc import Callable
from typing import Any

from llmasos_xla.api.network import Network
from llmasos_xla.models.shelf import SHELF


def opener(name: str) -> Callable[..., Network]:
    """The function that makes the model of that name on the shelf."""
    make = SHELF[name]

    def model(*sizes: Any, weights: str | os.PathLike | None = None, seed: int = 0, **named: Any) -> Network:
        return Network(make(*sizes, **named), weights=weights, seed=seed)

    model.__name__ = model.__qualname__ = name
    model.__doc__ = (
        f"The model {name!r} of the shelf as a `Network`.\n\n{make.__doc__ or ''}\n\n"
        "Args:\n    weights: a file or folder of published weights; fresh ones if None.\n"
        "    seed: of the initial weights.\n    others: as the configuration takes them."
    )
    return model
