"""The queue: jobs in SQLite, so that whatever is killed, and whenever, finds them as they were.

Those who submit, ask and watch open the same file; the engine sees what they write. Each change of a job is one
transaction that says which states it may come from, so that of two who want to change it one comes too late.
"""

import contextlib
import json
import os
import pathlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llmasos_xla.errors import unknown
from llmasos_xla.runtime.jobs import ENDED, STATES, Job, Place, Spec, State, why_no_priority

_VERSION = 1
_TABLES = """
create table jobs (
    number integer primary key autoincrement, spec text not null, state text not null, submitted real not null,
    queued real not null, waited real not null default 0, attempt integer not null default 0, token text, handle text,
    failures integer not null default 0, places text not null default '[]', changed real not null,
    not_before real not null default 0, status integer, reason text not null default '', asked text,
    need text not null default '{}');
create index by_state on jobs (state);
create table events (
    number integer primary key autoincrement, job integer not null, at real not null, what text not null,
    more text not null);
create index by_job on events (job);
"""
_BUSY_SECONDS = 30.0
_NAMED = 20
"""Of so many jobs, the newest, the names are told where one is not known."""


class Event(NamedTuple):
    """Something that has happened to a job."""

    job: int
    at: float
    """Seconds since 1970."""
    what: str
    more: Mapping[str, Any]


