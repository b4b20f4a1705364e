"""Times models of the shelf against the originals in PyTorch, eager and compiled, on the same cores, in turns.

python benchmarks/models.py --peers-python .peers/bin/python   # all rows; `make parity` makes it
python benchmarks/models.py --rows bert-1 bert-8 --rounds 5 --json
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from side_by_side import machine
from side_by_side.models import arena
from side_by_side.models.contestants import CONTESTANTS
from side_by_side.models.rows import ROWS

_RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    # A stopped contestant would outlive a terminated parent: end by way of `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = {**machine.describe(), "rounds": options.rounds}
    tables = {}
    for row in options.rows:
        tables[row] = arena.compete(
            row,
            options.contestants,
            lambda name: options.peers_python if CONTESTANTS[name].peer else sys.executable,
            rounds=options.rounds,
            seconds=options.seconds,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(arena.document(about, tables), indent=1) + "\n")
    print(arena.markdown(about, tables))
    failures = [result.failed for results in tables.values() for result in results.values() if result.failed]
    if any(not failure.startswith("not installed") for failure in failures):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME", default=list(CONTESTANTS))
    parser.add_argument("--threads", type=int, help="cores to use; default: all that this process may use")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a round measures about")
    parser.add_argument("--peers-python", help="a Python that has torch and transformers")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=_RESULTS / f"models-{machine.slug()}.json",
        help="also write every round to this file; without a name: benchmarks/results/models-<cpu>.json",
    )
    options = parser.parse_args()
    options.contestants = [name for name in CONTESTANTS if name in options.contestants]
    return options


if __name__ == "__main__":
    main()
