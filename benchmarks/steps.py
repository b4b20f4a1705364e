"""Times a training step and an epoch, or a prediction: this package, JAX by hand, Keras, PyTorch, in turns.

python benchmarks/steps.py                                      # all rows; peers say "not installed"
python benchmarks/steps.py --peers-python .peers/bin/python     # with them (README.md says how to install them)
python benchmarks/steps.py --quick                              # does it work? about a minute
python benchmarks/steps.py --rows cnn-32 mlp-32 --threads 2 --rounds 9 --json
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from side_by_side import machine
from side_by_side.steps import tables
from side_by_side.steps.arena import Result, compete
from side_by_side.steps.contestants import CONTESTANTS
from side_by_side.steps.rows import ROWS

_RESULTS = Path(__file__).resolve().parent / "results"
_QUICK = {"rows": ["cnn-32", "mlp-32"], "rounds": 2, "seconds": 0.3}


def main() -> None:
    options = _options()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    # Inherited by every contestant; their thread pools count these cores.
    os.sched_setaffinity(0, cores)
    # A stopped contestant would outlive a terminated parent: end by way of `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = {**machine.describe(), "rounds": options.rounds}

    def python_of(name: str) -> str | None:
        return options.peers_python if CONTESTANTS[name].peer else sys.executable

    found: dict[str, dict[str, Result]] = {}
    for row in options.rows:
        found[row] = compete(
            row, options.contestants, python_of, rounds=options.rounds, seconds=options.seconds, say=_say
        )
        # Each row is written as it is known: a run takes minutes and may be cut short.
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(tables.document(about, found), indent=1) + "\n")
    print(tables.markdown(about, found))
    failures = [result.failed for results in found.values() for result in results.values() if result.failed]
    if any(not failure.startswith("not installed") for failure in failures):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        default=list(CONTESTANTS),
        help=f"of {', '.join(CONTESTANTS)}; default: all",
    )
    parser.add_argument("--threads", type=int, help="cores to use; default: all that this process may use")
    parser.add_argument("--rounds", type=int, help="measured rounds; default: 7")
    parser.add_argument("--seconds", type=float, help="how long a round measures at least; default: 1")
    parser.add_argument("--peers-python", help="a Python that has torch, tensorflow-cpu, keras and jax")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=_RESULTS / f"steps-{machine.slug()}.json",
        help="also write every round to this file; without a name: benchmarks/results/steps-<cpu>.json",
    )
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(_QUICK['rows'])}, 2 short rounds")
    options = parser.parse_args()
    for name, value in (_QUICK if options.quick else {"rows": list(ROWS), "rounds": 7, "seconds": 1.0}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser.error(f"--rounds and --threads want whole numbers >= 1, got {options.rounds} and {options.threads}")
    available = len(os.sched_getaffinity(0))
    if options.threads is not None and options.threads > available:
        parser.error(f"--threads {options.threads}: this process may use {available} cores")
    options.contestants = tables.order(options.contestants)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
