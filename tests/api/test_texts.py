"""The text of ids that come one after the other is that of all of them."""

import numpy as np
import pytest

from llmasos_xla.api._texts import Text
from llmasos_xla.data.tokenizers import Characters, load_tokenizer
from llmasos_xla.data.tokenizers.huggingface import HuggingFace

TEXT = "Grüße, 你好, 👩‍👩‍👧 and ﷽! " * 3


@pytest.fixture(params=["bytes", "characters", "sentencepiece"])
def tokenizer(request):
    if request.param == "characters":
        return Characters.fit(TEXT, ["end"])
    if request.param == "bytes":
        pytest.importorskip("tokenizers", reason="tokenizers is not installed")
        return HuggingFace.train([TEXT], 300)
    return load_tokenizer(request.getfixturevalue("shared_data") / "weights_stories260k" / "tok512.bin")


@pytest.mark.parametrize("of_size", [1, 3, 40])
def test_pieces_together_are_the_whole_text(tokenizer, of_size):
    prompt, ids = tokenizer.pieces("and"), tokenizer.pieces(TEXT)
    text = Text(tokenizer, prompt, [])
    parts = [ids[i : i + of_size] for i in range(0, len(ids), of_size)]
    pieces = [text.more(part, part is parts[-1]) for part in parts]
    assert "".join(pieces) == text.result == Text(tokenizer, prompt, []).all(ids)
    assert text.result.strip() == TEXT.strip()
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)


def test_ids_that_are_no_text_come_out_as_they_would_at_once(tokenizer):
    for seed in range(5):
        ids = np.random.default_rng(seed).integers(3, tokenizer.size, 100).tolist()
        text = Text(tokenizer, [5], [])
        pieces = [text.more([i], False) for i in ids] + [text.more([], True)]
        whole = Text(tokenizer, [5], []).all(ids)
        assert "".join(pieces) == text.result == whole


def test_a_stop_text_is_not_shown_in_part(tokenizer):
    ids = tokenizer.pieces(TEXT)
    text = Text(tokenizer, [], ["and"])
    pieces = [text.more([i], False) for i in ids]
    assert "".join(pieces).lstrip() == TEXT[: TEXT.index("and")]
    assert text.stopped


def test_long_texts_are_not_read_from_their_beginning():
    class Counting(Characters):
        read = 0

        def decode(self, ids):
            ids = list(ids)
            self.read += len(ids)
            return super().decode(ids)

    tokenizer = Counting("ab")
    text = Text(tokenizer, [0] * 500, [])
    for _ in range(1000):
        text.more([1], False)
    assert text.result == "b" * 1000
    assert tokenizer.read < 50 * 1000
