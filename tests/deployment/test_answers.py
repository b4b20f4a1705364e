"""How much a request may ask for: a few ids get the logits of a whole vocabulary each."""

import asyncio

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot
from llmasos_xla.storage.bundle import Bundle

VOCAB, CONTEXT = 100, 16


@pytest.fixture(scope="module")
def served():
    return Served.of_model(lm.models.gpt2(vocab=VOCAB, context=CONTEXT, width=8, depth=1, heads=1), "m")


def asked(slot, rows, length):
    return asyncio.run(slot.infer({"ids": np.ones((rows, length), np.int32)})).outputs["output"]


def test_outputs_larger_than_all_that_may_wait_are_refused_and_nothing_is_compiled(served):
    slot = Slot("m", served, most_bytes=2 * CONTEXT * VOCAB * 4)
    assert asked(slot, 2, CONTEXT - 1).shape == (2, CONTEXT - 1, VOCAB)
    compiled = len(served.engine.compiled)
    with pytest.raises(ValueError, match=r"the outputs of 3 rows like these have 19200 bytes, at most 12800 are given"):
        asked(slot, 3, CONTEXT)
    assert len(served.engine.compiled) == compiled
    assert slot.requests == 1


def test_the_bound_is_made_exact_before_it_refuses(unchecked):
    """An output without the inputs' free axis is no larger for a long input."""
    model = lm.Sequential(
        [lm.layers.Conv1D(4, 3, input_shape=(None, 1)), lm.layers.MaxPooling1D(50), lm.layers.Dense(4)]
    )
    model.predict(np.ones((1, 200, 1), np.float32))
    served = Served.of_model(model, "m")
    x = {"input": np.ones((1, 200, 1), np.float32)}
    exact = served.engine.row_bytes(served.arrays, served.encode(x))
    assert exact == model.predict(x["input"]).nbytes < served.answer_bytes(served.encode(x))
    slot = Slot("m", served, most_bytes=900)
    # The inputs have 800 bytes.
    assert asyncio.run(slot.infer(x)).outputs["output"].nbytes == exact


def test_a_model_that_writes_is_exported_with_an_example_and_is_deployed_and_updated_by_it(tmp_path, unchecked):
    """Positions that are made up have to be some that the model has vectors for."""
    model = lm.models.gpt2(vocab=VOCAB, context=CONTEXT, width=8, depth=1, heads=1)
    bundle = Bundle.open(model.export(tmp_path / "m.lmx"))
    inputs, outputs = bundle.content.example
    assert inputs["positions"].max() < CONTEXT
    assert np.isfinite(outputs["output"]).all()
    with lm.Deployer(bundle.path).deploy(name="m") as server:
        assert server.update(bundle.path)["version"] == "2"
        for position, reason in ((CONTEXT, "'positions' has values from 0 to 15, got 16"), (-1, "-1 to -1 came")):
            with pytest.raises(ValueError, match=reason):
                server.predict({"ids": np.ones((1, 1), np.int32), "positions": np.full((1, 1), position, np.int32)})
