"""Jobs on the machines of a Ray cluster, one or many. https://docs.ray.io/en/latest/ray-core/

The planner says who gets what; Ray says which machines there are, and keeps others of the cluster out of what a job
has. An attempt is a placement group, pinned to the node that the planner chose, and in it a detached actor that starts
the keeper there. Both have the attempt's token for a name, so that an engine that comes later finds them. The keeper
ends with its actor, and the actor with its node; when the keeper has ended the actor takes the group away, whether an
engine is there or not. Nothing is tried again by Ray: that is the supervisor's.

The folder of the queue has to be the same one on all nodes, on a file system whose locks hold across machines (NFS 4):
jobs have their checkpoints there, the keeper's lock says whether anything of an attempt still runs, and the engine's
lock whether somebody is there. Each node is asked whether it sees the engine's lock held; others are not used.
"""

import asyncio
import contextlib
import importlib
import json
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from llmasos_xla import errors
from llmasos_xla.runtime.claims import Node
from llmasos_xla.runtime.home import Home
from llmasos_xla.runtime.launchers.local import ALONE_SECONDS, command_of, exit_status, given_up, variables, write_order
from llmasos_xla.runtime.launchers.protocol import Attempt
from llmasos_xla.sharding.processes.launch import package_path

_LOG = logging.getLogger("llmasos_xla.runtime")
_NAMESPACE = "llmasos"
_NODE_ID = "ray.io/node-id"
_LOOK_SECONDS = 0.5
_SEEN_SECONDS = 20.0
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # Tries to reach a cluster, of seconds each.
    "RAY_NUM_REDIS_GET_RETRIES": "5",
}
_REACH_SECONDS = 5.0
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class _Machine(NamedTuple):
    """A node of the cluster."""

    id: str
    node: Node


