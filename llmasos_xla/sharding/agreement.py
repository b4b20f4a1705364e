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
from jax._src import distributed

_BYTES = 16
_MEETING_SECONDS = 120.0
_MET: dict[str, int] = {}
"""How often each meeting has been held: a barrier's name serves once."""


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


def meet(who: str, seconds: float = _MEETING_SECONDS) -> None:
    """Waits until every process is here: for what all of them have to call, ahead of messages that wait for ever.

    Raises RuntimeError after so many seconds, in those that are.
    """
    if jax.process_count() == 1:
        return
    client: Any = distributed.global_state.client
    number = _MET[who] = _MET.get(who, 0) + 1
    try:
        client.wait_at_barrier(f"llmasos {who} {number}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise RuntimeError(
            f"{who}: not all of the {jax.process_count()} processes have come within {seconds:.0f} s; in several "
            f"processes all have to call {who} (the first one writes): call it outside of `if world.rank == 0`"
        ) from error


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
