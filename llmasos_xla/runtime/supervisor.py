"""The supervisor: looks at jobs and machines, asks the planner who should have what, and has launchers do it.

All that it must not forget is in the store, written before it is acted upon; so one that is killed is followed by one
that goes on. A job's devices are free only once its launcher says that nothing of it runs any more.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, final

from llmasos_xla import progress
from llmasos_xla.runtime.claims import Claim, Rules
from llmasos_xla.runtime.endings import LONGEST_PAUSE, ending
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.jobs import ON_DEVICES, Job, Place
from llmasos_xla.runtime.launchers.holding import read_held
from llmasos_xla.runtime.launchers.local import new_token
from llmasos_xla.runtime.launchers.protocol import Attempt, Launcher, Queueing
from llmasos_xla.runtime.needs import bounded, device_bytes, excess, host_bytes, node_bytes, together
from llmasos_xla.runtime.planner import plan
from llmasos_xla.runtime.store import Store

_LOG = logging.getLogger("llmasos_xla.runtime")
_FIXED = 1 << 40
# By less than this a clock is corrected all the time.
_SET_SECONDS = 5.0
# Every job's speed is taken to grow with so much a power of its devices.
_USUAL_SPEED = 0.9


@final
class Supervisor:
    """Moves jobs from state to state; `tick` does what there is to do now, and never waits.

    Args:
        home: where jobs have their folders.
        store: the jobs.
        launcher: runs them; one with a queue of its own (`Queueing`) decides there who goes first and where.
        rules: the planner's.
        clock: gives the moment, seconds since 1970.
        steady: gives seconds that go on by one a second, whatever the clock is set to, and stand still while the
            machine sleeps.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        launcher: Launcher,
        rules: Rules | None = None,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ):
        self._home, self._store, self._launcher = home, store, launcher
        self._queueing = launcher if isinstance(launcher, Queueing) else None
        self._rules, self._clock, self._steady = rules or Rules(), clock, steady
        # Devices that the last plan gave to jobs that wait for others to leave them.
        self._granted: dict[int, tuple[Place, ...]] = {}
        self._stuck: dict[str, str] = {}
        self._steps: dict[str, tuple[Any, float]] = {}
        # The most bytes that each attempt was seen to hold.
        self._held: dict[str, int] = {}
        self._closing = False
        for job in store.jobs(("draining",)):
            # Whoever wanted it to end may not have come to say so.
            launcher.drain(self._attempt(job), job.handle)

    def tick(self, *, planning: bool = True) -> None:
        """One look at everything; without `planning` jobs get and leave devices only if the look itself changes one."""
        before = self._store.changes
        for job in self._store.jobs(ON_DEVICES):
            self._poll(job)
        for job in self._store.jobs(("starting", "running")):
            self._listen(job)
        if self._queueing is None:
            self._heed()
        for job in self._store.jobs(("running",)):
            self._admit(job)
        if self._closing or not (planning or self._store.changes > before):
            return
        for job in self._store.jobs(("waiting",)):
            self._depend(job)
        if self._queueing is None:
            self._plan()
        else:
            self._hand_over(self._queueing)

    def close(self) -> None:
        """Has all jobs save and end, and starts no other; `tick` until `idle`.

        What a queue of others' holds stays there: it goes on without an engine, and the next one finds it.
        """
        self._closing = True
        if self._queueing is not None:
            return
        for job in self._store.jobs(("starting", "running")):
            self._drain(job, "the engine is going down")

    @property
    def idle(self) -> bool:
        """Whether no job has processes that want an engine."""
        return self._queueing is not None or not self._store.jobs(ON_DEVICES)

    def _poll(self, job: Job) -> None:
        status = self._launcher.poll(self._attempt(job), job.handle)
        if status is not None:
            self._ended(job, status)
        elif self._queueing is not None:
            self._hear(job, self._queueing)
        elif job.state == "starting":
            # A supervisor before this one started it, and did not live to write that down.
            self._store.change(job, "running")

    def _hear(self, job: Job, queueing: Queueing) -> None:
        """Where a job is in the queue of others' that holds it."""
        told = queueing.told(self._attempt(job), job.handle)
        known = 0
        if told.lost:
            noted = [event.more.get("token") for event in self._store.events(job.number) if event.what == "requeued"]
            known = noted.count(job.token)
        if told.lost > known:
            for _ in range(known, told.lost):
                self._store.note(job.number, "requeued", token=job.token, why="its machine failed")
            failures = job.failures + told.lost - known
            self._store.change(job, failures=failures)
            if failures > job.spec.retries and job.token is not None:
                self._stuck[job.token] = "its machine failed"
                queueing.kill(self._attempt(job), job.handle)
        if job.state == "draining":
            return
        state = "running" if told.places else "starting"
        if job.state != state:
            count = {"devices": len(told.places or job.places)}
            self._store.change(job, state, told=count, places=told.places or job.places, reason=told.why)
        elif job.reason != told.why:
            self._store.change(job, reason=told.why)

    def _ended(self, job: Job, status: int) -> None:
        """What becomes of a job whose processes are gone."""
        now, told = self._clock(), {"status": status, "devices": job.size}
        stuck = self._stuck.pop(job.token or "", None)
        self._steps.pop(job.token or "", None)
        if (held := self._held.pop(job.token or "", 0)) and status:
            # It is started again where there is so much.
            before = job.need.get("held", {})
            most = max(held, before.get(str(job.size), 0))
            self._store.change(job, need={**job.need, "held": {**before, str(job.size): most}})
        log = self._home.job(job.number) / "log"
        state, changed = ending(job, status, now, log, stuck)
        self._store.change(job, state, told=told, **changed)

    def _listen(self, job: Job) -> None:
        """Wishes about a job that runs, and whether it goes on."""
        if job.asked in ("cancel", "drain"):
            self._drain(job, "it is cancelled" if job.asked == "cancel" else "it was asked to make room")
            return
        limit = job.spec.stuck_after
        if limit is None or job.token is None:
            return
        now, seen = self._steady(), progress.read(self._progress(job))
        slowest = min(((each.step, rank) for rank, each in seen.items()), default=None)
        before = self._steps.get(job.token)
        if before is None or before[0] != slowest:
            self._steps[job.token] = slowest, now
        elif slowest is not None and now > before[1] + limit:
            step, rank = slowest
            self._stuck[job.token] = f"rank {rank} was stuck at step {step} for {limit:g} s"
            self._store.note(job.number, "stuck", step=step, rank=rank)
            self._launcher.kill(self._attempt(job), job.handle)

    def _admit(self, job: Job) -> None:
        """Lets a fit that asks for its bytes begin, if they are there; if not, it has to wait without its devices."""
        beginning = self._progress(job)
        if job.spec.memory is not None or progress.is_granted(beginning):
            return
        asked = progress.needs(beginning)
        if len(asked) < (job.size if job.spec.layout == "processes" else 1):
            return
        size = str(job.size)
        host, device = sum(need.host for need in asked.values()), max(need.device for need in asked.values())
        need = {**job.need, "host": {**job.need.get("host", {}), size: host}}
        if device:
            need["device"] = {**job.need.get("device", {}), size: device}
        self._store.change(job, need=need)
        job = self._store.job(job.number)
        others = [other for other in self._store.jobs(ON_DEVICES) if other.number != job.number]
        nodes = self._launcher.capacity()
        if self._crowded(job, job.places, others, nodes):
            self._drain(job, f"it needs {host / 2**30:.2f} GiB of memory, more than the others leave")
        else:
            self._store.note(job.number, "admitted", host=host, device=device)
            progress.grant(beginning)

    def _heed(self) -> None:
        """Looks what jobs hold. Where it is more than there is for them, whoever is furthest beyond its word goes."""
        holding = []
        for job in self._store.jobs(ON_DEVICES):
            if (held := read_held(self._progress(job))) is not None:
                self._held[job.token or ""] = held.most
                holding.append((job, held.now, host_bytes(job, job.size)))
        found = excess(holding, self._launcher.capacity()) if holding else None
        if found is None:
            return
        job, held, counted = found.job, found.held / 2**30, found.counted / 2**30
        if job.state != "draining":
            why = f"it holds {held:.2f} GiB of memory, {counted:.2f} were counted on, and there is no more for jobs"
            self._drain(job, why)
        if found.urgent:
            self._launcher.kill(self._attempt(job), job.handle)

    def _depend(self, job: Job) -> None:
        before = [self._store.job(number) for number in job.spec.after]
        if bad := [other for other in before if other.state in ("failed", "cancelled")]:
            reason = f"job {bad[0].number}, which comes before it, {bad[0].state}"
            self._store.change(job, "cancelled", reason=reason)
        elif all(other.state == "done" for other in before):
            self._store.change(job, "queued", queued=self._clock(), reason="")

    def _plan(self) -> None:
        now, nodes = self._clock(), self._launcher.capacity()
        most = max((len(node.devices) for node in nodes), default=0)
        jobs = {_called(job): job for job in self._store.jobs(("queued", *ON_DEVICES)) if job.asked != "cancel"}
        able = {name: job for name, job in jobs.items() if job.state != "queued" or _is_due(job, now)}
        claims = [self._claim(job, now, most) for job in able.values()]
        fixed = bounded([claim for claim in claims if claim.priority == _FIXED], nodes)
        found = plan([*fixed, *(claim for claim in claims if claim.priority != _FIXED)], nodes, self._rules)
        self._granted = {
            job.number: tuple(found.places.get(name, ()))
            for name, job in able.items()
            if job.state == "draining" or (job.state == "queued" and name in found.places)
        }
        for name, job in able.items():
            size = found.sizes[name]
            if job.state == "running" and set(found.places.get(name, ())) != set(job.places):
                self._granted[job.number] = tuple(found.places.get(name, ()))
                self._drain(job, found.reasons.get(name) or f"{size} devices instead of {job.size}")
        taken = self._store.jobs(ON_DEVICES)
        for name, job in able.items():
            if job.state != "queued":
                continue
            places = tuple(found.places.get(name, ()))
            if places and self._fits(job, places, taken, nodes):
                taken += self._start(job, places)
            else:
                reason = "others are making room for it" if places else found.reasons.get(name, "")
                if reason != job.reason:
                    self._store.change(job, reason=reason)

    def _hand_over(self, queueing: Queueing) -> None:
        """Gives all that may run to the queue of others', and has elastic jobs ask there for what there is now."""
        now = self._clock()
        queued = self._store.jobs(("queued",))
        for job in queued:
            if _is_due(job, now):
                size = queueing.choose(self._attempt(job)._replace(token="", places=()), runs=False)
                self._start(job, tuple(("", i) for i in range(size)))
        held = self._store.jobs(("starting", "running"))
        crowded = bool(queued) or any(job.state == "starting" for job in held)
        for job in held:
            if len(job.spec.legal) == 1 or _passed(job.changed, now) < self._rules.least_run:
                continue
            runs = job.state == "running"
            size = queueing.choose(self._attempt(job), runs=runs)
            if not runs and size < job.size:
                # It waits, so there is nothing to save; it comes back at once, and asks for less.
                self._drain(job, f"asks for {size} devices instead of {job.size}")
            elif runs and not crowded and size > job.size and self._may_be_ended(job):
                self._drain(job, f"grows from {job.size} to {size}")
                return

    def _claim(self, job: Job, now: float, most: int) -> Claim:
        runs = job.state in ("starting", "running")
        # More than a machine has it never gets: "1-1000" says "as many as there are", and is no longer to plan.
        most = max(most, job.spec.legal[0], job.size)
        sizes, priority = tuple(size for size in job.spec.legal if size <= most), job.spec.priority
        if runs and not self._may_be_ended(job):
            sizes, priority = (job.size,), _FIXED
        # Who was given devices counts as on them from then on, so that nobody else is given them meanwhile.
        places = job.places if runs else self._granted.get(job.number, job.places if job.state == "draining" else ())
        waiting = job.waited + (0.0 if job.state != "queued" else max(now - job.queued, 0.0))
        return Claim(
            name=_called(job),
            priority=priority,
            sizes=sizes,
            device_bytes=device_bytes(job, sizes),
            host_bytes={n: self._host_bytes(job, n) for n in sizes},
            speed={n: float(n**_USUAL_SPEED) for n in sizes},
            # A process sees the devices of one machine, and so do those that `llmasos launch` starts.
            together=True,
            user=job.spec.user,
            waiting=waiting,
            size=len(places),
            places=places,
            running=_passed(job.changed, now) if job.state == "running" else 0.0,
        )

    def _host_bytes(self, job: Job, size: int) -> int:
        return host_bytes(job, size, self._held.get(job.token or "", 0) if job.state in ON_DEVICES else 0)

    def _may_be_ended(self, job: Job) -> bool:
        if job.state == "starting":
            return False
        if job.spec.preemptible is not None:
            return job.spec.preemptible
        seen = progress.read(self._progress(job))
        return bool(seen) and all(each.saves for each in seen.values())

    def _fits(self, job: Job, places: tuple[Place, ...], taken: list[Job], nodes: Any) -> bool:
        """Whether these devices, and the memory, are free by now."""
        beside = [other for other in taken if set(other.places) & set(places)]
        if beside and not (self._rules.sharing and together([(job, places), *((o, o.places) for o in beside)], nodes)):
            return False
        return not self._crowded(job, places, taken, nodes)

    def _crowded(self, job: Job, places: tuple[Place, ...], taken: list[Job], nodes: Any) -> bool:
        for node in nodes:
            needed = node_bytes(self._host_bytes(job, len(places)), places, node)
            for other in taken:
                needed += node_bytes(self._host_bytes(other, other.size), other.places, node)
            if needed > node.memory:
                return True
        return False

    def _start(self, job: Job, places: tuple[Place, ...]) -> list[Job]:
        token = new_token()
        # Written down ahead: should this process be killed now, the next one looks whether it was started.
        waited = job.waited + max(self._clock() - job.queued, 0.0)
        before = {"attempt": job.attempt + 1, "token": token, "handle": None, "places": places, "reason": ""}
        before["waited"] = waited
        if not self._store.change(job, "starting", told={"devices": len(places)}, **before):
            return []
        job = self._store.job(job.number)
        try:
            handle = self._launcher.start(self._attempt(job))
        except OSError as error:
            _LOG.error("job %s cannot be started", job.number, exc_info=error)
            self._ended(job, 126)
            return []
        self._store.change(job, None if self._queueing else "running", handle=handle)
        return [self._store.job(job.number)]

    def _drain(self, job: Job, reason: str) -> None:
        if self._store.change(job, "draining", told={"why": reason}, reason=reason):
            self._launcher.drain(self._attempt(job), job.handle)

    def _attempt(self, job: Job) -> Attempt:
        own = device_bytes(job, (len(job.places),)).get(len(job.places)) if self._rules.sharing else None
        return Attempt(job.number, job.token or "", job.spec, job.places, self._home.job(job.number), own)

    def _progress(self, job: Job) -> Any:
        return self._home.job(job.number) / f"{job.token}"


def _is_due(job: Job, now: float) -> bool:
    """Whether it may be started. No pause is that long: where one is, the clock was set back."""
    return job.not_before <= now or job.not_before > now + LONGEST_PAUSE


def _passed(moment: float, now: float) -> float:
    """Seconds since a moment; for ever where it is yet to come, for the clock was set back, and nobody knows."""
    return max(now - moment, 0.0) if moment < now + _SET_SECONDS else math.inf


def _called(job: Job) -> str:
    """What it is called in reasons."""
    return f"{job.number} {job.spec.name}"
