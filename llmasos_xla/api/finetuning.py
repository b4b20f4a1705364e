"""`lm.finetune`: a model and data of a task, and everything between them chosen sensibly."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmasos_xla.api.network import Network
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.labels import IGNORED, Labels
from llmasos_xla.data.tokenizers.opening import load_tokenizer
from llmasos_xla.data.tokenizers.protocol import Tokenizer, padded
from llmasos_xla.errors import unknown
from llmasos_xla.models.lora import LoRA
from llmasos_xla.training.history import History
from llmasos_xla.training.optimizers import Optimizer, Schedule

LEARNING_RATES = {"all": 5e-5, "adapters": 1e-3}
"""At the end of the warm-up, where all is trained and where adapters are."""
WARM_UP = 0.1
"""Share of the updates in which the learning rate rises; then it falls along a cosine to 0."""
_MULTIPLE = 8
_HEADS = r"(^|/)(classifier|pooler|head)/"


class Task(NamedTuple):
    """What a task needs of model and data."""

    head: str | None
    """The configuration's `task`, where its family has several heads."""
    classes: bool
    """Whether the model tells classes apart, whose number the labels say."""
    arrays: Callable[..., tuple[Any, Any]]
    """`arrays(x, y, model, tokenizer, max_length) -> (x, y)` as `fit` takes them."""


