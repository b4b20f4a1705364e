"""How far a result is from what is wanted."""

import numpy as np


def deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest wanted value; NaN or infinity if the result holds one."""
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))
