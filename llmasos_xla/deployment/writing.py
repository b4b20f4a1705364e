"""Texts that are written together: prompts wait here, one thread writes for all of them (continuous batching)."""

import concurrent.futures
import dataclasses
import functools
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from llmasos_xla.deployment.batching import ExpiredError, QueueFullError
from llmasos_xla.deployment.lanes import MOST_ENDS, Key, Lane, RowPrograms, wanted, writer_of
from llmasos_xla.deployment.served import Served

_LOG = logging.getLogger("llmasos_xla.deployment")
# How long a call of a program lasts where steps are short: somebody who comes waits that long for a place.
_CALL_SECONDS = 0.03
# Prompts that are read between two calls, in seconds: those who write already wait meanwhile.
_READ_SECONDS = 0.05
_IDLE_LANES = 2

Tell = Callable[[list[int], str | None, Exception | None], None]


@dataclasses.dataclass(eq=False, slots=True)
class Prompt:
    """Ids that are to be gone on with."""

    served: Served
    """The version that writes: an update changes nothing for those that are here."""
    ids: Sequence[int]
    most_new: int
    """Ids to write, at most; fewer where the model's context is full before."""
    tell: Tell
    """Hears of new ids, in the writer's thread; at last of the reason with them, "stop" where one of `ends` came,
    "length" where there is no more room, or of an error. Nothing comes after that."""
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    draw: int = 0
    """Which row of `lm.generate` of that seed it is."""
    ends: tuple[int, ...] = ()
    priority: int = 0
    """The smaller, the sooner."""
    deadline: float | None = None
    """By `time.monotonic`; who has not ended by then is ended."""
    cancelled: bool = False
    """Nobody wants more of it."""
    number: int = 0
    begun: float = 0.0
    """When it was let in, by `time.monotonic`."""

    def __lt__(self, other: "Prompt") -> bool:
        return (self.priority, self.number) < (other.priority, other.number)