class Store:
    """The jobs of one home. Threads and processes may share it, each process with a store of its own.

    Args:
        path: the file; made if it is not there.
        clock: gives the moment, seconds since 1970.
        read_only: only look; somebody else has made the file.

    Raises OSError, here and from each change, if the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, clock: Any = time.time, *, read_only: bool = False):
        self._clock, self._lock, self._path = clock, threading.RLock(), pathlib.Path(path).absolute()
        self.changes = 0
        """How many changes were made by way of this object."""
        try:
            if not read_only:
                _make(self._path)
            self._base = sqlite3.connect(
                f"{self._path.as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._open(read_only)
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise OSError(f"store: {str(path)!r} cannot be opened: {why}") from error

    def _open(self, read_only: bool) -> None:
        self._base.row_factory = sqlite3.Row
        if read_only:
            self._base.execute("pragma query_only = on")
            self._refuse_other(self._base.execute("pragma user_version").fetchone()[0])
            return
        # A committed change is on the disk: neither a killed process nor a lost machine takes it back.
        self._log_ahead()
        self._base.execute("pragma synchronous = full")
        with self._change():
            version = self._base.execute("pragma user_version").fetchone()[0]
            if version == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._base.execute(statement)
                self._base.execute(f"pragma user_version = {_VERSION}")
            else:
                self._refuse_other(version)

    def _log_ahead(self) -> None:
        # For this lock SQLite itself does not wait: of several who make the file at a time one gets it.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._base.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _refuse_other(self, version: int) -> None:
        if version != _VERSION:
            raise ValueError(
                f"store: {str(self._path)!r} is of version {version}, {_VERSION} is read; use another home"
            )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._base.close()

    def submit(self, spec: Spec) -> Job:
        """Adds a job; raises LookupError if it comes after one that there is not."""
        now = self._clock()
        with self._change():
            for number in spec.after:
                if self._base.execute("select 1 from jobs where number = ?", (number,)).fetchone() is None:
                    raise LookupError(f"submit: there is no job {number} to come after")
            state = "waiting" if spec.after else "queued"
            added = self._base.execute(
                "insert into jobs (spec, state, submitted, queued, changed) values (?, ?, ?, ?, ?)",
                (spec.to_json(), state, now, now, now),
            )
            number = added.lastrowid
            assert number is not None
            self._tell(number, state, {})
        return self.job(number)

    def job(self, which: int | str) -> Job:
        """A job by its number, or the last one of a name; raises ValueError if there is none."""
        with self._lock:
            if isinstance(which, int) or (which.isascii() and which.isdigit()):
                # Text: a number may be larger than SQLite has them.
                row = self._base.execute("select * from jobs where number = ?", (str(which),)).fetchone()
            else:
                row = self._base.execute(
                    "select * from jobs where json_extract(spec, '$.name') = ? order by number desc limit 1", (which,)
                ).fetchone()
            if row is None:
                named = "select distinct json_extract(spec, '$.name') from jobs order by number desc limit ?"
                names = [row[0] for row in self._base.execute(named, (_NAMED,))]
                raise unknown("jobs", "job", str(which)[:60], names)
        return _job(row)

    def jobs(self, states: Sequence[State] = STATES, *, last: int | None = None) -> list[Job]:
        """The jobs in these states, by number; with `last` only so many, those whose state changed last."""
        marks = ", ".join("?" * len(states))
        found = f"select * from jobs where state in ({marks})"
        with self._lock:
            if last is None:
                rows = self._base.execute(f"{found} order by number", states).fetchall()
            else:
                rows = self._base.execute(
                    f"{found} order by changed desc, number desc limit ?", (*states, last)
                ).fetchall()[::-1]
        return [_job(row) for row in rows]

    def foremost(self, states: Sequence[State], most: int) -> list[Job]:
        """The jobs in these states, so many at most, by priority."""
        marks = ", ".join("?" * len(states))
        order = "json_extract(spec, '$.priority') desc, number"
        with self._lock:
            rows = self._base.execute(
                f"select * from jobs where state in ({marks}) order by {order} limit ?", (*states, most)
            ).fetchall()
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state that some are in."""
        with self._lock:
            return {row[0]: row[1] for row in self._base.execute("select state, count(*) from jobs group by state")}

    def change(
        self, job: Job, state: State | None = None, *, told: Mapping[str, Any] | None = None, **fields: Any
    ) -> bool:
        """Changes a job that is still in the state and the attempt that `job` was read in; returns whether it was.

        And still with the wish about it, where `asked` is among the fields.

        `told` goes into the event that a change of state leaves behind. Fields are those of `Job`.
        """
        now = self._clock()
        if state is not None:
            fields |= {"state": state, "changed": now}
        for name in ("places", "need"):
            if name in fields:
                fields[name] = json.dumps(fields[name])
        with self._change():
            changed = self._set(job, fields)
            if changed and state is not None:
                self._tell(job.number, state, told or {})
        return changed

    def _set(self, job: Job, fields: Mapping[str, Any]) -> bool:
        assigned = ", ".join(f"{name} = ?" for name in fields)
        # Whoever takes a wish back has to know it: one that came since then is still to be heard.
        wish = ("and asked is ?", (job.asked,)) if "asked" in fields else ("", ())
        changed = self._base.execute(
            f"update jobs set {assigned} where number = ? and state = ? and attempt = ? {wish[0]}",
            (*fields.values(), job.number, job.state, job.attempt, *wish[1]),
        ).rowcount
        return changed == 1

    def ask(self, which: int | str, what: str) -> Job:
        """Leaves a wish for the engine; one that waits is cancelled at once. Raises ValueError for unknown jobs."""
        # Between a look and a change of its own it could come off its devices, into a queue where nobody hears wishes.
        with self._change():
            job = self.job(which)
            if what == "cancel" and job.state in ("waiting", "queued"):
                self._set(
                    job, {"state": "cancelled", "changed": self._clock(), "reason": "it was cancelled before it ran"}
                )
                self._tell(job.number, "cancelled", {})
            elif not job.ended:
                self._set(job, {"asked": what})
        return self.job(job.number)

    def prioritize(self, which: int | str, priority: int) -> bool:
        """Gives a job another priority; False if it has ended. Raises ValueError for what is no job or no priority."""
        job = self.job(which)
        if reason := why_no_priority(priority):
            raise ValueError(f"priority: {reason}")
        marks = ", ".join("?" * len(ENDED))
        with self._change():
            changed = self._base.execute(
                f"update jobs set spec = json_set(spec, '$.priority', ?) where number = ? and state not in ({marks})",
                (priority, job.number, *ENDED),
            ).rowcount
            if changed:
                self._tell(job.number, "priority", {"before": job.spec.priority, "now": priority})
        return changed == 1

    def forget(self, number: int) -> bool:
        """Takes a job that has ended out of the file; False of one that has not, or that another is still to follow."""
        marks = ", ".join("?" * len(ENDED))
        follows = "select 1 from jobs, json_each(jobs.spec, '$.after') as before where jobs.state = 'waiting'"
        with self._change():
            gone = self._base.execute(
                f"delete from jobs where number = ? and state in ({marks}) "
                f"and not exists ({follows} and before.value = ?)",
                (number, *ENDED, number),
            ).rowcount
            if gone:
                self._base.execute("delete from events where job = ?", (number,))
        return gone == 1

    def note(self, job: int, what: str, **more: Any) -> None:
        """Writes down that something happened to a job."""
        with self._change():
            self._tell(job, what, more)

    def events(self, job: int | None = None, after: int = 0, *, last: int | None = None) -> list[Event]:
        """What happened to a job, or to all, in order; with `last` only so many, the newest."""
        where, values = ("number > ? and job = ?", (after, job)) if job is not None else ("number > ?", (after,))
        with self._lock:
            limit = -1 if last is None else last
            rows = self._base.execute(
                f"select * from events where {where} order by number desc limit ?", (*values, limit)
            ).fetchall()[::-1]
        return [Event(row["job"], row["at"], row["what"], json.loads(row["more"])) for row in rows]

    @property
    def version(self) -> int:
        """Another number after each change that another connection made."""
        with self._lock:
            return self._base.execute("pragma data_version").fetchone()[0]

    def _tell(self, job: int, what: str, more: Mapping[str, Any]) -> None:
        self._base.execute(
            "insert into events (job, at, what, more) values (?, ?, ?, ?)", (job, self._clock(), what, json.dumps(more))
        )

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            try:
                self._base.execute("begin immediate")
                yield
                self._base.execute("commit")
                self.changes += 1
            except BaseException as error:
                # Of a full disk SQLite has taken all back itself.
                if self._base.in_transaction:
                    self._base.execute("rollback")
                if isinstance(error, sqlite3.Error):
                    raise OSError(f"store: {str(self._path)!r} cannot be changed: {error}") from error
                raise


def _make(path: pathlib.Path) -> None:
    """Makes the file, the user's own: environments will be in it, and in these secrets."""
    with contextlib.suppress(FileExistsError):
        # Only if it is not there. To close a file takes away all locks that this process has on it, SQLite's as well.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _job(row: sqlite3.Row) -> Job:
    found: dict[str, Any] = dict(row)
    places: tuple[Place, ...] = tuple((node, device) for node, device in json.loads(found["places"]))
    read = {"spec": Spec.from_json(found["spec"]), "places": places, "need": json.loads(found["need"])}
    return Job(**{**found, **read})
