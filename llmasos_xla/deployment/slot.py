"""A model behind a name: the version that answers, those before it, and one that is on trial."""

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from llmasos_xla.deployment.batching import Batcher, ExpiredError, Job, Outputs, QueueFullError
from llmasos_xla.deployment.histogram import Histogram
from llmasos_xla.deployment.tracing import JOBS

if TYPE_CHECKING:
    from llmasos_xla.deployment.served import Served
    from llmasos_xla.deployment.trial import Trial
    from llmasos_xla.deployment.writing import Writer

KEPT = 3
"""Versions that stay in memory behind the one that answers, for a rollback."""
_RECENT = 4096


class LoadingError(Exception):
    """The model has no version yet."""


class Answer(NamedTuple):
    """What became of a request."""

    outputs: dict[str, np.ndarray]
    served: "Served"
    """The version that answered, the one and only."""


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


@final
class Slot:
    """Where requests find a model.

    `current` is one reference: an update sets it, and whoever has read it before goes on with what it read. All but
    `infer` may be called from any thread.

    Args:
        keep: versions that stay for a rollback.
        **queue: of `Batcher`: most_rows, most_waiting, most_bytes, delay.
    """

    def __init__(self, name: str, served: "Served | None" = None, *, keep: int = KEPT, **queue: Any):
        self.name = name
        self.current: "Served | None" = None
        self.trial: "Trial | None" = None
        self.last_trial: dict[str, Any] | None = None
        """Figures of the trial that ended last, with its verdict."""
        self.previous: "collections.deque[Served]" = collections.deque(maxlen=keep)
        """Those that answered before, the newest last."""
        self.batcher = Batcher(_deliver, name=name, **queue)
        self._writer: "Writer | None" = None
        self._lock = threading.Lock()
        self.requests = self.failures = self.refused = 0
        self.updates = self.rollbacks = 0
        self.histogram = Histogram()
        """Seconds from request to answer."""
        self._last = 0
        # Seconds from request to answer, of the last few thousand: (when, how long).
        self._latencies: collections.deque[tuple[float, float]] = collections.deque(maxlen=_RECENT)
        if served is not None:
            self.put(served)

    @property
    def writer(self) -> "Writer":
        """What writes texts with this model's versions, begun when it is first asked for."""
        with self._lock:
            if self._writer is None:
                from llmasos_xla.deployment.writing import Writer

                self._writer = Writer(self.name)
            return self._writer

    def warm_writer(self, served: "Served", like: "Served | None" = None, *, rows: int = 1) -> None:
        """Compiles what so many first prompts to this version need, and what `like` has, if its model writes texts."""
        from llmasos_xla.deployment.lanes import writes

        if writes(served):
            self.writer.warm(served, like, rows=rows)

    def next_version(self) -> str:
        """The name of the version that comes next."""
        return str(self._last + 1)

    def reserve(self, version: str) -> None:
        """Gives a version's name to nobody else."""
        if version.isdigit():
            self._last = max(self._last, int(version))

    def put(self, served: "Served") -> None:
        """Makes a version the one that answers."""
        before, self.current = self.current, served
        if before is not None:
            self.previous.append(before)
            self.updates += 1
        self.reserve(served.version)

    def rollback(self) -> "Served":
        """Lets the version before answer again; raises LookupError if there is none."""
        if not self.previous:
            raise LookupError(f"rollback: model {self.name!r} has no version before this one")
        self.trial = None
        self.current = self.previous.pop()
        self.rollbacks += 1
        return self.current

    def versions(self) -> "list[Served]":
        """All that can be asked for, the one that answers last."""
        trial, now = self.trial, self.current
        return [*self.previous, *([trial.served] if trial else []), *([now] if now else [])]

    def find(self, version: str | None = None) -> "Served":
        """The version that answers a request; raises LoadingError where there is none yet, LookupError for others."""
        now = self.current
        if now is None:
            raise LoadingError(f"model {self.name!r} is loading; ask again")
        if version is None or version == now.version:
            return now
        for served in self.versions():
            if served.version == version:
                return served
        known = ", ".join(repr(served.version) for served in self.versions())
        raise LookupError(f"model {self.name!r} has no version {version[:60]!r}; it has {known}")

    async def infer(
        self,
        tensors: Mapping[str, np.ndarray],
        outputs: Iterable[str] = (),
        *,
        version: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        aside: bool = False,
    ) -> Answer:
        """The outputs asked for, of one version.

        Args:
            tensors: the inputs by name.
            outputs: their names; all of them if empty.
            version: the one that answers now, or the one on trial for its share of requests, if None.
            priority: the smaller, the sooner its turn comes.
            timeout: seconds that its sender waits.
            aside: prepare the inputs in a worker thread, since they are large.

        Raises ValueError or TypeError for a request that does not fit, LookupError for an unknown version,
        LoadingError, QueueFullError, ExpiredError and TimeoutError, and what else the model raises.
        """
        started = time.perf_counter()
        served, trial = self.find(version), self.trial
        on_trial = trial is not None and version is None and trial.takes()
        if trial is not None and on_trial:
            served = trial.served
        wanted = served.check_outputs(outputs)
        if aside:
            inputs = await asyncio.to_thread(served.encode, tensors)
        else:
            inputs = served.encode(tensors)
        size = served.answer_bytes(inputs)
        if size > self.batcher.most_bytes:
            size = await self._exactly(served, inputs)
        self.requests += 1
        try:
            found = await self._turn(served, inputs, size, priority, timeout)
            told = served.finish(found, wanted)
        except Exception as error:
            self.failures += 1
            # That a queue was full says nothing of the version.
            if trial is not None and on_trial and not isinstance(error, QueueFullError | ExpiredError):
                trial.told(time.perf_counter() - started, error)
            raise
        seconds = time.perf_counter() - started
        self.answered(seconds)
        if trial is not None:
            if on_trial:
                trial.told(seconds, _no_numbers(found))
            elif version is None:
                trial.beside(seconds, inputs, found)
        return Answer(told, served)

    def answered(self, seconds: float) -> None:
        """Counts a request that took so long from its last byte to its answer."""
        self._latencies.append((time.monotonic(), seconds))
        self.histogram.add(seconds)

    async def _exactly(self, served: "Served", inputs: Mapping[str, np.ndarray]) -> int:
        """Bytes of the outputs; raises ValueError where they are more than all that wait may have together.

        A few bytes may ask for many: ids of a text get the logits of a vocabulary each.
        """
        most = self.batcher.most_bytes
        rows = len(next(iter(inputs.values())))
        size = rows * await asyncio.to_thread(served.engine.row_bytes, served.arrays, inputs)
        if size > most:
            raise ValueError(
                f"infer: the outputs of {rows} rows like these have {size} bytes, at most {most} are given; ask for "
                "fewer rows at a time"
            )
        return size

    async def _turn(
        self, served: "Served", inputs: Mapping[str, np.ndarray], size: int, priority: int, timeout: float | None
    ) -> Outputs:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        deadline = None if timeout is None else time.monotonic() + timeout
        job = Job(served, inputs, priority, deadline, _Waiter(loop, future), answer=size)
        if (traced := JOBS.get()) is not None:
            traced.append(job)
        self.batcher.submit(job)
        try:
            if timeout is None:
                return await future
            return await asyncio.wait_for(future, timeout)
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        except TimeoutError:
            # Of the version this says nothing, which an error of its own would.
            if job.began is None:
                raise ExpiredError("its time was over before its turn came") from None
            raise

    def stats(self) -> dict[str, Any]:
        """Figures of the moment: versions, requests, latencies of the last minute, queue, programs."""
        now, current = time.monotonic(), self.current
        recent = sorted(seconds for when, seconds in tuple(self._latencies) if when > now - 60)

        def quantile(share: float) -> float | None:
            return round(1e3 * recent[min(int(share * len(recent)), len(recent) - 1)], 3) if recent else None

        return {
            "name": self.name,
            "version": current.version if current else None,
            "digest": current.digest if current else None,
            "since": current.since if current else None,
            "weight_bytes": current.nbytes if current else 0,
            "versions": [served.version for served in self.versions()],
            "trial": self.trial.stats() if self.trial else None,
            "last_trial": self.last_trial,
            "requests": self.requests,
            "failures": self.failures,
            "refused": self.refused,
            "updates": self.updates,
            "rollbacks": self.rollbacks,
            "batches": self.batcher.batches,
            "rows": self.batcher.rows,
            "waiting": len(self.batcher),
            "programs": len(current.engine.compiled) if current else 0,
            "writing": None if self._writer is None else self._writer.stats(),
            "latency_ms": {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
            "requests_per_second": round(len([1 for when, _ in tuple(self._latencies) if when > now - 10]) / 10, 2),
        }


def _no_numbers(outputs: Outputs) -> Exception | None:
    """An error for outputs with NaN: to a trial they are a failure, whatever form its sender asked for them in."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            return FloatingPointError(f"infer: the model's {name!r} holds NaN")
    return None


def _deliver(results: list[tuple[Job, Any]]) -> None:
    """Hands results to the loops that their senders wait in: one wake-up a loop."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future, Any]]] = {}
    for job, result in results:
        loops.setdefault(job.context.loop, []).append((job.context.future, result))
    for loop, waiting in loops.items():
        # A loop that was closed meanwhile has nobody who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, waiting)


def _settle(waiting: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, result in waiting:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
