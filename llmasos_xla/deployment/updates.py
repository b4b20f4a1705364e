"""Updates while the server answers: a version is prepared beside the serving path, and then one reference is set."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, final

import jax
import numpy as np

from llmasos_xla import errors
from llmasos_xla.deployment import shared
from llmasos_xla.deployment.host import Host
from llmasos_xla.deployment.niceness import yield_to_others
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.deployment.state import State
from llmasos_xla.deployment.trial import Trial
from llmasos_xla.deployment.versions import UpdateError, about, check, open_version

_TRIAL = ("share", "shadow", "requests", "most_errors", "most_latency", "most_difference")
_LOG = logging.getLogger("llmasos_xla.deployment")


class OtherModelError(UpdateError):
    """Weights came alone, and are of a model that computes something else."""


@final
class Updates:
    """What a server does when it is told to: update, rollback, end a trial, tell figures.

    Args:
        host: the models.
        state: where it is written down which version answers, so that a server that was killed starts with it; or None.
        key: the public key of whoever must have signed new bundles; weights from memory are refused then.
    """

    def __init__(self, host: Host, *, state: State | None = None, key: Any = None, program: bool = False):
        self._host, self._state, self._key, self._program = host, state, key, program
        self._locks = {name: threading.Lock() for name in host.slots}

    def handle(
        self, message: dict[str, Any], files: list[int], arrays: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Any]:
        """Does what a message of the control socket says; raises what is told to its sender.

        Weights of an update come in shared memory, as the first of `files`, or as `arrays` by name.
        """
        todo = message.get("do")
        if todo == "stats":
            return self._host.stats()
        slot = self._slot(message.get("model"))
        if todo == "about":
            return about(slot.find())
        with self._locks[slot.name]:
            if todo == "update":
                return self._update(slot, message, shared.read(files[0]) if files else arrays)
            if todo == "rollback":
                return self._rolled_back(slot)
            if todo == "end_trial":
                return self._end_trial(slot, message.get("verdict") == "good", "it was told so")
        raise ValueError(f"control: there is nothing to do called {str(todo)[:40]!r}")

    def _slot(self, name: Any) -> Slot:
        if name is None and len(self._host.slots) == 1:
            return next(iter(self._host.slots.values()))
        if name is None:
            raise LookupError(f"control: which model? This server has {', '.join(map(repr, self._host.slots))}")
        return self._host.slot(str(name))

    def _update(
        self, slot: Slot, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None
    ) -> dict[str, Any]:
        started = time.perf_counter()
        now, version = slot.find(), str(message.get("version") or slot.next_version())
        # A thread that prepares yields to those that answer.
        yield_to_others()
        if self._key is not None and (arrays is not None or message.get("passing")):
            raise PermissionError(
                "update: weights from memory are not signed, and a signature is asked for; export them as a bundle "
                "with key=, and hand over that"
            )
        if arrays is not None:
            served = with_arrays(now, arrays, version, message.get("fingerprint"))
        else:
            path = str(message["path"])
            served = open_version(path, slot.name, version, like=now, key=self._key, program=self._program)
            served.path = None if message.get("passing") else path
        check(served, now)
        slot.warm_writer(served, now)
        trial = message.get("trial")
        if trial:
            self._start_trial(slot, served, trial)
        else:
            if slot.trial is not None:
                self._end_trial(slot, False, f"version {served.version} was handed over", logging.INFO)
            self._answers_now(slot, served)
        return {"version": served.version, "seconds": time.perf_counter() - started, "trial": bool(trial)}

    def _start_trial(self, slot: Slot, served: Served, options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in _TRIAL:
                raise errors.unknown("update", "option of a trial", name[:40], _TRIAL)
        if slot.trial is not None and slot.trial.verdict is None:
            raise UpdateError(f"update: version {slot.trial.served.version} is on trial; end that first")

        def judged(verdict: Literal["good", "bad"], reason: str) -> None:
            # Not here: whoever tells of a request would wait for it.
            threading.Thread(target=self._judged, args=(slot, served, verdict, reason), daemon=True).start()

        slot.trial = Trial(served, judged=judged, **options)
        slot.reserve(served.version)

    def _judged(self, slot: Slot, served: Served, verdict: str, reason: str) -> None:
        with self._locks[slot.name]:
            if slot.trial is not None and slot.trial.served is served:
                self._end_trial(slot, verdict == "good", reason)

    def _end_trial(self, slot: Slot, good: bool, reason: str, level: int = logging.WARNING) -> dict[str, Any]:
        if slot.trial is None:
            raise LookupError(f"trial: model {slot.name!r} has none")
        trial = slot.trial
        served = trial.served
        # Ahead of the trial's end: who sees that it is over finds the version that it ended with.
        if good:
            self._answers_now(slot, served)
        else:
            slot.rollbacks += 1
        slot.last_trial = {**trial.stats(), "verdict": "good" if good else "bad", "reason": reason}
        slot.trial = None
        _LOG.log(
            level,
            "version %s of %r %s: %s",
            served.version,
            slot.name,
            "answers now" if good else "was taken back",
            reason,
        )
        return {"version": slot.find().version}

    def _rolled_back(self, slot: Slot) -> dict[str, Any]:
        if slot.trial is not None:
            # The version on trial is the newest there is: that one is meant, not the one that answers beside it.
            return self._end_trial(slot, False, "it was rolled back", logging.INFO)
        served = slot.rollback()
        if self._state is not None:
            self._state.put(slot.name, served)
        return {"version": served.version}

    def _answers_now(self, slot: Slot, served: Served) -> None:
        # Ahead of the swap: a server that is killed finds one version or the other, whole.
        if self._state is not None and served.path is not None:
            self._state.put(slot.name, served)
        slot.put(served)
        # Behind it: to write weights takes its time, and whoever updates waits for none of it.
        if self._state is not None and served.path is None:
            self._state.put(slot.name, served)


def with_arrays(now: Served, arrays: Mapping[str, np.ndarray], version: str, fingerprint: Any) -> Served:
    """A version of the same model with other weights, placed where those of `now` are.

    Raises OtherModelError for weights of another model, UpdateError for those that do not fit.
    """
    if fingerprint is not None and fingerprint != now.fingerprint:
        raise OtherModelError("update: these weights are of another model; hand over a file of it")
    wanted = {n: (tuple(a.shape), a.dtype.name) for n, a in now.arrays.items()}
    came = {n: (tuple(a.shape), a.dtype.name) for n, a in arrays.items()}
    if wanted != came:
        names = sorted(n for n in wanted.keys() | came.keys() if wanted.get(n) != came.get(n))
        told = "; ".join(f"{n}: wanted {wanted.get(n, 'none')}, got {came.get(n, 'none')}" for n in names[:5])
        raise UpdateError(f"update: {len(names)} arrays do not fit the model: {told}")
    placed = {n: jax.device_put(arrays[n], now.arrays[n].sharding) for n in now.arrays}
    return Served(now.face, now.engine, placed, now.name, version)
