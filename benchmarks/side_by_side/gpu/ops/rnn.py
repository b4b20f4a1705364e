"""Recurrence: the public functions, and `lax.scan` as a JAX user writes it."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import rnn as of_jax

from llmasos_xla import kernels
from llmasos_xla.kernels.rnn import triton, triton_spec, xla
from llmasos_xla.kernels.rnn._check import STATES, check
from llmasos_xla.kernels.rnn.cases import GATES, GPU_BENCH, GPU_TESTS, Case
from llmasos_xla.kernels.rnn.cases import TESTS as CPU_TESTS
from llmasos_xla.kernels.rnn.triton_spec import TABLES, Spec, allowed, shape_class
from side_by_side.gpu.problem import BOTH, DTYPES, FORWARD, PARTS, Problem, Row, Trial, Work, normal

CHOICE = triton_spec.CHOICE
TESTS = {Row("rnn", c.name, d): c for c in (*GPU_TESTS, *CPU_TESTS) for d in ("float32", "bfloat16", "float16")}
BENCH = {Row("rnn", c.name, c.dtype): c for c in GPU_BENCH}
TINY = [Row("rnn", "lstm-one", "float32"), Row("rnn", "gru-heads", "bfloat16")]
# Programs that wait for each other.
STRESS = [Row("rnn", n, d) for n, d in (("lstm-split", "bfloat16"), ("gru-split-heads", "float32"),
          ("slstm-split-everything", "float16"), ("lstm-768", "bfloat16"))]  # fmt: skip

_FUNCTIONS = {"lstm": kernels.lstm, "gru": kernels.gru, "rnn": kernels.rnn, "slstm": kernels.slstm}


def problem(row: Row, case: Case) -> Problem:
    """The problem of a case; tests start from given states, benchmarks from none."""
    gates, head = GATES[case.op], case.hidden // case.heads
    columns = gates * case.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "x": (case.batch, case.time, case.cin),
        "w_input": (case.cin, columns),
        "w_recurrent": (head, columns) if case.heads == 1 else (case.heads, head, gates * head),
    }
    if case.bias:
        shapes["bias"] = (columns,)
        if case.op == "gru":
            shapes["recurrent_bias"] = (columns,)
    if case.mask:
        shapes["recurrent_mask"] = (case.batch, case.hidden)
    if row not in BENCH:
        shapes |= dict.fromkeys(STATES[case.op], (case.batch, case.hidden))
    names = tuple(shapes)
    named = partial(_call, case, names)
    ways = {"ours": named(None), "triton": named("triton"), "xla": named("xla")}
    if case.lengths is None and not case.reverse and not case.mask:
        ways |= {"scan": _scan(case, names, 1), "scan-8": _scan(case, names, 8)}
        if case.op == "lstm" and case.heads == 1 and not case.resets and row.dtype == "float32":
            ways["jax.experimental.rnn"] = _experimental(case, names)
    structs = [jax.ShapeDtypeStruct(shapes[n], DTYPES[row.dtype][0]) for n in names]
    given = dict(zip(names, structs))
    return Problem(
        row, names, shapes, _draw, ways,
        lambda: kernels.explain(_FUNCTIONS[case.op], **_arguments(case, given)),
        lambda: _work(row, case), _torch(case), True,
    )  # fmt: skip


def spec_of(row: Row, case: Case) -> Spec | str:
    """What the kernels make of a problem."""
    p = problem(row, case)
    given = {"bias": None, **dict(zip(p.names, p.structs()))}
    given |= {name: a for name, a in _integers(case).items() if name in ("lengths", "resets")}
    states = {name: given.pop(name, None) for name in STATES[case.op]}
    order = ("x", "w_input", "w_recurrent", "bias", "recurrent_bias", "lengths")
    asked = [given.get(name) for name in order]
    checked = check(case.op, *asked, case.reverse, given.get("resets"), given.get("recurrent_mask"), **states)
    return triton.spec_of(case.op, checked)


def trials(row: Row, case: Case) -> Iterator[Trial]:
    """Every cut that fits, the most promising first."""
    s = spec_of(row, case)
    if isinstance(s, str):
        return
    shape = s.kind, s.batch, s.blocks, s.head, s.dtype, s.precision
    for backward, table in enumerate(TABLES):
        cuts = allowed(*shape, s.device, bool(backward))
        entries = [{n: getattr(t, n) for n in ("rows", "units", "inner", "warps")} for t in cuts]
        yield Trial(table, shape_class(*shape), PARTS[backward], [entries])


def _integers(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {"lengths": None if case.lengths is None else np.array(case.lengths, np.int32)}
    found["resets"] = np.random.default_rng(7).random((case.batch, case.time)) < 0.1 if case.resets else None
    return found


def _arguments(case: Case, given: dict[str, Any]) -> dict[str, Any]:
    return {"bias": None, **given, **_integers(case), "reverse": case.reverse}


def _call(case: Case, names: tuple[str, ...], implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        y, states = _FUNCTIONS[case.op](**_arguments(case, dict(zip(names, arrays))), implementation=implementation)
        return y, *(states if isinstance(states, tuple) else (states,))

    return function


def _scan(case: Case, names: tuple[str, ...], unroll: int) -> Callable[..., tuple[jax.Array, ...]]:
    """The input's product for all steps, then `lax.scan` over the cell, differentiated by JAX."""
    resets = _integers(case)["resets"]

    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        a = dict(zip(names, arrays))
        x, u = jnp.swapaxes(a["x"], 0, 1), a["w_recurrent"]
        high = xla.state_dtype(x.dtype)
        p = xla.project(x, a["w_input"])
        if "bias" in a:
            p += a["bias"].astype(high)[None, None]
        cell = {
            "lstm": lambda: xla.lstm_cell(u), "gru": lambda: xla.gru_cell(u, a.get("recurrent_bias")),
            "rnn": lambda: xla.rnn_cell(u), "slstm": lambda: xla.slstm_cell(u),
        }[case.op]()  # fmt: skip
        zeros = xla.initial(tuple(jnp.zeros((case.batch, case.hidden), high) for _ in STATES[case.op]))
        start = tuple(a[n].astype(high) if n in a else zero for n, zero in zip(STATES[case.op], zeros))

        def step(state: Any, xs: Any) -> Any:
            here, fresh = xs
            if fresh is not None:
                state = tuple(jnp.where(fresh, new, old) for new, old in zip(xla.initial(state), state))
            new = cell(state, here)
            return new, new[0].astype(x.dtype)

        fresh = None if resets is None else jnp.swapaxes(jnp.asarray(resets), 0, 1)[..., None]
        states, y = lax.scan(step, start, (p, fresh), unroll=unroll)
        return jnp.swapaxes(y, 0, 1), *(s.astype(x.dtype) for s in states)

    return function


