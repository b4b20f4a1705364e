"""What a model that writes takes along into files: its tokenizer, its chat template, how ids are read."""

import json

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters, ChatTemplate

SIZES = {"vocab": 28, "context": 32, "width": 16, "depth": 1, "heads": 2, "end": None}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz :"
TEMPLATE = ChatTemplate("{{ messages }}", {"eos_token": "z"})


@pytest.fixture
def network():
    network = lm.models.gpt2(**SIZES)
    network.tokenizer, network.chat_template = Characters(CHARACTERS), TEMPLATE
    return network


@pytest.mark.parametrize("name", ["m.safetensors", "m.h5", "m.lmx"])
def test_a_file_holds_all_that_writing_takes_though_no_data_were_seen(network, name, tmp_path, unchecked):
    (network.export if name.endswith(".lmx") else network.save)(tmp_path / name)
    found = lm.load(tmp_path / name)
    assert found.tokenizer.characters == CHARACTERS
    assert found.chat_template == TEMPLATE
    assert found.learner.preprocessing.dtype["ids"] == "int32"
    ids = np.arange(20, dtype=np.int32).reshape(2, 10)
    np.testing.assert_allclose(found.predict(ids), network.predict(ids), atol=1e-5)


def test_those_of_a_folder_go_along_though_never_used(network, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    network.tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE.text, "eos_token": "z"}))
    network = lm.models.gpt2(**SIZES)
    network.folder = folder
    network.save(tmp_path / "m.safetensors")
    found = lm.load(tmp_path / "m.safetensors")
    assert found.tokenizer.characters == CHARACTERS
    assert found.chat_template == TEMPLATE


def test_a_text_is_a_template_and_none_is_none(network, tmp_path):
    network.chat_template = "{{ messages }}"
    assert network.chat_template == ChatTemplate("{{ messages }}")
    network.chat_template = None
    network.save(tmp_path / "m.safetensors")
    assert lm.load(tmp_path / "m.safetensors").chat_template is None


def test_a_model_that_writes_can_be_saved_and_then_fitted(network, tmp_path):
    network.save(tmp_path / "m.safetensors")
    ids = np.arange(20, dtype=np.int32).reshape(2, 10)
    network.compile()
    history = network.fit(ids, ids, verbose=0)
    assert np.isfinite(history.history["loss"][0])


def test_a_damaged_template_in_a_file_is_refused(network, tmp_path):
    network._chat_template = ChatTemplate("x" * (2 << 20))
    network.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="chat template: its text is none"):
        lm.load(tmp_path / "m.safetensors")


def test_others_still_want_data(tmp_path):
    with pytest.raises(ValueError, match="has never seen data"):
        lm.models.t5(vocab=28, width=16, hidden=16, depth=1, heads=2).export(tmp_path / "t.lmx")
