"""Dense layers by oneDNN: one matrix product with bias, activation and an int8 scale fused into it.

A product is linear in both of its matrices, and its transposes are products again, of the same arrays as they lie in
memory: with c = a b, da = dc b' and db = a' dc. So every derivative, of any order and in both modes, is a product.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.activation import ACTIVATIONS
from llmasos_xla.kernels.dense import xla
from llmasos_xla.kernels.dense.problem import Problem, rows_of

# The dtypes of the operands and those that each may give.
RESULTS = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "float16": ("float16", "float32"),
    "int8": ("int32", "float32"),
}
# Multiplications of one product between which oneDNN was measured to pay (choice.py).
LEAST, LEAST_OF_A_ROW = 2**21, 2**18
MOST_IN_FLOAT32, MOST_COLUMNS_IN_FLOAT32, LEAST_ROWS_IN_FLOAT32 = 2**29, 256, 16


class Spec(NamedTuple):
    """`c[m, n] = a[m, k] b[k, n]`."""

    m: int
    k: int
    n: int
    a_transposed: bool
    """Whether a lies in memory as [k, m]."""
    b_transposed: bool
    """Whether b lies in memory as [n, k]."""
    dtype: str
    out_dtype: str
    bias: bool = False
    activation: str = ""
    scaled: bool = False
    """Whether integer sums are multiplied by a float32 for each column."""
    batch: int = 0
    """The size of a leading axis of a, b and c; 0 if they have none."""

    def matrix(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of one of the arrays."""
        return (self.batch, rows, columns) if self.batch else (rows, columns)


def _results(s: Spec) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(s.matrix(s.m, s.n), jnp.dtype(s.out_dtype))]


def slower(s: Spec) -> str | None:
    """Why XLA is the better choice for this product although oneDNN could, from measurement, or None."""
    if not _onednn.multiplies(s.dtype):
        return f"this CPU has no products in {s.dtype}"
    if s.k == 1:
        return "an outer product is a multiplication, which XLA fuses with what follows"
    if s.dtype == "int8":
        return None if s.m == 1 else "even with XLA in int8, but for a single row"
    work = max(s.batch, 1) * s.m * s.k * s.n
    least = LEAST_OF_A_ROW if s.m == 1 and s.dtype != "float32" else LEAST
    if work < least:
        return f"{work} multiplications, pays from {least} on"
    if s.dtype != "float32":
        return None
    if s.n > MOST_COLUMNS_IN_FLOAT32 or work > MOST_IN_FLOAT32:
        return (
            f"even with XLA in float32 for {s.n} columns and {work} multiplications, pays up to "
            f"{MOST_COLUMNS_IN_FLOAT32} and {MOST_IN_FLOAT32}"
        )
    if s.b_transposed:
        return "even with XLA in float32 where the right matrix lies transposed"
    if not s.a_transposed and s.m < LEAST_ROWS_IN_FLOAT32:
        return f"even with XLA in float32 for {s.m} rows, pays from {LEAST_ROWS_IN_FLOAT32} on"
    return None


def _build(b: _onednn.Builder, s: Spec) -> None:
    # A row times a matrix: oneDNN's matmul spreads it over the threads by columns alone, its inner product does better.
    # In float16 the inner product is the slow reference.
    if s.m == 1 and not s.batch and s.dtype != "float16":
        _build_inner_product(b, s)
        return
    left = _matrix(b, s, s.m, s.k, s.a_transposed, s.dtype)
    right = _matrix(b, s, s.k, s.n, s.b_transposed, s.dtype)
    out = _matrix(b, s, s.m, s.n, False, s.out_dtype)
    bias = b.dense((1, 1, s.n) if s.batch else (1, s.n), _bias_dtype(s)) if s.bias else None
    every_column = 4 if s.batch else 2
    attributes = b.attributes(s.activation or None, {d.WEIGHTS: every_column} if s.scaled else None)
    _run(b, s, b.describe("matmul", left, right, bias, out, attributes), left, right, bias, out)


def _build_inner_product(b: _onednn.Builder, s: Spec) -> None:
    left, out = b.dense((1, s.k), s.dtype), b.dense((1, s.n), s.out_dtype)
    right = b.strided((s.n, s.k), (s.k, 1) if s.b_transposed else (1, s.n), s.dtype)
    bias = b.dense((s.n,), _bias_dtype(s)) if s.bias else None
    attributes = b.attributes(s.activation or None, {d.WEIGHTS: 1} if s.scaled else None)
    pd = b.describe("inner_product_forward", d.FORWARD_INFERENCE, left, right, bias, out, attributes)
    _run(b, s, pd, left, right, bias, out)