@final
class Ray:
    """The machines of a cluster: their GPUs, or a slot for each of their CPUs, as Ray counts them.

    It is GPUs for good if one is there at the beginning: jobs of a machine that is lost do not go on to others' CPUs.

    Args:
        home: where jobs have their folders; on all nodes.
        address: of the cluster; "auto" for the one that runs on this machine.
        alone: seconds without an engine after which a job saves and ends.

    Raises ImportError without Ray, ConnectionError if there is no cluster.
    """

    def __init__(self, home: Home, address: str = "auto", *, alone: float = ALONE_SECONDS):
        self._home, self._alone = home, alone
        self._ray = _connected(address)
        self._ask, self._keeper = _of_nodes(self._ray)
        self._kind = "GPU" if self._ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
        self._alive: dict[str, _Machine] = {}
        self._looked = -_LOOK_SECONDS
        # What nodes have answered, None those that may not be used; and what they are still to answer.
        self._cpus: dict[str, list[list[int]] | None] = {}
        self._asked: dict[str, Any] = {}
        self._ends: dict[str, Any] = {}
        self._sweeps: dict[str, Any] = {}
        deadline = time.monotonic() + _SEEN_SECONDS
        while self._look() or (self._alive.keys() - self._cpus and time.monotonic() < deadline):
            time.sleep(0.05)

    def capacity(self) -> Sequence[Node]:
        """As `Launcher` has it: nodes that are there and share the folder."""
        self._look()
        return tuple(machine.node for name, machine in self._alive.items() if self._cpus.get(name))

    def start(self, attempt: Attempt) -> str:
        """As `Launcher` has it. What others of the cluster have at the moment the attempt waits for, within Ray."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name, machine = self._machine(attempt)
        cpus = self._cpus.get(name)
        if machine is None or cpus is None:
            raise OSError(f"ray: node {name} is gone")
        gpus = self._kind == "GPU"
        write_order(
            attempt,
            command_of(attempt),
            # Which GPUs they are Ray says, there.
            variables(attempt, self._home, [] if gpus else None),
            cpus=() if gpus else {cpu for _, slot in attempt.places for cpu in cpus[slot]},
            engine=self._home.lock,
            alone=self._alone,
            gpus=gpus,
        )
        count = len(attempt.places)
        try:
            group = placement_group(
                [{self._kind: count}],
                name=attempt.token,
                lifetime="detached",
                bundle_label_selector=[{_NODE_ID: machine.id}],
            )
            actor = self._keeper.options(
                name=attempt.token,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                num_cpus=0 if gpus else count,
                num_gpus=count if gpus else 0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            ).remote(str(attempt.folder), attempt.token, package_path())
            self._ends[attempt.token] = actor.wait.remote()
        except self._ray.exceptions.RayError as error:
            raise OSError(f"ray: {error}") from error
        return json.dumps({"node": machine.id})

    def drain(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it."""
        if (attempt.folder / f"{attempt.token}.keeper").exists():
            with contextlib.suppress(ValueError):
                self._ray.get_actor(attempt.token).drain.remote()
        else:
            # It may wait for resources that others have, and has nothing to save.
            self.kill(attempt, handle)

    def kill(self, attempt: Attempt, handle: str | None) -> None:
        """As `Launcher` has it: the keeper ends with its actor, and all that it has started with it."""
        with contextlib.suppress(ValueError):
            self._ray.kill(self._ray.get_actor(attempt.token), no_restart=True)

    def poll(self, attempt: Attempt, handle: str | None) -> int | None:
        """As `Launcher` has it. A node is lost when Ray says so, and an attempt on it when its lock is free, too."""
        status = exit_status(attempt)
        if status is None:
            self._look()
            _, machine = self._machine(attempt)
            if machine is not None and (self._runs(attempt) or not self._swept(attempt, machine)):
                return None
            status = given_up(attempt)
        if status is not None:
            self._forget(attempt)
        return status

    def _look(self) -> bool:
        """Which machines there are; whether it was asked again."""
        if time.monotonic() < self._looked + _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        found = [_machine(node, self._kind) for node in self._ray.nodes() if node["Alive"]]
        self._alive = {machine.node.name: machine for machine in found if machine.node.devices}
        for name, machine in self._alive.items():
            if name not in self._cpus and name not in self._asked:
                see = ["see", str(self._home.lock), str(len(machine.node.devices))]
                self._asked[name] = self._at(machine, see)
        for name, answer in list(self._asked.items()):
            if self._ray.wait([answer], timeout=0)[0]:
                del self._asked[name]
                try:
                    self._cpus[name] = self._answered(name, *self._ray.get(answer))
                except self._ray.exceptions.TaskUnschedulableError:
                    # Ray itself may not know of a node yet that has just come: it is asked again at the next look.
                    pass
                except self._ray.exceptions.RayError as error:
                    _LOG.warning("node %s has not answered, and is asked again: %s", name, error)
        return True

    def _answered(self, name: str, status: int, out: str, err: str) -> list[list[int]] | None:
        """The CPUs of each of a node's slots; None, and the reason in the log, if it cannot be used."""
        if status:
            _LOG.warning("node %s is not used: this package does not run there:\n%s", name, err[-2000:])
            return None
        told = json.loads(out)
        if not told["held"]:
            _LOG.warning(
                "node %s is not used: it does not see the lock of %s; put the queue's folder (LLMASOS_HOME) on a file "
                "system that all nodes share, with locks (NFS 4)", name, self._home.path,
            )  # fmt: skip
            return None
        return told["cpus"]

    def _at(self, machine: _Machine, arguments: Sequence[str]) -> Any:
        """Starts `ray_node` on a node; what it will answer."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(machine.id, soft=False)
        module = "llmasos_xla.runtime.launchers.ray_node"
        asking = self._ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        return asking.remote([module, *arguments], package_path())

    def _machine(self, attempt: Attempt) -> tuple[str, _Machine | None]:
        """The node of an attempt; None if it is gone."""
        names = {name for name, _ in attempt.places}
        if len(names) != 1:
            raise OSError(f"ray: an attempt is on one node, {len(names)} came")
        name = names.pop()
        return name, self._alive.get(name)

    def _runs(self, attempt: Attempt) -> bool:
        """Whether its actor is there, or is still to come."""
        if attempt.token not in self._ends:
            try:
                self._ends[attempt.token] = self._ray.get_actor(attempt.token).wait.remote()
            except ValueError:
                return False
        return not self._ray.wait([self._ends[attempt.token]], timeout=0)[0]

    def _swept(self, attempt: Attempt, machine: _Machine) -> bool:
        """Whether all that its keeper, should it have been killed, left on its node is ended."""
        if attempt.token not in self._sweeps:
            self._sweeps[attempt.token] = self._at(machine, ["sweep", attempt.token])
        if not self._ray.wait([self._sweeps[attempt.token]], timeout=0)[0]:
            return False
        try:
            if not self._ray.get(self._sweeps[attempt.token])[0]:
                return True
        except self._ray.exceptions.RayError:
            _LOG.warning("attempt %s is not swept up yet", attempt.token, exc_info=True)
        # Again, as long as the node is there.
        del self._sweeps[attempt.token]
        return False

    def _forget(self, attempt: Attempt) -> None:
        from ray.util.placement_group import get_placement_group, remove_placement_group

        self._ends.pop(attempt.token, None)
        self._sweeps.pop(attempt.token, None)
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(attempt.token))


def _connected(address: str) -> Any:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" not in os.environ and (
        any(name in os.environ for name in _TOKENS) or (pathlib.Path.home() / ".ray/auth_token").is_file()
    ):
        # As `ray start` decides it; a driver by itself does not.
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray

        for part in ("placement_group", "scheduling_strategies"):
            importlib.import_module(f"ray.util.{part}")
    except ImportError:
        raise errors.missing_package("up: --ray", "Ray", "ray") from None
    # Ray puts its own in their places.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if address != "auto":
            _reach(address)
        # pyright takes this file for Ray.
        start = ray.init  # pyright: ignore[reportAttributeAccessIssue]
        start(address, namespace=_NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except OSError as error:
        raise ConnectionError(
            f"up: there is no Ray cluster at {address!r} ({error}); start one with `ray start --head`, and look at "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN if it wants a token"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ray


def _reach(address: str) -> None:
    """Raises OSError if nobody listens there, sooner than Ray does."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise ConnectionError("an address is HOST:PORT, or auto")
    socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()


