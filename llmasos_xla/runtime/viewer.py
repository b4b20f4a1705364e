"""Looks at a queue and its machine again and again, and remembers what only who looks for long can know."""

import collections
import json
import math
import os
import time
import urllib.request
from collections.abc import Sequence
from typing import final

from llmasos_xla import progress
from llmasos_xla.progress import Progress
from llmasos_xla.runtime import service
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ENDED, ON_DEVICES, Job, State
from llmasos_xla.runtime.store import Event, Store
from llmasos_xla.runtime.view import Curve, Gpu, Machine, View, picture

_LIVE: tuple[State, ...] = ("running", "draining", "starting", "queued", "waiting")
"""As they are shown, from the top."""
_ASK_SECONDS = 2.0
_FIGURES = ("cpu", "memory", "watts")
"""Of the machine, that are remembered."""


@final
class Viewer:
    """What `look` has seen: losses by job, figures of the machine by time. One thread at a time.

    Args:
        home: of the queue; its store is there.
        waiting: so many of the jobs that wait are shown, by priority.
        ended: so many of the jobs that have ended last are shown.
        events: so many of the last events.
        kept: so many looks are remembered.
    """

    def __init__(self, home: Home, *, waiting: int = 200, ended: int = 10, events: int = 30, kept: int = 600):
        self._home, self._waiting, self._ended, self._events = home, waiting, ended, events
        self._store = Store(home.store, read_only=True)
        self._version: int | None = None
        self._counts: dict[str, int] = {}
        self._read: tuple[Sequence[Job], Sequence[Event]] = ((), ())
        self._curves: dict[int, Curve] = {}
        self._tokens: dict[int, str] = {}
        self._past: collections.deque[tuple[float, ...]] = collections.deque(maxlen=kept)
        self._monitor, self._why_not = None, ""
        try:
            from llmasos_xla.runtime.monitor import Monitor

            self._monitor = Monitor(size=1)
        except ImportError as error:
            # The queue is there to be seen without it.
            self._why_not = str(error)

    def look(self) -> View:
        """The moment."""
        if self._monitor is not None:
            self._monitor.sample()
        jobs, events = self._jobs()
        seen = {job.number: self._progress(job) for job in jobs}
        for job in jobs:
            if told := seen[job.number]:
                first = told[min(told)]
                if first.loss is not None:
                    self._curves.setdefault(job.number, Curve()).add(first.step, first.loss)
        # Jobs that are shown no more.
        self._curves = {number: curve for number, curve in self._curves.items() if number in seen}
        usage = self._follow(jobs)
        machine = self._machine()
        now = time.time()
        if machine is not None:
            self._past.append((now, *(getattr(machine, name) for name in _FIGURES)))
        return picture(
            jobs,
            events,
            now=now,
            engine=service.running(self._home),
            progress=seen,
            curves=self._curves,
            usage=usage,
            counts=self._counts,
            machine=machine,
            why_no_machine=self._why_not,
        )

    @property
    def past(self) -> dict[str, list[float | None]]:
        """The machine's figures at the looks that are remembered, the oldest first: `at`, `cpu`, `memory`, `watts`."""
        columns = zip(*self._past, strict=True) if self._past else [()] * (1 + len(_FIGURES))
        known = ([v if math.isfinite(v) else None for v in column] for column in columns)
        return dict(zip(("at", *_FIGURES), known, strict=True))

    def remember(self) -> bool:
        """Takes over the losses that the engine's page has seen until now; whether it has told any."""
        engine = service.running(self._home)
        if not engine or not engine.get("page"):
            return False
        # Not by way of a proxy, which the environment may name for all else.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(engine["page"] + "view", timeout=_ASK_SECONDS) as answer:
                rows = json.loads(answer.read()).get("rows", ())
        except (OSError, ValueError):
            # It comes up, or goes down. Then the losses begin now.
            return False
        for row in rows:
            for step, loss in row["losses"]:
                if loss is not None:
                    self._curves.setdefault(row["number"], Curve()).add(step, loss)
        return bool(rows)

    def close(self) -> None:
        """Lets go of the store and the machine."""
        self._store.close()
        if self._monitor is not None:
            self._monitor.stop()

    def _jobs(self) -> tuple[Sequence[Job], Sequence[Event]]:
        version = self._store.version
        if version != self._version:
            live = [*self._store.jobs(ON_DEVICES), *self._store.foremost(("queued", "waiting"), self._waiting)]
            live.sort(key=lambda job: (_LIVE.index(job.state), -job.spec.priority, job.number))
            ended = self._store.jobs(ENDED, last=self._ended)
            self._read = ([*live, *reversed(ended)], self._store.events(last=self._events))
            self._counts, self._version = self._store.counts(), version
        return self._read

    def _progress(self, job: Job) -> dict[int, Progress]:
        return progress.read(self._home.job(job.number) / job.token) if job.token else {}

    def _follow(self, jobs: Sequence[Job]) -> dict[int, tuple[float, float]]:
        """CPUs and bytes of the jobs whose processes are of this machine."""
        monitor = self._monitor
        if monitor is None:
            return {}
        here = {job.number: job for job in jobs if job.state in ON_DEVICES and job.token and _pid(job)}
        for number, token in list(self._tokens.items()):
            if number not in here or here[number].token != token:
                monitor.unfollow(str(number))
                del self._tokens[number]
        found = {}
        for number in self._tokens:
            table = monitor.followed(str(number))
            found[number] = float(table["cpu"][-1]), float(table["memory"][-1])
        for number, job in here.items():
            if number not in self._tokens and (pid := _pid(job)) is not None:
                try:
                    monitor.follow(str(number), pid)
                except ValueError:
                    # It ended between the store and here.
                    continue
                self._tokens[number] = job.token or ""
        return found

    def _machine(self) -> Machine | None:
        if self._monitor is None:
            return None
        row, names = self._monitor.latest, self._monitor.gpus
        gpus = tuple(
            Gpu(name, *(row[f"gpu{i}_{what}"] for what in ("use", "memory", "memory_total", "watts", "celsius")))
            for i, name in enumerate(names)
        )
        quality = self._monitor.energy.quality
        cpus = os.cpu_count() or 1
        return Machine(row["cpu"], cpus, row["memory"], row["memory_total"], row["watts"], quality, gpus)


def _pid(job: Job) -> int | None:
    """Of a job's keeper; None where it is of another machine."""
    if not job.handle or any(node != "local" for node, _ in job.places):
        return None
    return json.loads(job.handle).get("pid")
