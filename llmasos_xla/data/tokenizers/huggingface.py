"""What Hugging Face's `tokenizers` runs: tokenizer.json, WordPiece, byte-level BPE, and training of BPE."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from llmasos_xla.data.tokenizers.protocol import Special, Tokenizer, read, rooms
from llmasos_xla.errors import missing_package

_NAMES = {
    "pad": ("[PAD]", "<pad>", "<|padding|>"),
    "unknown": ("[UNK]", "<unk>"),
    "start": ("[CLS]", "<s>", "<start>", "<|begin_of_text|>", "<|startoftranscript|>"),
    "end": ("[SEP]", "</s>", "<end>", "<|endoftext|>", "<|end_of_text|>"),
    "mask": ("[MASK]", "<mask>"),
}
"""What special ids are called where no configuration says it."""
_CONFIG = {
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "start": ("cls_token", "bos_token"),
    "end": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}


@final
class HuggingFace(Tokenizer):
    """A tokenizer of the package `tokenizers`; `read`, `wordpiece`, `byte_level` and `train` make one.

    Args:
        inner: the `tokenizers.Tokenizer`.
        special: names of special ids as tokenizer_config.json has them, {"pad_token": "[PAD]"}; guessed from usual
            names where it says nothing.
    """

    def __init__(self, inner: Any, special: Mapping[str, Any] | None = None):
        # Rows are cut and padded here, not as a file may say.
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        # Ids may have gaps.
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.special = Special(**{kind: _id_of(inner, kind, special or {}) for kind in _NAMES})
        # What goes around a text is the file's post-processor's to say: seen by what it does to one.
        whole, alone = inner.encode("a").ids, inner.encode("a", add_special_tokens=False).ids
        first = next((i for i in range(len(whole)) if whole[i : i + len(alone)] == alone), 0)
        self.prefix, self.suffix = tuple(whole[:first]), tuple(whole[first + len(alone) :])

    @classmethod
    def read(cls, path: str | os.PathLike, special: Mapping[str, Any] | None = None) -> "HuggingFace":
        """A tokenizer.json; raises ValueError for a file that is none."""
        tokenizers = _tokenizers()
        try:
            return cls(tokenizers.Tokenizer.from_file(os.fspath(path)), special)
        except OSError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exceptions.
            raise ValueError(f"HuggingFace: {path} is no tokenizer.json: {error}") from None

    @classmethod
    def of_text(cls, text: str) -> "HuggingFace":
        """The content of a tokenizer.json."""
        tokenizers = _tokenizers()
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # `tokenizers` raises bare Exceptions.
            raise ValueError(f"HuggingFace: this is no tokenizer.json: {error}") from None

    @classmethod
    def wordpiece(
        cls, path: str | os.PathLike, *, lowercase: bool = True, special: Mapping[str, Any] | None = None
    ) -> "HuggingFace":
        """BERT's vocab.txt, a piece a line: [CLS] and [SEP] go around a text."""
        tokenizers = _tokenizers()
        vocabulary = {piece: i for i, piece in enumerate(read(path, "wordpiece").splitlines())}
        if "[UNK]" not in vocabulary:
            raise ValueError(f"wordpiece: {path} has no [UNK]; a piece a line is wanted, as BERT's vocab.txt has them")
        inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
        inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        inner.decoder = tokenizers.decoders.WordPiece()
        inner.add_special_tokens([name for names in _NAMES.values() if (name := names[0]) in vocabulary])
        if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
            around = ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
            inner.post_processor = tokenizers.processors.BertProcessing(*around)
        return cls(inner, special)

    @classmethod
    def byte_level(
        cls,
        vocabulary: str | os.PathLike,
        merges: str | os.PathLike,
        *,
        special: Mapping[str, Any] | None = None,
    ) -> "HuggingFace":
        """GPT-2's vocab.json and merges.txt: pairs of bytes, nothing around a text."""
        tokenizers = _tokenizers()
        try:
            model = tokenizers.models.BPE.from_file(os.fspath(vocabulary), os.fspath(merges))
        except Exception as error:
            raise ValueError(f"byte_level: {vocabulary} and {merges} are no byte pairs: {error}") from None
        inner = _byte_level(tokenizers, model)
        end = "<|endoftext|>"
        if inner.token_to_id(end) is None:
            return cls(inner, special)
        inner.add_special_tokens([end])
        return cls(inner, {"eos_token": end, **(special or {})})

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        size: int,
        *,
        special: Sequence[str] = ("<pad>", "<start>", "<end>"),
        lowercase: bool = False,
    ) -> "HuggingFace":
        """Byte pairs of a text of one's own (Sennrich et al. 2016): `size` ids, special ones first.

        No text is unknown, since each byte has an id. Where <start> and <end> are special they go around a text.

        Raises ValueError for a size below the 256 bytes and the special ids.
        """
        tokenizers = _tokenizers()
        if size < 256 + len(special):
            raise ValueError(f"train: size wants {256 + len(special)} at least, bytes and special ids, got {size}")
        inner = _byte_level(tokenizers, tokenizers.models.BPE())
        if lowercase:
            inner.normalizer = tokenizers.normalizers.Lowercase()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        found = {name: inner.token_to_id(name) for name in ("<start>", "<end>") if name in special}
        if found:
            start, end = (f"{name} " if name in found else "" for name in ("<start>", "<end>"))
            ending = f" {end.strip()}:1" if end else ""
            inner.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{start}$A {end}".strip(),
                pair=f"{start}$A {end}$B:1{ending}",
                special_tokens=list(found.items()),
            )
        return cls(inner)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a tokenizer.json into a folder, or to the file of that path."""
        path = pathlib.Path(path)
        self.inner.save(str(path / "tokenizer.json" if path.is_dir() else path))

    def pieces(self, text: str) -> list[int]:
        """The ids of a text alone."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode_pair(self, first: str, second: str, *, max_length: int | None = None) -> tuple[list[int], list[int]]:
        """Two texts as one row of ids, as the file's post-processor puts them together, and which each is of."""
        whole = [self.inner.encode(text, add_special_tokens=False) for text in (first, second)]
        around = self.inner.num_special_tokens_to_add(True)
        for encoding, room in zip(whole, rooms([len(encoding.ids) for encoding in whole], max_length, around)):
            encoding.truncate(room)
        found = self.inner.post_process(*whole, True)
        return found.ids, found.type_ids

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """`pieces` with their places: (id, first character, the character behind the last)."""
        found = self.inner.encode(text, add_special_tokens=False)
        return [(i, *place) for i, place in zip(found.ids, found.offsets)]

    def piece(self, i: int) -> str:
        """What stands for an id in the vocabulary: "[MASK]", "##ing"."""
        return self.inner.id_to_token(i) or ""

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special ids are left out."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)


def _byte_level(tokenizers: Any, model: Any) -> Any:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def _id_of(inner: Any, kind: str, special: Mapping[str, Any]) -> int | None:
    said = [special[name] for name in _CONFIG[kind] if special.get(name) is not None]
    names = [s["content"] if isinstance(s, Mapping) else s for s in said] or _NAMES[kind]
    return next((i for name in names if (i := inner.token_to_id(str(name))) is not None), None)


def special_names(folder: pathlib.Path) -> dict[str, Any]:
    """What tokenizer_config.json and special_tokens_map.json of a folder say; {} without."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                value = json.loads(read(folder / name, "load_tokenizer"))
            except json.JSONDecodeError as error:
                raise ValueError(f"load_tokenizer: {folder / name} is no JSON: {error}") from None
            found |= value if isinstance(value, dict) else {}
    return found


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise missing_package("HuggingFace", "tokenizers", "text") from None
    return tokenizers
