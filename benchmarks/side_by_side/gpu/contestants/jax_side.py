"""JAX on the device: probes, checks, the programs that are timed, and what tuning tries."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import tuned
from side_by_side.gpu import interpreted, judge, ops, probes, programs
from side_by_side.gpu.contestants import whole
from side_by_side.gpu.problem import BOTH, PARTS, Problem, Row
from side_by_side.gpu.sample import sample

Answer = dict[str, Any]
# Of gradients that XLA sums over all rows and steps: in whatever order.
_SUMMED = ("w_input", "w_recurrent", "bias", "recurrent_bias", "recurrent_mask", "w")


class Side:
    """Answers requests; rows come as lists, since that is what a line of JSON has.

    Args:
        mode: "gpu", or "interpreted" on the CPU.
        tables: the folder of tuned tables, if not the package's.
    """

    def __init__(self, mode: str, tables: str):
        if tables:
            tuned.FOLDER = Path(tables)
        self._interpreted = mode == "interpreted"
        if self._interpreted:
            interpreted.install()
        elif jax.default_backend() != "gpu":
            raise RuntimeError(f"JAX finds no GPU, its backend is {jax.default_backend()}")
        self._compiler = programs.Compiler()
        self._problems: dict[Row, Problem] = {}
        self._arrays: dict[Row, tuple[list[Any], list[Any]]] = {}
        self._running: dict[tuple[Row, str, str], programs.Running] = {}
        self._wanted: dict[tuple[Row, str], Any] = {}

    def alive(self) -> bool:
        """Whether the device still computes: after a kernel that went wrong it does not, for this process."""
        try:
            return bool(jnp.zeros(1).at[0].add(1)[0] == 1)
        except Exception:
            return False

    def about(self) -> Answer:
        """The device, and why kernels cannot run on it if they cannot."""
        device, here = _triton.current(), jax.devices()[0]
        return {
            "name": "interpreted on a CPU: no speeds" if self._interpreted else here.device_kind,
            "platform": here.client.platform_version,
            "device": list(device) if isinstance(device, _triton.Device) else None,
            "refusal": _triton.refusal(),
        }

    def probe(self, name: str) -> Answer:
        """One of `probes.PROBES`."""
        return {"found": probes.PROBES[name](self._interpreted)}

    def wait(self) -> Answer:
        """Until all is compiled that was begun: nothing else runs while something is timed."""
        self._compiler.wait()
        return {}

    def forget(self) -> Answer:
        """Drops programs and arrays."""
        self._compiler.drop()
        for kept in (self._arrays, self._running, self._wanted, self._problems):
            kept.clear()
        jax.clear_caches()
        return {}

    # Checks.

    def ways(self, rows: list[list[str]]) -> Answer:
        """How each row is checked: by the kernels, or by what runs in their place where they do not take it."""
        refused = [self._refused(self._problem(row)) for row in rows]
        return {"ways": ["triton" if why is None else "ours" for why in refused]}

    def start_checks(self, rows: list[list[str]], ways: list[str]) -> Answer:
        """Begins to compile what `check` runs, and the reference."""
        for row, way in zip(rows, ways):
            p = self._problem(row)
            self._start(p, way, BOTH)
            self._compiler.start((p.row[:2], "float64"), programs.Reference(p))
        return {}

    def check(self, row: list[str], way: str) -> Answer:
        """Values and all gradients against float64 on the CPU."""
        p = self._problem(row)
        arrays, cotangents = p.arrays(), p.cotangents()
        found = self._compiler.get((p.row, way, BOTH))(arrays, cotangents)
        wide = ([a.astype(np.float64) for a in given] for given in (arrays, cotangents))
        with programs.in_float64():
            wanted = [np.asarray(w) for w in self._compiler.get((p.row[:2], "float64"))(*wide)]
        deviations = judge.deviations([np.asarray(f) for f in found], wanted)
        return {"deviation": max(deviations), "limit": judge.limit(p.row.dtype, False),
                "worst": _labels(p, len(found))[int(np.argmax(deviations))]}  # fmt: skip

    def stress(self, row: list[str], times: int) -> Answer:
        """Runs the kernels again and again with other work between, and counts what is not bit for bit the same."""
        p = self._problem(row)
        if (refused := self._refused(p)) is not None:
            return {"skipped": refused}
        self._start(p, "triton", BOTH)
        program, given = self._compiler.get((p.row, "triton", BOTH)), self._given(p)
        first = program(*given)
        labels = _labels(p, len(first))
        differ: Counter[str] = Counter()
        other = jnp.ones((64 if self._interpreted else 1024,) * 2)
        for i in range(times):
            # The counters are reached at other moments when the device is not alike busy.
            for _ in range(i % 3):
                other = jnp.tanh(other @ other)
            for label, a, b in zip(labels, program(*given), first):
                differ[label] += not bool(_same(a, b))
        return {"times": times, "differ": {label: n for label, n in differ.items() if n},
                "red": any(n and label not in _SUMMED for label, n in differ.items())}  # fmt: skip

    # Measuring.

    def work(self, row: list[str]) -> Answer:
        """The work of a row's parts, its ways, what the public function chooses, and what PyTorch is to do."""
        p = self._problem(row)
        with programs.traced(p.row.dtype):
            chosen = p.explain().chosen
            found = {part: list(w) for part, w in p.work().items()}
        choice = {"implementation": chosen.implementation, "formulation": chosen.formulation, "reason": chosen.reason}
        return {"work": found, "ways": [w for w in p.ways if w != "triton"], "chosen": choice, "torch": p.torch,
                "names": list(p.names), "limit": judge.limit(p.row.dtype, p.over_time)}  # fmt: skip

    def start_row(self, row: list[str], counts: dict[str, int], ways: list[str]) -> Answer:
        """Begins to compile the ways of a row, each part so many times in a row, and what they are held against."""
        p = self._problem(row)
        for part, way in itertools.product(PARTS, ways):
            self._start(p, way, part, counts[part])
        reference, given = programs.program(p, "xla", BOTH), programs.structs(p, BOTH, jnp.float32)
        self._compiler.start((p.row, "reference"), programs.Job("float32", reference, given))
        return {}

    def judged(self, row: list[str], ways: list[str], folder: str | None) -> Answer:
        """The deviation of each way's parts from XLA in float32, or how it failed; `folder`: leaves all there too."""
        p = self._problem(row)
        drawn = p.arrays(), p.cotangents()
        given = self._given(p, drawn)
        wanted = self._compiler.get((p.row, "reference"))(*([a.astype(jnp.float32) for a in some] for some in given))
        verdicts: dict[str, dict[str, Any]] = {way: {} for way in ways}
        for part, way in itertools.product(PARTS, ways):
            key = p.row, way, part
            try:
                self._running[key] = self._compiler.running(key, _of(given, part))
                found = self._running[key]()
                verdicts[way][part] = max(judge.deviations(found, wanted[: len(found)]))
            except Exception as error:
                if not self.alive():
                    raise RuntimeError(f"{way}, {part}: {whole(error)}") from error
                verdicts[way][part] = whole(error)
        missing = None
        if folder is not None:
            try:
                _leave(Path(folder), drawn, wanted)
            except OSError as error:  # the folder is full
                missing = whole(error)
        return {"verdicts": verdicts, "missing": missing}

    def timed(self, row: list[str], part: str, ways: list[str], seconds: float) -> Answer:
        """Seconds of one time of each way, in that order: the median of calls that take some `seconds` together."""
        return {"seconds": {way: self._running[Row(*row), way, part].seconds(seconds) for way in ways}}

    # Tuning.

    def trials(self, row: list[str]) -> Answer:
        """What tuning may try for a row, and under which name it is kept who is faster."""
        p = self._problem(row)
        if (refused := self._refused(p)) is not None:
            return {"skipped": refused}
        with programs.traced(p.row.dtype):
            found = ops.trials(p.row)
            work = {part: list(w) for part, w in p.work().items()}
        named = [list(pair) for pair in programs.asked(p) if pair[0] == ops.OPS[p.row.op].CHOICE]
        return {"trials": [list(t) for t in found], "choice": named[0] if named else None, "work": work}

    def start_trial(self, row: list[str], part: str, way: str, count: int, entries: Answer) -> Answer:
        """Begins to compile a way with these entries for the tuned table's."""
        p = self._problem(row)
        made, given = programs.program(p, way, part), programs.structs(p, part)
        self._compiler.start((p.row, part, way, repr(entries)), programs.Job(p.row.dtype, made, given, count, entries))
        return {}

    def trial(self, row: list[str], part: str, way: str, entries: Answer, seconds: float) -> Answer:
        """Seconds of one time of a way with these entries, and its deviation from XLA in the same dtype."""
        p = self._problem(row)
        given = _of(self._given(p), part)
        if (p.row, part) not in self._wanted:
            self._wanted[p.row, part] = self._compiler.running((p.row, part, "xla", "{}"), given)()
        running = self._compiler.running((p.row, part, way, repr(entries)), given)
        deviation = max(judge.deviations(running(), self._wanted[p.row, part]))
        # Both deviate from what is exact.
        limit = 2 * judge.limit(p.row.dtype, p.over_time)
        return {"seconds": running.seconds(seconds), "deviation": deviation, "limit": limit}

    def _problem(self, row: list[str]) -> Problem:
        key = Row(*row)
        if key not in self._problems:
            self._problems[key] = ops.problem(key)
        return self._problems[key]

    def _given(self, p: Problem, drawn: Any = None) -> tuple[list[Any], list[Any]]:
        """Arrays and cotangents on the device."""
        if p.row not in self._arrays:
            arrays, cotangents = drawn or (p.arrays(), p.cotangents())
            self._arrays[p.row] = [jnp.asarray(a) for a in arrays], [jnp.asarray(a) for a in cotangents]
        return self._arrays[p.row]

    def _start(self, p: Problem, way: str, part: str, count: int = 1) -> None:
        job = programs.Job(p.row.dtype, programs.program(p, way, part), programs.structs(p, part), count)
        self._compiler.start((p.row, way, part), job)

    def _refused(self, p: Problem) -> str | None:
        """Why Triton cannot compute it, or None; that it would be slow is no reason."""
        with programs.traced(p.row.dtype):
            found = [c for c in p.explain().candidates if c.implementation == "triton"]
        if not found:
            return "there is no kernel for it"
        return None if found[0].objection is None or found[0].able else found[0].objection


def _labels(p: Problem, count: int) -> list[str]:
    """Of the results, then of the gradients by their arrays' names."""
    return [*(f"result {i}" for i in range(count - len(p.names))), *p.names]


def _leave(folder: Path, drawn: tuple[list[Any], list[Any]], wanted: Any) -> None:
    """Arrays and a sample of the wanted results, for the other process."""
    for kind, arrays in zip(("array", "cotangent"), drawn):
        for i, a in enumerate(arrays):
            np.save(folder / f"{kind}{i}.npy", a.astype(np.float32))
    for i, w in enumerate(wanted):
        np.save(folder / f"wanted{i}.npy", np.asarray(sample(w)))


def _of(given: tuple[list[Any], list[Any]], part: str) -> tuple[list[Any], list[Any]]:
    """Arrays, and cotangents where a part takes them."""
    return given if part == BOTH else (given[0], [])


@jax.jit
def _same(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)))
