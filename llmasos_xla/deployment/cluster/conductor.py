"""Who knows which version answers, and changes it on several replicas: on one after the other, or on none.

Replicas ask for what to do, and so need no address. One that comes late, or comes back, is given all versions that are
kept; one that is not heard of for a while is left out, and has to ask for them again before it is told anything else.
"""

import asyncio
import collections
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

GONE_SECONDS = 20.0
"""Silence after which a replica is left out."""
ASKED_SECONDS = 1.0
"""How long a replica's question stays open where there is nothing to do."""
_QUICK_SECONDS = 5.0
_MOST_LOST = 2
_COUNTS = ("requests", "failures", "refused", "batches", "rows", "waiting")

Outcome = dict[str, Any]
"""{"answer": ...}, or {"error": reason, "kind": name of the error}."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A version, as replicas get it.

    Args:
        version: its name.
        content: a reference to bytes of a file, or to arrays by name.
        name: the file's; None for arrays.
        fingerprint: of the function that the arrays belong to, where it is known.
        base: the file whose model the arrays belong to.
    """

    version: str
    content: Any
    name: str | None = None
    fingerprint: str | None = None
    base: "Record | None" = None


class _GoneError(Exception):
    """A replica was not heard of any more."""


@final
class Conductor:
    """Versions of several models on several replicas.

    Args:
        first: the version that each model starts with.
        keep: versions behind the one that answers.
        gone: seconds of silence after which a replica is left out.
    """

    def __init__(self, first: Mapping[str, Record], keep: int, gone: float = GONE_SECONDS):
        self._histories: dict[str, list[Record]] = {model: [record] for model, record in first.items()}
        self._last = dict.fromkeys(first, 1)
        self._keep, self._gone = keep, gone
        self._boxes: dict[str, asyncio.Queue[tuple[int, dict[str, Any]]]] = {}
        self._joined: dict[str, int] = {}
        self._seen: dict[str, float] = {}
        self._answers: dict[int, asyncio.Future[Outcome]] = {}
        self._numbers = itertools.count(1)
        self._failure: dict[str, str] | None = None
        self._lock = asyncio.Lock()

    # What replicas ask.

    async def join(self, replica: str) -> dict[str, list[Record]]:
        """The versions that a replica shall have of each model, the last to answer; changes follow from now on."""
        self._boxes[replica] = asyncio.Queue()
        self._joined[replica], self._seen[replica] = next(self._numbers), time.monotonic()
        return {model: list(records) for model, records in self._histories.items()}

    async def next(self, replica: str) -> tuple[int, dict[str, Any]] | None:
        """What a replica has to do, under which number; None if there is nothing, ("join" to do) if it was left out."""
        if replica not in self._boxes:
            return 0, {"do": "join"}
        self._seen[replica] = time.monotonic()
        try:
            return await asyncio.wait_for(self._boxes[replica].get(), ASKED_SECONDS)
        except TimeoutError:
            return None

    async def done(self, number: int, outcome: Outcome) -> None:
        """What became of it."""
        waiting = self._answers.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    async def failed(self, reason: str, kind: str) -> None:
        """A replica could not load a model."""
        self._failure = {"error": reason, "kind": kind}

    # What the server asks.

    async def failure(self) -> dict[str, str] | None:
        """Why a replica could not start, if one could not."""
        return self._failure

    async def replicas(self) -> list[str]:
        """Those that are there."""
        return list(self._boxes)

    async def update(self, model: str, record: Record) -> Outcome:
        """Another version for all replicas; its name is given here. If one refuses, none has it in the end."""
        async with self._lock:
            history = self._histories[model]
            self._last[model] += 1
            # Names are not used again: a replica may have answered by a version that was taken back.
            record = dataclasses.replace(record, version=str(self._last[model]))
            if record.name is None:
                before = history[-1]
                record = dataclasses.replace(record, base=before.base if before.name is None else before)
            started = time.monotonic()
            outcome = await self._roll(
                {"do": "update", "model": model, "record": record}, {"do": "rollback", "model": model}
            )
            if "error" in outcome:
                return outcome
            self._histories[model] = [*history, record][-self._keep - 1 :]
            seconds = time.monotonic() - started
            answer = {"version": record.version, "seconds": seconds, "trial": False, "replicas": outcome["replicas"]}
            return {"answer": answer}

    async def rollback(self, model: str) -> Outcome:
        """The version before for all replicas, or for none."""
        async with self._lock:
            history = self._histories[model]
            if len(history) < 2:
                return _error(f"rollback: model {model!r} has no version before this one", "LookupError")
            back = {"do": "update", "model": model, "record": history[-1]}
            outcome = await self._roll({"do": "rollback", "model": model}, back)
            if "error" in outcome:
                return outcome
            self._histories[model] = history[:-1]
            return {"answer": {"version": history[-2].version, "replicas": outcome["replicas"]}}

    async def about(self, model: str) -> Outcome:
        """What a replica says of a model."""
        outcome = _error("control: no replica answers", "TimeoutError")
        for outcome in await self._all({"do": "about", "model": model}):
            if "answer" in outcome:
                break
        return outcome

    async def stats(self) -> dict[str, Any]:
        """Figures of all replicas: sums, and each of them."""
        outcomes = [each["answer"] for each in await self._all({"do": "stats"}) if "answer" in each]
        return {
            "state": "ready" if any(each["state"] == "ready" for each in outcomes) else "loading",
            "inside": sum(each["inside"] for each in outcomes),
            "refused": sum(each["refused"] for each in outcomes),
            "models": [
                merged(
                    model,
                    [
                        {"replica": each["replica"], "pid": each["pid"], **found}
                        for each in outcomes
                        for found in each["models"]
                        if found["name"] == model
                    ],
                )
                for model in self._histories
            ],
        }

    async def ask_all(self, message: dict[str, Any]) -> list[Any]:
        """What all replicas answer to the same question, without those that do not."""
        return [each["answer"] for each in await self._all(message) if "answer" in each]

    async def _roll(self, forward: dict[str, Any], back: dict[str, Any]) -> Outcome:
        changed: dict[tuple[str, int], None] = {}
        lost = 0
        while True:
            # Those that came meanwhile have the versions from before, and are changed, too.
            waiting = [each for each in self._joined.items() if each not in changed]
            if not waiting:
                break
            try:
                outcome = await self._tell(waiting[0][0], forward)
            except _GoneError as error:
                lost += 1
                if lost <= _MOST_LOST:
                    continue
                outcome = _error(f"{lost} replicas ended meanwhile; {error}", "RuntimeError")
            if "answer" in outcome:
                changed[waiting[0]] = None
                continue
            return {**outcome, "error": f"{outcome['error']}{await self._back(changed, back)}"}
        if not changed:
            return _error(f"{forward['do']}: no replica is there", "RuntimeError")
        return {"replicas": len(changed)}

    async def _back(self, changed: Mapping[tuple[str, int], None], back: dict[str, Any]) -> str:
        stuck = []
        for replica, joined in reversed(list(changed)):
            if self._joined.get(replica) != joined:
                continue
            try:
                outcome = await self._tell(replica, back)
            except _GoneError:
                # When it is back it asks for the versions that are.
                continue
            if "error" in outcome:
                stuck.append(f"{replica}: {outcome['error']}")
        if stuck:
            return f"; and these replicas could not go back: {'; '.join(stuck)}"
        return f"; {len(changed)} that had it went back" if changed else ""

    async def _all(self, message: dict[str, Any]) -> list[Outcome]:
        asked = [asyncio.wait_for(self._tell(replica, message), _QUICK_SECONDS) for replica in list(self._boxes)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [each for each in found if isinstance(each, dict)]

    async def _tell(self, replica: str, message: dict[str, Any]) -> Outcome:
        """What a replica answers; raises `_GoneError` if it is not heard of for a while."""
        number, joined = next(self._numbers), self._joined[replica]
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._boxes[replica].put_nowait((number, message))
        try:
            while not (await asyncio.wait([answer], timeout=min(self._gone / 4, ASKED_SECONDS)))[0]:
                if self._joined.get(replica) != joined:
                    raise _GoneError(f"{replica} started again")
                if time.monotonic() - self._seen[replica] > self._gone:
                    for known in (self._boxes, self._joined, self._seen):
                        known.pop(replica, None)
                    raise _GoneError(f"{replica} has not been heard of for {self._gone:g} s")
            return answer.result()
        finally:
            self._answers.pop(number, None)


def merged(model: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one model on several replicas as those of one server: sums, latencies of the slowest, and each."""
    if not found:
        return {"name": model, "version": None, "versions": [], "replicas": []}
    # Where an update is under way: the version that most have.
    version = collections.Counter(each["version"] for each in found).most_common(1)[0][0]
    first = next(each for each in found if each["version"] == version)

    def slowest(quantile: str) -> float | None:
        return max((t for each in found if (t := each["latency_ms"][quantile]) is not None), default=None)

    return {
        **first,
        **{name: sum(each[name] for each in found) for name in _COUNTS},
        "latency_ms": {quantile: slowest(quantile) for quantile in first["latency_ms"]},
        "requests_per_second": round(sum(each["requests_per_second"] for each in found), 2),
        "replicas": list(found),
    }


def _error(reason: str, kind: str) -> Outcome:
    return {"error": reason, "kind": kind}
