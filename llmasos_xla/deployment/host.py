"""The models of a server by name, and what holds for all of them: limits, keys, whether it still takes requests."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, final

from llmasos_xla.deployment import protocol
from llmasos_xla.deployment.slot import Slot


class Limits(NamedTuple):
    """What a request may be, and how many there may be."""

    body: int = protocol.MAX_BODY
    """Bytes of a request."""
    requests: int = 1024
    """Requests that are being read, waiting or running."""
    seconds: float | None = None
    """That a request may take where it does not say; None for any."""


@final
class Host:
    """Several models behind one address.

    Args:
        slots: the models.
        keys: one of these must come with every request, if there are any; kept as digests.
    """

    def __init__(self, slots: Iterable[Slot] = (), *, limits: Limits | None = None, keys: Iterable[str] = ()):
        self.slots: dict[str, Slot] = {slot.name: slot for slot in slots}
        self.limits = limits or Limits()
        self.draining = False
        """Whether no more requests are taken, since the server ends."""
        self.inside = 0
        """Requests that are being read, waiting or running."""
        self.refused = 0
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def state(self) -> Literal["loading", "ready", "draining"]:
        """What a load balancer wants to know."""
        if self.draining:
            return "draining"
        return "ready" if all(slot.current is not None for slot in self.slots.values()) else "loading"

    def slot(self, name: str) -> Slot:
        """The model of that name; raises LookupError for another."""
        found = self.slots.get(name)
        if found is None:
            known = ", ".join(map(repr, self.slots)) or "none"
            raise LookupError(f"unknown model {name[:60]!r}; this server has {known}")
        return found

    def knows(self, key: str | None) -> bool:
        """Whether a request with this key may pass; how long it takes says nothing about the keys."""
        if not self._keys:
            return True
        came = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        return sum(hmac.compare_digest(came, known) for known in self._keys) > 0 and key is not None

    def stats(self) -> dict[str, Any]:
        """Figures of the moment."""
        return {
            "state": self.state,
            "inside": self.inside,
            "refused": self.refused,
            "models": [slot.stats() for slot in self.slots.values()],
        }
