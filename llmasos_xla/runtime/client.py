"""Submitting jobs and waiting for them, from Python."""

import contextlib
import dataclasses
import getpass
import math
import operator
import os
import pathlib
import pickle
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, cast

from llmasos_xla import progress
from llmasos_xla.errors import missing_package
from llmasos_xla.runtime.call import is_first
from llmasos_xla.runtime.home import Home, files
from llmasos_xla.runtime.jobs import LONGEST_NAME, Job, Layout, Spec, State
from llmasos_xla.runtime.store import Event, Store
from llmasos_xla.sharding.processes.launch import LAUNCHED

_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 5.0
_CALL = ("-m", "llmasos_xla.runtime.call")
_LOG_BYTES = 1 << 20


class JobError(RuntimeError):
    """A job that was waited for did not come to a good end."""


class Submitted:
    """A job in the queue, as `submit` returns it.

    Args:
        number: the job's.
        home: of the queue; the user's own if None.
    """

    def __init__(self, number: int, home: Home | None = None):
        self.number = number
        self._home = home or Home()

    @property
    def job(self) -> Job:
        """All that is known of it now."""
        # Opened for each look: there may be many of these, and they may be handed to other processes.
        with contextlib.closing(Store(self._home.store, read_only=True)) as store:
            return store.job(self.number)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.job.spec.name

    @property
    def state(self) -> State:
        """Where it is: waiting, queued, starting, running, draining; done, failed or cancelled."""
        return self.job.state

    @property
    def folder(self) -> pathlib.Path:
        """Its own folder, for what it leaves behind; LLMASOS_JOB_FOLDER in its environment."""
        return files(self.records)

    @property
    def records(self) -> pathlib.Path:
        """The queue's folder of it: its log, and what its processes tell of themselves."""
        return self._home.job(self.number)

    def wait(self, timeout: float | int | None = None) -> State:
        """Waits until it has ended; how. Raises TimeoutError after `timeout` seconds; the job goes on."""
        from llmasos_xla.runtime.service import running

        deadline = None if timeout is None else time.monotonic() + timeout
        look = time.monotonic() + _PATIENCE_SECONDS
        while not (job := self.job).ended:
            if time.monotonic() > look:
                look = math.inf
                if running(self._home) is None:
                    print(f"wait: no engine runs job {self.number}; `llmasos up` starts one", file=sys.stderr)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"wait: job {self.number} ({job.spec.name}) is {job.state} after {timeout:g} s")
            time.sleep(_LOOK_SECONDS)
        return job.state

    def result(self, timeout: float | int | None = None) -> Any:
        """What a submitted function returned; None of a script. Raises JobError if it failed or was cancelled."""
        self.wait(timeout)
        job = self.job
        if job.state != "done":
            raise JobError(f"job {self.number} ({job.spec.name}) {job.state}: {job.reason}\n{self.logs()[-2000:]}")
        with contextlib.suppress(FileNotFoundError):
            return pickle.loads((self.records / "result").read_bytes())
        return None

    def logs(self) -> str:
        """What it has printed."""
        try:
            return (self.records / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def events(self) -> list[Event]:
        """What has happened to it: states, the devices that it was given, resizes and their reasons, by time."""
        with contextlib.closing(Store(self._home.store, read_only=True)) as store:
            return store.events(self.number)

    @property
    def progress(self) -> progress.Progress | None:
        """How far the fit in it has come: step, epoch, loss, of the rank that is furthest behind. None of no fit."""
        told = progress.read(self.records / f"{self.job.token}").values()
        return min(told, key=lambda each: each.step, default=None)

    def cancel(self) -> None:
        """Ends it; it may save itself first."""
        with contextlib.closing(Store(self._home.store)) as store:
            store.ask(self.number, "cancel")

    def forget(self) -> int:
        """Takes it out of the queue's records, with its log and all that it left in its folder; how many bytes.

        Raises RuntimeError if it has not ended, or another job is still to follow it; OSError if a file of it cannot be
        taken away, which then stays without a record.
        """
        job = self.job
        with contextlib.closing(Store(self._home.store)) as store:
            if not store.forget(self.number):
                why = "another job is to follow it" if job.ended else f"it is {job.state}; cancel it first"
                raise RuntimeError(f"forget: job {self.number} ({job.spec.name}) stays: {why}")
        left = [self.records]
        if job.spec.command[1:3] == _CALL:
            # What is called is still there where the call failed.
            left.append(pathlib.Path(job.spec.command[3]))
        files = [path for root in left for path in (root, *root.rglob("*")) if path.is_file()]
        count = sum(path.lstat().st_size for path in files)
        for root in left:
            if root.is_dir():
                shutil.rmtree(root)
            else:
                root.unlink(missing_ok=True)
        return count

    def __repr__(self) -> str:
        job = self.job
        return f"<job {self.number} {job.spec.name!r} {job.state}>"


def submit(
    what: Callable[..., Any] | str | os.PathLike | Sequence[str],
    *arguments: Any,
    name: str | None = None,
    priority: int = 0,
    devices: int | tuple[int, int] = 1,
    sizes: Sequence[int] = (),
    layout: Layout = "devices",
    memory: int | None = None,
    retries: int = 3,
    after: Sequence["Submitted | int"] = (),
    preemptible: bool | None = None,
    grace: float | int = 60.0,
    stuck_after: float | int | None = None,
    environment: Mapping[str, str] | None = None,
    home: str | os.PathLike | None = None,
    start: bool = True,
) -> Submitted:
    """Puts a job into the queue, and starts the engine if none runs.

    Args:
        what: a function, a Python script, or a command as a list.
        *arguments: of the function or the script.
        name: what it is called; the function's or script's name if None.
        priority: larger goes first.
        devices: how many it wants, or the least and the most.
        sizes: numbers of devices that it can run on, if not all between those; `MeshSpec.legal_world_sizes` knows.
        layout: "devices": one process with all of them; "processes": `llmasos launch`, one process a device.
        memory: bytes of the machine's memory that it needs; measured if None.
        retries: how often it may fail.
        after: jobs that have to be done before.
        preemptible: whether it may be ended for others and started again; None: as soon as a `fit` in it saves itself.
        grace: seconds that it gets to save itself.
        stuck_after: seconds without a step of its fit after which it is started again.
        environment: variables that it gets beside those of this process.
        home: the folder of the queue; the user's own if None.
        start: whether to start an engine. A job starts none, for it would end with the job.

    Raises ValueError for what cannot be run, FileNotFoundError for a script or a command that is not there.
    """
    place = Home(home).make()
    command, called = _command(what, arguments, place)
    try:
        spec = Spec(
            name=name or called,
            command=command,
            folder=os.getcwd(),
            priority=priority,
            devices=(devices, devices) if isinstance(devices, int | float) else cast(tuple[int, int], tuple(devices)),
            sizes=tuple(sizes),
            layout=layout,
            memory=memory,
            retries=retries,
            after=tuple(each.number if isinstance(each, Submitted) else each for each in after),
            preemptible=preemptible,
            grace=grace,
            stuck_after=stuck_after,
            environment={**_environment(), **(environment or {})},
            user=_user(),
        )
        with contextlib.closing(Store(place.store)) as store:
            number = store.submit(spec).number
    except BaseException:
        if callable(what):
            # Of no job: nobody would run it, or remove it.
            os.unlink(command[-1])
        raise
    if start and here() is None:
        from llmasos_xla.runtime.service import remembered, up

        up(place, *remembered(place))
    return Submitted(number, place)


def queue(home: str | os.PathLike | None = None) -> list[Submitted]:
    """All jobs that the queue knows, the oldest first."""
    place = Home(home).make()
    with contextlib.closing(Store(place.store)) as store:
        return [Submitted(job.number, place) for job in store.jobs()]


def _command(what: Any, arguments: Sequence[Any], home: Home) -> tuple[tuple[str, ...], str]:
    if callable(what):
        path = kept(what, arguments, home.path / "calls")
        called = _called(getattr(what, "__name__", type(what).__name__).strip("<>"))
        return (sys.executable, *_CALL, str(path)), called
    given = [os.fspath(what)] if isinstance(what, str | os.PathLike) else list(map(str, what))
    if not given:
        raise ValueError("submit: there is nothing to run; give a function, a script or a command")
    given += map(str, arguments)
    first = pathlib.Path(given[0])
    called = _called(first.stem)
    if first.suffix == ".py":
        if not first.is_file():
            raise FileNotFoundError(f"submit: there is no script {given[0]!r} in {os.getcwd()!r}")
        return (sys.executable, *given), called
    if shutil.which(given[0]) is None:
        if first.is_file():
            raise PermissionError(f"submit: {given[0]!r} may not be run; chmod +x makes a command of it")
        raise FileNotFoundError(f"submit: there is no command {given[0]!r}; a script's name ends in .py")
    return tuple(given), called


def _called(name: str) -> str:
    """A name for the queue, made of another's: of a file, or of a function in any language."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-")[:LONGEST_NAME] or "job"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number that has no name.
        return str(os.getuid())


def _environment() -> dict[str, str]:
    """This process's variables, but for those that make it a rank, or tell it the devices of the job that it is."""
    found = dict(os.environ)
    others = LAUNCHED if "LLMASOS_RUN" in found else ()
    if (job := here()) is not None and job.layout == "devices":
        others = (*others, "JAX_NUM_CPU_DEVICES", "NPROC")
    return {name: value for name, value in found.items() if name not in others}


def kept(function: Callable[..., Any], arguments: Sequence[Any], folder: pathlib.Path) -> pathlib.Path:
    """Puts a function and its arguments into a file of a folder, which is made; `call` reads it."""
    try:
        import cloudpickle
    except ImportError:
        raise missing_package("submit", "cloudpickle", "runtime", "a script") from None
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / uuid.uuid4().hex
    path.write_bytes(cloudpickle.dumps((function, tuple(arguments))))
    return path


@dataclasses.dataclass(frozen=True)
class Worker:
    """What a job knows of itself."""

    number: int
    name: str
    folder: pathlib.Path
    devices: int
    layout: Layout


def here() -> Worker | None:
    """The job that this process runs in; None where it runs in none."""
    number = os.environ.get("LLMASOS_JOB")
    if number is None:
        return None
    folder, count = os.environ["LLMASOS_JOB_FOLDER"], int(os.environ["LLMASOS_DEVICES"])
    layout = cast(Layout, os.environ["LLMASOS_JOB_LAYOUT"])
    return Worker(int(number), os.environ["LLMASOS_JOB_NAME"], pathlib.Path(folder), count, layout)


def report(step: SupportsIndex, value: SupportsFloat | Mapping[str, SupportsFloat]) -> None:
    """Tells the queue how good this process's job is at a step; where no queue runs it, nobody is told.

    `lm.runtime.tune` prunes a trial by what it reports. A fit reports its metrics after each epoch by itself.

    Args:
        step: from 0 up; what is told of a step first stays.
        value: a number, or several by name, as "val_loss".

    Raises ValueError for a step below 0, TypeError for what is no number.
    """
    values = dict(value) if isinstance(value, Mapping) else {progress.VALUE: value}
    try:
        told = {str(name): float(each) for name, each in values.items()}
    except (TypeError, ValueError):
        raise TypeError(f"report: a value is a number, or numbers by name, {value!r} came") from None
    if isinstance(step, bool) or not hasattr(step, "__index__") or operator.index(step) < 0:
        raise ValueError(f"report: a step is a whole number from 0 up, {step!r} came")
    beginning = os.environ.get(progress.VARIABLE)
    if beginning and is_first():
        progress.report(beginning, progress.Report(operator.index(step), told, time.time()))


def follow(job: Submitted) -> Iterator[str]:
    """The lines that a job prints, from the first on, until it has ended."""
    at, rest = 0, b""
    while True:
        ended = job.job.ended
        with contextlib.suppress(FileNotFoundError), open(job.records / "log", "rb") as file:
            file.seek(at)
            while new := file.read(_LOG_BYTES):
                at += len(new)
                *lines, rest = (rest + new).split(b"\n")
                yield from (line.decode(errors="replace") + "\n" for line in lines)
        if ended:
            if rest:
                yield rest.decode(errors="replace") + "\n"
            return
        time.sleep(_LOOK_SECONDS)
