"""Recurrence as a float64 NumPy loop over rows and steps, and the arrays of a case."""

import numpy as np

from llmasos_xla.kernels.rnn.cases import GATES, Case


def arrays(case: Case, seed: int = 0, scale: float = 0.7) -> dict[str, np.ndarray | None]:
    """The arrays of a case in float64, by the argument names of the public functions."""
    rng = np.random.default_rng(seed)
    columns = GATES[case.op] * case.hidden
    shapes = {
        "x": (case.batch, case.time, case.cin),
        "w_input": (case.cin, columns),
        "w_recurrent": (case.hidden, columns),
        "bias": (columns,),
        "h0": (case.batch, case.hidden),
    }
    shapes |= {"lstm": {"c0": (case.batch, case.hidden)}, "gru": {"recurrent_bias": (columns,)}, "rnn": {}}[case.op]
    drawn = {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()}
    return drawn if case.bias else drawn | {name: None for name in drawn if name.endswith("bias")}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(a, state, u, rb, f, g):
    h, c = state
    i, forget, n, o = np.split(a + h @ u, 4)
    c = g(forget) * c + g(i) * f(n)
    return g(o) * f(c), c


def gru_step(a, state, u, rb, f, g, reset_after=True):
    (h,) = state
    k = len(h)
    r, z = np.split(g(a[: 2 * k] + h @ u[:, : 2 * k] + rb[: 2 * k]), 2)
    if reset_after:
        n = f(a[2 * k :] + r * (h @ u[:, 2 * k :] + rb[2 * k :]))
    else:
        n = f(a[2 * k :] + (r * h) @ u[:, 2 * k :] + rb[2 * k :])
    return ((1 - z) * n + z * h,)


def rnn_step(a, state, u, rb, f, g):
    return (f(a + state[0] @ u),)


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step}


def reference(case: Case, arrays: dict, f=np.tanh, g=sigmoid, **options):
    """`(y, states)` of a case."""
    zero = np.zeros(GATES[case.op] * case.hidden)
    bias, rb = (zero if arrays.get(name) is None else arrays[name] for name in ("bias", "recurrent_bias"))
    states = [arrays[name].copy() for name in ("h0", "c0") if arrays.get(name) is not None]
    y = np.zeros((case.batch, case.time, case.hidden))
    for row in range(case.batch):
        length = case.time if case.lengths is None else case.lengths[row]
        state = tuple(s[row] for s in states)
        for t in reversed(range(length)) if case.reverse else range(length):
            a = arrays["x"][row, t] @ arrays["w_input"] + bias
            state = STEPS[case.op](a, state, arrays["w_recurrent"], rb, f, g, **options)
            y[row, t] = state[0]
        for whole, last in zip(states, state):
            whole[row] = last
    return y, states
