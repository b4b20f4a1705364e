"""Times the server beside others that serve the same network, and updates it under load.

make .peers-serving/.installed                                           # FastAPI, LitServe and Ray Serve, with torch
python benchmarks/serving.py --peers-python .peers-serving/bin/python    # throughput and latency: some minutes
python benchmarks/serving.py --parts updates overload                   # a thousand updates; more load than it can take
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import machine, report
from side_by_side.serving.family import Family, adopt_orphans, reap

_HERE = Path(__file__).resolve().parent / "side_by_side" / "serving"
_RESULTS = Path(__file__).resolve().parent / "results"
SERVERS = {
    "ours": ("ours.py", "/v2/models/digits/infer", False),
    "fastapi": ("fastapi_torch.py", "/predict", True),
    "litserve": ("litserve_torch.py", "/predict", True),
    "ray": ("ray_torch.py", "/predict", True),
}
CLIENTS = (1, 8, 64)
_ALLOWED = 1e-4


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    about = {**machine.describe(), "rounds": options.rounds, "workers_and_threads_of_peers": options.settings}
    found: dict[str, Any] = {"about": about}
    with tempfile.TemporaryDirectory() as folder, machine.Others(os.getpid(), children=True) as others:
        if "peers" in options.parts:
            found["peers"] = _peers(options, Path(folder))
        if "updates" in options.parts:
            found["updates"] = _updates(options, Path(folder))
        if "overload" in options.parts:
            found["overload"] = _overload(options, Path(folder))
        reap()
    about["cores_used_by_others"] = round(others.cores, 2)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(_text(found))


def _peers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of requests by server and number of clients, a list a round; and those of the bare call."""
    weights, picture, wanted = _network(folder)
    latencies: dict[str, Any] = {name: {clients: [] for clients in CLIENTS} for name in options.servers}
    rates: dict[str, Any] = {name: {clients: [] for clients in CLIENTS} for name in options.servers}
    failed, bare, call = {}, [], _compiled(weights)
    with _running(options, weights) as servers:
        for name, server in list(servers.items()):
            problem = server.check(picture, wanted)
            if problem:
                failed[name] = problem
                _say(f"{name}: {problem}")
            server.family.signal(signal.SIGSTOP)
        right = [name for name in servers if name not in failed]
        for turn in range(options.rounds):
            bare.append(_bare(call, picture))
            for name in right[turn % len(right) :] + right[: turn % len(right)] if right else ():
                with servers[name].awake():
                    for clients in CLIENTS:
                        load(servers[name].plan(picture, clients, 0.5))
                        seen = load(servers[name].plan(picture, clients, options.seconds))
                        if set(seen["statuses"]) != {"200"}:
                            failed[name] = f"answers {seen['statuses']}"
                        latencies[name][clients].append(np.quantile(seen["latencies"], (0.5, 0.99)).tolist())
                        rates[name][clients].append(len(seen["latencies"]) / options.seconds)
                        _say(f"{name} {clients}: {rates[name][clients][-1]:.0f}/s {latencies[name][clients][-1]}")
    return {"latencies": latencies, "rates": rates, "bare": bare, "failed": failed}


def _network(folder: Path) -> tuple[Path, list[int], list[float]]:
    """Weights for everybody, a picture, and its probabilities."""
    rng = np.random.default_rng(0)
    weights = {
        "conv2d/kernel": rng.normal(size=(3, 3, 1, 32)) / 3,
        "conv2d/bias": rng.normal(size=32) / 10,
        "dense/kernel": rng.normal(size=(13 * 13 * 32, 128)) / 50,
        "dense/bias": rng.normal(size=128) / 10,
        "dense_1/kernel": rng.normal(size=(128, 10)) / 10,
        "dense_1/bias": rng.normal(size=10) / 10,
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    path = folder / "weights.npz"
    np.savez(path, **weights)
    picture = rng.integers(0, 256, 784).tolist()
    x = np.array(picture, np.float64).reshape(28, 28) / 255
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))
    y = np.maximum(np.einsum("hwij,ijc->hwc", windows, weights["conv2d/kernel"][:, :, 0]) + weights["conv2d/bias"], 0)
    y = y.reshape(13, 2, 13, 2, 32).max((1, 3)).reshape(-1)
    y = np.maximum(y @ weights["dense/kernel"] + weights["dense/bias"], 0) @ weights["dense_1/kernel"]
    y = np.exp(y + weights["dense_1/bias"])
    return path, picture, (y / y.sum()).tolist()