def _experimental(case: Case, names: tuple[str, ...]) -> Callable[..., tuple[jax.Array, ...]]:
    """cuDNN's LSTM as JAX has it; its weights are one vector, which is put together in the timed call."""

    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        a = dict(zip(names, arrays))
        x, zero = a["x"], jnp.zeros((1, case.batch, case.hidden), jnp.float32)
        bias = a.get("bias", jnp.zeros(4 * case.hidden, jnp.float32))
        parts = a["w_input"].T, a["w_recurrent"].T, bias, jnp.zeros_like(bias)
        y, h, c = of_jax.lstm(
            x, a["h0"][None] if "h0" in a else zero, a["c0"][None] if "c0" in a else zero,
            jnp.concatenate([part.reshape(-1) for part in parts]), jnp.full(case.batch, case.time, jnp.int32),
            input_size=case.cin, hidden_size=case.hidden, num_layers=1, dropout=0.0, bidirectional=False,
            precision=lax.Precision.HIGHEST,
        )  # fmt: skip
        return y, h[0], c[0]

    return function


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.startswith("w_"):
        return normal(rng, shape, 0.7 / math.sqrt(shape[-2]))
    if name == "recurrent_mask":
        return np.where(rng.random(shape) < 0.8, np.float32(1.25), np.float32(0))
    drawn = normal(rng, shape, 1.0 if name == "x" else 0.5)
    return 1 + np.abs(drawn) if name == "n0" else drawn


def _work(row: Row, case: Case) -> dict[str, Work]:
    """Products of the input and of the state; backward has two for each of the forward's."""
    columns = GATES[case.op] * case.hidden
    flops = 2.0 * case.batch * case.time * columns * (case.cin + case.hidden // case.heads)
    x, y = (case.batch * case.time * n for n in (case.cin, case.hidden))
    weights = columns * (case.cin + case.hidden // case.heads)
    itemsize = jnp.dtype(DTYPES[row.dtype][0]).itemsize
    s = spec_of(row, case)
    # Where the kernels cannot, nothing but the weights' size says how many programs a step needs.
    programs = (1, 1) if isinstance(s, str) else (s.forward.splits, s.backward.splits)
    there, back = ((case.time, n) for n in programs)
    return {
        FORWARD: Work(flops, itemsize * (x + weights + y), (there,)),
        BOTH: Work(3 * flops, itemsize * 2 * (x + weights + y), (there, back)),
    }


def _torch(case: Case) -> dict[str, Any] | str:
    if case.op == "slstm" or case.heads > 1 or case.resets or case.mask:
        what = "sLSTM" if case.op == "slstm" else "heads" if case.heads > 1 else "resets or masks"
        return f"PyTorch has no {what}"
    if case.lengths is not None or case.reverse:
        return "ragged and reversed batches are not compared"
    return {"kind": "rnn", "module": case.op.upper(), "cin": case.cin, "hidden": case.hidden, "bias": case.bias}
