"""The one place where the package compiles: which options XLA gets, and what is known of a program before it runs.

Library functions are never jitted; the train step, the predictor and the exporter are, here. `compile` compiles ahead
of time for given shapes, so that compiling is an event that can be timed, listed and shown, never a surprise in the
middle of a run, and so that the program's bytes and operations are known before the first call.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as extend_core

# XLA's default on CPU is dots, reductions and convolutions through YNN. Its convolutions run on one thread, so they are
# left out (docs/decisions.md); its dots let bfloat16 reach AMX, its reductions sum bias gradients fast.
_YNN = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": _YNN}
# A program that runs once is not worth optimizing: initial weights compile four times faster, to the same bits.
_CPU_OPTIONS_ONCE = {"xla_backend_optimization_level": "0"}


FLOPS: dict[str, Callable[..., float]] = {}
"""Primitive -> floating point operations from its parameters, for primitives that XLA's analysis cannot look into."""


class CompileRecord(NamedTuple):
    """One compiled program."""

    what: str
    """Which program, "train step"."""
    seconds: float
    """Time to trace, lower and compile."""
    started: float
    """When compiling began, in seconds since the epoch."""
    argument_bytes: int
    """Bytes of the arguments on one device."""
    temporary_bytes: int
    """Bytes of intermediate values at the peak on one device."""
    flops: float
    """Floating point operations of one call as XLA counts them, and those of foreign calls in it; a loop's body counts
    once. -1 if unknown."""

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.seconds:.2f} s, arguments {_bytes(self.argument_bytes)}, "
            f"temporaries {_bytes(self.temporary_bytes)}, {self.flops:.3g} FLOP"
        )


def compiler_options(platform: str | None = None, *, once: bool = False) -> dict[str, Any]:
    """The XLA options of this package's own programs on a platform ("cpu", "gpu", "tpu"; default: the current one).

    The process's environment is never touched. Options that the installed XLA does not know are left out.
    """
    platform = platform or jax.default_backend()
    if platform != "cpu":
        return {}
    return _supported({**_CPU_OPTIONS, **_CPU_OPTIONS_ONCE} if once else _CPU_OPTIONS)


def compile(
    function: Callable,
    *arguments: Any,
    what: str,
    donate: Sequence[int] = (),
    once: bool = False,
    out: Any = None,
    inspect: Callable[[jax.stages.Compiled], None] | None = None,
    log: list[CompileRecord] | None = None,
) -> Callable:
    """Compiles `function` for the shapes of `arguments` (arrays or `jax.ShapeDtypeStruct`) and returns the program.

    The program takes arrays of exactly these shapes; arguments whose `sharding` says a mesh make it a program for all
    devices of that. `donate` lists the arguments whose memory it may reuse; `once` says that it will run once, so that
    compiling counts more than running; `out` are the results' shardings; `inspect` is shown the compiled
    program, and may raise; `log` receives a `CompileRecord`.

    Where `jax.disable_jit()` is in force nothing is compiled: `function` runs step by step, with values that can be
    printed and looked at in a debugger.

    >>> import jax.numpy as jnp
    >>> log = []
    >>> double = compile(lambda x: x * 2, jnp.ones(3), what="double", log=log)
    >>> double(jnp.ones(3)).tolist(), log[0].argument_bytes
    ([2.0, 2.0, 2.0], 12)
    """

    def build(*arguments: Any) -> Callable:
        started = time.time()
        traced = jax.jit(function, donate_argnums=tuple(donate), out_shardings=out).trace(*arguments)
        lowered = traced.lower()
        program = lowered.compile(compiler_options=compiler_options(once=once))
        if inspect is not None:
            inspect(program)
        if log is not None:
            memory, cost = program.memory_analysis(), program.cost_analysis()
            log.append(
                CompileRecord(
                    what,
                    time.time() - started,
                    started,
                    memory.argument_size_in_bytes if memory else -1,
                    memory.temp_size_in_bytes if memory else -1,
                    cost.get("flops", 0.0) + _foreign_flops(traced.jaxpr.jaxpr) if cost else -1.0,
                )
            )
        return program

    program = None if jit_is_disabled() else build(*arguments)

    def run(*arguments: Any) -> Any:
        nonlocal program
        if jit_is_disabled():
            return function(*jax.tree.map(jnp.asarray, arguments))
        if program is None:
            program = build(*arguments)
        return program(*arguments)

    return run


def jit_is_disabled() -> bool:
    """Whether `jax.disable_jit()` is in force in this thread."""
    return jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]


def operations(function: Callable, *arguments: Any) -> float:
    """Floating point operations of one call, from the lowered program, without compiling it; -1 if unknown, as under
    `jax.disable_jit()`."""
    if jit_is_disabled():
        return -1.0
    traced = jax.jit(function).trace(*arguments)
    cost = traced.lower().cost_analysis()
    return cost.get("flops", 0.0) + _foreign_flops(traced.jaxpr.jaxpr) if cost else -1.0


def _foreign_flops(jaxpr: extend_core.Jaxpr) -> float:
    """The operations that `FLOPS` knows of; as in XLA's own count, the body of a loop counts once."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in FLOPS:
            total += FLOPS[equation.primitive.name](**equation.params)
        total += sum(map(_foreign_flops, extend_core.jaxprs_in_params(equation.params)))
    return total


def _supported(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if _knows(name, value)}


@functools.cache
def _knows(name: str, value: str) -> bool:
    # XLA refuses a whole compilation for one unknown option, and its options come and go between releases.
    try:
        jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), "float32")).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError as error:
        if "compile option" not in str(error):
            raise
        return False
    return True


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
