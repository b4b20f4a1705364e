"""What is done to raw input before the model sees it: fit, evaluate, predict and the server share it."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_xla.data.array_input import ArrayInput
from llmasos_xla.data.labels import Labels
from llmasos_xla.data.table_input import TableInput
from llmasos_xla.data.text_input import TextInput

if TYPE_CHECKING:
    from llmasos_xla.data.dataset import Dataset

Input = ArrayInput | TableInput | TextInput


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How raw inputs and labels become what the compiled step takes.

    `encode` runs on the host and keeps transfers small (pixels stay bytes); `on_device` is traced into the step.

    >>> import numpy as np
    >>> from llmasos_xla.data import Dataset
    >>> images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    >>> preprocessing = Preprocessing.fit(Dataset(images, ["cat", "dog"]), input_shape=(28, 28, 1))
    >>> preprocessing.encode(images).shape, preprocessing.encode_labels(["dog"])
    ((2, 28, 28, 1), array([1], dtype=int32))
    >>> preprocessing.describe()
    'uint8 (rows, 28, 28, 1), times 1/255; 2 classes: cat, dog'
    >>> Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    True
    """

    input: Input | tuple[tuple[str, ArrayInput], ...]
    """One input, or several by name."""
    labels: Labels = dataclasses.field(default_factory=Labels)
    needed: int | None = None
    """How many of several inputs, from the first, must come; the first alone may come as an array then, and stays one.
    None: all must, as a dict."""

    @classmethod
    def fit(
        cls, dataset: "Dataset", input_shape: Any = None, *, tokens: bool | tuple[str, ...] = False
    ) -> "Preprocessing":
        """Derives it from a training set.

        `input_shape` is the shape the model wants a sample to have, None where any length will do (a dict of shapes for
        several inputs); by default the data's own. `tokens=True` says that the model's first layer takes ids (for
        several inputs: the names of those).

        With the Dataset's `normalize="auto"`, the first of these that holds decides:

        1. text becomes ids by a vocabulary of the training set; `tokens` become int32;
        2. bytes (uint8) are pixels: kept as they are on the host, times 1/255 on the device, unless all are 0 or 1;
        3. whole numbers in 0..255 with one above 1 are pixels too if they look like images: the shape ends in 1, 3 or
           4 channels, or is square with at least 49 places, or the columns are called pixel0, 1x1 and so on;
        4. the columns of a table are standardized by the training set's mean and deviation; text columns are one-hot;
        5. arrays are left as they are, as float32.

        `normalize="pixels"` and `"standard"` ask for that; None for no scaling.

        Raises ValueError if the data cannot take that shape, or hold NaN.
        """
        from llmasos_xla.data._fit import fit_input, fit_labels

        return cls(fit_input(dataset, input_shape, tokens), fit_labels(dataset))

    @property
    def shape(self) -> Any:
        """The shape of one encoded sample; by name if there are several inputs."""
        return self._each(lambda part: part.shape)

    @property
    def dtype(self) -> Any:
        """What `encode` gives: "uint8", "int32" or "float32"; by name if there are several inputs."""
        return self._each(lambda part: part.dtype)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names of class ids 0, 1, ..., or None."""
        return self.labels.names

    @property
    def vocabulary_size(self) -> int | None:
        """The number of ids that text is encoded with, or None for other inputs."""
        return self.input.size if isinstance(self.input, TextInput) else None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Of several inputs, those that `encode` cannot do without; empty for one."""
        return tuple(name for name, _ in self.input[: self.needed]) if isinstance(self.input, tuple) else ()

    def encode(self, raw: Any, columns: tuple[str, ...] | None = None, *, who: str = "input") -> Any:
        """Brings what a user passes to a NumPy array `[rows, *shape]`, or a dict of them.

        `raw` may be an array of any framework, nested lists, a DataFrame, a list of str, a list of pictures. `columns`
        names the columns of a plain array that comes from a table. `who` opens the error texts.
        """
        if not isinstance(self.input, tuple):
            return self.input.encode(raw, columns, who)
        parts = dict(self.input)
        first, wanted = self.input[0][0], self.wanted
        if self.needed == 1 and not isinstance(raw, Mapping):
            raw = {first: raw}
        if not isinstance(raw, Mapping) or raw.keys() - parts.keys() or set(wanted) - raw.keys():
            came = f"a dict of {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else type(raw).__name__
            rest = [name for name in parts if name not in wanted]
            may = f" (and {', '.join(rest)}, if there is)" if rest else ""
            raise ValueError(f"{who}: a dict of the inputs {', '.join(wanted)} is wanted{may}, {came} came")
        encoded = {
            name: part.encode(raw[name], None, f"{who}[{name!r}]") for name, part in parts.items() if name in raw
        }
        sizes = {name: len(array) for name, array in encoded.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{who}: the inputs have different numbers of rows: {sizes}")
        return encoded[first] if self.needed is not None and list(encoded) == [first] else encoded

    def on_device(self, x: Any) -> Any:
        """Casts and scales encoded input inside the compiled step; pure, and clean under strict promotion."""
        if not isinstance(self.input, tuple):
            return self.input.on_device(x)
        parts = dict(self.input)
        if not isinstance(x, Mapping):
            return self.input[0][1].on_device(x)
        return {name: parts[name].on_device(array) for name, array in x.items()}

    def encode_labels(self, y: Any, *, who: str = "labels") -> np.ndarray:
        """Class names to int32 ids; integers to int32; floats (targets, one-hot) to float32."""
        return self.labels.encode(y, who)

    def decode_labels(self, ids: Any) -> np.ndarray:
        """Class ids to names, or the ids themselves if classes have none."""
        return self.labels.decode(ids)

    def describe(self) -> str:
        """One line for a summary."""
        if isinstance(self.input, tuple):
            inputs = "; ".join(f"{name}: {part.describe()}" for name, part in self.input)
        else:
            inputs = self.input.describe()
        if self.label_names is None:
            return inputs
        names = ", ".join(self.label_names[:6]) + (", ..." if len(self.label_names) > 6 else "")
        return f"{inputs}; {len(self.label_names)} classes: {names}"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings, for a model file."""
        from llmasos_xla.data._json import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Preprocessing":
        """Reads `to_json` back, and checks every field: the file may be damaged or hostile.

        Raises ValueError naming the field.
        """
        from llmasos_xla.data._json import from_json

        return from_json(value)

    def _each(self, get: Any) -> Any:
        if isinstance(self.input, tuple):
            return {name: get(part) for name, part in self.input}
        return get(self.input)