class Server:
    """A server process of one of the contestants."""

    def __init__(self, name: str, python: str, weights: Path, settings: Sequence[int]):
        file, self.path, _ = SERVERS[name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name = name
        self._process = subprocess.Popen(
            [python, str(_HERE / "servers" / file), str(self.port), str(weights), *map(str, settings)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(_HERE / "servers") if SERVERS[name][2] else str(_HERE.parents[2])},
        )
        self.family = Family(self._process.pid)

    def body(self, picture: list[int]) -> dict[str, Any]:
        """The request about a picture, in the server's own form."""
        if self.name != "ours":
            return {"data": picture}
        entry = {"name": "input", "shape": [1, 28, 28], "datatype": "UINT8", "data": picture}
        return {"inputs": [entry], "outputs": [{"name": "output"}]}

    def check(self, picture: list[int], wanted: list[float], patience: float = 90.0) -> str | None:
        """None once it answers rightly, or what is wrong."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{self.path}",
            json.dumps(self.body(picture)).encode(),
            {"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    found = json.load(answer)
                break
            except OSError as error:
                if self._process.poll() is not None:
                    return f"it ended with status {self._process.poll()}"
                if time.monotonic() > deadline:
                    return f"no answer: {error}"
                time.sleep(0.2)
        values = found["outputs"][0]["data"] if self.name == "ours" else found["output"]
        difference = float(np.abs(np.array(values) - wanted).max())
        return None if difference <= _ALLOWED else f"wrong by {difference:.2g}"

    def plan(self, picture: list[int], clients: int, seconds: float, **more: Any) -> dict[str, Any]:
        """What the client is to do."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "path": self.path,
            "headers": {"Content-Type": "application/json"},
            "body": json.dumps(self.body(picture), separators=(",", ":")),
            "clients": clients,
            "seconds": seconds,
            **more,
        }

    @contextmanager
    def awake(self) -> Iterator[None]:
        """It runs while `with` lasts; those that wait are frozen, so that they cost nobody anything."""
        self.family.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.family.signal(signal.SIGSTOP)

    def end(self) -> None:
        """Ends it with all that it started."""
        self.family.end()
        self._process.wait()


@contextmanager
def _running(options: argparse.Namespace, weights: Path) -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    try:
        for name in options.servers:
            python = options.peers_python if SERVERS[name][2] else sys.executable
            if python is None:
                _say(f"{name}: no --peers-python, left out")
                continue
            servers[name] = Server(name, python, weights, options.settings if SERVERS[name][2] else ())
        yield servers
    finally:
        for server in servers.values():
            server.end()


