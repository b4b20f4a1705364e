"""How close is equal, by dtype: the one table of tolerances."""

import numpy as np

# Relative and absolute, against a float64 reference on the small sizes of the tests.
TOLERANCE = {
    "float64": (1e-10, 1e-10),
    "float32": (2e-5, 2e-5),
    "bfloat16": (3e-2, 3e-2),
    "float16": (4e-3, 4e-3),
}


def assert_close(actual, expected, *, scale: float = 1.0, dtype: str | None = None, message: str = "") -> None:
    """Asserts `actual` equals `expected` within its dtype's tolerance, times `scale` for long sums."""
    actual = np.asarray(actual)
    rtol, atol = TOLERANCE[dtype or actual.dtype.name]
    np.testing.assert_allclose(
        actual.astype(np.float64),
        np.asarray(expected, np.float64),
        rtol=rtol * scale,
        atol=atol * scale,
        err_msg=message,
    )