def _machine(found: Mapping[str, Any], kind: str) -> _Machine:
    resources = found["Resources"]
    # Ray has no numbers for its devices; ours are 0, 1, ...
    devices = (0,) * int(resources.get(kind, 0))
    name = f"{found['NodeManagerHostname']}-{found['NodeID'][:8]}"
    return _Machine(found["NodeID"], Node(name, devices, int(resources.get("memory", 0))))


def _of_nodes(ray: Any) -> tuple[Any, Any]:
    """What is run on nodes: a function and an actor.

    Within this function, and with nothing of this package in them, so that Ray sends the code itself: a worker of Ray's
    need not find the package, only a Python that it starts with `path` in its environment.
    """

    def ask(module: list[str], path: dict[str, str]) -> tuple[int, str, str]:
        command = [sys.executable, "-P", "-m", *module]
        done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    class Keeper:
        """Starts the keeper of an attempt, tells it when to end, and is gone when it is."""

        def __init__(self, folder: str, token: str, path: dict[str, str]):
            told = pathlib.Path(folder, f"{token}.order")
            order = json.loads(told.read_text())
            order["watched"] = {"pid": os.getpid(), "born": self._stat(os.getpid())[19]}
            if order["gpus"]:
                order["environment"]["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
            beside = told.with_name(told.name + ".new")
            beside.write_text(json.dumps(order))
            beside.rename(told)
            # By way of a shell, so that it is not this process's child: Ray kills those first, and a keeper that is
            # killed cannot end what it has started.
            module = "llmasos_xla.runtime.launchers.keeper"
            keeper = [sys.executable, "-P", "-m", module, folder, token]
            started = subprocess.run(
                ["/bin/sh", "-c", '"$0" "$@" </dev/null >>"$LLMASOS_LOG" 2>&1 & echo $!', *keeper],
                env={**os.environ, **path, "LLMASOS_LOG": f"{folder}/keeper.log"},
                start_new_session=True,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            self._pid = int(started.stdout)
            self._born = self._stat(self._pid)[19:20]
            threading.Thread(target=self._leave, daemon=True).start()

        @staticmethod
        def _stat(pid: int) -> list[str]:
            try:
                return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                return []

        def _lives(self) -> bool:
            found = self._stat(self._pid)
            return bool(found) and found[0] != "Z" and found[19:20] == self._born

        def _leave(self) -> None:
            while self._lives():
                time.sleep(0.05)
            group = ray.util.get_current_placement_group()
            # Which ends this process, too.
            ray.util.remove_placement_group(group)

        async def drain(self) -> None:
            if self._lives():
                os.kill(self._pid, signal.SIGTERM)

        async def wait(self) -> None:
            while self._lives():
                await asyncio.sleep(0.05)

    return ray.remote(ask), ray.remote(Keeper)
