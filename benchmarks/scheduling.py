"""The planner in simulation: traces of jobs beside FIFO and backfill, which give fixed sizes and preempt nobody.

python benchmarks/scheduling.py                        # 1, 8 and 512 nodes, 5 traces of 200 jobs each: some minutes
python benchmarks/scheduling.py --quick                # one node, one short trace: does it work?
python benchmarks/scheduling.py --nodes 8 --seeds 20 --out scheduling.json

Nodes have 8 devices. Jobs, time limits and costs are those of `llmasos_xla/runtime/workload.py` and `simulation.py`;
all schedulers get the same traces. Figures are simulated, but for the seconds of a plan.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import machine
from side_by_side.report import cells

from llmasos_xla.runtime.backfill import easy, fifo, slurm
from llmasos_xla.runtime.claims import Node, Rules
from llmasos_xla.runtime.simulation import Costs, Decision, Outcome, by_plan, by_scheduler, simulate
from llmasos_xla.runtime.workload import CLASSES, workload

_DEVICES = 8
_RULES = Rules()
_COSTS = Costs()


def contestants(nodes: int) -> dict[str, tuple[Decision, float]]:
    """Who decides, and after how many seconds without a change it has to be asked again."""
    devices = nodes * _DEVICES
    machines = [Node(f"node{i:03}", (0,) * _DEVICES, 0) for i in range(nodes)]
    return {
        "FIFO": (by_scheduler(fifo, devices, _COSTS, priorities=False), 0.0),
        "backfill, EASY": (by_scheduler(easy, devices, _COSTS, aging=_RULES.aging), 0.0),
        "backfill, Slurm": (by_scheduler(slurm, devices, _COSTS, aging=_RULES.aging), 0.0),
        "planner, fixed sizes": (by_plan(machines, _RULES, elastic=False), _RULES.least_run),
        "planner": (by_plan(machines, _RULES), _RULES.least_run),
    }


def main() -> None:
    options = _options()
    found: dict[str, Any] = {"machine": machine.describe(), "rules": dataclasses.asdict(_RULES)}
    found |= {"costs": dataclasses.asdict(_COSTS), "jobs": options.jobs, "seeds": options.seeds, "nodes": {}}
    for nodes in options.nodes:
        devices = nodes * _DEVICES
        traces = [workload(options.jobs, devices, seed=1000 * nodes + seed) for seed in range(options.seeds)]
        rows = {}
        for name, (decide, frozen) in contestants(nodes).items():
            print(f"{nodes} nodes: {name}", file=sys.stderr, flush=True)
            seconds: list[float] = []
            timed = _timed(decide, seconds)
            rows[name] = figures([simulate(jobs, devices, timed, _COSTS, frozen=frozen) for jobs in traces], seconds)
        found["nodes"][nodes] = rows
        print(table(nodes, rows), end="\n\n", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _timed(decide: Decision, seconds: list[float]) -> Decision:
    def timed(now: float, jobs: Any) -> Any:
        began = time.perf_counter()
        decided = decide(now, jobs)
        seconds.append(time.perf_counter() - began)
        return decided

    return timed


def figures(outcomes: list[Outcome], seconds: list[float]) -> dict[str, Any]:
    """Over all traces: means of what is of a trace, and waiting minutes of all jobs of a class together."""
    fates = [fate for outcome in outcomes for fate in outcome.fates]
    waits: dict[int, dict[str, float]] = {}
    for priority in CLASSES:
        minutes = sorted(fate.waited / 60 for fate in fates if fate.job.priority == priority) or [0.0]
        p95 = minutes[int(0.95 * (len(minutes) - 1))]
        waits[priority] = {"mean": statistics.mean(minutes), "median": statistics.median(minutes), "p95": p95}

    def mean(of: Callable[[Outcome], float]) -> float:
        return statistics.mean(of(outcome) for outcome in outcomes)

    return {
        "utilization": mean(lambda one: one.utilization),
        "makespan_hours": mean(lambda one: one.makespan) / 3600,
        "waited_minutes": waits,
        "turnaround_minutes": statistics.mean(fate.took / 60 for fate in fates),
        "preemptions": mean(lambda one: sum(fate.preempted for fate in one.fates)),
        "resizes": mean(lambda one: sum(fate.resized for fate in one.fates)),
        "decision_seconds": {"mean": statistics.mean(seconds), "most": max(seconds)},
    }


def table(nodes: int, rows: dict[str, dict[str, Any]]) -> str:
    """The rows of one size of cluster, in Markdown."""
    classes = [f"waits, priority {priority}" for priority in CLASSES]
    head = [f"{nodes} node{'s' * (nodes > 1)}", "busy", "makespan", *classes, "turnaround", "preempted", "resized"]
    lines = [cells(*head), "|---|" + "---:|" * (len(head) - 1)]
    for name, row in rows.items():
        waits = [" / ".join(f"{value:.0f}" for value in one.values()) for one in row["waited_minutes"].values()]
        first = [name, f"{row['utilization']:.1%}".replace("%", " %"), f"{row['makespan_hours']:.1f} h"]
        last = [f"{row['turnaround_minutes']:.0f}", f"{row['preemptions']:.0f}", f"{row['resizes']:.0f}"]
        lines.append(cells(*first, *waits, *last))
    most = rows["planner"]["decision_seconds"]
    lines.append(f"\nA plan took {1000 * most['mean']:.1f} ms on average, {1000 * most['most']:.0f} ms at most.")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--jobs", type=int, default=200, help="of a trace (200)")
    parser.add_argument("--seeds", type=int, default=5, help="traces for each number of nodes (5)")
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="one node, one trace of 20 jobs: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.jobs, options.seeds = [1], 20, 1
    if min(*options.nodes, options.jobs, options.seeds) < 1:
        parser.error("--nodes, --jobs and --seeds want whole numbers >= 1")
    return options


if __name__ == "__main__":
    main()