@final
class Writer:
    """A queue of prompts and the thread that writes for those whose turn has come.

    Args:
        most_rows: that are written at once.
        most_waiting: prompts; more are refused.
    """

    def __init__(self, name: str = "model", *, most_rows: int = 16, most_waiting: int = 256):
        self._name, self._most_rows, self._most_waiting = name, most_rows, most_waiting
        self._waiting: list[Prompt] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._lanes: dict[Served, Lane] = {}
        self._compiling: dict[tuple[RowPrograms, Key], concurrent.futures.Future] = {}
        # One thread compiles for all: what one prompt wants is often what the next wants.
        self._compiler = concurrent.futures.ThreadPoolExecutor(1, f"compile {name}")
        self.prompts = self.written = 0
        """Prompts that were let in, and ids that were written."""
        self._step_seconds = self._text_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name=f"write {name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def live(self) -> int:
        """Texts that are being written."""
        return sum(lane.live for lane in tuple(self._lanes.values()))

    def submit(self, prompt: Prompt) -> None:
        """Adds a prompt, whose `tell` will hear of it.

        Raises TypeError for a version that writes no text, ValueError for a prompt that its model cannot read, and
        QueueFullError if there is no room.
        """
        config = writer_of(prompt.served).config
        longest, count = getattr(config, "context", None), len(prompt.ids)
        if not count:
            raise ValueError("write: the prompt has no ids; start with the id that begins a text")
        if longest is not None and count >= longest:
            raise ValueError(
                f"write: the prompt has {count} ids, the model reads {longest} at most, with what is to be written; "
                "cut the prompt"
            )
        if len(prompt.ends) > MOST_ENDS:
            raise ValueError(f"write: {len(prompt.ends)} ids that end the text came; {MOST_ENDS} may")
        if prompt.most_new < 1:
            raise ValueError(f"write: {prompt.most_new} new ids are asked for; 1 or more are wanted")
        if longest is not None:
            prompt.most_new = min(prompt.most_new, longest - count)
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is stopping; ask another", 1.0)
            if len(self._waiting) >= self._most_waiting:
                seconds = min(max(self._text_seconds * len(self._waiting) / self._most_rows, 1.0), 60.0)
                raise QueueFullError(
                    f"{len(self._waiting)} prompts wait, which is all that may; ask again later", seconds
                )
            prompt.number = next(self._numbers)
            heapq.heappush(self._waiting, prompt)
            self._changed.notify()

    def warm(self, served: Served, like: Served | None = None, *, rows: int = 1) -> None:
        """Compiles what so many first prompts need, and all that `like` has programs for, in the calling thread.

        Raises TypeError for a version that writes no text.
        """
        old = self._lanes.get(like) if like is not None else None
        lane = Lane(served, self._most_rows, old)
        lane.programs.prepare([*lane.first(rows), *(old.programs.keys if old is not None else ())])
        with self._changed:
            self._lanes.setdefault(served, lane)

    def close(self) -> None:
        """Writes what has been begun to its end, takes no more, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._compiler.shutdown(cancel_futures=True)

    def stats(self) -> dict[str, Any]:
        """Figures of the moment."""
        lanes = tuple(self._lanes.values())
        return {
            "prompts": self.prompts,
            "ids": self.written,
            "live": self.live,
            "waiting": len(self),
            "programs": sum(len(p.compiled) for p in {id(lane.programs): lane.programs for lane in lanes}.values()),
            "step_ms": round(1e3 * self._step_seconds, 3),
        }

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.live or self._closed):
                    self._changed.wait()
                if self._closed and not self.live:
                    gone, self._waiting = self._waiting, []
                    for prompt in gone:
                        self._end(prompt, QueueFullError("the server is stopping; ask another", 1.0))
                    return
            self._let_in()
            for lane in list(self._lanes.values()):
                self._sweep(lane)
                if lane.live:
                    self._advance(lane)
                    self._start(lane.programs, lane.wanted_soon())
            self._forget()
            if not self.live:
                # All that wait do so for a program, or nobody does.
                with self._changed:
                    if self._waiting and not self._closed:
                        self._changed.wait(0.2)

    def _let_in(self) -> None:
        """Reads prompts, the most urgent first, until all rows are taken or those who write have waited enough."""
        until, now = time.monotonic() + _READ_SECONDS, time.monotonic()
        kept: list[Prompt] = []
        with self._changed:
            gone = [p for p in self._waiting if p.cancelled or (p.deadline is not None and p.deadline < now)]
            if gone:
                self._waiting = [p for p in self._waiting if p not in gone]
                heapq.heapify(self._waiting)
        for prompt in gone:
            self._end(prompt, ExpiredError("its time was over before its turn came"))
        while self.live + len(kept) < self._most_rows and (not self.live or time.monotonic() < until):
            with self._changed:
                if not self._waiting or self._closed:
                    break
                prompt = heapq.heappop(self._waiting)
            try:
                lane = self._lane(prompt.served)
                if self._compile(lane.programs, lane.wanted_for(len(prompt.ids), prompt.most_new)):
                    self._seat(lane, prompt)
                else:
                    kept.append(prompt)
            except Exception as error:
                self._end(prompt, _of_model(error))
        if kept:
            with self._changed:
                for prompt in kept:
                    heapq.heappush(self._waiting, prompt)

    def _seat(self, lane: Lane, prompt: Prompt) -> None:
        prompt.begun = time.monotonic()
        about = (prompt.most_new, prompt.ends, prompt.seed, prompt.draw)
        ids, reason = lane.put(prompt, prompt.ids, wanted(*about, prompt.temperature, prompt.top_k, prompt.top_p))
        self.prompts += 1
        self._told(lane, prompt, ids, reason)

    def _advance(self, lane: Lane) -> None:
        steps = max(1, int(_CALL_SECONDS / self._step_seconds)) if self._step_seconds else 1
        started = time.perf_counter()
        try:
            found = lane.advance(steps)
        except Exception as error:
            _LOG.error("writing failed", exc_info=error)
            self._lanes.pop(lane.served, None)
            for prompt in filter(None, lane.sitting):
                self._end(prompt, _of_model(error))
            return
        done = max((len(ids) + (reason == "stop") for _, ids, reason in found), default=0)
        if done:
            seconds = (time.perf_counter() - started) / done
            self._step_seconds = seconds if not self._step_seconds else 0.7 * self._step_seconds + 0.3 * seconds
        for prompt, ids, reason in found:
            self._told(lane, prompt, ids, reason)

    def _sweep(self, lane: Lane) -> None:
        """Frees the rows of those who want no more, or may have no more."""
        now = time.monotonic()
        for prompt in [p for p in lane.sitting if p is not None]:
            late = prompt.deadline is not None and prompt.deadline < now
            if prompt.cancelled or late:
                lane.leave(prompt)
                if not prompt.cancelled:
                    self._end(prompt, ExpiredError("its time was over before its text had ended"))

    def _told(self, lane: Lane, prompt: Prompt, ids: list[int], reason: str | None) -> None:
        self.written += len(ids)
        if reason is not None:
            self._text_seconds += 0.2 * (time.monotonic() - prompt.begun - self._text_seconds)
            if prompt in lane.sitting:
                lane.leave(prompt)
        if (ids or reason) and not prompt.cancelled:
            self._tell(prompt, ids, reason, None)

    def _end(self, prompt: Prompt, error: Exception) -> None:
        if not prompt.cancelled:
            self._tell(prompt, [], None, error)

    def _tell(self, prompt: Prompt, ids: list[int], reason: str | None, error: Exception | None) -> None:
        try:
            prompt.tell(ids, reason, error)
        except Exception as failure:
            # Whoever listens is gone, or at fault; the others shall not pay for it.
            _LOG.error("nobody hears what was written", exc_info=failure)
            prompt.cancelled = True

    def _lane(self, served: Served) -> Lane:
        found = self._lanes.get(served)
        if found is None:
            like = next(reversed(self._lanes.values()), None)
            found = Lane(served, self._most_rows, like)
            with self._changed:
                found = self._lanes.setdefault(served, found)
        return found

    def _forget(self) -> None:
        """Drops the lanes of versions that write no more, but for the newest."""
        with self._changed:
            idle = [served for served, lane in self._lanes.items() if not lane.live]
            wanted = {prompt.served for prompt in self._waiting}
            for served in idle[:-_IDLE_LANES]:
                if served not in wanted:
                    del self._lanes[served]

    def _compile(self, programs: RowPrograms, keys: Sequence[Key]) -> bool:
        """Whether these are there; what is not is compiled beside, so that nobody who writes waits for it.

        Raises what went wrong, to the prompt that wanted it; another may try again.
        """
        for key in keys:
            running = self._compiling.get((programs, key))
            if running is not None and running.done():
                del self._compiling[programs, key]
                running.result()
        self._start(programs, keys)
        return programs.ready(keys)

    def _start(self, programs: RowPrograms, keys: Sequence[Key]) -> None:
        for key in keys:
            if not programs.ready([key]) and (programs, key) not in self._compiling:
                running = self._compiling[programs, key] = self._compiler.submit(programs.prepare, [key])
                running.add_done_callback(functools.partial(self._compiled, (programs, key)))

    def _compiled(self, name: tuple[RowPrograms, Key], running: concurrent.futures.Future) -> None:
        with self._changed:
            if not running.cancelled() and running.exception() is None:
                self._compiling.pop(name, None)
            self._changed.notify()


def _of_model(error: Exception) -> Exception:
    """The prompt was accepted, so what fails now is no fault of the sender's, as these would tell."""
    if isinstance(error, ValueError | TypeError | LookupError | TimeoutError):
        failed = RuntimeError(f"write: the model failed: {error}")
        failed.__cause__ = error
        return failed
    return error
