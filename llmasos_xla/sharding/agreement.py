"""Whether all processes are about to do the same, asked before they do it.

Processes that trace different programs, or bring different data, do not fail: they wait for each other for ever, or
learn nonsense. A digest of each thing that must be equal costs one message.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

_BYTES = 16


def agree(who: str, things: Mapping[str, Any]) -> None:
    """Checks that every process gives equal values, JSON or texts, under each name; nothing to do in a single one.

    Raises ValueError in every process, naming what differs and in which of them.

    >>> agree("fit", {"the number of rows": 100})
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digests = np.stack([np.frombuffer(_digest(value), np.uint8) for value in things.values()])
    everyone = np.asarray(multihost_utils.process_allgather(digests)).reshape(jax.process_count(), len(things), _BYTES)
    differences = []
    for at, name in enumerate(things):
        groups: dict[bytes, list[int]] = {}
        for rank, row in enumerate(everyone[:, at]):
            groups.setdefault(row.tobytes(), []).append(rank)
        if len(groups) > 1:
            ranks = " / ".join("ranks " + ", ".join(map(str, ranks)) for ranks in groups.values())
            differences.append(f"{name} ({ranks}; here, on rank {jax.process_index()}: {_short(things[name])})")
    if differences:
        raise ValueError(
            f"{who}: the processes disagree about {'; '.join(differences)}. Give all of them the same script, "
            "arguments and files"
        )


def of_first(numbers: Sequence[int]) -> list[int]:
    """The whole numbers that the first process gives, in every process; nobody goes on before all are here."""
    if jax.process_count() == 1:
        return list(numbers)
    from jax.experimental import multihost_utils

    return [int(n) for n in multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32))]


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=_BYTES).digest()


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
