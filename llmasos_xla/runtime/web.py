"""The engine's page: the view in a browser, with a log, and ways to cancel a job or give it another priority.

It lives in a thread of the engine's process, with an event loop and a store of its own. It reads what the engine
writes and leaves wishes in the store as everybody does, so that nothing that befalls it is the engine's concern.
"""

import asyncio
import codecs
import contextlib
import functools
import json
import logging
import pathlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, final

from llmasos_xla.runtime.guard import own_token, why_not_change, why_not_look
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import Job, why_no_priority
from llmasos_xla.runtime.store import Store
from llmasos_xla.web.listening import listen

_LOG = logging.getLogger("llmasos_xla.runtime")
_LOOK_SECONDS, _END_SECONDS = 1.0, 2.0
_LOG_BYTES = 1 << 16
_MOST_VIEWERS = 64


@final
class Page:
    """The page of a home's engine. It listens at once, and answers from `start` on.

    Args:
        home: of the queue; its store is there.
        host: the address to listen on.
        port: 0 takes a free one.

    Raises OSError that says why it cannot listen there.
    """

    def __init__(self, home: Home, host: str = "127.0.0.1", port: int = 0):
        self._home, self._host = home, host
        self._token = own_token(home)
        self._socket = listen(host, port, "up")
        # "All addresses" is none that others could go to.
        named = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{named}]" if ":" in named else named
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}/"
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._closing = False

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it; open streams end, too."""
        self._closing = True
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        try:
            import uvicorn

            config = uvicorn.Config(
                self._application(),
                access_log=False,
                limit_concurrency=_MOST_VIEWERS,
                log_config=None,
                log_level="warning",
                loop="asyncio",
                server_header=False,
                timeout_graceful_shutdown=int(_END_SECONDS),
                ws="none",
            )
            self._server = uvicorn.Server(config)
            self._server.should_exit = self._closing
            self._server.run(sockets=[self._socket])
        except Exception as error:
            # The queue goes on without its page.
            _LOG.error("the page has ended", exc_info=error)
        finally:
            self._socket.close()

    def _application(self) -> Any:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route

        from llmasos_xla.web.pages import headers

        looks = _Looks(self._home)

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            looking = asyncio.create_task(looks.run(lambda: self._closing))
            yield
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

        def guarded(route: Callable, change: bool = False) -> Callable[[Request], Awaitable[Response]]:
            async def checked(request: Request) -> Response:
                sent = {name: request.headers[name] for name in request.headers}
                if change:
                    reason = why_not_change(sent, self._host, self._token)
                else:
                    reason = why_not_look(sent, self._host)
                if reason is not None:
                    raise HTTPException(403, reason)
                answer = await route(request)
                answer.headers.setdefault("Cache-Control", "no-store")
                answer.headers["X-Content-Type-Options"] = "nosniff"
                return answer

            return checked

        async def page(request: Request) -> Response:
            reason = why_not_look({"host": request.headers.get("host", "")}, self._host)
            # A link on another site may lead here; what is shown here that site does not see.
            if reason is not None:
                raise HTTPException(403, reason)
            return Response(_page(), headers=headers(_page()), media_type="text/html")

        async def view(request: Request) -> Response:
            return Response(looks.whole, media_type="application/json")

        async def stream(request: Request) -> Response:
            return StreamingResponse(looks.events(), media_type="text/event-stream")

        async def log(request: Request) -> Response:
            with _found():
                job = await asyncio.to_thread(_job, self._home, request.path_params["number"])
            try:
                after = int(request.query_params.get("after", "0"))
            except ValueError:
                raise HTTPException(400, "after wants a number of bytes") from None
            return JSONResponse(await asyncio.to_thread(_part, self._home.job(job.number) / "log", after))

        async def cancel(request: Request) -> Response:
            with _found():
                job = await asyncio.to_thread(_ask_cancel, self._home, request.path_params["number"])
            return JSONResponse({"state": job.state, "asked": job.asked})

        async def priority(request: Request) -> Response:
            try:
                wanted = json.loads(await request.body())["priority"]
            except (ValueError, KeyError, TypeError):
                raise HTTPException(400, '{"priority": a whole number} is wanted') from None
            if reason := why_no_priority(wanted):
                raise HTTPException(400, reason)
            with _found():
                changed = await asyncio.to_thread(_prioritize, self._home, request.path_params["number"], wanted)
            if not changed:
                raise HTTPException(409, "the job has ended")
            return JSONResponse({"priority": wanted})

        async def refused(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)

        routes = [
            Route("/", page),
            Route("/view", guarded(view)),
            Route("/stream", guarded(stream)),
            # What a job prints is its user's, as its folder is; the queue everybody on this machine may see.
            Route("/jobs/{number:int}/log", guarded(log, change=True)),
            Route("/jobs/{number:int}/cancel", guarded(cancel, change=True), methods=["POST"]),
            Route("/jobs/{number:int}/priority", guarded(priority, change=True), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: refused})


@final
class _Looks:
    """Looks once a second and hands what it sees to all who watch."""

    def __init__(self, home: Home):
        self._home = home
        self._newest: dict[str, Any] = {}
        self._past: dict[str, Any] = {}
        self._looked = asyncio.Event()
        self._ended = False

    @property
    def whole(self) -> bytes:
        """The moment, and the machine's figures up to then."""
        return json.dumps({**self._newest, "past": self._past}).encode()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: the first with the past, then one a look; who reads slowly misses some."""
        first = True
        while not self._ended:
            if not self._newest:
                await self._looked.wait()
                continue
            yield b"data: %b\n\n" % (self.whole if first else json.dumps(self._newest).encode())
            first = False
            await self._looked.wait()

    async def run(self, closing: Callable[[], bool]) -> None:
        """Looks until it is cancelled; what goes wrong is told once, and tried again."""
        from llmasos_xla.runtime.viewer import Viewer

        viewer, told = None, ""
        try:
            while not closing():
                try:
                    if viewer is None:
                        viewer = await asyncio.to_thread(Viewer, self._home)
                    view = await asyncio.to_thread(viewer.look)
                    self._newest, self._past, told = view.to_dict(), viewer.past, ""
                except Exception as error:
                    if str(error) != told:
                        told = str(error)
                        _LOG.error("the page cannot look at the queue", exc_info=error)
                self._tell()
                for _ in range(int(_LOOK_SECONDS / 0.1)):
                    if closing():
                        break
                    await asyncio.sleep(0.1)
        finally:
            self._ended = True
            self._tell()
            if viewer is not None:
                await asyncio.to_thread(viewer.close)

    def _tell(self) -> None:
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()


@functools.cache
def _page() -> bytes:
    return (pathlib.Path(__file__).parent / "page" / "index.html").read_bytes()


@contextlib.contextmanager
def _found() -> Any:
    from starlette.exceptions import HTTPException

    try:
        yield
    except ValueError as error:
        raise HTTPException(404, str(error)) from None


def _job(home: Home, number: int) -> Job:
    with contextlib.closing(Store(home.store, read_only=True)) as store:
        return store.job(number)


def _ask_cancel(home: Home, number: int) -> Job:
    with contextlib.closing(Store(home.store)) as store:
        return store.ask(number, "cancel")


def _prioritize(home: Home, number: int, priority: int) -> bool:
    with contextlib.closing(Store(home.store)) as store:
        return store.prioritize(number, priority)


def _part(log: pathlib.Path, after: int) -> dict[str, Any]:
    """What a log has behind so many bytes, or its end where that is much."""
    try:
        with open(log, "rb") as file:
            end = file.seek(0, 2)
            begin = max(min(after, end), end - _LOG_BYTES, 0)
            file.seek(begin)
            read = file.read(_LOG_BYTES)
    except FileNotFoundError:
        return {"begin": 0, "end": 0, "text": ""}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(read)
    # A character whose bytes have not all come is for the next look.
    return {"begin": begin, "end": begin + len(read) - len(decoder.getstate()[0]), "text": text}
