"""Programs in the operators that a converter knows.

Converters that read a program equation by equation know JAX's own operators, and not all of them. `in_formulas` takes a
traced program and writes it once more: functions within it stand in line, our kernels are their plain JAX versions, and
where there is a rule an operator is spelled in others with the same value. Gradients are not kept.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from llmasos_xla.kernels import plain_version

Rule = Callable[..., Sequence[Any] | None]
"""(equation, *operands) -> its results, or None where the operator may stay."""

# What a function within the program is called by, and where its body is.
_BODIES = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


# Places of a window from which on a pooling of pictures of any size is left as it is: each is an operator.
_MOST_PLACES = 64


def in_formulas(closed: Any, rules: Mapping[str, Rule]) -> Callable[..., list[Any]]:
    """The traced program as a function of its inputs, to be traced again.

    Args:
        closed: what `jax.make_jaxpr` gave; its sizes may be symbolic.
        rules: for operators by the names of their primitives.
    """

    def run(*arrays: Any) -> list[Any]:
        return _replay(closed.jaxpr, closed.consts, arrays, rules)

    return run


def _replay(jaxpr: Any, consts: Sequence[Any], arrays: Sequence[Any], rules: Mapping[str, Rule]) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars], rules)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: Any, operands: Sequence[Any], rules: Mapping[str, Rule]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name in _BODIES:
        body = params[_BODIES[name]]
        return _replay(*_opened(body), operands, rules)
    if name == "scan":
        return _scan(params, operands, rules)
    if name == "while":
        return _while(params, operands, rules)
    if name == "cond":
        index, *rest = operands
        return jax.lax.switch(index, [_function(branch, rules) for branch in params["branches"]], *rest)
    plain = plain_version(equation.primitive, params)
    if plain is not None:
        # Its plain version may hold what a rule is for.
        return _replay(*_opened(jax.make_jaxpr(plain)(*operands)), operands, rules)
    if name in rules and (results := rules[name](equation, *operands)) is not None:
        return results
    results = equation.primitive.bind(*operands, **params)
    return results if equation.primitive.multiple_results else [results]


def _opened(body: Any) -> tuple[Any, Sequence[Any]]:
    return (body.jaxpr, body.consts) if hasattr(body, "consts") else (body, ())


def _function(body: Any, rules: Mapping[str, Rule]) -> Callable[..., tuple[Any, ...]]:
    return lambda *arrays: tuple(_replay(*_opened(body), arrays, rules))


def _scan(params: Mapping[str, Any], operands: Sequence[Any], rules: Mapping[str, Rule]) -> Sequence[Any]:
    """A scan forwards; one that runs backwards reads and writes its steps the other way round."""
    body, (fixed, carried) = _function(params["jaxpr"], rules), _fixed_and_carried(params)
    constants, carry, steps = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        results = body(*constants, *carry, *x)
        return tuple(results[:carried]), tuple(results[carried:])

    def turned(arrays: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(jax.lax.rev(a, (0,)) for a in arrays) if params["reverse"] else tuple(arrays)

    carry, out = jax.lax.scan(step, tuple(carry), turned(steps), length=params["length"])
    return [*carry, *turned(out)]


def _fixed_and_carried(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # From JAX 0.12 on: the operands' tree, of constants, carry and steps.
    fixed, carried, _ = params["ft_in"].unpack()
    return len(fixed), len(carried)


def _while(params: Mapping[str, Any], operands: Sequence[Any], rules: Mapping[str, Rule]) -> Sequence[Any]:
    test, body = (_function(params[kind], rules) for kind in ("cond_jaxpr", "body_jaxpr"))
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    first, second, carry = operands[:of_test], operands[of_test : of_test + of_body], operands[of_test + of_body :]
    return jax.lax.while_loop(lambda c: test(*first, *c)[0], lambda c: body(*second, *c), tuple(carry))


def select_of_booleans(equation: Any, which: Any, *cases: Any) -> Sequence[Any] | None:
    """`select_n` of two boolean arrays in logic: (which and second) or (not which and first)."""
    if cases[0].dtype != jnp.bool_ or len(cases) != 2:
        return None
    second = which if which.dtype == jnp.bool_ else which != 0
    second = second if second.shape == cases[0].shape else jax.lax.broadcast(second, cases[0].shape)
    return [(second & cases[1]) | (~second & cases[0])]


def quotient_of_integers(equation: Any, x: Any, y: Any) -> Sequence[Any] | None:
    """`div` of whole numbers as -((-x) / y), which cuts towards zero as well.

    jax2onnx 0.17 takes (a + b) / 2 for a mean, which ONNX has of floats alone.
    """
    return None if jnp.issubdtype(x.dtype, jnp.inexact) else [-jax.lax.div(-x, y)]


def remainder_of_integers(equation: Any, x: Any, y: Any) -> Sequence[Any] | None:
    """`rem` of whole numbers as x - y * (x / y), the division cutting towards zero."""
    quotient = quotient_of_integers(equation, x, y)
    return None if quotient is None else [x - y * quotient[0]]


def padding_of_any_size(equation: Any, x: Any, value: Any) -> Sequence[Any] | None:
    """`pad` of an array with a symbolic size: its value in front and behind, and what is negative cut off."""
    config = equation.params["padding_config"]
    if not any(map(jax.export.is_symbolic_dim, x.shape)) or any(inside for _, _, inside in config):
        return None
    return _bordered(x, value, [(low, high) for low, high, _ in config])


def _bordered(x: Any, value: Any, borders: Sequence[tuple[int, int]]) -> Sequence[Any]:
    for axis, (low, high) in enumerate(borders):
        if low < 0 or high < 0:
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        parts = [
            jax.lax.broadcast(value, (*x.shape[:axis], size, *x.shape[axis + 1 :])) if size > 0 else None
            for size in (low, high)
        ]
        parts = [part for part in (parts[0], x, parts[1]) if part is not None]
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return [x]


def spectrum_of_rows(equation: Any, x: Any) -> Sequence[Any] | None:
    """`fft` of rows of real numbers as two products, with cosines and with sines."""
    kind, lengths = equation.params["fft_type"], equation.params["fft_lengths"]
    if kind != jax.lax.FftType.RFFT or len(lengths) != 1:
        return None
    (length,) = lengths
    # The angles in float64: their error would grow with the length.
    angles = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length

    def product(waves: np.ndarray) -> jax.Array:
        return jnp.matmul(x, jnp.asarray(waves, x.dtype), precision=jax.lax.Precision.HIGHEST)

    return [jax.lax.complex(product(np.cos(angles)), product(-np.sin(angles)))]


def maximum_of_windows(equation: Any, x: Any) -> Sequence[Any] | None:
    """`reduce_window_max` as `nnx.max_pool`, whose ONNX form is one MaxPool.

    The border is filled with copies of the edge, not with -inf, which no scale of 8 bits reaches: a window that
    reaches into the border holds the edge as well. Of pictures of any size it is the maximum of slices: jax2onnx 0.17
    takes a pooling for one that keeps a symbolic size.
    """
    found = _pooling(equation, x)
    if found is None:
        return None
    window, strides, borders = found
    for axis, (low, high) in enumerate(borders, start=1):
        if low or high:
            first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            x = jax.lax.concatenate([first] * low + [x] + [last] * high, axis)
    if any(map(jax.export.is_symbolic_dim, x.shape[1:-1])):
        return [functools.reduce(jnp.maximum, _at_places(x, window, strides))]
    return [nnx.max_pool(x, window_shape=window, strides=strides, padding="VALID")]


def sum_of_windows(equation: Any, x: Any) -> Sequence[Any] | None:
    """`reduce_window_sum` as `nnx.avg_pool` times the places of a window; of pictures of any size by slices."""
    found = _pooling(equation, x)
    if found is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    window, strides, borders = found
    if any(map(any, borders)):
        (x,) = _bordered(x, jnp.zeros((), x.dtype), [(0, 0), *borders, (0, 0)])
    if any(map(jax.export.is_symbolic_dim, x.shape[1:-1])):
        return [functools.reduce(jnp.add, _at_places(x, window, strides))]
    return [
        nnx.avg_pool(x, window_shape=window, strides=strides, padding="VALID") * jnp.asarray(math.prod(window), x.dtype)
    ]


def _at_places(x: Any, window: Sequence[int], strides: Sequence[int]) -> Iterator[Any]:
    """What stands at each place of a window, [rows, ..., channels] each."""
    ends = [(n - w) // s * s + 1 for n, w, s in zip(x.shape[1:-1], window, strides)]
    for start in itertools.product(*map(range, window)):
        limits = [a + end for a, end in zip(start, ends)]
        yield jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))


def _pooling(equation: Any, x: Any) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]] | None:
    """Windows, strides and borders along the spatial axes of [rows, ..., channels]; None for another reduction."""
    given = equation.params
    window, strides, borders = given["window_dimensions"], given["window_strides"], given["padding"]
    ends = (0, -1)
    if len(window) not in (3, 4, 5) or any(window[i] != 1 or strides[i] != 1 or any(borders[i]) for i in ends):
        return None
    if any(n != 1 for n in (*given["base_dilation"], *given["window_dilation"])):
        return None
    if math.prod(window) > _MOST_PLACES and any(map(jax.export.is_symbolic_dim, x.shape[1:-1])):
        return None
    inside = [(w, tuple(pair)) for w, pair in zip(window[1:-1], borders[1:-1])]
    if any(min(pair) < 0 or max(pair) >= w for w, pair in inside):
        return None
    return tuple(window[1:-1]), tuple(strides[1:-1]), [pair for _, pair in inside]
