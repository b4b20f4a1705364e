"""Which elements of a long array are compared between processes. Imports no framework."""

from typing import Any

_MOST = 1 << 20


def sample(array: Any) -> Any:
    """Some of the elements, evenly far apart, by a step that no axis is likely to be a multiple of.

    >>> import numpy as np
    >>> sample(np.arange(5)).tolist(), np.diff(sample(np.arange(2**22))[:2]).tolist()
    ([0, 1, 2, 3, 4], [5])
    """
    step = -(-array.size // _MOST)
    while any(step % n == 0 and step != n for n in (2, 3, 5, 7, 11, 13)):
        step += 1
    return array.reshape(-1)[::step]