def _run(b: _onednn.Builder, s: Spec, pd: Any, left: Any, right: Any, bias: Any, out: Any) -> None:
    operands = {d.SRC: b.argument(0, left), d.WEIGHTS: b.argument(1, right), d.DST: b.result(0, out)}
    if s.scaled:
        operands[d.SCALES | d.WEIGHTS] = b.argument(2, b.dense((s.n,), "float32"))
    if bias is not None:
        operands[d.BIAS] = b.argument(2 + s.scaled, bias)
    b.run(pd, operands)


def _matrix(b: _onednn.Builder, s: Spec, rows: int, columns: int, transposed: bool, dtype: str) -> Any:
    strides = (1, rows) if transposed else (columns, 1)
    return b.strided(s.matrix(rows, columns), (rows * columns, *strides) if s.batch else strides, dtype)


def _bias_dtype(s: Spec) -> str:
    return "float32" if s.dtype == "int8" else s.out_dtype


def _xla(s: Spec, a: jax.Array, b: jax.Array, *rest: jax.Array) -> tuple[jax.Array]:
    multiply = xla.outer if s.k == 1 and s.dtype != "int8" else xla.product
    y = multiply(a, b, s.a_transposed, s.b_transposed, jnp.dtype(s.out_dtype))
    scale, bias = rest[0] if s.scaled else None, rest[-1] if s.bias else None
    for row, apply in ((scale, jnp.multiply), (bias, jnp.add)):
        if row is not None:
            y = apply(y, jnp.broadcast_to(row.astype(y.dtype), y.shape))
    return (ACTIVATIONS[s.activation](y) if s.activation else y,)


# Derivatives and vmap.


def _product(s: Spec, a: jax.Array, b: jax.Array, named: bool) -> jax.Array:
    """A product among the derivatives: by oneDNN where it can and pays."""
    a, b = a.astype(s.dtype), b.astype(s.dtype)
    if s.k > 1 and (named or (slower(s) is None and _onednn.refusal(OPERATION, s) is None)):
        return _call(s, a, b, named=named)
    return _xla(s, a, b)[0]


def _jvp(s: Spec, primals: Any, tangents: Any, named: bool) -> Any:
    if s.dtype != "int8":
        return _onednn.bilinear_jvp(OPERATION, s, primals, tangents, named)
    a, b, *rest = primals
    filled = [jnp.zeros_like(p) if t is None else t for p, t in zip(rest, tangents[2:])]
    return jax.jvp(lambda *rest: _xla(s, a, b, *rest), rest, filled)


def _transpose(s: Spec, arrays: Any, cts: Any, named: bool) -> list[Any]:
    a, b = arrays
    (dc,) = cts
    if a is None:
        return [_product(_for_a(s), *((b, dc) if s.a_transposed else (dc, b)), named), None]
    return [None, _product(_for_b(s), *((dc, a) if s.b_transposed else (a, dc)), named)]


def _for_a(s: Spec) -> Spec:
    """dc b', or its transpose b dc' where a lies transposed."""
    s = s._replace(out_dtype=s.dtype)
    if s.a_transposed:
        return s._replace(m=s.k, k=s.n, n=s.m, a_transposed=s.b_transposed, b_transposed=True)
    return s._replace(k=s.n, n=s.k, b_transposed=not s.b_transposed)


def _for_b(s: Spec) -> Spec:
    """a' dc, or its transpose dc' a where b lies transposed."""
    s = s._replace(out_dtype=s.dtype)
    if s.b_transposed:
        return s._replace(m=s.n, k=s.m, n=s.k, a_transposed=True, b_transposed=s.a_transposed)
    return s._replace(m=s.k, k=s.m, a_transposed=not s.a_transposed)


def _batch(s: Spec, size: int, arrays: Any, axes: Any, named: bool) -> Any:
    """Rows that are mapped alone join the rows; everything else becomes a batch of products."""
    a, b, *rest = (x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes))
    if not s.batch and not s.a_transposed and all(axis is None for axis in axes[1:]):
        y = _call(s._replace(m=size * s.m), a.reshape(size * s.m, s.k), b, *rest, named=named)
        return (y.reshape(size, s.m, s.n),), [0]
    if any(axis is not None for axis in axes[2:]):  # what is fused into a batch of products is one row for all
        return jax.vmap(functools.partial(_xla, s), axes)(*arrays), [0]
    a, b = (
        (jnp.broadcast_to(x, (size, *x.shape)) if axis is None else x).reshape(-1, *x.shape[-2:])
        for x, axis in zip((a, b), axes)
    )
    y = _call(s._replace(batch=a.shape[0]), a, b, *rest, named=named)
    return (y.reshape(size, *_results(s)[0].shape),), [0]


