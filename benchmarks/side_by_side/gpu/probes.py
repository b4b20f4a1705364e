"""What the device takes for a launch, a barrier, a step: what nobody knows before it is measured.

Costs of one step are differences between a kernel of N steps and one of 2 N, so that nothing else is in them.
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
from llmasos_xla.kernels._triton.compiler import Options

_ROWS, _SHARE, _UNITS = 16, 16, 64


def device() -> _triton.Device:
    """The one that kernels are compiled for."""
    found = _triton.current()
    assert isinstance(found, _triton.Device), found
    return found


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

    everybody, one = device().multiprocessors, jnp.ones(1, jnp.int32)
    counts = (1, 2, 3) if small else (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, everybody)

    def step(group: int, groups: int) -> float:
        def program(steps: int) -> Callable[[jax.Array], Any]:
            made = {"y_ptr": _struct(group * groups, dtype=jnp.int32), "counter_ptr": _struct(groups, dtype=jnp.int32)}
            return jax.jit(
                lambda x: _triton.launch(
                    meet, (group, groups), {"x_ptr": x}, made, {"STEPS": steps, "PTX": True}, device=device(),
                    options=Options(), zeroed=("counter_ptr",),
                )[0]
            )  # fmt: skip

        return _step(program, one, small)

    alone = {str(count): step(count, 1) for count in counts}
    crowded = {} if small else {str(n): step(n, everybody // n) for n in (4, 12, 24, 48)}
    return {"barrier": alone, "barrier_full": crowded}


def handing(small: bool) -> dict[str, Any]:
    """Seconds of one step in which programs hand a state of 16 rows to each other, by their number."""
    from side_by_side.gpu.probe_kernels import hand_over

    def step(group: int) -> float:
        width = group * _SHARE
        constants = {"ROWS": _ROWS, "SHARE": _SHARE, "GROUP": group, "WIDE": 1 << (width - 1).bit_length(), "PTX": True}

        def program(steps: int) -> Callable[[jax.Array], Any]:
            made = {
                "y_ptr": _struct(_ROWS, width, dtype=jnp.bfloat16),
                "exchange_ptr": _struct(2, _ROWS, width, dtype=jnp.bfloat16),
                "counter_ptr": _struct(1, dtype=jnp.int32),
            }
            return jax.jit(
                lambda x: _triton.launch(
                    hand_over, (group,), {"x_ptr": x}, made, constants | {"STEPS": steps}, device=device(),
                    options=Options(8), zeroed=("exchange_ptr", "counter_ptr"),
                )[0]
            )  # fmt: skip

        return _step(program, jnp.ones((_ROWS, width), jnp.bfloat16), small)

    counts = (2, 3) if small else (2, 4, 8, 12, 16, 24, 32, 48, 64)
    return {"handing": {"1": 0.0, **{str(count): step(count) for count in counts}}}


def product(small: bool) -> dict[str, Any]:
    """Seconds of a product of 16 rows by 64 columns and 64 terms that waits for the one before."""
    from side_by_side.gpu.probe_kernels import products

    x, w = jnp.ones((_ROWS, _UNITS), jnp.bfloat16), jnp.eye(_UNITS, dtype=jnp.bfloat16)

    def program(steps: int) -> Callable[[jax.Array], Any]:
        return jax.jit(
            lambda x: _triton.launch(
                products, (1,), {"x_ptr": x, "w_ptr": w}, {"y_ptr": _struct(_ROWS, _UNITS, dtype=jnp.bfloat16)},
                {"STEPS": steps, "ROWS": _ROWS, "UNITS": _UNITS}, device=device(), options=Options(),
            )[0]
        )  # fmt: skip

    return {"product": _step(program, x, small)}


def scan(small: bool) -> dict[str, Any]:
    """Seconds of a step of `lax.scan`, of an LSTM of 256 units and 16 rows in bfloat16."""
    from llmasos_xla.kernels.rnn import xla

    batch, hidden = 16, 8 if small else 256
    u = jnp.asarray(np.random.default_rng(0).normal(size=(hidden, 4 * hidden)) / 16, jnp.bfloat16)
    zero = jnp.zeros((batch, hidden), jnp.float32)
    found = {}
    for unroll in (1, 8):

        def program(steps: int, unroll: int = unroll) -> Callable[[jax.Array], Any]:
            def run(x: jax.Array) -> Any:
                def step(state: Any, _: Any) -> Any:
                    new = xla.lstm_cell(u)(state, x)
                    return new, new[0]

                return lax.scan(step, (zero, zero), None, length=steps, unroll=unroll)

            return jax.jit(run)

        found[str(unroll)] = _step(program, jnp.ones((batch, 4 * hidden)), small, few=400)
    return {"scan_step": found}


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
    "launch": launch, "launches": launches, "barrier": barrier, "handing": handing, "product": product, "scan": scan,
    "ceilings": ceilings,
}  # fmt: skip


def _step(program: Callable[[int], Callable[..., Any]], x: jax.Array, small: bool, few: int = 2000) -> float:
    few = 2 if small else few
    return (seconds(program(2 * few), x) - seconds(program(few), x)) / few