def finetune(
    model: Network,
    dataset: Any,
    *,
    task: str,
    lora: int | LoRA | None = None,
    freeze: str | None = None,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float | None = None,
    layer_decay: float | None = None,
    tokenizer: Tokenizer | str | os.PathLike | None = None,
    max_length: int | None = None,
    validation_data: Any = None,
    precision: str = "float32",
    **fit: Any,
) -> History:
    """Trains a model for a task: head, loss, metrics and optimizer are chosen, texts are encoded, and it is fitted.

    A head of another task or number of classes is replaced by a new one. The optimizer is AdamW with clipped gradients,
    whose rate rises for a tenth of the updates and falls to zero; biases and normalization do not decay.

    Args:
        model: a model of the shelf, read from published weights: `lm.load_pretrained(folder)`.
        dataset: (x, y), a list of (text, label), or a `Dataset`.

            "text-classification": texts, or pairs of texts, and a label each.
            "token-classification": rows of words, and of as many labels; a word's first piece carries its label.
            "image-classification": images as the model takes them, and a label each.
            "language-modelling": texts (y is None), which are joined and cut into rows of `max_length`.

            In the place of texts ids [rows, time] may come, or a dict of the model's inputs. Labels are text or ids.
        task: one of these.
        lora: rank of adapters beside the kernels of queries and values, or a `LoRA` that names others; the head is
            trained besides, all else is frozen. None trains all.
        freeze: a regular expression for arrays that stay as they are.
        epochs, batch_size: as in `fit`.
        learning_rate: at the end of the warm-up; `LEARNING_RATES` if None.
        layer_decay: as in `Optimizer`.
        tokenizer: one of `data.tokenizers`, or a path, which becomes `model.tokenizer`; that of the folder the model
            was read from if None.
        max_length: ids in a row at most; what the model reads if None, for language modelling up to 256.
        validation_data: as `dataset`, evaluated after each epoch.
        precision: "float32", or "bfloat16" for bfloat16 arithmetic.
        **fit: arguments of `fit`: shard, callbacks, checkpoint, verbose.

    Returns the `History`. Raises ValueError for an unknown task, a model that cannot do it, and data that do not fit.
    """
    if not isinstance(model, Network):
        raise ValueError(f"finetune: wants a model of the shelf, lm.load_pretrained(...), got {type(model).__name__}")
    if task not in TASKS:
        raise unknown("finetune", "task", task, TASKS)
    chosen = TASKS[task]
    wanted = "images" if task == "image-classification" else "ids"
    if wanted not in model.config.inputs:
        inputs = ", ".join(model.config.inputs)
        raise ValueError(f"finetune: {task!r} wants a model that reads {wanted}; {model.config.who} reads {inputs}")
    opened = _tokenizer(model, tokenizer)
    x, y = _parts(dataset)
    if not isinstance(x, Mapping) and not len(x):
        raise ValueError("finetune: the data have no rows")
    names = _names(y) if chosen.classes else None
    _fit_head(model, chosen, y, names, task)
    data = chosen.arrays(x, _ids(y, names), model, opened, max_length)
    validation = None
    if validation_data is not None:
        x, y = _parts(validation_data)
        validation = chosen.arrays(x, _ids(y, names), model, opened, max_length)
    if freeze is not None:
        model.freeze(freeze)
    if lora is not None:
        sizes = lora if isinstance(lora, LoRA) else LoRA(rank=lora, alpha=2 * lora)
        heads = chosen.classes and any(re.search(_HEADS, name) for name in model.variables.params)
        model.add_lora(sizes.rank, sizes.alpha, sizes.where, also=_HEADS if heads else None)
    rows = len(data[1])
    updates = max(epochs * -(-rows // min(batch_size, rows)), 2)
    adapters = model.learner.spec.lora is not None
    rate = learning_rate or LEARNING_RATES["adapters" if adapters else "all"]
    warm = max(round(WARM_UP * updates), 1)
    schedule = Schedule("warmup_cosine_decay", init_value=0.0, peak_value=rate, warmup_steps=warm, decay_steps=updates)
    more = {} if layer_decay is None else {"layer_decay": layer_decay}
    optimizer = Optimizer(
        "adamw", schedule, weight_decay=0.01, decay_exclude=r"bias|scale|_norm", clip_norm=1.0, **more
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], precision=precision)
    history = model.fit(*data, epochs=epochs, batch_size=batch_size, validation_data=validation, **fit)
    if names is not None and model.learner.preprocessing is not None:
        # The names that the data gave, which pipelines and servers answer with.
        model.learner.preprocessing = dataclasses.replace(model.learner.preprocessing, labels=Labels(names))
    return history


def _tokenizer(model: Network, given: Any) -> Callable[[], Tokenizer]:
    """The tokenizer, opened when a text is met."""

    def opened() -> Tokenizer:
        if isinstance(given, str | os.PathLike):
            model.tokenizer = load_tokenizer(given)
        elif isinstance(given, Tokenizer):
            model.tokenizer = given
        elif given is not None:
            raise ValueError(f"finetune: tokenizer wants a path or one of data.tokenizers, got {type(given).__name__}")
        if model.tokenizer is None:
            raise ValueError("finetune: the data are texts; pass tokenizer=, a path or one of data.tokenizers")
        return model.tokenizer

    return opened


def _parts(dataset: Any) -> tuple[Any, Any]:
    if isinstance(dataset, Dataset):
        rows = dataset.rows()
        return rows.x, rows.y
    examples = isinstance(dataset, list) and all(isinstance(row, tuple) and len(row) == 2 for row in dataset)
    if examples and dataset and all(isinstance(text, str) for text, _ in dataset):
        return [text for text, _ in dataset], [label for _, label in dataset]
    if isinstance(dataset, tuple | list) and len(dataset) == 2 and not isinstance(dataset[0], str):
        return dataset[0], dataset[1]
    raise ValueError(
        f"finetune: the data want to be (x, y), a list of (text, label) or a Dataset, got {type(dataset).__name__}"
    )


def _flat(y: Any) -> list[Any]:
    if y is None:
        raise ValueError("finetune: the data have no labels; pass (x, y)")
    if isinstance(y, np.ndarray):
        return y.reshape(-1).tolist()
    return [label for row in y for label in (row if isinstance(row, list | tuple | np.ndarray) else [row])]


def _names(y: Any) -> tuple[str, ...] | None:
    """The classes' names in order, or None for labels that are ids."""
    labels = _flat(y)
    if any(label != label for label in labels):
        raise ValueError("finetune: some labels are NaN; leave those rows out")
    texts = {label for label in labels if isinstance(label, str)}
    if not texts:
        return None
    if other := set(labels) - texts - {IGNORED}:
        raise ValueError(f"finetune: some labels are text and some are not, {next(iter(other))!r}; make them one kind")
    if len(texts) == 1:
        raise ValueError(f"finetune: all labels are {next(iter(texts))!r}; two classes or more can be told apart")
    return tuple(sorted(texts))


def _ids(y: Any, names: tuple[str, ...] | None) -> Any:
    """Labels as ids, in the shape in which they came."""
    if y is None or names is None:
        return y
    number = {name: i for i, name in enumerate(names)}

    def one(label: Any) -> Any:
        if isinstance(label, list | tuple | np.ndarray):
            return [one(inner) for inner in label]
        if not isinstance(label, str) and label == IGNORED:
            return IGNORED
        if label not in number:
            raise unknown("finetune", "label", label, names)
        return number[label]

    return [one(label) for label in y]


def _fit_head(model: Network, task: Task, y: Any, names: Sequence[str] | None, name: str) -> None:
    """Gives the model the task's head, where it has another."""
    config, sizes = model.config, {}
    fields = {field.name for field in dataclasses.fields(config)}
    if "task" in fields:
        if task.head is None:
            raise ValueError(f"finetune: {config.who} reads both sides of a word; {name!r} wants a decoder")
        if getattr(config, "task") != task.head:  # noqa: B009
            sizes["task"] = task.head
    if task.classes:
        if "classes" not in fields:
            raise ValueError(f"finetune: {config.who} has no head for classes; {name!r} wants one")
        labels = [label for label in _flat(y) if label != IGNORED]
        classes = len(names) if names is not None else max(int(max(labels, default=1)) + 1, 2)
        # Ids alone may leave out the last of the classes that the model knows.
        now = getattr(config, "classes")  # noqa: B009
        if now != classes and (names is not None or now < classes or sizes):
            sizes["classes"] = classes
    if sizes:
        model.new_head(**sizes)


def _inputs(arrays: Mapping[str, np.ndarray], model: Network) -> dict[str, np.ndarray]:
    return {name: a for name, a in arrays.items() if name in model.config.inputs}


def _longest(model: Network, max_length: int | None) -> int | None:
    context = getattr(model.config, "context", None) or getattr(model.config, "longest", None)
    return min(max_length, context) if max_length and context else max_length or context


def _is_text(x: Any) -> bool:
    numbers = getattr(getattr(x, "dtype", None), "kind", "O") in "biufc"
    if numbers or isinstance(x, Mapping) or not any(_text_or_pair(row) for row in x):
        return False
    for number, row in enumerate(x):
        if not _text_or_pair(row):
            raise ValueError(f"finetune: texts are wanted, or pairs of texts; row {number} is {row!r:.60}")
    return True


def _text_or_pair(row: Any) -> bool:
    pair = isinstance(row, tuple | list) and len(row) == 2 and all(isinstance(text, str) for text in row)
    return pair or isinstance(row, str)


def _texts(x: Any, y: Any, model: Network, tokenizer: Callable[[], Tokenizer], max_length: int | None) -> Any:
    if not _is_text(x):
        return x, np.asarray(y)
    encoded = tokenizer().batch(list(x), _longest(model, max_length), multiple=_MULTIPLE)
    return _inputs(encoded, model), np.asarray(y)


def _words(x: Any, y: Any, model: Network, tokenizer: Callable[[], Tokenizer], max_length: int | None) -> Any:
    if isinstance(x, Mapping | np.ndarray):
        return x, np.asarray(y)
    opened, longest = tokenizer(), _longest(model, max_length)
    rows, labels = [], []
    if len(x) != len(y):
        raise ValueError(f"finetune: there are {len(x)} rows of words and {len(y)} rows of labels")
    for number, (words, found) in enumerate(zip(x, y)):
        lists = all(isinstance(each, list | tuple | np.ndarray) for each in (words, found))
        if not lists or len(words) != len(found):
            raise ValueError(
                f"finetune: row {number} wants a list of words and as many labels, got {words!r:.60} and {found!r:.60}"
            )
        row, of_row = list(opened.prefix), [IGNORED] * len(opened.prefix)
        for word, label in zip(words, found):
            pieces = opened.pieces(word)
            row += pieces
            of_row += [label, *[IGNORED] * (len(pieces) - 1)][: len(pieces)]
        room = None if longest is None else longest - len(opened.suffix)
        rows.append([*row[:room], *opened.suffix])
        labels.append([*of_row[:room], *[IGNORED] * len(opened.suffix)])
    encoded = padded(rows, opened, longest, _MULTIPLE)
    out = np.full(encoded["ids"].shape, IGNORED, np.int32)
    for number, of_row in enumerate(labels):
        out[number, : len(of_row)] = of_row
    return _inputs(encoded, model), out


def _images(x: Any, y: Any, model: Network, tokenizer: Any, max_length: int | None) -> Any:
    return x, np.asarray(y)


def _following(x: Any, y: Any, model: Network, tokenizer: Callable[[], Tokenizer], max_length: int | None) -> Any:
    """Each id's label is the next one."""
    if y is not None:
        return x, np.asarray(y)
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return x[:, :-1], x[:, 1:].astype(np.int32)
    length = _longest(model, max_length or 256) or 256
    opened = tokenizer()
    ends = [] if opened.special.end is None else [opened.special.end]
    ids = [i for text in x for i in [*opened.encode(text, special=False), *ends]]
    rows = (len(ids) - 1) // length
    if rows < 1:
        raise ValueError(f"finetune: the texts have {len(ids)} ids, fewer than one row; choose a max_length below that")
    cut = np.asarray(ids[: rows * length + 1], np.int32)
    return cut[:-1].reshape(rows, length), cut[1:].reshape(rows, length)


TASKS: dict[str, Task] = {
    "image-classification": Task("classification", True, _images),
    "language-modelling": Task(None, False, _following),
    "text-classification": Task("classification", True, _texts),
    "token-classification": Task("tokens", True, _words),
}
"""Name -> what it needs."""
