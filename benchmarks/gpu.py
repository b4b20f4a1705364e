"""The kernels on a GPU: does a launch work, are they right, how fast are they, with which sizes are they fastest.

python benchmarks/gpu.py                         # all of it, within nine minutes
python benchmarks/gpu.py --probe --check         # some of it
python benchmarks/gpu.py --minutes 4 --bench --rows rnn/ --out measured
python benchmarks/gpu.py --readme                # nothing but the tables in benchmarks/README.md, from the results
python benchmarks/gpu.py --interpret --quick --out /tmp/out   # no GPU: does it work?

The phases come in the order probe, check, bench, tune, and each has its share of the minutes. Everything that is found
is written at once to OUT/<device>.json, a tuned table to `llmasos_xla/kernels/tuned/<device>.json` or, with --out, to
OUT/tuned/<device>.json. This process does not touch the device: a kernel that hangs or fails ends one that
does, which is then started again.
"""

import argparse
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from side_by_side import machine

_BENCHMARKS = Path(__file__).resolve().parent
_REPOSITORY = _BENCHMARKS.parent
_RESULTS, _README = _BENCHMARKS / "results", _BENCHMARKS / "README.md"
_TUNED = _REPOSITORY / "llmasos_xla" / "kernels" / "tuned"

# How the minutes are divided.
_PHASES = {"probe": 1.5, "check": 3.0, "bench": 5.0, "tune": 3.0}
# What starting the processes, and ending a phase in the middle of a row, may take of the minutes.
_RESERVE_SECONDS = 25.0
_LINE = 600


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    sys.path.insert(1, str(_REPOSITORY))
    from side_by_side.gpu import tables
    from side_by_side.gpu.records import results

    # A stopped process would outlive a terminated parent: end by way of `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    fine = True
    if not options.readme:
        fine = _run(options)
    if options.out == _RESULTS:
        tables.update(_README, results(_RESULTS))
    if not fine:
        sys.exit(1)


def _run(options: argparse.Namespace) -> bool:
    """The phases that were asked for; whether all was well."""
    from side_by_side.gpu import phases, tables, tuning
    from side_by_side.gpu.device import Clock, Processes, driver
    from side_by_side.gpu.records import Records, now
    from side_by_side.process import NoSpeedError

    from llmasos_xla.kernels._triton.tuned import slug

    mode = "interpreted" if options.interpret else "gpu"
    environment = {"JAX_PLATFORMS": "cpu" if options.interpret else "cuda,cpu"}
    own = options.out == _RESULTS
    folder = _TUNED if own else options.out / "tuned"
    with Processes(mode, "" if own else str(folder), options.peers_python, environment) as processes:
        clock = Clock(60 * options.minutes - _RESERVE_SECONDS)
        try:
            about: dict[str, Any] = processes.ask("jax", do="about")
        except NoSpeedError as failure:
            sys.exit(f"gpu.py: {failure}")
        device = about.pop("device")
        if about["refusal"] is not None:
            sys.exit(f"gpu.py: {about['refusal']}")
        about |= {"driver": driver(), "date": now(), "command": machine.command(), "versions": processes.versions}
        records = Records(options.out / f"{slug(about['name'])}.json", about)
        run = phases.Run(
            processes, records, None if options.interpret else device, "" if own else str(folder), options.quick,
            options.rows, "bench" in options.phases, options.rounds, options.seconds, _say,
        )  # fmt: skip
        todo = {
            "probe": lambda c: phases.probe(run, c), "check": lambda c: phases.check(run, c),
            "bench": lambda c: phases.bench(run, c), "tune": lambda c: tuning.tune(run, c, folder, about["name"]),
        }  # fmt: skip
        fine = True
        asked = [name for name in _PHASES if name in options.phases]
        for place, name in enumerate(asked):
            _say(f"{name}: {clock.left():.0f} s are left")
            share = _PHASES[name] / sum(_PHASES[other] for other in asked[place:])
            try:
                went_well = todo[name](clock.part(share))
            except Exception:  # the other phases are worth having
                went_well = False
                records.section(f"{name} failed", {"text": traceback.format_exc()})
                _say(f"{name}: FAILED: {traceback.format_exc()[-_LINE // 2 :]}")
            fine &= went_well
            if name == "probe" and not went_well:
                _say("kernels cannot be launched here: nothing else is tried")
                break
        print(tables.markdown(records.content))
        if "bench" in options.phases:
            print(tables.verdict(records.content))
    return fine


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = {
        "probe": "what a launch, a barrier, a step of a scan cost", "check": "against float64, values and gradients",
        "bench": "measure, beside JAX's own and PyTorch", "tune": "find the best sizes, write the tuned table",
    }  # fmt: skip
    for name, text in what.items():
        parser.add_argument(f"--{name}", action="append_const", dest="phases", const=name, help=text)
    parser.add_argument("--readme", action="store_true", help="only write the tables of the results into the README")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take; default: 9")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder of results; default: benchmarks/results")
    parser.add_argument("--rows", default="", help="a regular expression: those rows only; '^rnn/lstm.*bfloat16'")
    parser.add_argument("--rounds", type=int, help="measured rounds of a row; default: 5, quick 2")
    parser.add_argument("--seconds", type=float, help="how long a way is called in a round; default: 0.03, quick 0")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has torch; default: this one")
    parser.add_argument("--quick", action="store_true", help="a few tiny problems: does it work?")
    parser.add_argument(
        "--interpret", action="store_true", help="on the CPU, kernels interpreted; wants --quick, --out"
    )
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.phases = options.phases or list(_PHASES)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = (0.0 if options.quick else 0.03) if options.seconds is None else options.seconds
    if options.interpret and not (options.quick and options.out != _RESULTS):
        parser.error("--interpret gives no speeds: it wants --quick, and an --out of its own")
    return options


def _say(text: str) -> None:
    """A line; the whole of a long one lies in the results."""
    print(" / ".join(text.splitlines())[:_LINE], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
