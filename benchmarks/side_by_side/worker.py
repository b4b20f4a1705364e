"""One contestant's process: `python -m side_by_side.worker CONTESTANT ROW`; it speaks JSON lines."""

import importlib
import importlib.metadata
import os
import sys

from side_by_side.contestants import CONTESTANTS
from side_by_side.gate import Gate
from side_by_side.rows import ROWS


def main(name: str, row_name: str) -> None:
    """Trains until the other end has enough; what went wrong is the answer then."""
    # Frameworks print; the answers' pipe is ours alone.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    contestant, row = CONTESTANTS[name], ROWS[row_name]
    gate = Gate(sys.stdin.buffer, answers, row.warm_up)
    try:
        module = importlib.import_module(f"side_by_side.contestants.{contestant.module}")
        gate.answer(versions=_versions(contestant.packages))
        module.run(row, gate, contestant.variant)
    except ModuleNotFoundError as error:
        gate.answer(failed=f"not installed ({error.name})")
    except Exception as error:
        gate.answer(failed=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
        raise


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
