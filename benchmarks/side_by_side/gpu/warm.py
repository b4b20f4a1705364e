"""Compiles kernels ahead, into Triton's cache on disk: `python -m side_by_side.gpu.warm FILE` in several processes.

Compiling a Triton kernel takes a second or more of one core, and one process compiles one at a time. What the process
on the device compiles after that, it finds there. FILE holds the device and the jobs, as JSON; nothing here touches
the device.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parents[2]

Job = tuple[Sequence[str], str, dict[str, Any] | None]
"""A row, a part of it, and entries for the tuned table's, if not those."""


@contextlib.contextmanager
def warming(device: Sequence[Any] | None, jobs: Sequence[Job], tables: str) -> Iterator[None]:
    """Lets other cores compile the jobs, in their order, while `with` lasts; without a device it does nothing."""
    spare = (os.cpu_count() or 1) - 2
    if device is None or spare < 2 or not jobs:
        yield
        return
    paths = os.pathsep.join(map(str, (_BENCHMARKS, _BENCHMARKS.parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    running = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i in range(min(spare, len(jobs))):
                file = Path(folder) / f"{i}.json"
                file.write_text(json.dumps({"device": device, "jobs": jobs[i::spare], "tables": tables}))
                command = [sys.executable, "-m", "side_by_side.gpu.warm", str(file)]
                running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL))  # fmt: skip
            yield
        finally:
            for process in running:
                process.kill()
                process.wait()


def main(file: str) -> None:
    """Lowers each job's program for the device."""
    import jax

    from llmasos_xla.kernels._triton import tuned
    from llmasos_xla.kernels._triton.devices import Device
    from side_by_side.gpu import ops, programs
    from side_by_side.gpu.problem import Row

    os.nice(10)
    told = json.loads(Path(file).read_text())
    device = Device(*told["device"])
    if told["tables"]:
        tuned.FOLDER = Path(told["tables"])
    for row, part, entries in told["jobs"]:
        p = ops.problem(Row(*row))
        others = contextlib.nullcontext() if entries is None else tuned.trying(entries)
        # What cannot be compiled is seen, and said, where it is asked for.
        with contextlib.suppress(Exception), programs.traced(p.row.dtype, device), others:
            made = programs.program(p, "triton", part)
            jax.jit(made).trace(*programs.structs(p, part)).lower(lowering_platforms=("cuda",))


if __name__ == "__main__":
    main(sys.argv[1])
