"""The .bin files of llama2.c (karpathy): a header of sizes, then float32 arrays in a fixed order."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from llmasos_xla.storage.views import Arrays, mapped, window

SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
_MAGIC, _HEADER = b"24ka", 256
_FLOAT = np.dtype("<f4")


class _Head(NamedTuple):
    config: dict[str, Any]
    first: int
    """Where the arrays begin, in bytes."""
    version: int


def looks_like(memory: np.ndarray) -> bool:
    """Whether the bytes are one: the oldest version has no mark, but its sizes say how long it is."""
    head = _head(memory)
    return head is not None and (head.version > 0 or memory.size == _length(head))


def read(path: str | os.PathLike) -> Arrays:
    """The arrays of one file, under the names that llama2.c's model has and stacked by layer, and its sizes.

    `tok_embeddings` [vocab, dim]; `attention_norm`, `ffn_norm` [layers, dim]; `wq` [layers, heads * head, dim], `wk`
    and `wv` [layers, kv_heads * head, dim], `wo` [layers, dim, heads * head]; `w1`, `w3` [layers, hidden, dim], `w2`
    [layers, dim, hidden]; `norm` [dim]; `output` [vocab, dim] where it is not tok_embeddings; `freqs_cos` and
    `freqs_sin` [max_seq_len, head / 2] in the oldest version. Query and key turn neighboring features
    of a head together.

    `config` has `SIZES` and "shared_classifier". Raises ValueError for a damaged file and for int8 weights, version 2.
    """
    name = pathlib.Path(path).name
    memory = mapped(path)
    head = _head(memory)
    if head is None:
        raise ValueError(f"pretrained: {name!r} is no file of llama2.c: its header has no sizes of a model")
    if head.version > 1:
        raise ValueError(f"pretrained: {name!r} is of llama2.c's version {head.version}, quantized; known are 0 and 1")
    if memory.size != _length(head):
        raise ValueError(
            f"pretrained: the llama2.c file {name!r} is damaged or cut off: its sizes {head.config} take "
            f"{_length(head)} bytes, it has {memory.size}"
        )
    arrays, at = {}, head.first
    for key, shape in _order(head):
        arrays[key] = window(memory, _FLOAT, shape, at)
        at += arrays[key].nbytes
    return Arrays("llama2.c", arrays, head.config)


def _head(memory: np.ndarray) -> _Head | None:
    if memory.size < 28:
        return None
    version, at = 0, 0
    if memory[:4].tobytes() == _MAGIC:
        if memory.size < _HEADER:
            return None
        version, at = int(memory[4:8].copy().view("<i4")[0]), 8
    numbers = memory[at : at + 28].copy().view("<i4").tolist()
    config: dict[str, Any] = dict(zip(SIZES, numbers))
    shared = bool(memory[36]) if version else config["vocab_size"] > 0
    config["vocab_size"] = abs(config["vocab_size"])
    # Far above any model's, far below what overflows.
    fine = all(0 < config[size] < 1 << 24 for size in SIZES) and version >= 0
    if not fine or config["dim"] % config["n_heads"] or config["n_heads"] % config["n_kv_heads"]:
        return None
    return _Head({**config, "shared_classifier": shared}, _HEADER if version else 28, version)


def _order(head: _Head) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, hidden, layers, heads, kv_heads, vocab, length = (head.config[size] for size in SIZES)
    kv = kv_heads * (dim // heads)
    embeddings = ("tok_embeddings", (vocab, dim))
    norms = [("attention_norm", (layers, dim)), ("ffn_norm", (layers, dim))]
    attention = [("wq", (layers, dim, dim)), ("wk", (layers, kv, dim)), ("wv", (layers, kv, dim))]
    attention.append(("wo", (layers, dim, dim)))
    feed_forward = [("w1", (layers, hidden, dim)), ("w2", (layers, dim, hidden)), ("w3", (layers, hidden, dim))]
    if head.version:
        yield from (*norms, ("norm", (dim,)), embeddings, *attention, *feed_forward)
    else:
        yield from (embeddings, norms[0], *attention, norms[1], *feed_forward, ("norm", (dim,)))
        half = dim // heads // 2
        yield from (("freqs_cos", (length, half)), ("freqs_sin", (length, half)))
    if not head.config["shared_classifier"]:
        yield "output", (vocab, dim)


def _length(head: _Head) -> int:
    count = 0
    for _, shape in _order(head):
        size = 1
        for n in shape:
            size *= n
        count += size
    return head.first + count * _FLOAT.itemsize
