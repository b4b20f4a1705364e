"""Rank 0's side of the ranks' own connections: they meet here, and here it is noticed when one of them fails."""

import contextlib
import dataclasses
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from llmasos_xla.sharding.processes.judge import Judge, Verdict
from llmasos_xla.sharding.processes.preflight import PreflightError, ranks
from llmasos_xla.sharding.processes.wire import Wire, free_port, is_loopback, listen

# Where one fault is known, others that are on their way are waited for, so that all are told at once.
_SETTLE_SECONDS = 3.0
# Between the message that ends the others and the end of rank 0, which JAX's coordination service dies with.
_FAREWELL_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
NEEDED = {"rank", "size", "host", "pid", "run", "clock", "address", "chosen"}
"""What a rank must tell, with the facts of `preflight`."""
_LATE_SECONDS = 60.0


@dataclasses.dataclass(eq=False)
class _Seat:
    """One connection. `facts` is empty until the rank has said who it is."""

    wire: Wire
    asked: float
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    sent: float = 0.0

    @property
    def apart(self) -> bool:
        return not is_loopback(self.wire.there) and self.wire.there != self.wire.here


@final
class Hub:
    """Listens on the coordinator's port, gathers `size` ranks, compares them, and then watches them.

    Args:
        port: where to listen.
        size: how many ranks to wait for.
        run: a name that only ranks of this run know, or "".
        limit: seconds until all ranks must have come.
        heartbeat: seconds without a sign of life after which a rank is given up.
        compare: facts of all ranks -> texts of what keeps them from starting.

    Raises PreflightError if the port is taken.
    """

    def __init__(
        self, port: int, size: int, run: str, limit: float, heartbeat: float, compare: Callable[[Sequence], list[str]]
    ):
        self.token = secrets.token_hex(8)
        self.farewell = threading.Event()
        self._size, self._run_name, self._heartbeat, self._compare = size, run, heartbeat, compare
        self._port = port
        self._begun = time.monotonic()
        self._deadline = self._begun + limit
        self._limit = limit
        try:
            self._door = listen(port)
        except OSError as error:
            raise PreflightError(
                f"rank 0 (host {socket.gethostname()}) cannot listen on port {port}, the coordinator's: "
                f"{error.strerror}. Is another run on it, or was rank 0 started twice? End that, or choose another "
                "port (MASTER_PORT, or initialize(coordinator=...))"
            ) from None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door, selectors.EVENT_READ)
        self._seats: list[_Seat] = []
        self._ranks: dict[int, _Seat] = {}
        self._faults: list[str] = []
        self._stopped = ""
        self._judge: Judge | None = None
        self._told_waiting = False
        self._told_late = 0.0
        self._verdict_at: float | None = None
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="llmasos hub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it, where the ranks have not started."""
        self.farewell.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.farewell.is_set():
            self._turn()
        self.let_go()

    def let_go(self) -> None:
        """Closes what it holds, here and not elsewhere."""
        for end in (self._door, self._selector, *(seat.wire for seat in self._seats)):
            end.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(min(0.5, self._heartbeat / 8)):
            if key.data is None:
                self._accept()
            else:
                self._read(key.data)
        now = time.monotonic()
        if self._judge is None:
            self._gather(now)
        else:
            if now - self._turned > self._heartbeat / 2:
                self._judge.slept(now)
            self._watch(self._judge, now)
        self._turned = now

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._door.accept()
            seat = _Seat(Wire(connection), time.time())
            seat.wire.send(hub=self.token, host=socket.gethostname(), pid=os.getpid())
            self._seats.append(seat)
            self._selector.register(connection, selectors.EVENT_READ, seat)

    def _read(self, seat: _Seat) -> None:
        try:
            messages = seat.wire.receive()
        except (OSError, EOFError, ValueError):
            self._closed(seat)
            return
        for message in messages:
            if message.keys() >= NEEDED and not seat.facts:
                self._join(seat, message)
            elif self._judge is not None and self._sits(seat):
                rank, now = seat.facts["rank"], time.monotonic()
                self._judge.heard(rank, now)
                if "failed" in message:
                    self._judge.failed(rank, str(message["failed"]), bool(message.get("secondhand")), now)
                if "bye" in message:
                    self._judge.ended(rank, now)

    def _sits(self, seat: _Seat) -> bool:
        return bool(seat.facts) and self._ranks.get(seat.facts["rank"]) is seat

    def _join(self, seat: _Seat, facts: dict[str, Any]) -> None:
        middle = (seat.asked + time.time()) / 2
        if self._run_name and facts.get("run") and facts["run"] != self._run_name:
            text = f"port {self._port} of host {socket.gethostname()} belongs to another run; choose another port"
            self._send(seat, stop=text)
            return
        seat.facts = {**facts, "ahead": facts["clock"] - middle, "apart": seat.apart}
        rank, here = facts["rank"], f"{facts['host']}, pid {facts['pid']}"
        if self._stopped:
            self._send(seat, stop=self._stopped)
        elif self._judge is not None:
            taken = self._ranks[min(max(rank, 0), self._size - 1)].facts
            text = (
                f"rank {rank} ({here}) came to a run that has begun with all its {self._size} ranks; rank "
                f"{taken['rank']} is (host {taken['host']}, pid {taken['pid']}). Restart all ranks together, or "
                "choose another port for another run"
            )
            seat.facts = {}
            self._send(seat, stop=text)
        elif facts["size"] != self._size:
            self._fault(
                f"world sizes differ: rank {rank} (host {here}) was told {facts['size']} processes, rank 0 "
                f"{self._size}. Give all ranks the same number"
            )
        elif not 0 <= rank < self._size:
            self._fault(f"rank {rank} (host {here}) is out of range: ranks go from 0 to {self._size - 1}")
        elif rank in self._ranks:
            other = self._ranks[rank].facts
            self._fault(
                f"rank {rank} came twice: from host {other['host']}, pid {other['pid']}, and from host {here}. Each "
                "process needs a number of its own, 0 to size - 1"
            )
        else:
            self._ranks[rank] = seat

    def _fault(self, text: str) -> None:
        self._faults.append(text)
        self._deadline = min(self._deadline, time.monotonic() + _SETTLE_SECONDS)

    def _gather(self, now: float) -> None:
        if self._stopped:
            return
        missing = [rank for rank in range(self._size) if rank not in self._ranks]
        if missing and now < self._deadline:
            if not self._told_waiting and now - self._begun > _PATIENCE_SECONDS:
                self._told_waiting = True
                self._say(f"rank 0 waits for {_numbers(missing)}, {self._deadline - now:.0f} s more")
            return
        if missing and not self._faults:
            present = [self._ranks[rank].facts for rank in sorted(self._ranks)]
            self._faults.append(
                f"{_numbers(missing)} of {self._size} did not come within {self._limit:g} s; here "
                f"{'is' if len(present) == 1 else 'are'} {ranks(present) or 'nobody'}. Look at what the missing "
                "ranks print; LLMASOS_START_SECONDS sets the limit"
            )
        if not missing:
            self._place()
            self._faults += self._compare([self._ranks[rank].facts for rank in range(self._size)])
        service = None
        if not self._faults:
            # One of the next, so that a firewall can be told which.
            service = free_port(self._port + 1)
            if service is None:
                self._faults.append(f"rank 0 finds no free port behind {self._port} for JAX's coordination service")
        if self._faults:
            self._stopped = "the ranks cannot start together:\n" + "\n".join(f"  - {text}" for text in self._faults)
            for seat in self._seats:
                if seat.facts:
                    self._send(seat, stop=self._stopped)
            return
        self._judge = Judge(self._size, self._heartbeat, now)
        for seat in self._ranks.values():
            go = {name: seat.facts[name] for name in ("address", "local_rank", "local_size")}
            self._send(seat, go=go | {"service_port": service, "heartbeat": self._heartbeat})

    def _place(self) -> None:
        """Adds to the facts where each rank is to be found, and its number among those of its host."""
        seats = [self._ranks[rank] for rank in range(self._size)]
        mine = next((seat.wire.here for seat in seats if seat.apart), None)
        hosts: dict[str, list[_Seat]] = {}
        for seat in seats:
            if mine and not seat.apart and not seat.facts["chosen"]:
                # It came by loopback: its host is rank 0's.
                seat.facts["address"] = mine
            hosts.setdefault(seat.wire.there if seat.apart else "", []).append(seat)
        for together in hosts.values():
            for number, seat in enumerate(together):
                seat.facts |= {"local_rank": number, "local_size": len(together)}

    def _closed(self, seat: _Seat) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(seat.wire.socket)
        seat.wire.close()
        self._seats.remove(seat)
        if not self._sits(seat):
            return
        facts = seat.facts
        if self._judge is not None:
            self._judge.closed(facts["rank"], time.monotonic())
        else:
            del self._ranks[facts["rank"]]
            self._fault(f"rank {facts['rank']} (host {facts['host']}, pid {facts['pid']}) left before the start")

    def _watch(self, judge: Judge, now: float) -> None:
        if self._verdict_at is not None:
            others = [seat for seat in self._ranks.values() if seat in self._seats and seat.facts["rank"] != 0]
            if not others or now > self._verdict_at + _FAREWELL_SECONDS:
                self.farewell.set()
            return
        if judge.all_ended:
            for seat in self._ranks.values():
                self._send(seat, ended=True)
            self.farewell.set()
            return
        verdict = judge.verdict(now)
        if verdict is not None:
            self._tell(verdict, now)
        self._remind(judge, now)
        for seat in self._ranks.values():
            if seat in self._seats and now - seat.sent > self._heartbeat / 4:
                seat.sent = now
                self._send(seat, alive=True)

    def _tell(self, verdict: Verdict, now: float) -> None:
        self._verdict_at = now
        facts = self._ranks[verdict.rank].facts
        for seat in self._ranks.values():
            self._send(seat, verdict=verdict.reason, rank=verdict.rank, host=facts["host"], pid=facts["pid"])

    def _remind(self, judge: Judge, now: float) -> None:
        """A rank that has ended waits for the others; should they wait for it, nothing else would be said."""
        ended, others, first = judge.waiting()
        if ended and now - max(first, self._told_late) > _LATE_SECONDS:
            self._told_late = now
            self._say(
                f"{_numbers(ended)} ended {now - first:.0f} s ago, {_numbers(others)} still "
                f"{'runs' if len(others) == 1 else 'run'}. Should they wait for each other in a collective, not all "
                "ranks take the same number of steps, or a call for all of them (fit, evaluate, predict, save) is made "
                "by some alone"
            )

    def _send(self, seat: _Seat, **message: Any) -> None:
        # A rank that is gone is found by its closed connection or by its silence.
        with contextlib.suppress(OSError):
            seat.wire.send(**message)

    def _say(self, text: str) -> None:
        print(f"llmasos: {text}", file=sys.stderr, flush=True)


def _numbers(numbers: list[int]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
