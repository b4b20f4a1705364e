"""Cases of recurrence as calls of the public functions, and what their results are held against."""

import jax
import jax.numpy as jnp
import numpy as np
from kernels.rnn_reference import arrays, reference
from tolerances import assert_close

from llmasos_xla import kernels

OPS = {"lstm": kernels.lstm, "gru": kernels.gru, "rnn": kernels.rnn}
STATES = ("h0", "c0")


def call(case, arrays, implementation="onednn", **options):
    """All outputs of the public function on a case, `(y, *states)`."""
    lengths = None if case.lengths is None else np.array(case.lengths)
    y, states = OPS[case.op](**arrays, lengths=lengths, reverse=case.reverse, implementation=implementation, **options)
    return y, *(states if case.op == "lstm" else [states])


def drawn(case, dtype="float32", given=True, **options):
    """The arrays of a case, without initial states if they are not given, and those of them that are not None."""
    whole = {k: None if v is None else jnp.asarray(v, dtype) for k, v in arrays(case, **options).items()}
    if not given:
        whole |= {name: None for name in STATES if name in whole}
    return whole, {k: v for k, v in whole.items() if v is not None}


def shapes(case, dtype="float32"):
    """The arrays of a case as shapes."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), arrays(case))


def loss(case, present, implementation="onednn", **options):
    """A number that depends on every output unevenly, of the arrays that are not None."""
    missing = {name: None for name in arrays(case) if name not in present}
    outputs = call(case, present | missing, implementation, **options)
    weights = (jnp.cos(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) for o in outputs)
    return sum(jnp.sum(w * o * o) + jnp.sum(o) for w, o in zip(weights, outputs))


def is_refused(case, given):
    """Whether padding comes first and nothing can hold the state over it."""
    return case.lengths is not None and case.reverse and (case.op == "rnn" or (case.op == "lstm" and given))


def expected_outputs(case, whole):
    """The NumPy reference's outputs, `(y, *states)`."""
    starts = {"lstm": STATES, "gru": STATES[:1], "rnn": STATES[:1]}[case.op]
    wide = {k: None if v is None else np.asarray(v, np.float64) for k, v in whole.items()}
    zeros = {name: np.zeros((case.batch, case.hidden)) for name in starts if wide[name] is None}
    y, states = reference(case, wide | zeros)
    return y, *states


def assert_same(actual, expected, **kwargs):
    jax.tree.map(lambda a, b: assert_close(a, b, **kwargs), actual, expected)


def assert_same_gradients(actual, expected, **kwargs):
    """Equal relative to each gradient's largest element."""
    for name in expected:
        size = 1 + float(jnp.abs(expected[name]).max())
        assert_close(actual[name] / size, expected[name] / size, message=name, **kwargs)


def assert_values_and_gradients(case, whole, present):
    """oneDNN's outputs against NumPy, and its gradients against those of XLA."""

    @jax.jit
    def both(present):
        gradients = [jax.grad(loss, 1)(case, present, name) for name in ("onednn", "xla")]
        return call(case, whole | present), gradients

    outputs, (got, expected) = both(present)
    assert_same(outputs, expected_outputs(case, whole))
    assert_same_gradients(got, expected)