def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Runs a plan in a client process."""
    done = subprocess.run(
        [sys.executable, str(_HERE / "client.py")], input=json.dumps(plan), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _compiled(weights: Path) -> Any:
    """Our network, compiled, with no server around it."""
    sys.path.insert(0, str(_HERE / "servers"))
    from ours import model

    from llmasos_xla.deployment.served import Served

    return Served.of_model(model(str(weights)), "digits")


def _bare(call: Any, picture: list[int]) -> float:
    """The median seconds of the compiled call alone, from a NumPy array to a NumPy array."""
    x = {"input": np.array(picture, np.uint8).reshape(1, 28, 28, 1)}
    seconds = []
    for _ in range(2000):
        began = time.perf_counter()
        call.run(x)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _updates(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Updates under a steady load, with the same load without them before and after; and weights of 100 MB."""
    import llmasos_xla as lm
    from llmasos_xla.api.exporting import export_net

    def variables(value: int, width: int = 64) -> lm.Variables:
        return lm.Variables({"w": np.full((width, 4), float(value), np.float32)}, {})

    def net(weights: lm.Variables, x: Any) -> Any:
        return x["x"] @ weights.params["w"]

    row = np.full((1, 64), 1 / 64, np.float32)
    path = export_net(net, variables(1), folder / "w.lmx", example={"x": row})
    entry = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row[0].tolist()}
    with lm.Deployer(path).deploy(name="w", warm=(1, 2, 4, 8, 16)) as server:
        plan = {
            "host": "127.0.0.1",
            "port": server.port,
            "path": "/v2/models/w/infer",
            "headers": {"Content-Type": "application/json"},
            "body": json.dumps({"inputs": [entry]}),
            "clients": 8,
            "rate": options.rate,
            "seconds": options.seconds * 5,
            "versions": True,
        }
        load({**plan, "seconds": 1.0})
        programs = server.stats()["programs"]
        rounds, version, seconds = [], 1, []
        for turn in range(options.rounds):
            # Who is first changes, so that a machine that slows down counts for neither.
            quiet = load(plan) if turn % 2 == 0 else None
            client = subprocess.Popen(
                [sys.executable, str(_HERE / "client.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(json.dumps(plan))
            client.stdin.close()
            began, count = time.perf_counter(), options.updates // options.rounds
            for i in range(count):
                version += 1
                asked = time.perf_counter()
                assert server.update(variables(version))["version"] == str(version)
                seconds.append(time.perf_counter() - asked)
                time.sleep(max(0.0, began + (i + 1) * plan["seconds"] * 0.95 / count - time.perf_counter()))
            busy = json.loads(client.stdout.read())
            client.wait()
            quiet = quiet or load(plan)
            rounds.append({"without": _figures(quiet), "with": _figures(busy)})
        after = server.stats()
    wide = 6_250_000
    large = export_net(
        lambda weights, x: x["x"] + weights.params["w"][:1, :1] * 0 + weights.params["w"][0, 0],
        variables(1, wide),
        folder / "large.lmx",
        example={"x": np.zeros((1, 1), np.float32)},
    )
    shown = []
    with lm.Deployer(large).deploy(name="large") as server:
        for value in range(2, 9):
            weights = variables(value, wide)
            asked = time.perf_counter()
            server.update(weights)
            assert np.asarray(server.predict({"x": np.zeros((1, 1), np.float32)})).item() == value
            shown.append(time.perf_counter() - asked)
    return {
        "updates": version - 1,
        "seconds": seconds,
        "rounds": rounds,
        "compiled": after["programs"] - programs,
        "failures": after["failures"],
        "visible_100MB": shown,
    }


def _figures(seen: dict[str, Any]) -> dict[str, Any]:
    p50, p99 = np.quantile(seen["latencies"], (0.5, 0.99))
    return {
        "p50": p50,
        "p99": p99,
        "statuses": seen["statuses"],
        "versions": len(seen["versions"]),
        "wrong": len(seen["wrong"]),
    }


def _overload(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """More clients than may wait, for a minute: memory, refusals, latencies of what was accepted."""
    weights, picture, wanted = _network(folder)
    server = Server("ours", sys.executable, weights, ())
    try:
        problem = server.check(picture, wanted)
        if problem:
            raise RuntimeError(problem)
        most = load(server.plan(picture, 64, options.seconds))
        client = subprocess.Popen(
            [sys.executable, str(_HERE / "client.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps(server.plan(picture, 600, options.overload, pause=0.05)))
        client.stdin.close()
        memory = []
        deadline = time.monotonic() + options.overload - 2
        while time.monotonic() < deadline:
            memory.append(server.family.memory)
            time.sleep(1)
        seen = json.loads(client.stdout.read())
        client.wait()
    finally:
        server.end()
    ended = np.array(seen["ended"])
    latencies = np.array(seen["latencies"])[np.argsort(ended)]
    parts = np.array_split(latencies, 6)
    return {
        "capacity": len(most["latencies"]) / options.seconds,
        "statuses": seen["statuses"],
        "memory": memory,
        "p99": [float(np.quantile(part, 0.99)) for part in parts],
        "p50": [float(np.quantile(part, 0.5)) for part in parts],
    }


def _text(found: dict[str, Any]) -> str:
    about, busy = found["about"], found["about"]["cores_used_by_others"]
    verdict = "quiet machine" if report.quiet(busy) else "PROVISIONAL, the machine was shared"
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['date']}",
        f"{about['rounds']} rounds; other processes kept {busy:.1f} cores busy: {verdict}",
        "",
    ]
    if peers := found.get("peers"):
        bare, (workers, threads) = statistics.median(peers["bare"]), about["workers_and_threads_of_peers"]
        lines += [
            f"The bare compiled call: {1e3 * bare:.3f} ms; peers have {workers} workers of {threads} threads",
            "",
            report.cells("server", "clients", "requests/s", "p50 ms", "p99 ms", "p50 - bare ms"),
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, rows in peers["latencies"].items():
            for clients, turns in rows.items():
                if not turns:
                    lines.append(report.cells(name, str(clients), peers["failed"].get(name, "left out"), "", "", ""))
                    continue
                p50, p99 = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
                rate = statistics.median(peers["rates"][name][clients])
                lines.append(
                    report.cells(name, str(clients), f"{rate:.0f}", *(f"{1e3 * v:.3f}" for v in (p50, p99, p50 - bare)))
                )
        lines.append("")
    if updates := found.get("updates"):
        ratios = [turn["with"]["p99"] / turn["without"]["p99"] for turn in updates["rounds"]]
        statuses = sorted({status for turn in updates["rounds"] for status in turn["with"]["statuses"]})
        lines += [
            f"{updates['updates']} updates under load: answers {', '.join(statuses)}, {updates['failures']} failures, "
            f"{sum(turn['with']['wrong'] for turn in updates['rounds'])} wrong, {updates['compiled']} compiled",
            f"p99 with / without: median {statistics.median(ratios):.2f} of {', '.join(f'{r:.2f}' for r in ratios)}",
            f"an update: median {1e3 * statistics.median(updates['seconds']):.1f} ms",
            f"100 MB visible after: median {1e3 * statistics.median(updates['visible_100MB']):.0f} ms, "
            f"longest {1e3 * max(updates['visible_100MB']):.0f} ms",
            "",
        ]
    if over := found.get("overload"):
        memory = [m / 1e6 for m in over["memory"]]
        lines += [
            f"Overload: {over['capacity']:.0f} requests/s at 64 clients; 600 clients: {over['statuses']}",
            f"memory MB: first {memory[1]:.0f}, last {memory[-1]:.0f}, most {max(memory):.0f}",
            f"p50 ms by sixth of the time: {', '.join(f'{1e3 * v:.0f}' for v in over['p50'])}; "
            f"p99 ms: {', '.join(f'{1e3 * v:.0f}' for v in over['p99'])}",
        ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("peers", "updates", "overload"), default=["peers"])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--peers-python", help="a Python that has torch, fastapi, litserve and ray[serve]")
    parser.add_argument(
        "--settings",
        nargs=2,
        type=int,
        metavar=("WORKERS", "THREADS"),
        default=[len(os.sched_getaffinity(0)), 1],
        help="processes of each peer that compute, and threads of each; all cores with one thread if not said",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="that a round measures each load")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second while it is updated")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--overload", type=float, default=60.0, metavar="S", help="how long there is too much load")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=_RESULTS / f"serving-{machine.slug()}.json",
        help="also write all figures to this file; without a name: benchmarks/results/serving-<cpu>.json",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