def _flops(s: Spec) -> float:
    return 2.0 * max(s.batch, 1) * s.m * s.k * s.n


OPERATION = _onednn.operation("dense", Spec, _results, _build, _xla, _batch, _jvp, _transpose, flops=_flops)


def _call(s: Spec, *arrays: jax.Array, named: bool) -> jax.Array:
    (out,) = _onednn.call(OPERATION, s, *arrays, named=named)
    return out


# The public side.


def cannot(p: Problem) -> str | None:
    """Why oneDNN cannot compute this problem, or None."""
    dtype = str(p.x.dtype)
    if dtype not in RESULTS:
        return f"operands are {dtype}; it takes {', '.join(RESULTS)}"
    if str(p.result) not in RESULTS[dtype]:
        return f"the result is {p.result}; from {dtype} it gives {', '.join(RESULTS[dtype])}"
    if p.precision is not None:
        return f"precision={p.precision!r} is given"
    why = _onednn.problem() or _onednn.unfit(p.x, p.w)
    if why is None and dtype == "int8" and not _onednn.multiplies(dtype):
        return "this CPU has no products in int8, and oneDNN's sums would overflow"
    return why or _onednn.refusal(OPERATION, spec_of(p))


def products(p: Problem) -> list[Spec]:
    """The products of a forward and a backward pass, without what is fused into the first."""
    s = spec_of(p)._replace(bias=False, activation="", scaled=False)
    if s.dtype == "int8":
        return [s]
    return [s, _for_a(s), _for_b(s)]


def spec_of(p: Problem) -> Spec:
    """oneDNN's description of the problem, with what it fuses."""
    fused = p.activation if p.activation in d.ELTWISE else None
    bias = p.bias is not None and p.result != jnp.int32
    return Spec(
        p.rows, p.cin, p.cout, False, p.transpose_kernel, str(p.x.dtype), str(p.result), bias, fused or "",
        p.scale is not None,
    )  # fmt: skip


def dense(p: Problem, named: bool) -> jax.Array:
    """`activation(scale * (x @ w) + bias)` by oneDNN."""
    s = spec_of(p)
    x = p.x.reshape(p.rows, p.cin)
    bias = p.bias.astype(_bias_dtype(s)) if s.bias else None
    if s.scaled:
        scale = jnp.broadcast_to(p.scale.astype(jnp.float32), (p.cout,))
        y = _call(s, x, p.w, scale, *(() if bias is None else (bias,)), named=named)
    else:
        y = _fused(x, p.w, bias, s, named)
    left = p._replace(scale=None, bias=None if s.bias else p.bias, activation=None if s.activation else p.activation)
    return left.finish(y).reshape(*p.x.shape[:-1], p.cout)


# The slope of an activation from its result.
_SLOPES = {
    "relu": lambda y: (y > 0).astype(y.dtype),
    "leaky_relu": lambda y: jnp.where(y > 0, jnp.ones_like(y), jnp.full_like(y, 0.2)),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _fused(x: jax.Array, w: jax.Array, bias: jax.Array | None, s: Spec, named: bool) -> jax.Array:
    rest = () if bias is None else (bias,)
    return _call(s, x, w, *rest, named=named) if named or slower(s) is None else _xla(s, x, w, *rest)[0]


def _fused_jvp(s: Spec, named: bool, primals: Any, tangents: Any) -> Any:
    x, w, bias = primals
    dx, dw, dbias = tangents
    linear = s._replace(bias=False, activation="")
    from_result = not s.activation or s.activation in _SLOPES
    y = _fused(x, w, bias, s if from_result else s._replace(activation=""), named)
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_call(linear, dx, w, named=named))
    if not isinstance(dw, SymbolicZero):
        parts.append(_call(linear, x, dw, named=named))
    if bias is not None and not isinstance(dbias, SymbolicZero):
        parts.append(rows_of(dbias, y))
    dz = functools.reduce(jnp.add, parts)
    if not s.activation:
        return y, dz
    if from_result:
        return y, _SLOPES[s.activation](y) * dz
    return jax.jvp(ACTIVATIONS[s.activation], (y,), (dz,))


_fused.defjvp(_fused_jvp, symbolic_zeros=True)
