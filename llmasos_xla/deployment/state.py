"""What a server that was killed starts with again: which version answers, and the weights of one that has no file."""

import contextlib
import json
import logging
import pathlib
import threading
import time
from typing import TYPE_CHECKING, Any, final

from llmasos_xla.deployment.niceness import yield_to_others
from llmasos_xla.storage.atomic import atomically

if TYPE_CHECKING:
    from llmasos_xla.deployment.served import Served

_LOG = logging.getLogger("llmasos_xla.deployment")
# Of the time, the part that may go into writing where versions follow one another without a pause.
_SHARE = 0.25


@final
class State:
    """A small file, and beside it a folder `FILE.live` of models whose weights came from memory: the newest of each.

    A version that has a file is written down ahead of the swap. One that came from memory is written into the folder
    after it, by a thread of its own, and then written down; where versions come faster than they are written, those
    between are left out. All is whole or not there, whenever the process ends. One server has it at a time.

    Args:
        path: of the file. What a server that was killed left unfinished beside it is removed.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path = path.absolute()
        self.folder = path.with_name(f"{path.name}.live")
        self._changed = threading.Condition()
        self._known = _read(path)
        self._wanted: dict[str, Served] = {}
        self._writing: pathlib.Path | None = None
        self._thread: threading.Thread | None = None
        self._ends = False
        for part in (*path.parent.glob(f".{path.name}.*.part"), *self.folder.glob(".*.part")):
            part.unlink(missing_ok=True)

    def known(self, name: str) -> dict[str, Any] | None:
        """What was written down of a model: path, version, digest; None if nothing was."""
        with self._changed:
            return self._known.get(name)

    def keeps(self, path: str) -> bool:
        """Whether that is a file of the folder, which is gone once another version is kept."""
        return pathlib.Path(path).parent == self.folder

    def put(self, name: str, served: "Served") -> None:
        """Writes down that this version is the one to start with: now if it has a file, else as soon as may be."""
        with self._changed:
            if served.path is not None:
                self._wanted.pop(name, None)
                self._write_down(name, served, served.path)
                return
            self._wanted[name] = served
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="state", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Writes what is not yet written; returns whether that was done within so many seconds."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        yield_to_others()
        while True:
            with self._changed:
                while not self._wanted and not self._ends:
                    self._changed.wait()
                if not self._wanted:
                    return
                name, served = next(iter(self._wanted.items()))
            started = time.monotonic()
            try:
                path = self._written(name, served)
                with self._changed:
                    self._writing = None
                    if self._wanted.get(name) is served:
                        self._write_down(name, served, str(path))
                    else:
                        self._sweep()
            except Exception:
                _LOG.exception("version %s of %r is not kept: a restart would not start with it", served.version, name)
            rest = time.monotonic() + (time.monotonic() - started) * (1 / _SHARE - 1)
            with self._changed:
                self._writing = None
                # Another version may have come meanwhile; this one is done, or cannot be.
                if self._wanted.get(name) is served:
                    del self._wanted[name]
                while not self._ends and (left := rest - time.monotonic()) > 0:
                    self._changed.wait(left)

    def _written(self, name: str, served: "Served") -> pathlib.Path:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        from llmasos_xla.deployment.versions import ending, write_version

        path = self.folder / f"{name}-{served.version}{ending(served)}"
        with self._changed:
            self._writing = path
        write_version(served, path)
        return path

    def _write_down(self, name: str, served: "Served", path: str) -> None:
        self._known[name] = {"path": path, "digest": served.digest, "version": served.version}
        text = json.dumps(self._known)
        atomically(self.path, lambda temporary: _write(temporary, text))
        self._sweep()

    def _sweep(self) -> None:
        named = {entry["path"] for entry in self._known.values()}
        for file in self.folder.glob("*"):
            if file != self._writing and str(file) not in named:
                with contextlib.suppress(OSError):
                    file.unlink()


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {n: e for n, e in found.items() if _whole(e)} if isinstance(found, dict) else {}


def _whole(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("path", "version"))


def _write(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text)
