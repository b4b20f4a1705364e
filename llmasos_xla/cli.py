"""`llmasos ...`: the package from a shell."""

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="llmasos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_launch(commands)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except (ValueError, FileNotFoundError) as error:
        print(f"llmasos {chosen.command}: {str(error).removeprefix(f'{chosen.command}: ')}", file=sys.stderr)
        return 2


def _add_launch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "launch",
        help="run a script in several processes that train together",
        description="Runs a script in several processes on this machine, which train together. Without -n it runs "
        "the one process that srun, mpirun, Ray, Kubernetes or a TPU pod has started.",
        usage="llmasos launch [-n N] [options] (SCRIPT | -m MODULE) [its arguments]",
    )
    parser.add_argument("-n", type=int, metavar="N", help="how many processes")
    parser.add_argument("--devices-per-process", type=int, metavar="D", help="virtual CPU devices of each")
    parser.add_argument("--heartbeat", type=float, metavar="S", help="seconds of silence until a rank is given up (20)")
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds that others get to end in when one fails (10)",
    )
    parser.add_argument("--logs", metavar="FOLDER", help="write each rank's output to FOLDER/rank-N.log, too")
    parser.add_argument("-m", dest="module", action="store_true", help="what follows is a module's name, not a file's")
    parser.add_argument("script", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=_launch)


def _launch(chosen: argparse.Namespace) -> int:
    from llmasos_xla.sharding.processes import clusters
    from llmasos_xla.sharding.processes.launch import launch, package_path

    if not chosen.module and not os.path.isfile(chosen.script):
        raise FileNotFoundError(f"no script {chosen.script!r} in {os.getcwd()}; -m MODULE runs a module")
    arguments = ["-m"] * chosen.module + [chosen.script, *chosen.arguments]
    place = clusters.detect()
    if chosen.n is None:
        if chosen.devices_per_process:
            os.environ["JAX_NUM_CPU_DEVICES"] = str(chosen.devices_per_process)
        if chosen.heartbeat:
            os.environ["LLMASOS_HEARTBEAT"] = str(chosen.heartbeat)
        os.environ |= package_path()
        os.execv(sys.executable, [sys.executable, "-P", "-m", "llmasos_xla.sharding.processes.worker", *arguments])
    if place is not None and place.size > 1:
        raise ValueError(
            f"this process is already rank {place.rank} of {place.size}, by {place.source}; leave -n away, so that it "
            "runs that one rank"
        )
    return launch(
        arguments,
        chosen.n,
        devices_per_process=chosen.devices_per_process,
        heartbeat=chosen.heartbeat,
        grace=chosen.grace,
        logs=chosen.logs,
    )


if __name__ == "__main__":
    sys.exit(main())
