"""Times convolution, pooling, dense layers, normalization and recurrences over the kernels' lists of shapes, in turns.

python benchmarks/kernels.py                                           # peers say "not installed"
python benchmarks/kernels.py --peers-python .peers/bin/python --json   # with them (README.md says how to install them)
python benchmarks/kernels.py --quick                                   # does it work? a few cases
python benchmarks/kernels.py --op conv,pool --case resnet18-56 vgg16-112 --threads all,1 --dtype bfloat16

What is timed is a call from arrays that are there to results that are there: the forward pass without autograd, each
gradient by itself, starting from what the forward pass saved (`jax.vjp`'s residuals as arguments of a jitted program,
`torch.autograd.grad` on a retained graph), and in recurrence forward and all gradients together. Nobody's compile time
counts. Every result is first held against float64; what deviates gets no speed.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from side_by_side import machine
from side_by_side.kernels import tables
from side_by_side.kernels.arena import Cell, Stable, compete
from side_by_side.kernels.cases import OPS, case_names, problems
from side_by_side.kernels.contestants import CONTESTANTS, TIMED

_RESULTS = Path(__file__).resolve().parent / "results"
_DTYPES = ("float32", "bfloat16")
_FULL = {"rounds": 5, "seconds": 0.03, "dtype": "float32,bfloat16", "most": None}
_QUICK = {"rounds": 2, "seconds": 0.02, "dtype": "float32", "most": 2}
# Left to themselves, both dtypes and both numbers of cores would take an hour together: AMX is looked at once.
_THREADS = {"float32": "all,1", "bfloat16": "all"}


def main() -> None:
    options = _options()
    # A stopped contestant would outlive a terminated parent: end by way of `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = {**machine.describe(), "rounds": options.rounds}

    def python_of(name: str) -> str | None:
        return options.peers_python if CONTESTANTS[name].peer else sys.executable

    cells: list[Cell] = []
    with Stable(python_of, _say) as stable:
        wanted = list(problems(options.op, options.case, options.dtype, options.most))
        for number, problem in enumerate(wanted):
            _say(f"{number + 1} of {len(wanted)}: {problem.name}")
            cells += compete(
                problem,
                stable,
                options.contestants,
                options.threads[problem.dtype],
                rounds=options.rounds,
                seconds=options.seconds,
                say=_say,
            )
            busy = max(0.0, stable.busy) / max(stable.seconds, 1e-9)
            # Written as it is known: a run takes minutes and may be cut short.
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(tables.document(about, stable.versions, busy, cells), indent=1)
                options.json.write_text(text + "\n")
    print(tables.markdown(about, stable.versions.values(), busy, cells))
    if not tables.fine(cells):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default=",".join(OPS), help=f"of {', '.join(OPS)}, by commas; default: all")
    parser.add_argument("--case", nargs="+", metavar="NAME", default=[], help="cases by name; default: all")
    parser.add_argument(
        "--contestants", default=",".join(TIMED), help=f"of {', '.join(TIMED)}, by commas; default: all"
    )
    parser.add_argument("--threads", help="numbers of cores, by commas; default: all,1, in bfloat16 all")
    parser.add_argument("--dtype", help=f"of {', '.join(_DTYPES)}, by commas; default: {_FULL['dtype']}")
    parser.add_argument("--rounds", type=int, help=f"measured rounds; default: {_FULL['rounds']}")
    parser.add_argument(
        "--seconds", type=float, help=f"how long a contestant calls in a round; default: {_FULL['seconds']}"
    )
    parser.add_argument("--peers-python", help="a Python that has torch and tensorflow-cpu")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=_RESULTS / f"kernels-{machine.slug()}.json",
        help="also write every round to this file; without a name: benchmarks/results/kernels-<cpu>.json",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK['most']} cases of each op, {_QUICK['dtype']}, short rounds"
    )
    options = parser.parse_args()
    for name, value in (_QUICK if options.quick else _FULL).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    options.op = _listed(parser, "--op", options.op, OPS)
    chosen = _listed(parser, "--contestants", options.contestants, TIMED)
    options.contestants = [name for name in TIMED if name in chosen]
    options.dtype = _listed(parser, "--dtype", options.dtype, _DTYPES)
    available = len(os.sched_getaffinity(0))
    # On a machine of one core "all" and "1" are the same; `_listed` names each once.
    threads = {dtype: options.threads or ("all" if options.quick else _THREADS[dtype]) for dtype in options.dtype}
    known_counts = [str(count) for count in range(1, available + 1)]
    options.threads = {
        dtype: [int(n) for n in _listed(parser, "--threads", text.replace("all", str(available)), known_counts)]
        for dtype, text in threads.items()
    }
    if unknown := set(options.case) - (known := case_names(options.op)):
        parser.error(f"--case: {', '.join(sorted(unknown))}: of these ops there are {', '.join(sorted(known))}")
    if options.rounds < 1:
        parser.error(f"--rounds wants a whole number >= 1, got {options.rounds}")
    return options


def _listed(parser: argparse.ArgumentParser, option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in a list by commas, each once."""
    names, known = list(dict.fromkeys(text.split(","))), list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: {', '.join(unknown)}: wanted some of {', '.join(known)}")
    return names


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
