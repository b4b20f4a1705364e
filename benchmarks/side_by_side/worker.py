"""One contestant's process: `python -m side_by_side.worker TABLE NAME ARGUMENTS...`.

TABLE is a package with `CONTESTANTS` and `serve(module, contestant, channel, *arguments)`; frameworks are imported in
that package's modules and nowhere else.
"""

import ctypes
import importlib
import importlib.metadata
import os
import pathlib
import signal
import sys

from side_by_side.channel import Channel, told


def main(table_name: str, name: str, *arguments: str) -> None:
    """Answers until the arena has enough; what went wrong is the answer then."""
    _end_with_the_arena()
    # Frameworks print; the answers' pipe is ours alone.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    channel = Channel(sys.stdin.buffer, answers)
    table = importlib.import_module(table_name)
    # This folder's kernels.py would be taken for the package of that name, which transformers looks for.
    here = pathlib.Path(__file__).resolve().parent.parent
    sys.path[:] = [path for path in sys.path if pathlib.Path(path).resolve() != here]
    contestant = table.CONTESTANTS[name]
    try:
        module = importlib.import_module(f"{table_name}.{contestant.module}")
        channel.answer(versions=_versions(contestant.packages))
        table.serve(module, contestant, channel, *arguments)
    except ModuleNotFoundError as error:
        channel.answer(failed=f"not installed ({error.name})")
    except Exception as error:
        channel.answer(failed=told(error))
        raise


def _end_with_the_arena() -> None:
    # A killed arena cannot end its contestants, and one that is frozen does not notice that its pipe is gone.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
