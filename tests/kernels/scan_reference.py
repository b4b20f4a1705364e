"""Cases of the linear recurrence: their arrays, and values and gradients by NumPy in float64, one step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerances import assert_close

from llmasos_xla import kernels
from llmasos_xla.kernels.scan.cases import Case


def arrays(case: Case, dtype="float32", seed: int = 0) -> dict[str, jax.Array | None]:
    """a, b and h0 of a case; gates of both signs."""
    rng = np.random.default_rng(seed)
    drawn = {
        "a": rng.uniform(-1.05, 1.05, case.a),
        "b": rng.standard_normal(case.shape),
        "h0": rng.standard_normal((case.batch, case.channels)) if case.initial else None,
    }
    return {name: None if x is None else jnp.asarray(x, dtype) for name, x in drawn.items()}


def cotangents(case: Case, dtype="float32", seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """Of h and of the final state."""
    rng = np.random.default_rng(seed)
    shapes = case.shape, (case.batch, case.channels)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def reference(case: Case, given: dict, cotangent: tuple) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """`[h, final]`, and the gradients of a, b and h0 where the results have those cotangents."""
    wide = {name: None if x is None else np.asarray(x, np.float64) for name, x in given.items()}
    a, b = np.broadcast_to(wide["a"], case.shape), wide["b"]
    h0 = np.zeros((case.batch, case.channels)) if wide["h0"] is None else wide["h0"]
    g, adjoint = (np.asarray(x, np.float64) for x in cotangent)
    walk = range(case.time)[:: -1 if case.reverse else 1]
    h, before, db, da = np.zeros_like(b), np.zeros_like(b), np.zeros_like(b), np.zeros_like(b)
    state = h0
    for t in walk:
        before[:, t] = state
        state = h[:, t] = a[:, t] * state + b[:, t]
    for t in reversed(walk):
        adjoint = db[:, t] = adjoint + g[:, t]
        da[:, t] = adjoint * before[:, t]
        adjoint = a[:, t] * adjoint
    shared = tuple(i for i, n in enumerate(wide["a"].shape) if n == 1)
    gradients = {"a": da.sum(shared, keepdims=True), "b": db, "h0": adjoint}
    return [h, state], gradients if given["h0"] is not None else gradients | {"h0": None}


def computed(case: Case, given: dict, cotangent: tuple, **options):
    """What `reference` gives, by the public function."""
    present = {name: x for name, x in given.items() if x is not None}

    def function(present):
        return kernels.linear_scan(**present, reverse=case.reverse, **options)

    @jax.jit
    def both(present, cotangent):
        out, pull = jax.vjp(function, present)
        return out, pull(cotangent)[0]

    out, gradients = both(present, cotangent)
    return list(out), {"h0": None} | gradients


def assert_equal_to_reference(case: Case, dtype: str, scale: float = 1.0, **options) -> None:
    """Values and all gradients of a case, in that dtype, against float64."""
    given, cotangent = arrays(case, dtype), cotangents(case, dtype)
    out, gradients = computed(case, given, cotangent, **options)
    expected, expected_gradients = reference(case, given, cotangent)
    named = {"h": out[0], "final": out[1], **{f"d{name}": x for name, x in gradients.items()}}
    wanted = [*expected, *(expected_gradients[name] for name in gradients)]
    for (name, x), y in zip(named.items(), wanted, strict=True):
        if y is None:
            assert x is None
            continue
        assert x.dtype == dtype, name
        # Sums over a row grow with it, and so do their roundings.
        high = scale * max(1.0, float(np.abs(y).max()))
        assert_close(x, y, scale=high, message=f"{case.name}: {name}")
