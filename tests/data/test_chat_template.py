"""Chat templates: read from folders as others write them, kept in files, damaged ones refused."""

import json

import pytest

from llmasos_xla.data.tokenizers import ChatTemplate


def folder(path, config, template=None):
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return ChatTemplate.of_folder(path)


def test_it_is_read_with_the_special_ids_by_name(tmp_path):
    assert ChatTemplate.of_folder(tmp_path) is None
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "add_bos_token": True}
    found = folder(tmp_path, {"chat_template": "{{ messages }}", **tokens})
    assert found == ChatTemplate("{{ messages }}", {"bos_token": "<s>", "eos_token": "</s>"})
    assert folder(tmp_path, {"chat_template": "old", **tokens}, "new").text == "new"


def test_of_several_the_default_is_taken(tmp_path):
    entries = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    assert folder(tmp_path, {"chat_template": entries}).text == "b"
    assert folder(tmp_path, {"chat_template": entries[:1]}).text == "a"
    assert folder(tmp_path, {"chat_template": []}) is None


def test_files_hold_it():
    template = ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"})
    assert ChatTemplate.from_json(json.loads(json.dumps(template.to_json()))) == template


@pytest.mark.parametrize(
    "value",
    [None, 3, "text", {}, {"text": 3, "tokens": {}}, {"text": "", "tokens": {"a": 1}}, {"text": "x" * (2 << 20)}],
)
def test_damaged_ones_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match="chat template: its"):
        ChatTemplate.from_json(value)


def test_a_damaged_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"that of '{tmp_path}' is damaged: chat template: its text is none"):
        folder(tmp_path, {"chat_template": 3})
