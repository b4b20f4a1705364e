"""Requests to one model, put together: one thread runs what waits, the most urgent first, and never lets it pile up."""

import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np

if TYPE_CHECKING:
    from llmasos_xla.deployment.served import Served

Outputs = Mapping[str, np.ndarray]
Done = Callable[[list[tuple["Job", Outputs | Exception]]], None]


class QueueFullError(Exception):
    """There is no room for another request; `retry_after` says in how many seconds there may be."""

    def __init__(self, reason: str, retry_after: float):
        super().__init__(reason)
        self.retry_after = retry_after


class ExpiredError(Exception):
    """A request waited longer than its sender would."""


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """A request that waits."""

    served: "Served"
    """The version that it is for: an update changes nothing for those that are here."""
    inputs: Mapping[str, np.ndarray]
    """Encoded, [rows, ...]."""
    priority: int = 0
    """The smaller, the sooner."""
    deadline: float | None = None
    """By `time.monotonic`; who is not begun by then is refused."""
    context: Any = None
    """What the sender is known by to whoever hears of the result."""
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    cancelled: bool = False
    """Nobody waits for the result any more."""
    began: float | None = None
    ended: float | None = None
    """When it ran, by `time.monotonic`."""
    beside: int = 0
    """Rows of the batch that it ran in, its own among them."""
    number: int = 0
    answer: int = 0
    """Bytes that its outputs will have, about."""

    @property
    def rows(self) -> int:
        """Rows of the request."""
        return len(next(iter(self.inputs.values())))

    @property
    def figures(self) -> dict[str, Any]:
        """What a trace tells of its run."""
        return {"llmasos.rows": self.rows, "llmasos.batch.rows": self.beside}

    @property
    def key(self) -> Any:
        """Requests of equal keys run together."""
        return id(self.served), tuple((n, a.shape[1:], a.dtype.char) for n, a in self.inputs.items())

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs and of the outputs."""
        return self.answer + sum(a.nbytes for a in self.inputs.values())

    def __lt__(self, other: "Job") -> bool:
        return (self.priority, self.number) < (other.priority, other.number)


@final
class Batcher:
    """A queue of bounded length and the thread that empties it.

    While one batch runs the next one gathers, so that batches are as large as the load makes them and a request that
    comes alone never waits.

    Args:
        done: is told, in that thread, the jobs of a batch and what became of each.
        most_rows: of a batch.
        most_waiting: requests, at most; others are refused, or refuse one that is less urgent.
        most_bytes: of the inputs and outputs of all that wait.
        delay: seconds that a batch which is not full waits for more.
    """

    def __init__(
        self,
        done: Done,
        *,
        most_rows: int = 64,
        most_waiting: int = 256,
        most_bytes: int = 1 << 30,
        delay: float = 0.0,
        name: str = "model",
    ):
        self._done, self.most_rows, self.delay = done, most_rows, delay
        self._most_waiting, self.most_bytes = most_waiting, most_bytes
        self._waiting: list[Job] = []
        self._bytes = 0
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        # Seconds that a row takes, as of late: how long the queue will last is told to those who are turned away.
        self._row_seconds = 0.0
        self.running = 0
        """Requests in the batch that runs."""
        self.batches = self.rows = 0
        """Batches that were run, and their rows."""
        self._thread = threading.Thread(target=self._work, name=f"run {name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Adds a request; `done` will be told of it. Raises QueueFullError if there is no room for it."""
        gone = None
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is stopping; ask another", 1.0)
            if len(self._waiting) >= self._most_waiting or self._bytes + job.nbytes > self.most_bytes:
                gone = max(self._waiting, default=None)
                if gone is None or gone.priority <= job.priority:
                    raise QueueFullError(
                        f"{len(self._waiting)} requests wait, which is all that may; ask again later", self._lasts()
                    )
                self._waiting.remove(gone)
                heapq.heapify(self._waiting)
                self._bytes -= gone.nbytes
            job.number = next(self._numbers)
            heapq.heappush(self._waiting, job)
            self._bytes += job.nbytes
            self._changed.notify()
        if gone is not None:
            reason = "more urgent requests took the room; ask again later"
            self._done([(gone, QueueFullError(reason, self._lasts()))])

    def close(self) -> None:
        """Runs what waits, takes no more, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _lasts(self) -> float:
        return min(max(self._row_seconds * sum(job.rows for job in self._waiting), 0.1), 60.0)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                if self.delay and not self._closed:
                    self._gather()
                batch, gone = self._take()
                self.running = len(batch)
            if gone:
                self._done([(job, ExpiredError("its time was over before its turn came")) for job in gone])
            if batch:
                self._run(batch)

    def _gather(self) -> None:
        until = self._waiting[0].arrived + self.delay
        while sum(job.rows for job in self._waiting) < self.most_rows and not self._closed:
            if (left := until - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> tuple[list[Job], list[Job]]:
        """The most urgent job with those that can run beside it, and those that nobody need run any more."""
        batch: list[Job] = []
        gone: list[Job] = []
        others: list[Job] = []
        rows, now = 0, time.monotonic()
        while self._waiting and rows < self.most_rows:
            job = heapq.heappop(self._waiting)
            if job.cancelled or (job.deadline is not None and job.deadline < now):
                gone.append(job)
            elif not batch or (job.key == batch[0].key and rows + job.rows <= self.most_rows):
                batch.append(job)
                rows += job.rows
            else:
                others.append(job)
                continue
            self._bytes -= job.nbytes
        for job in others:
            heapq.heappush(self._waiting, job)
        return batch, gone

    def _run(self, batch: list[Job]) -> None:
        served, started = batch[0].served, time.monotonic()
        rows = sum(job.rows for job in batch)
        for job in batch:
            job.began, job.beside = started, rows
        try:
            if len(batch) == 1:
                found: list[Outputs] = [served.run(batch[0].inputs)]
            else:
                outputs = served.run({n: np.concatenate([job.inputs[n] for job in batch]) for n in batch[0].inputs})
                ends = list(itertools.accumulate(job.rows for job in batch))
                found = [
                    {name: a[end - job.rows : end] for name, a in outputs.items()}
                    for job, end in zip(batch, ends, strict=True)
                ]
        except Exception as error:
            if len(batch) == 1:
                failed = error
                if isinstance(error, ValueError | TypeError | LookupError | TimeoutError):
                    # The inputs were accepted, so this is no fault of the sender's, as these would tell.
                    failed = RuntimeError(f"infer: the model failed: {error}")
                    failed.__cause__ = error
                self._done([(batch[0], failed)])
            else:
                # Whoever is at fault, the others shall not pay for it.
                for job in batch:
                    self._run([job])
            return
        finally:
            self.running = 0
        ended = time.monotonic()
        for job in batch:
            job.ended = ended
        self.batches += 1
        self.rows += rows
        self._row_seconds += 0.2 * ((ended - started) / rows - self._row_seconds)
        self._done(list(zip(batch, found, strict=True)))
