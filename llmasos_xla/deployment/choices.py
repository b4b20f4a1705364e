"""The texts of one request while they are written: ids come from the writer's thread, pieces of text go out."""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal, NamedTuple, final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from llmasos_xla.api._texts import Text
from llmasos_xla.deployment.openai import Usage, Wanted
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.tracing import JOBS
from llmasos_xla.deployment.writing import Prompt


class Piece(NamedTuple):
    """More of a text."""

    index: int
    """Which of the request's texts."""
    text: str
    reason: Literal["stop", "length"] | None
    """Why the text has ended, if it has."""


class _Told(NamedTuple):
    index: int
    ids: list[int]
    reason: Any
    error: Exception | None


@final
class Choices:
    """All texts that one request asks for: `n` of each prompt.

    Args:
        wanted: the request.
        served: the version that writes.
        rows: the prompts' ids.
        rooms: how many ids may follow each.
        stops: texts at which a text ends.
        ends: ids at which a text ends.
        trimmed: whether blanks at the beginning of a text are left out.
        seconds: that all of it may take; None for any.
    """

    def __init__(
        self,
        wanted: Wanted,
        served: Served,
        tokenizer: Any,
        rows: Sequence[list[int]],
        rooms: Sequence[int],
        stops: Sequence[str],
        ends: Sequence[int],
        trimmed: bool,
        seconds: float | None,
    ):
        self.served, self.priority = served, 0
        self.arrived = time.monotonic()
        self.ended: float | None = None
        """When all had ended, by `time.monotonic`."""
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[_Told] = asyncio.Queue()
        self._seconds, self._read, self._written = seconds, sum(map(len, rows)), 0
        self._stops = stops
        self._prompts: list[Prompt] = []
        self._texts: list[Text] = []
        for row, room in zip(rows, rooms, strict=True):
            for draw in range(wanted.n):
                prompt = Prompt(
                    served,
                    row,
                    room,
                    functools.partial(self._tell, len(self._prompts)),
                    temperature=wanted.temperature,
                    top_k=wanted.top_k,
                    top_p=wanted.top_p,
                    seed=wanted.seed,
                    ends=tuple(ends),
                    draw=draw,
                    deadline=None if seconds is None else time.monotonic() + seconds,
                )
                self._prompts.append(prompt)
                self._texts.append(Text(tokenizer, row, stops))
        # Texts of which nothing was shown yet, and whose first blanks will not be.
        self._blank = set(range(len(self._prompts))) if trimmed else set()
        self._open = set(range(len(self._prompts)))

    @property
    def began(self) -> float | None:
        """When the first of them had its turn; None before that."""
        return min((prompt.begun for prompt in self._prompts if prompt.begun), default=None)

    @property
    def figures(self) -> dict[str, int]:
        """What a trace tells of them, by OpenTelemetry's names where it has some."""
        counted = {"gen_ai.usage.input_tokens": self._read, "gen_ai.usage.output_tokens": self._written}
        return {"llmasos.texts": len(self._prompts), **counted}

    @property
    def usage(self) -> Usage:
        """Ids read and written until now."""
        return Usage(self._read, self._written)

    def start(self, submit: Callable[[Prompt], None]) -> None:
        """Hands all prompts over to `Writer.submit`, or none; raises as it does."""
        self.arrived = time.monotonic()
        if (traced := JOBS.get()) is not None:
            traced.append(self)
        try:
            for i, prompt in enumerate(self._prompts):
                if prompt.most_new > 0:
                    submit(prompt)
                else:
                    self._told.put_nowait(_Told(i, [], "length", None))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Frees the rows of all that is not yet written."""
        for prompt in self._prompts:
            prompt.cancelled = True

    async def pieces(self, receive: Receive) -> AsyncGenerator[list[Piece], None]:
        """What there is more of each text, as it comes; ends when all have ended, and then frees what is held.

        Args:
            receive: of the request, whose body was read: what comes of it now is that the sender has gone.

        Raises ClientDisconnect, TimeoutError, and what the writer tells.
        """
        watch = self._loop.create_task(self._watch(receive))
        late = None
        if self._seconds is not None:
            reason = TimeoutError(f"its {self._seconds:g} s were over before the text was")
            late = self._loop.call_later(self._seconds, self._told.put_nowait, _Told(-1, [], None, reason))
        try:
            while self._open:
                told = [await self._told.get()]
                while not self._told.empty():
                    told.append(self._told.get_nowait())
                # What was written ahead of an error is shown.
                good = list(itertools.takewhile(lambda each: each.error is None, told))
                if good:
                    yield self._pieces(good)
                if len(good) < len(told) and (error := told[len(good)].error) is not None:
                    raise error
        finally:
            self.ended = time.monotonic()
            self.cancel()
            watch.cancel()
            if late is not None:
                late.cancel()

    def _tell(self, index: int, ids: list[int], reason: str | None, error: Exception | None) -> None:
        # In the writer's thread. A loop that was closed meanwhile has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._told.put_nowait, _Told(index, list(ids), reason, error))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._told.put_nowait(_Told(-1, [], None, ClientDisconnect()))

    def _pieces(self, told: Sequence[_Told]) -> list[Piece]:
        """One piece a text, however often it was told of."""
        ids: dict[int, list[int]] = {}
        reasons: dict[int, Any] = {}
        for each in told:
            if each.index in self._open:
                ids.setdefault(each.index, []).extend(each.ids)
                reasons[each.index] = each.reason
        found = []
        for index, new in ids.items():
            text, reason = self._texts[index], reasons[index]
            piece = self._more(text, new, reason is not None)
            if text.stopped:
                self._prompts[index].cancelled = True
                reason = "stop"
            if reason is not None:
                self._open.remove(index)
            if index in self._blank and (piece := piece.lstrip(" ")):
                self._blank.remove(index)
            found.append(Piece(index, piece, reason))
        return found

    def _more(self, text: Text, ids: Sequence[int], ended: bool) -> str:
        if not self._stops or not ids:
            self._written += len(ids)
            return text.more(ids, ended)
        # One by one: those behind a text that ends it were written in vain, and are not counted.
        piece = ""
        for count, i in enumerate(ids, 1):
            self._written += 1
            piece += text.more([i], ended and count == len(ids))
            if text.stopped:
                break
        return piece
