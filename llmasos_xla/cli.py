"""`llmasos ...`: the package from a shell."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="llmasos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_launch(commands)
    _add_serving(commands)
    _add_queue(commands)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["submit"], ["tune"]):
        given = [given[0], *_options_first(commands.choices[given[0]], given[1:])]
    chosen = parser.parse_args(given)
    try:
        status = chosen.run(chosen)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` has; what is still to be written at the end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, LookupError, OSError, ImportError, RuntimeError) as error:
        print(f"llmasos {chosen.command}: {str(error).removeprefix(f'{chosen.command}: ')}", file=sys.stderr)
        return 2


def _options_first(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[str]:
    """Moves the command's own options that stand behind a Python script ahead of it; behind `--` all is the script's.

    What stands behind another command is that command's.
    """
    known = parser._option_string_actions

    def values(word: str) -> int:
        return 0 if "=" in word or known[word].nargs == 0 else 1

    at = 0
    while at < len(given) and given[at].partition("=")[0] in known:
        at += 1 + values(given[at])
    if at >= len(given) or not given[at].endswith(".py"):
        return list(given)
    options, rest, behind = list(given[:at]), [given[at]], list(given[at + 1 :])
    while behind:
        word = behind.pop(0)
        if word == "--":
            rest += behind
            break
        if word.partition("=")[0] in known and word not in ("-h", "--help"):
            options += [word, *behind[: values(word)]]
            del behind[: values(word)]
        else:
            rest.append(word)
    # Whatever the first argument of the script looks like, it is no option any more.
    return [*options, "--", *rest]


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


def _add_serving(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "serve",
        help="put a model behind an address",
        description="Serves a bundle or a saved model until Ctrl-C, and starts the server again if it is killed.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="[NAME=]PATH",
        help="a .lmx, .h5 or .safetensors file, or a folder with config.json and weights; or several",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    parser.add_argument("--grpc-port", type=int, metavar="PORT", help="answer over gRPC too, there")
    parser.add_argument("--warm", type=int, nargs="*", default=[1], metavar="ROWS", help="numbers to compile for ahead")
    parser.add_argument("--batch", type=int, default=64, help="rows that run together, at most (64)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a batch waits for more rows (0)")
    parser.add_argument("--request-timeout", type=float, metavar="S", help="seconds that a request may take")
    parser.add_argument("--keep", type=int, default=3, help="versions that stay for a rollback (3)")
    parser.add_argument("--keys", metavar="FILE", help="of API keys, one of which must come with every request")
    parser.add_argument("--certificate", metavar="FILE", help="PEM: answer over TLS alone, with this certificate")
    parser.add_argument("--certificate-key", metavar="FILE", help="its private key, where that is in another file")
    parser.add_argument("--key", metavar="FILE", help="public key of whoever must have signed the bundles")
    parser.add_argument("--state", metavar="FILE", help="where it is written down which version answers")
    parser.add_argument("--program", action="store_true", help="run a bundle's program, not the model rebuilt from it")
    parser.add_argument("--engine", default="local", choices=("local", "ray"), help="ray: several replicas")
    parser.add_argument("--replicas", type=int, help="of Ray (2)")
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    parser.add_argument(
        "--tracing",
        nargs="?",
        const=True,
        default=False,
        metavar="URL",
        help="send traces to a collector of OpenTelemetry; without URL, as its environment variables say",
    )
    parser.set_defaults(run=_serve)

    parser = commands.add_parser("update", help="replace what a server of this machine serves, while it answers")
    parser.add_argument(
        "path", help="a .lmx, .h5 or .safetensors file, a folder of checkpoints, or one with config.json"
    )
    parser.add_argument("--share", type=float, help="let it answer this share of the requests first, on trial")
    parser.add_argument("--shadow", type=float, help="let it compute this share of the requests unseen, on trial")
    parser.add_argument("--requests", type=int, default=100, help="that a trial takes (100)")
    parser.add_argument(
        "--most-difference",
        type=float,
        metavar="D",
        help="with --shadow: let it answer once its outputs for that many requests differed by no more",
    )
    parser.set_defaults(run=_update)
    _add_address(parser)
    parser = commands.add_parser("rollback", help="let the version before answer again")
    parser.set_defaults(run=_rollback)
    _add_address(parser)
    parser = commands.add_parser("stats", help="what a server of this machine does")
    parser.set_defaults(run=_stats)
    _add_address(parser)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8000, help="of the server (8000)")
    parser.add_argument("--model", help="which, where it serves several")


def _serve(chosen: argparse.Namespace) -> int:
    from llmasos_xla.deployment.deployer import Deployer

    options = {name: value for name, value in vars(chosen).items() if name not in ("command", "run", "paths", "key")}
    named = [path.rpartition("=") for path in chosen.paths]
    models = {name or os.path.splitext(os.path.basename(path))[0]: path for name, _, path in named}
    if len(models) < len(named):
        raise ValueError("two models have one name; write NAME=PATH")
    # One without a name gets its file's, made fit for an address.
    alone = len(named) == 1 and not named[0][0]
    # The server lives until this process ends, which waits for Ctrl-C.
    Deployer(chosen.paths[0] if alone else models, key=chosen.key).deploy(
        **options, restart=chosen.engine == "local", wait=True
    )
    return 0


def _update(chosen: argparse.Namespace) -> int:
    if chosen.share is not None and chosen.shadow is not None:
        raise ValueError("a trial answers a share of the requests, or computes them unseen; say --share or --shadow")
    message: dict[str, Any] = {"do": "update", "path": os.path.abspath(chosen.path)}
    share = chosen.share if chosen.shadow is None else chosen.shadow
    if share is not None:
        message["trial"] = {"share": share, "shadow": chosen.shadow is not None, "requests": chosen.requests}
        if chosen.most_difference is not None:
            message["trial"]["most_difference"] = chosen.most_difference
    found = _told(chosen, message)
    print(f"version {found['version']} {'is on trial' if found['trial'] else 'answers'}, {found['seconds']:.3f} s")
    return 0


def _rollback(chosen: argparse.Namespace) -> int:
    print(f"version {_told(chosen, {'do': 'rollback'})['version']} answers")
    return 0


def _stats(chosen: argparse.Namespace) -> int:
    print(json.dumps(_told(chosen, {"do": "stats"}), indent=2))
    return 0


def _add_queue(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from llmasos_xla.runtime import commands as queue

    parser = commands.add_parser("up", help="start the engine that runs jobs; without options as last time")
    parser.add_argument("--local", action="store_true", help="run jobs on this machine, whatever was said last time")
    parser.add_argument("--devices", type=int, help="slots for jobs; its GPUs or else its cores if not said")
    parser.add_argument("--memory", type=queue.size, help="bytes that jobs may have, such as 8G; 90 %% of all")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run jobs on a Ray cluster: its address, or auto for the one here"
    )
    parser.add_argument("--least-run", type=float, metavar="S", help="that a job runs before it may have to make room")
    parser.add_argument(
        "--share", action="store_true", help="let jobs share a GPU of this machine, if their bytes fit it"
    )
    parser.add_argument("--host", help="the address that its page is at; 127.0.0.1, this machine alone, if not said")
    parser.add_argument("--port", type=int, help="of its page; a free one if not said")
    parser.add_argument("--no-page", action="store_true", help="have no page")
    parser.add_argument("--slurm", action="store_true", help="hand jobs to Slurm")
    parser.add_argument("--cores", type=int, help="of each device there (1)")
    parser.add_argument("--gpus", action="store_true", help="a device there is a GPU, not cores")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="--sbatch=--partition=long; may come again"
    )
    parser.set_defaults(run=queue.up)
    _add_home(parser)
    parser = commands.add_parser(
        "submit",
        help="put a script or a command into the queue",
        usage="llmasos submit [options] (SCRIPT.py [options] [--] | COMMAND) [its arguments]",
    )
    parser.add_argument("--name", help="what it is called; the script's name if not said")
    parser.add_argument(
        "--after", action="append", metavar="JOB", help="one that has to be done before; may come again"
    )
    parser.add_argument(
        "--preemptible",
        action=argparse.BooleanOptionalAction,
        help="whether it may be ended for others and started again; once a fit in it saves itself, if not said",
    )
    parser.add_argument("--stuck-after", type=float, metavar="S", help="without a step: start it again")
    _add_job(parser, retries=3)
    parser.set_defaults(run=queue.submit)
    parser = commands.add_parser(
        "tune",
        help="search for a script's parameters, with a job for each try",
        usage="llmasos tune --space NAME=RANGE ... --metric METRIC [options] SCRIPT.py [options] [--] [its arguments]",
        description="Runs a script with --NAME VALUE for parameters that are searched for by what its fit tells after "
        "each epoch. The same command goes on with a search of that name.",
    )
    parser.add_argument(
        "--space",
        action="append",
        required=True,
        metavar="NAME=RANGE",
        help="'lr=loguniform(1e-4, 1e-1)', 'units=integers(8, 64)', 'rate=uniform(0, 0.5)' or kind=a,b; may come again",
    )
    parser.add_argument("--metric", required=True, help="what is compared, such as val_loss")
    parser.add_argument("--maximize", action="store_true", help="the greatest is the best, not the least")
    parser.add_argument("--trials", type=int, default=40, help="how many there shall be (40)")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="in the queue at a time (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (0)")
    parser.add_argument("--name", help="of the search, and of its jobs, as name-0; a new one if not said")
    _add_job(parser, retries=1)
    parser.set_defaults(run=queue.tune)
    parser = commands.add_parser("queue", help="what jobs there are")
    parser.add_argument("--all", action="store_true", help="those that have ended, too")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=queue.queue)
    _add_home(parser)
    parser = commands.add_parser("top", help="watch jobs, devices and the machine; q leaves")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="between two looks (1)")
    parser.add_argument("--once", action="store_true", help="one look")
    parser.set_defaults(run=queue.top)
    _add_home(parser)
    parser = commands.add_parser("logs", help="what a job has printed")
    parser.add_argument("job", help="its number or name")
    parser.add_argument("-f", "--follow", action="store_true", help="until it ends")
    parser.set_defaults(run=queue.logs)
    _add_home(parser)
    parser = commands.add_parser("priority", help="give a job another priority")
    parser.add_argument("job", help="its number or name")
    parser.add_argument("priority", type=int, help="larger goes first")
    parser.set_defaults(run=queue.priority)
    _add_home(parser)
    parser = commands.add_parser("cancel", help="end a job")
    parser.add_argument("job", help="its number or name")
    parser.set_defaults(run=queue.cancel)
    _add_home(parser)
    parser = commands.add_parser("forget", help="take ended jobs out of the records, with logs and folders")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="their numbers or names")
    parser.add_argument("--older", type=float, metavar="DAYS", help="all that ended so long ago")
    parser.set_defaults(run=queue.forget)
    _add_home(parser)
    parser = commands.add_parser("down", help="end the engine; jobs save themselves and wait for the next")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="to wait for them (120)")
    parser.set_defaults(run=queue.down)
    _add_home(parser)


def _add_job(parser: argparse.ArgumentParser, retries: int) -> None:
    """What is run, and on what."""
    from llmasos_xla.runtime import commands as queue

    parser.add_argument("--priority", type=int, default=0, help="larger goes first (0)")
    parser.add_argument(
        "--devices", type=queue.devices, default=(1, 1), metavar="N|A-B", help="how many it can use (1)"
    )
    parser.add_argument("--sizes", type=queue.sizes, default=(), metavar="N,N", help="that it can run on, if not all")
    parser.add_argument("--processes", action="store_true", help="a process a device, by `llmasos launch`")
    parser.add_argument("--memory", type=queue.size, help="bytes that it needs, such as 2G; measured if not said")
    parser.add_argument("--retries", type=int, default=retries, help=f"how often it may fail ({retries})")
    parser.add_argument("--grace", type=float, default=60.0, metavar="S", help="to save itself in (60)")
    parser.add_argument("what", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    _add_home(parser)


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", metavar="FOLDER", help="of the queue; LLMASOS_HOME, or the user's own")


def _told(chosen: argparse.Namespace, message: dict[str, object]) -> dict[str, Any]:
    from llmasos_xla.deployment.control import ControlError, ask

    try:
        return ask(chosen.port, {**message, "model": chosen.model})
    except ControlError as error:
        raise ValueError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
