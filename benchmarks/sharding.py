"""What dividing a fit costs: step times over devices and processes, checkpoints, bytes over the wire.

python benchmarks/sharding.py                          # all of it: some twenty minutes on four cores
python benchmarks/sharding.py --quick                  # tiny models, a few layouts: does it work?
python benchmarks/sharding.py --parts speed --models mlp --rounds 9
python benchmarks/sharding.py --out benchmarks/results/sharding.json

On the CPU of this machine: virtual devices in one process, and processes that `llmasos launch` starts. The tables go to
standard output, progress to standard error; --out writes every round as JSON as well.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

from side_by_side import machine, report
from side_by_side.process import NoSpeedError
from side_by_side.sharding import tables
from side_by_side.sharding.layouts import TINY, layouts
from side_by_side.sharding.models import KINDS
from side_by_side.sharding.speed import compete
from side_by_side.sharding.world import asked

_PARTS = ("speed", "saves", "wire")
_PACKAGES = ("llmasos_xla", "jax", "jaxlib", "optax", "orbax-checkpoint")
_WIRE_DEVICES = 8
_SIZES = (2, 4)
_MEGABYTES = (10.0, 100.0)
# Seconds between checkpoints: time enough to write one before the next.
_GAP = 2.0


def main() -> None:
    options = _options()
    # A stopped world would outlive a terminated parent: end by way of `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quick, cores = options.quick, len(os.sched_getaffinity(0))
    about = {**machine.describe(), "rounds": options.rounds}
    found: dict[str, Any] = {"machine": about, "versions": _versions(), "speed": {}, "saves": [], "wire": []}
    failed = []
    if "speed" in options.parts:
        for kind in options.models:
            results = compete(kind, TINY if quick else layouts(_SIZES), options.rounds, quick, _say)
            found["speed"][kind] = results
            failed += [result.failed for result in results.values() if result.failed]
    busy = tables.others(found["speed"])
    if "saves" in options.parts:
        for megabytes in (0.1,) if quick else _MEGABYTES:
            _say(f"saves: {megabytes:g} MB")
            gap = 0.05 if quick else _GAP
            answer, others = _tried("saves", str(megabytes), str(gap), str(options.rounds), devices=1)
            found["saves"].append({"megabytes": megabytes, **answer})
            busy.append(others)
    if "wire" in options.parts:
        _say("wire")
        answer, others = _tried("wire", str(int(quick)), devices=_WIRE_DEVICES)
        found["wire"] = answer.get("rows", [{"model": "all", "strategy": "", "formula": {}, **answer}])
        busy.append(others)
    failed += [row["failed"] for part in ("saves", "wire") for row in found[part] if "failed" in row]
    text = [report.head(about, [found["versions"]], statistics.median(busy))]
    if found["speed"]:
        text += [tables.SHARED.format(cores=cores)]
        text += [tables.speed(kind, results, cores, quick) for kind, results in found["speed"].items()]
    text += [tables.saves(found["saves"])] if found["saves"] else []
    text += [tables.wire(found["wire"], _WIRE_DEVICES)] if found["wire"] else []
    print("\n\n".join(text))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(tables.document(found), indent=1) + "\n")
    if failed:
        sys.exit(1)


def _tried(module: str, *arguments: str, devices: int) -> tuple[dict[str, Any], float]:
    """What the module answers, or the reason why it does not; and how busy others kept the machine."""
    try:
        return asked(module, *arguments, devices=devices)
    except NoSpeedError as failure:
        _say(str(failure))
        return {"failed": str(failure)}, float("nan")


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "from source"
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--models", nargs="+", choices=KINDS, help="of the step times; default: all, quick: mlp")
    parser.add_argument("--rounds", type=int, help="measured rounds; default: 7, quick 1")
    parser.add_argument("--out", type=Path, help="a file for every round as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny models, a few layouts, one round: does it work?")
    options = parser.parse_args()
    options.models = options.models or (["mlp"] if options.quick else list(KINDS))
    options.rounds = (1 if options.quick else 7) if options.rounds is None else options.rounds
    if options.rounds < 1:
        parser.error(f"--rounds wants a whole number >= 1, got {options.rounds}")
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
