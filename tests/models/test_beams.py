"""Beam search gives the texts and scores of Hugging Face's `generate`: tests/goldens/generation has them."""

import jax.numpy as jnp
import numpy as np
import pytest
from goldens.golden import folder, read
from goldens.seeded import seeded

from llmasos_xla import models
from llmasos_xla.models.generation.programs import Programs, bucket, left_padded
from llmasos_xla.models.pretrained.fill import fill

GOLDENS = sorted((folder() / "generation").glob("*.npz"))


def model(golden):
    config = getattr(models, golden.kind).from_huggingface(golden.config)
    arrays = {name: seeded(name, shape) for name, shape in golden.arrays.items()}
    name, factor = golden.options["louder"]
    arrays[name] = arrays[name] * np.float32(factor)
    variables = fill(config, arrays, "huggingface", ignored=config.ignored)
    return config.serving(variables._replace(params={n: jnp.asarray(a) for n, a in variables.params.items()}))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_original_wrote_the_same(path):
    golden = read(path)
    config, variables = model(golden)
    programs, new = Programs(config), golden.options["new"]
    ids, real = left_padded(golden.options["prompts"], 8)
    ends = np.array(config.end_ids, np.int32)
    ended = 0
    for case in golden.cases:
        beams = int(case["beams"])
        found = programs.search(
            variables,
            {},
            ids,
            real,
            ends,
            new,
            beams_kept=beams,
            new=bucket(new),
            length_penalty=float(case["length_penalty"]),
            early_stopping=bool(case["early_stopping"]),
        )
        for row, beam in np.ndindex(len(ids), beams):
            text = case["output"][row, beam].tolist()
            # Behind its end a text of the original is filled up with anything.
            length = next((i for i, token in enumerate(text) if token in config.end_ids), len(text))
            assert found.lengths[row, beam] == length
            assert found.ids[row, beam, :length].tolist() == text[:length]
            ended += length < len(text)
        if "scores" in case:
            np.testing.assert_allclose(found.scores, case["scores"], rtol=1e-4)
    assert ended
