"""The smallest operation there can be, a matrix product, for the tests of the core: it knows no op of the package."""

import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d

needs_onednn = pytest.mark.skipif(_onednn.problem() is not None, reason=f"no oneDNN: {_onednn.problem()}")


class Spec(NamedTuple):
    """`[rows, inner]` times `[inner, columns]`; `salt` makes plans that differ in nothing but their text."""

    rows: int
    inner: int
    columns: int
    salt: tuple[int, ...] = ()

    def arrays(self, rng: np.random.Generator) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(rng.standard_normal((self.rows, self.inner)), "float32")
        return x, jnp.asarray(rng.standard_normal((self.inner, self.columns)), "float32")


def _results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((s.rows, s.columns), jnp.float32)]


def build(b: _onednn.Builder, s: Spec) -> None:
    x, w, y = (b.dense(shape, "float32") for shape in ((s.rows, s.inner), (s.inner, s.columns), (s.rows, s.columns)))
    pd = b.describe("matmul", x, w, None, y, b.attributes())
    b.run(pd, {d.SRC: b.argument(0, x), d.WEIGHTS: b.argument(1, w), d.DST: b.result(0, y)})


def _xla(s: Spec, x: jax.Array, w: jax.Array) -> tuple[jax.Array]:
    return (x @ w,)


def _jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
    return _onednn.bilinear_jvp(OPERATION, s, primals, tangents, named)


def _transpose(s: Spec, arrays: Any, cotangents: Any, named: bool) -> list[Any]:
    (x, w), (dy,) = arrays, cotangents
    if x is None:
        return [product(dy, w.T, named=named), None]
    return [None, product(x.T, dy, named=named)]


OPERATION = _onednn.operation("toy product", Spec, _results, build, _xla, None, _jvp, _transpose)


def product(x: jax.Array, w: jax.Array, *, salt: tuple[int, ...] = (), named: bool = False) -> jax.Array:
    return _onednn.call(OPERATION, Spec(*x.shape, w.shape[1], salt), x, w, named=named)[0]


def run_python(code: str, *arguments: str, timeout: float = 120, **environment: str) -> str:
    """What the code prints in a Python of its own, which sees the tests' modules."""
    root = pathlib.Path(__file__).parents[3]
    environ = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
