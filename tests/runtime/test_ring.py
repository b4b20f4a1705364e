"""A table that forgets its oldest rows."""

import numpy as np
import pytest

from llmasos_xla.runtime.ring import Ring


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("added", [0, 1, 2, 7, 8, 23])
def test_it_holds_the_newest_rows_in_their_order(size, added):
    ring = Ring(["a", "b"], size)
    for i in range(added):
        ring.add({"a": float(i)})
    first = max(0, added - size)
    table = ring.table()
    assert len(ring) == len(table["a"]) == added - first
    np.testing.assert_array_equal(table["a"], np.arange(first, added))
    assert np.isnan(table["b"]).all()


def test_a_table_is_a_copy():
    ring = Ring(["a"], 2)
    ring.add({"a": 1.0})
    table = ring.table()
    for _ in range(3):
        ring.add({"a": 5.0})
    assert table["a"].tolist() == [1.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="monitor: size wants a number of rows >= 1, got"):
        Ring(["a"], size)
