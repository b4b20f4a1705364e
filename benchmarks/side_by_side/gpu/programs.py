"""The programs that are checked and timed, and compiling several of them at a time.

A program takes the arrays and the cotangents of a problem, the latter empty where nothing is differentiated, and gives
the results, then the gradients of all arrays.
"""

import concurrent.futures
import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton import devices, tuned
from side_by_side.gpu.problem import BOTH, DTYPES, PARTS, Problem

# A sample is as many calls as take so long together; one call that takes longer than that is not repeated.
_SAMPLE_SECONDS, _LONG_SECONDS = 5e-3, 0.3

Arrays = Sequence[Any]
Program = Callable[[Arrays, Arrays], tuple[jax.Array, ...]]


@contextlib.contextmanager
def traced(dtype: str, device: devices.Device | None = None) -> Iterator[None]:
    """What holds while programs of that dtype are traced: for a GPU, which may not be the one that is here."""
    told = contextlib.nullcontext() if device is None else devices.compiling_for(device)
    with jax.default_matmul_precision(DTYPES[dtype][1]), _dispatch.tracing_for("gpu"), told:
        yield


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """What holds while a reference is computed, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), _dispatch.tracing_for("cpu"):
        yield


class Reference(NamedTuple):
    """Values and gradients of a problem in float64 on the CPU: a job too."""

    problem: Problem

    def compiled(self) -> Any:
        """The program, which takes float64."""
        with in_float64():
            given = structs(self.problem, BOTH, jnp.float64)
            return jax.jit(program(self.problem, "xla", BOTH)).lower(*given).compile()


def program(problem: Problem, way: str, part: str) -> Program:
    """One part of a problem by one of its ways."""
    function = problem.ways[way]

    def once(arrays: Arrays, cotangents: Arrays) -> tuple[jax.Array, ...]:
        if part != BOTH:
            return tuple(function(*arrays))
        out, pull = jax.vjp(lambda *given: tuple(function(*given)), *arrays)
        return (*out, *pull(tuple(cotangents)))

    return once


def repeated(once: Program, count: int) -> Callable[[tuple[Arrays, Arrays], Arrays], Any]:
    """A program so many times in a row, from arrays, cotangents and results to the same, in the same memory.

    Each time is a whole one: the arrays pass through the loop as vectors, in no layout but their own, and through a
    barrier, so that nothing is known of them; the smallest also depends on the results before.
    """

    def run(given: tuple[Arrays, Arrays], results: Arrays) -> Any:
        leaves, tree = jax.tree.flatten(given)
        smallest = min(range(len(given[0])), key=lambda i: given[0][i].size)

        def body(_: Any, carry: Any) -> Any:
            flat, last = lax.optimization_barrier(carry)
            nothing = sum(0 * r[0].astype(jnp.float32) for r in last)
            used = [f.reshape(a.shape) for f, a in zip(flat, leaves)]
            used[smallest] += nothing.astype(used[smallest].dtype)
            out = once(*jax.tree.unflatten(tree, used))
            return flat, [r.reshape(-1) for r in out]

        start = [a.reshape(-1) for a in leaves], [r.reshape(-1) for r in results]
        flat, last = lax.fori_loop(0, count, body, start)
        whole = [f.reshape(a.shape) for f, a in zip(flat, leaves)]
        return jax.tree.unflatten(tree, whole), [r.reshape(s.shape) for r, s in zip(last, results)]

    return run


def structs(problem: Problem, part: str, dtype: Any = None) -> tuple[Arrays, Arrays]:
    """Shapes and dtypes of what a program takes."""
    given = problem.structs(dtype)
    return given, list(jax.eval_shape(problem.ways["xla"], *given)) if part == BOTH else []


def asked(problem: Problem) -> list[tuple[str, str]]:
    """What the kernels look up in a tuned table for that problem, by table and shape class."""
    with traced(problem.row.dtype), tuned.trying() as found:
        problem.explain()
        for part in PARTS if "triton" in problem.ways else ():
            with contextlib.suppress(NotImplementedError):  # the kernels do not take it
                jax.make_jaxpr(program(problem, "triton", part))(*structs(problem, part))
    return list(dict.fromkeys(found))


class Job(NamedTuple):
    """A program to compile: `count` times in a row, with `entries` for the tuned table's if there are some."""

    dtype: str
    once: Program
    given: tuple[Arrays, Arrays]
    """Shapes and dtypes of what it takes."""
    count: int = 1
    entries: tuned.Ops | None = None

    def compiled(self) -> Any:
        """The program."""
        with traced(self.dtype), contextlib.nullcontext() if self.entries is None else tuned.trying(self.entries):
            # A function of its own: jax would otherwise remember what it traced with other entries.
            if self.count == 1:
                return jax.jit(lambda *given: self.once(*given)).lower(*self.given).compile()
            results = list(jax.eval_shape(lambda *given: self.once(*given), *self.given))
            loop = jax.jit(repeated(self.once, self.count), donate_argnums=(0, 1))
            return loop.lower(self.given, results).compile()


class Running:
    """A compiled job on arrays of the device; calling it computes, and gives the results."""

    def __init__(self, job: Job, compiled: Any, given: tuple[Arrays, Arrays]):
        self._compiled, self._count, self._given, self._results = compiled, job.count, given, None
        if job.count > 1:
            # Its own, since it hands them on to its next call.
            self._given = jax.tree.map(jnp.copy, given)
            self._results = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), compiled.out_info[1])

    def __call__(self) -> Arrays:
        if self._count == 1:
            return self._compiled(*self._given)
        self._given, self._results = self._compiled(self._given, self._results)
        return self._results

    def seconds(self, least: float) -> float:
        """Of one time: the median of samples that take `least` seconds together."""
        found: list[float] = []
        calls, began = 1, time.perf_counter()
        while len(found) < (3 if least else 1) or time.perf_counter() - began < least:
            started = time.perf_counter()
            # Not waited for one by one: the next is handed to the device while this one runs.
            last = [self() for _ in range(calls)][-1]
            jax.block_until_ready(last)
            found.append((time.perf_counter() - started) / calls)
            if found[-1] > _LONG_SECONDS:
                break
            calls = max(1, min(50, math.ceil(_SAMPLE_SECONDS / found[-1])))
        # The first sample is one call, and wakes the device.
        return statistics.median(found[1:] or found) / self._count


class Compiler:
    """Compiles in threads, as XLA can, and keeps the programs until they are dropped."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(min(12, os.cpu_count() or 1))
        self._made: dict[Hashable, tuple[Any, concurrent.futures.Future[Any]]] = {}

    def start(self, key: Hashable, job: Any) -> None:
        """Begins to compile a job, or anything else that is `compiled()`."""
        if key not in self._made:
            self._made[key] = job, self._pool.submit(job.compiled)

    def get(self, key: Hashable) -> Any:
        """The compiled program, when it is there; raises what went wrong."""
        return self._made[key][1].result()

    def running(self, key: Hashable, given: tuple[Arrays, Arrays]) -> Running:
        """The compiled job on arrays."""
        job, made = self._made[key]
        return Running(job, made.result(), given)

    def wait(self) -> None:
        """Until nothing is being compiled."""
        concurrent.futures.wait([made for _, made in self._made.values()])

    def drop(self) -> None:
        """Forgets all programs."""
        self.wait()
        self._made.clear()
