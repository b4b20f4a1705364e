"""Standard data sets by name."""

from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.readers.content import ARRAY, Content

if TYPE_CHECKING:
    from llmasos_xla.data.dataset import Dataset


def open_named(cls: type["Dataset"], name: str, mode: str, options: dict[str, Any]) -> "Dataset":
    """The Dataset of that name; the training or the test part by `mode`."""
    if name not in SETS:
        raise errors.unknown("Dataset.named", "data set", name, SETS)
    return cls(SETS[name](mode), mode=mode, **options)


def _digits(mode: str) -> Content:
    """1,797 scanned digits, 8x8 with 17 shades (UCI, through scikit-learn): 1,437 to train, 360 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise errors.missing_package("Dataset.named('digits')", "scikit-learn") from None
    digits = load_digits()
    order = np.argsort(np.random.Philox(key=0).random_raw(1797), kind="stable")
    rows = np.sort(order[:1437] if mode == "train" else order[1437:])
    x = digits.images[rows].astype(np.uint8)[..., None]
    return Content(ARRAY, x, digits.target[rows].astype(np.int32), "digits", pixel_max=16)


SETS = {"digits": _digits}
