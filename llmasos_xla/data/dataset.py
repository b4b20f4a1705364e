"""Dataset: one door to arrays, files and folders; it holds raw rows and leaves all change to `Preprocessing`."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data._fit import check_normalize
from llmasos_xla.data._open import Options, open_source
from llmasos_xla.data.readers.content import PAIRS, Content
from llmasos_xla.data.readers.table import MISSING
from llmasos_xla.data.rows import Lazy, Rows, count, take
from llmasos_xla.data.text_input import LEVELS

MODES = ("train", "test")


@final
class Dataset:
    """Rows of inputs and labels from a source.

    The source is one of

    - `"train.csv"`, `.csv.gz`, `.tsv`, a DataFrame: a table; the label column is the one that `label=` names, or the
      one called label, target, class, y or category.
    - `"...-idx3-ubyte"`, `.gz`: images; `labels=` is a path, or the file of the usual name beside it is taken.
    - `.npz`, `.npy`: arrays x and y, x_train and y_train, train_images and train_labels; or `x_key=`, `y_key=`.
    - a folder of images or of audio files, a folder in it for each class.
    - `"lines.txt"`: text, a row a line; `{"neg": path, "pos": path}`: a file for each class.
    - `(x, y)`, or x with `labels=`: arrays of NumPy, jax, torch and others; a list of str is text; a dict of arrays is
      several inputs, for models that read several, `data.batches` and networks of your own.
    - any object with `len` and `[i]` that gives pairs (x, y), for instance a PyTorch data set; x may be a dict.

    Args:
        source: see above.
        labels: labels of all rows, if they are not part of the source; for idx and .npy a path.
        mode: "train" is shuffled anew in each epoch, by `seed`; "test" never is. It also picks the arrays of a .npz.
        kind: reads the source as "csv", "idx", "npz", "npy", "images", "audio", "text", whatever it is called.
        seed: of the shuffling.
        normalize: "auto" (`Preprocessing.fit` has the rules), "pixels" (divide by 255), "standard" (by the
            training set's mean and deviation) or None.
        weights: `[rows]`, how much each row counts in the loss.
        label: tables: name or position of the label column; False if there is none.
        columns: tables: the columns to take as inputs; all but the label by default.
        categories: tables: columns that are categories though they hold numbers; the label column among them makes
            classes of such labels as 2 and 4.
        missing: tables: "mean" (also "median", "zero") fills missing numbers, "drop" leaves rows out, "error" refuses.
        header: CSV: whether the first line names the columns; by default if none of its cells is a number, or a word
            stands above a number.
        delimiter: CSV: comma, semicolon or tab by default, whichever is found.
        decimal: CSV: the sign before a fraction, "." by default.
        na_values: CSV: further spellings of a missing value.
        text: CSV: the column to read as text; a table's only column of inputs is where most of its values differ.
        level: text: "word" or "character" ids.
        max_words: text: the most ids that there may be, 0 for padding and 1 for unknown words among them, 20,000 by
            default: `Embedding(max_words, ...)` has a vector for each.
        max_length: text: the length of a row of ids; the longest row's by default, up to 256 words, 1,024 characters.
        encoding: text files: "utf-8" by default.
        image_size: images: (height, width) to resize to; needed if sizes differ.
        channels: images: 1, 3 or 4; the first image's by default.
        length: audio: samples of a row, cut or padded with zeros at the end; the longest file's by default.
        label_from: audio in one folder: a function of the file name, or a regular expression whose group is the label.
        x_key: npz: the name of the array of inputs.
        y_key: npz: the name of the array of labels.

    Raises:
        FileNotFoundError: no such file; the error has the working directory and near names.
        ValueError: a broken file, row or option; an empty source; x and y of different lengths.

    >>> train = Dataset((np.eye(4, dtype=np.float32), ["a", "b", "a", "b"]))
    >>> train
    Dataset(arrays: 4 rows, x float32 (4,), y 2 classes, mode=train)
    >>> x, y = train[1]
    >>> str(y)
    'b'
    """

    def __init__(
        self,
        source: Any,
        labels: Any = None,
        *,
        mode: str = "train",
        kind: str | None = None,
        seed: int = 0,
        normalize: str | None = "auto",
        weights: Any = None,
        label: str | int | bool | None = None,
        columns: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        missing: str = "mean",
        header: bool | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        na_values: Sequence[str] | None = None,
        text: str | None = None,
        level: str = "word",
        max_words: int = 20_000,
        max_length: int | None = None,
        encoding: str = "utf-8",
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
        length: int | None = None,
        label_from: Any = None,
        x_key: str | None = None,
        y_key: str | None = None,
    ):
        if mode not in MODES:
            raise errors.unknown("Dataset", "mode=", mode, MODES)
        if level not in LEVELS:
            raise errors.unknown("Dataset", "level=", level, LEVELS)
        if missing not in MISSING:
            raise errors.unknown("Dataset", "missing=", missing, MISSING)
        check_normalize(normalize)
        options = Options(
            mode=mode, label=label, columns=columns, categories=categories, missing=missing, header=header,
            delimiter=delimiter, decimal=decimal, na_values=na_values, text=text, encoding=encoding,
            image_size=image_size, channels=channels, length=length, label_from=label_from, x_key=x_key, y_key=y_key,
        )  # fmt: skip
        self.content: Content = open_source(source, labels, kind, options)
        self.mode, self.seed, self.normalize, self.missing = mode, seed, normalize, missing
        self.text_options = {"level": level, "max_words": max_words, "max_length": max_length}
        self._chosen: np.ndarray | None = None
        if not count(self.content.x):
            raise ValueError(f"Dataset: {self.content.name} holds no rows")
        self._weights = _checked_weights(weights, count(self.content.x))

    @classmethod
    def named(cls, name: str, mode: str = "train", **options: Any) -> "Dataset":
        """A standard set by name: "digits" (offline), "mnist", "fashion_mnist".

        The files are looked for in the folder that `LLMASOS_DATA` names, then in the cache, then downloaded there.
        """
        from llmasos_xla.data.named import open_named

        return open_named(cls, name, mode, options)

    @property
    def name(self) -> str:
        """What the rows were read from."""
        return self.content.name

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of a table's input columns."""
        return self.content.columns

    @property
    def inputs(self) -> tuple[str, ...] | None:
        """The names of several inputs; None for one, which a table's columns are."""
        x = self.content.x
        if isinstance(x, Lazy):
            return getattr(x, "inputs", None)
        return tuple(x) if isinstance(x, dict) and self.content.columns is None else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, by id: the source's own, or the different text labels, sorted."""
        if self.content.classes is not None:
            return self.content.classes
        y = self.content.y
        return None if y is None or y.dtype.kind != "O" else tuple(sorted({str(label) for label in y.flat}))

    @property
    def has_labels(self) -> bool:
        """Whether the rows have labels."""
        if self.content.kind == PAIRS:
            return self.take(np.arange(1)).y is not None
        return self.content.y is not None

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all rows, as the source has them; a source of pairs is read through for them."""
        if self.content.kind == PAIRS:
            return self.take(np.arange(len(self))).y
        y = self.content.y
        return y if y is None or self._chosen is None else y[self._chosen]

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are arrays already, so that all of them can be encoded at once."""
        return not isinstance(self.content.x, Lazy)

    def __len__(self) -> int:
        return count(self.content.x) if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Dataset: row {index} of {len(self)}")
        rows = self.take(np.array([index % len(self)]))
        x = {k: v[0] for k, v in rows.x.items()} if isinstance(rows.x, dict) else rows.x[0]
        return x, None if rows.y is None else rows.y[0]

    def take(self, indices: Any) -> Rows:
        """The raw rows at `indices`: files are read now."""
        indices = np.asarray(indices, np.int64)
        if self._chosen is not None:
            indices = self._chosen[indices]
        weight = None if self._weights is None else self._weights[indices]
        if isinstance(self.content.x, Lazy):
            x, y = self.content.x.read(indices)
            y = y if self.content.y is None else self.content.y[indices]
        else:
            x, y = take(self.content.x, indices), None if self.content.y is None else self.content.y[indices]
        return Rows(x, y, weight)

    def rows(self) -> Rows:
        """All rows; without a copy if they are in memory and none was left out."""
        if self._chosen is None and self.in_memory:
            return Rows(self.content.x, self.content.y, self._weights)
        return self.take(np.arange(len(self)))

    def split(self, fraction: float, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """Parts the rows at random: the first part has `fraction` of them, the second the rest.

        >>> train, rest = Dataset(np.ones((10, 2)), np.arange(10)).split(0.8)
        >>> len(train), len(rest)
        (8, 2)
        """
        first = self._share(fraction, "split")
        order = np.argsort(np.random.Philox(key=seed).random_raw(len(self)), kind="stable")
        return self.only(np.sort(order[:first])), self.only(np.sort(order[first:]))

    def tail(self, fraction: float) -> tuple["Dataset", "Dataset"]:
        """Parts off the last `fraction` of the rows: (the rest, the last part), as Keras' `validation_split` does."""
        last = self._share(fraction, "tail")
        return self.only(np.arange(len(self) - last)), self.only(np.arange(len(self) - last, len(self)))

    def only(self, indices: Any) -> "Dataset":
        """The rows at `indices` as a Dataset that shares their memory."""
        indices = np.asarray(indices, np.int64)
        part = object.__new__(Dataset)
        part.__dict__.update(self.__dict__)
        part._chosen = indices if self._chosen is None else self._chosen[indices]
        return part

    def with_mode(self, mode: str) -> "Dataset":
        """The same rows, shuffled in training ("train") or never ("test")."""
        if mode not in MODES:
            raise errors.unknown("Dataset", "mode=", mode, MODES)
        other = object.__new__(Dataset)
        other.__dict__.update(self.__dict__, mode=mode)
        return other

    def __repr__(self) -> str:
        return f"Dataset({self.name}: {len(self)} rows, x {self._inputs()}, y {self._targets()}, mode={self.mode})"

    def _inputs(self) -> str:
        x = self.content.x
        if isinstance(x, Lazy):
            return f"{self.content.kind} read on demand"
        if self.content.columns is not None:
            return f"{len(self.content.columns)} columns"
        if isinstance(x, dict):
            return str({name: f"{a.dtype} {a.shape[1:]}" for name, a in x.items()})
        return "text" if x.dtype.kind == "O" else f"{x.dtype} {x.shape[1:]}"

    def _targets(self) -> str:
        if (classes := self.classes) is not None:
            return f"{len(classes)} classes"
        if self.content.kind == PAIRS:
            return "read on demand"
        y = self.content.y
        return "none" if y is None else f"{y.dtype} {y.shape[1:] or ''}".rstrip()

    def _share(self, fraction: float, who: str) -> int:
        if not 0 < fraction < 1:
            raise ValueError(f"Dataset.{who}: fraction={fraction}; a number between 0 and 1 is wanted")
        rows = round(len(self) * fraction)
        if not 0 < rows < len(self):
            raise ValueError(f"Dataset.{who}: {fraction} of {len(self)} rows leaves one part empty")
        return rows


def _checked_weights(weights: Any, rows: int) -> np.ndarray | None:
    if weights is None:
        return None
    array = np.asarray(weights, np.float32)
    if array.shape != (rows,):
        raise ValueError(f"Dataset: weights has shape {array.shape}; one a row is wanted: ({rows},)")
    if not np.isfinite(array).all() or array.min() < 0 or not array.any():
        raise ValueError(f"Dataset: weights run from {array.min()} to {array.max()}; finite numbers from 0 are wanted")
    return array
