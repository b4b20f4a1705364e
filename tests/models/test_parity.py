"""Models of the shelf give what the originals gave, with the original's weights read by the original's names.

The goldens are made by tests/goldens/make.py; `make parity` makes them anew and runs these tests on what it made.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from goldens.seeded import seeded

from llmasos_xla import models
from llmasos_xla.models.pretrained.fill import fill

GOLDENS = sorted(folder().glob("*.npz"))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_original_gave_the_same(path):
    golden = read(path)
    kind = getattr(models, golden.kind)
    if golden.source == "huggingface":
        config = kind.from_huggingface(golden.config, **golden.options)
    else:
        config = kind(**_tuples(golden.config), **golden.options)
    arrays = {name: seeded(name, shape) for name, shape in golden.arrays.items()}
    variables = fill(config, arrays, golden.source, ignored=config.ignored)
    apply = jax.jit(lambda variables, x: config.net().apply(variables, x, train=False)[0])
    for case in golden.cases:
        given = {name: jnp.asarray(a) for name, a in case.items() if name in config.inputs}
        output = apply(variables, config.bind(**given))
        outputs = output._asdict() if hasattr(output, "_asdict") else {"output": output}
        compared = [name for name in case if name.split("/")[0] in outputs]
        assert compared
        for name in compared:
            wanted, got = case[name], np.asarray(outputs[name])
            assert got.shape == wanted.shape
            if "valid" in case:
                wanted, got = wanted[case["valid"]], got[case["valid"]]
            # An output that says nothing would be near any other.
            assert np.std(wanted) > 1e-3
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def _tuples(config):
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
