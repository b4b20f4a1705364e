"""Which tokenizer a file or folder holds."""

import os
import pathlib

from llmasos_xla.data.tokenizers import characters
from llmasos_xla.data.tokenizers.characters import Characters
from llmasos_xla.data.tokenizers.huggingface import HuggingFace, special_names
from llmasos_xla.data.tokenizers.llama2c import Llama2C
from llmasos_xla.data.tokenizers.protocol import Tokenizer
from llmasos_xla.data.tokenizers.sentence_piece import SentencePiece

KNOWN = (
    "tokenizer.json", "vocab.txt", "vocab.json with merges.txt", "spiece.model", "tokenizer.model", "tok*.bin",
    characters.FILE,
)  # fmt: skip


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a file, or of a folder with a published model.

    Of a folder the first of these is taken that is there: tokenizer.json, vocab.json with merges.txt (GPT-2), vocab.txt
    (WordPiece), a .model of sentencepiece, tokenizer.bin or tok*.bin of llama2.c, characters.json. Beside them,
    tokenizer_config.json and special_tokens_map.json name the special ids and say what goes around a text.

    Raises FileNotFoundError where there is none, ValueError for a file that is damaged.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return _open(path)
    if not path.is_dir():
        raise FileNotFoundError(f"load_tokenizer: there is no file or folder {str(path)!r}")
    names = ["tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "tokenizer.bin"]
    names += [characters.FILE, *sorted(p.name for p in (*path.glob("*.model"), *path.glob("tok*.bin")))]
    for name in names:
        if (path / name).is_file() and (name != "vocab.json" or (path / "merges.txt").is_file()):
            return _open(path / name)
    raise FileNotFoundError(f"load_tokenizer: {str(path)!r} has none of {', '.join(KNOWN)}")


def _open(path: pathlib.Path) -> Tokenizer:
    special = special_names(path.parent)
    if path.suffix == ".bin":
        return Llama2C(path)
    if path.suffix == ".model":
        # T5's files are called so; what Llama's config says holds for the others.
        t5 = path.name == "spiece.model"
        start, end = special.get("add_bos_token", not t5), special.get("add_eos_token", t5)
        return SentencePiece(path, start=bool(start), end=bool(end))
    if path.name == characters.FILE:
        return Characters.load(path)
    if path.name in ("vocab.json", "merges.txt"):
        return HuggingFace.byte_level(path.parent / "vocab.json", path.parent / "merges.txt", special=special)
    if path.suffix == ".txt":
        return HuggingFace.wordpiece(path, lowercase=bool(special.get("do_lower_case", True)), special=special)
    if path.suffix == ".json":
        return HuggingFace.read(path, special)
    raise ValueError(f"load_tokenizer: {path.name!r} is none of {', '.join(KNOWN)}")
