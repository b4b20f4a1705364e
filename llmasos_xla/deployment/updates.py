"""Updates while the server answers: a version is prepared beside the serving path, and then one reference is set."""

import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, final

import jax
import numpy as np

from llmasos_xla.deployment import shared
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.trial import Trial
from llmasos_xla.deployment.versions import UpdateError, about, check, open_version
from llmasos_xla.storage.atomic import atomically

_LOG = logging.getLogger("llmasos_xla.deployment")
# A thread that prepares yields to those that answer.
_NICENESS = 10


class OtherModelError(UpdateError):
    """Weights came alone, and are of a model that computes something else."""


@final
class Updates:
    """What a server does when it is told to: update, rollback, end a trial, tell figures.

    Args:
        host: the models.
        state: a file that says which bundle answers, so that a server that was killed starts with it again; or None.
        key: the public key of whoever must have signed new bundles.
    """

    def __init__(self, host: Host, *, state: pathlib.Path | None = None, key: Any = None, program: bool = False):
        self._host, self._state, self._key, self._program = host, state, key, program
        self._locks = {name: threading.Lock() for name in host.slots}

    def handle(self, message: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Does what a message of the control socket says; raises what is told to its sender."""
        todo = message.get("do")
        if todo == "stats":
            return self._host.stats()
        slot = self._slot(message.get("model"))
        if todo == "about":
            return about(slot.find())
        with self._locks[slot.name]:
            if todo == "update":
                return self._update(slot, message, files)
            if todo == "rollback":
                return self._rolled_back(slot)
            if todo == "end_trial":
                return self._end_trial(slot, message.get("verdict") == "good", "it was told so")
        raise ValueError(f"control: there is nothing to do called {str(todo)[:40]!r}")

    def _slot(self, name: Any) -> Slot:
        if name is None and len(self._host.slots) == 1:
            return next(iter(self._host.slots.values()))
        return self._host.slot(str(name))

    def _update(self, slot: Slot, message: Mapping[str, Any], files: list[int]) -> dict[str, Any]:
        started = time.perf_counter()
        now, version = slot.find(), slot.next_version()
        _yield_to_others()
        if files:
            served = _with_arrays(now, shared.read(files[0]), version, message.get("fingerprint"))
        else:
            path = str(message["path"])
            served = open_version(path, slot.name, version, like=now, key=self._key, program=self._program)
        check(served, now)
        slot.warm_writer(served, now)
        trial = message.get("trial")
        if trial:
            self._start_trial(slot, served, trial)
        else:
            self._record(slot, served, None if files or message.get("passing") else str(message["path"]))
            slot.trial = None
            slot.put(served)
        return {"version": served.version, "seconds": time.perf_counter() - started, "trial": bool(trial)}

    def _start_trial(self, slot: Slot, served: Served, options: Mapping[str, Any]) -> None:
        share = options.get("share", 0.1)
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"update: the share of a trial is above 0 and at most 1, {share!r} came")
        if slot.trial is not None and slot.trial.verdict is None:
            raise UpdateError(f"update: version {slot.trial.served.version} is on trial; end that first")

        def judged(verdict: Literal["good", "bad"], reason: str) -> None:
            # Not here: whoever tells of a request would wait for it.
            threading.Thread(target=self._judged, args=(slot, served, verdict, reason), daemon=True).start()

        slot.reserve(served.version)
        slot.trial = Trial(served, judged=judged, **options)

    def _judged(self, slot: Slot, served: Served, verdict: str, reason: str) -> None:
        with self._locks[slot.name]:
            if slot.trial is not None and slot.trial.served is served:
                self._end_trial(slot, verdict == "good", reason)

    def _end_trial(self, slot: Slot, good: bool, reason: str) -> dict[str, Any]:
        if slot.trial is None:
            raise LookupError(f"trial: model {slot.name!r} has none")
        served, slot.trial = slot.trial.served, None
        _LOG.warning(
            "version %s of %r %s: %s", served.version, slot.name, "answers now" if good else "was taken back", reason
        )
        if good:
            self._record(slot, served, None)
            slot.put(served)
        else:
            slot.rollbacks += 1
        return {"version": slot.find().version}

    def _rolled_back(self, slot: Slot) -> dict[str, Any]:
        served = slot.rollback()
        self._record(slot, served, None)
        return {"version": served.version}

    def _record(self, slot: Slot, served: Served, path: str | None) -> None:
        """Writes down which file answers, ahead of the swap: a server that is killed finds one or the other, whole."""
        if path is not None:
            served.path = path
        if self._state is None or served.path is None:
            return
        known = recorded(self._state)
        known[slot.name] = {"path": served.path, "digest": served.digest, "version": served.version}
        text = json.dumps(known)
        atomically(self._state, lambda temporary: _write(temporary, text))


def recorded(state: pathlib.Path) -> dict[str, Any]:
    """What a server wrote down: model -> path, digest, version; empty if there is nothing that can be read."""
    try:
        found = json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _with_arrays(now: Served, arrays: Mapping[str, np.ndarray], version: str, fingerprint: Any) -> Served:
    if fingerprint is not None and fingerprint != now.engine.fingerprint:
        raise OtherModelError("update: these weights are of another model; hand over a file of it")
    wanted = {n: (tuple(a.shape), a.dtype.name) for n, a in now.arrays.items()}
    came = {n: (tuple(a.shape), a.dtype.name) for n, a in arrays.items()}
    if wanted != came:
        names = sorted(n for n in wanted.keys() | came.keys() if wanted.get(n) != came.get(n))
        told = "; ".join(f"{n}: wanted {wanted.get(n, 'none')}, got {came.get(n, 'none')}" for n in names[:5])
        raise UpdateError(f"update: {len(names)} arrays do not fit the model: {told}")
    placed = {n: jax.device_put(arrays[n], now.arrays[n].sharding) for n in now.arrays}
    return Served(now.face, now.engine, placed, now.name, version)


def _yield_to_others() -> None:
    # On Linux the niceness is a thread's own. Children of this thread would have it, too; it starts none.
    if hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError as error:
            _LOG.debug("control: the priority stays: %s", error)


def _write(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text)
