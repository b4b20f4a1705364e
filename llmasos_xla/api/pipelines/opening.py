"""`lm.pipeline`: tasks by name."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from llmasos_xla.api.door import Door
from llmasos_xla.api.pipelines.brought import Brought
from llmasos_xla.api.pipelines.dictation import transcription
from llmasos_xla.api.pipelines.pictures import Detection, ImageClassification, Segmentation
from llmasos_xla.api.pipelines.sound import VoiceActivity
from llmasos_xla.api.pipelines.text import FillMask, SentenceEmbedding, TextClassification, TokenClassification
from llmasos_xla.api.pipelines.writing import Generation, Rewriting
from llmasos_xla.errors import unknown

TASKS: dict[str, Callable[..., Any]] = {
    "fill-mask": FillMask,
    "image-classification": ImageClassification,
    "object-detection": Detection,
    "segmentation": Segmentation,
    "sentence-embedding": SentenceEmbedding,
    "sentiment": TextClassification,
    "summarization": Rewriting,
    "text-classification": TextClassification,
    "text-generation": Generation,
    "token-classification": TokenClassification,
    "transcribe": transcription,
    "translation": Rewriting,
    "voice-activity": VoiceActivity,
}
"""Name -> what does that task."""


def pipeline(
    task: str,
    model: Door | str | os.PathLike,
    tokenizer: Any = None,
    *,
    labels: Sequence[str] | None = None,
    reader: Any = None,
    **options: Any,
) -> Any:
    """A model as one call, from raw text, pictures or sound to what is wanted: `pipeline("sentiment", model)(text)`.

    Args:
        task: one of `TASKS`.
        model: a model, or a folder of published weights; what was read from a folder brings its tokenizer, the names of
            its classes and how its pictures are prepared.
        tokenizer: a path, or one of `data.tokenizers`; that of the folder if None.
        labels: the classes' names; those of the training data, or of config.json, if None.
        reader: a `data.pictures.PictureReader`; that of the folder if None.
        **options: the task's own, see its class.

    Raises ValueError for an unknown task, and a model that does not do it.
    """
    if task not in TASKS:
        raise unknown("pipeline", "task", task, TASKS)
    if isinstance(model, str | os.PathLike):
        from llmasos_xla.api.pretrained import load_pretrained

        sizes: dict[str, Any] = {"task": _HEADS[task]} if task in _HEADS else {}
        model = load_pretrained(model, **sizes)
    if not isinstance(model, Door):
        raise ValueError(f"pipeline: model wants a model or the path of a folder, got {type(model).__name__}")
    return TASKS[task](Brought(task, model, tokenizer, labels, reader), **options)


_HEADS = {"sentence-embedding": "embeddings"}
"""Which head a folder's model gets where its config.json does not mean that one."""
