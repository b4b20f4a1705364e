"""What the device takes for a launch, a barrier, a step: what nobody knows before it is measured.

Costs of one step are differences between 2 N steps and N, so that nothing else is in them.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_xla.kernels import _triton
from llmasos_xla.kernels._triton import device
from llmasos_xla.kernels._triton.compiler import Options
from side_by_side.gpu.problem import BOTH, PARTS, Row

_ROWS, _SHARE, _UNITS = 16, 16, 64


def seconds(program: Callable[..., Any], *arrays: Any, samples: int = 7) -> float:
    """The median of some calls."""
    jax.block_until_ready(program(*arrays))
    found = []
    for _ in range(samples):
        started = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _struct(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def launch(small: bool) -> dict[str, Any]:
    """Whether a launch works at all, and whether counters are zero at each of several in one program."""
    from side_by_side.gpu.probe_kernels import counted, one_more

    n, programs, times = 1000, 8, 3 if small else 100
    run = partial(_triton.launch, device=device(), options=Options())

    @jax.jit
    def add(x: jax.Array) -> jax.Array:
        return run(one_more, (-(-n // 256),), {"x_ptr": x}, {"y_ptr": _struct(n)}, {"N": n, "BLOCK": 256})[0]

    @jax.jit
    def again(one: jax.Array) -> jax.Array:
        def body(_: Any, total: jax.Array) -> jax.Array:
            # Nothing is known of what comes out of a barrier: no launch can be left out.
            x, total = lax.optimization_barrier((one, total))
            made = run(counted, (programs,), {"x_ptr": x}, {"count_ptr": _struct(1, dtype=jnp.int32)}, {},
                       zeroed=("count_ptr",))  # fmt: skip
            return total + made[0]

        return lax.fori_loop(0, times, body, jnp.zeros(1, jnp.int32))

    x = jnp.arange(n, dtype=jnp.float32)
    np.testing.assert_array_equal(add(x), np.arange(n) + 1)
    found = int(again(jnp.ones(1, jnp.int32))[0])
    if found != programs * times:
        raise AssertionError(
            f"{times} launches of {programs} programs counted {found}: a counter did not start at zero"
        )
    return {"launch": "works", "counters": "zero at each launch"}


def launches(small: bool) -> dict[str, Any]:
    """Seconds of one more launch inside of a program, and of one more call from Python."""
    from side_by_side.gpu.probe_kernels import one_more

    def program(times: int) -> Callable[[jax.Array], jax.Array]:
        def body(_: Any, x: jax.Array) -> jax.Array:
            made = _triton.launch(one_more, (1,), {"x_ptr": x}, {"y_ptr": _struct(64)}, {"N": 64, "BLOCK": 64},
                                  device=device(), options=Options(1))  # fmt: skip
            return made[0]

        return jax.jit(lambda x: lax.fori_loop(0, times, body, x))

    few, x = 2 if small else 200, jnp.zeros(64)
    inside = (seconds(program(2 * few), x) - seconds(program(few), x)) / few
    once = program(1)
    jax.block_until_ready(once(x))

    def calls() -> jax.Array:
        out = x
        for _ in range(few):
            out = once(out)
        return out

    return {"launch_seconds": inside, "call_seconds": seconds(calls) / few}


def barrier(small: bool) -> dict[str, Any]:
    """Seconds of one barrier, by the number of programs that meet, and with as many groups as are resident."""
    from side_by_side.gpu.probe_kernels import meet

    everybody = device().multiprocessors
    counts = (1, 2, 3) if small else (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, everybody)

    def step(group: int, groups: int) -> float:
        made = {"y_ptr": _struct(group * groups, dtype=jnp.int32), "counter_ptr": _struct(groups, dtype=jnp.int32)}
        program = jax.jit(
            lambda steps: _triton.launch(
                meet, (group, groups), {"steps_ptr": steps}, made, {"PTX": True}, device=device(), options=Options(),
                zeroed=("counter_ptr",),
            )[0]
        )  # fmt: skip
        return _step(program, small)

    alone = {str(count): step(count, 1) for count in counts}
    crowded = {} if small else {str(n): step(n, everybody // n) for n in (4, 12, 24, 48)}
    return {"barrier": alone, "barrier_full": crowded}


def handing(small: bool) -> dict[str, Any]:
    """Seconds of one step in which programs hand a state of 16 rows to each other, by their number."""
    from side_by_side.gpu.probe_kernels import hand_over

    def step(group: int) -> float:
        width = group * _SHARE
        constants = {"ROWS": _ROWS, "SHARE": _SHARE, "GROUP": group, "WIDE": 1 << (width - 1).bit_length(), "PTX": True}

        made = {
            "y_ptr": _struct(_ROWS, width, dtype=jnp.bfloat16),
            "exchange_ptr": _struct(2, _ROWS, width, dtype=jnp.bfloat16),
            "counter_ptr": _struct(1, dtype=jnp.int32),
        }
        program = jax.jit(
            lambda steps, x: _triton.launch(
                hand_over, (group,), {"steps_ptr": steps, "x_ptr": x}, made, constants, device=device(),
                options=Options(8), zeroed=("exchange_ptr", "counter_ptr"),
            )[0]
        )  # fmt: skip
        return _step(program, small, jnp.ones((_ROWS, width), jnp.bfloat16))

    counts = (2, 3) if small else (2, 4, 8, 16, 32, 48, 64)
    return {"handing": {"1": 0.0, **{str(count): step(count) for count in counts}}}


def product(small: bool) -> dict[str, Any]:
    """Seconds of a product of 16 rows by 64 columns and 64 terms that waits for the one before."""
    from side_by_side.gpu.probe_kernels import products

    x, w = jnp.ones((_ROWS, _UNITS), jnp.bfloat16), jnp.eye(_UNITS, dtype=jnp.bfloat16)

    made = {"y_ptr": _struct(_ROWS, _UNITS, dtype=jnp.bfloat16)}
    program = jax.jit(
        lambda steps, x: _triton.launch(
            products, (1,), {"steps_ptr": steps, "x_ptr": x, "w_ptr": w}, made, {"ROWS": _ROWS, "UNITS": _UNITS},
            device=device(), options=Options(),
        )[0]
    )  # fmt: skip
    return {"product": _step(program, small, x)}


def scan(small: bool) -> dict[str, Any]:
    """Seconds of a step of `lax.scan`, of an LSTM of 256 units and 16 rows in bfloat16."""
    from llmasos_xla.kernels.rnn import xla

    batch, hidden = 16, 8 if small else 256
    u = jnp.asarray(np.random.default_rng(0).normal(size=(hidden, 4 * hidden)) / 16, jnp.bfloat16)
    zero = jnp.zeros((batch, hidden), jnp.float32)
    few, x = 2 if small else 400, jnp.ones((batch, 4 * hidden))

    def program(steps: int, unroll: int) -> Callable[[jax.Array], Any]:
        def run(x: jax.Array) -> Any:
            def step(state: Any, _: Any) -> Any:
                new = xla.lstm_cell(u)(state, x)
                return new, new[0]

            return lax.scan(step, (zero, zero), None, length=steps, unroll=unroll)

        return jax.jit(run)

    return {
        "scan_step": {str(n): (seconds(program(2 * few, n), x) - seconds(program(few, n), x)) / few for n in (1, 8)}
    }


def recurrence(small: bool) -> dict[str, Any]:
    """Seconds of a whole LSTM, by kernels and by XLA, and how far the two are apart."""
    from side_by_side.gpu import judge, ops, programs

    row = ops.OPS["rnn"].TINY[1] if small else Row("rnn", "lstm-768", "bfloat16")
    p = ops.problem(row)
    given = tuple([jnp.asarray(a) for a in some] for some in (p.arrays(), p.cotangents()))
    found: dict[str, Any] = {}
    for part in PARTS:
        arrays = given if part == BOTH else (given[0], [])
        with programs.traced(row.dtype):
            ways = {way: jax.jit(programs.program(p, way, part)) for way in ("triton", "xla")}
            results = {way: program(*arrays) for way, program in ways.items()}
            found[part] = {way: seconds(program, *arrays, samples=1 if small else 7) for way, program in ways.items()}
        found[part]["deviation"] = max(judge.deviations(results["triton"], results["xla"]))
    return {"recurrence": found, "recurrence_of": row.label}


def ceilings(small: bool) -> dict[str, Any]:
    """Bytes a second of a copy, and operations a second of large products."""
    size, n = (1 << 12, 64) if small else (1 << 29, 8192)
    x = jnp.ones(size, jnp.bfloat16)
    copied = 2 * x.nbytes / seconds(jax.jit(lambda x: x + 1), x)
    rates, rng = {}, np.random.default_rng(0)
    for name, precision in (("bfloat16", None), ("tf32", "tensorfloat32"), ("float32", "highest")):
        # Not zeros: they take less power, and so less time.
        a = jnp.asarray(rng.standard_normal((n, n), np.float32), "bfloat16" if name == "bfloat16" else "float32")
        with jax.default_matmul_precision(precision):
            rates[name] = 2.0 * n**3 / seconds(jax.jit(lambda a: a @ a), a)
    return {"bandwidth": copied, "rates": rates}


PROBES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "launch": launch, "recurrence": recurrence, "launches": launches, "barrier": barrier, "scan": scan,
    "ceilings": ceilings, "product": product, "handing": handing,
}  # fmt: skip


def _step(program: Callable[..., Any], small: bool, *arrays: jax.Array) -> float:
    """Seconds of one of the steps whose number is the program's first array."""
    few = 2 if small else 2000
    more, less = (seconds(program, jnp.full(1, steps, jnp.int32), *arrays) for steps in (2 * few, few))
    return (more - less) / few
