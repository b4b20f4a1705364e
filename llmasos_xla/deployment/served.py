"""A model as the server runs it: the names of its tensors, its warm-up, one call at a time."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, final

import numpy as np

from llmasos_xla import errors
from llmasos_xla.api.door import Door
from llmasos_xla.data.array_input import ArrayInput
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.table_input import TableInput
from llmasos_xla.data.text_input import TextInput
from llmasos_xla.deployment.raw_input import INPUT
from llmasos_xla.models.stack import output_shapes

OUTPUT, LABEL = "output", "label"
_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}


class Tensor(NamedTuple):
    """An input or output as the metadata list it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """With the rows; -1 where any length will do."""
    example: tuple[tuple[int, ...], Any] = ((), None)
    """Shape of one row's worth and a value to fill it with, for a first request."""

    def metadata(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@final
class Served:
    """A loaded model behind names: tensors in, tensors out.

    A single input is called "input". A table has an input for each of its columns, and takes "input" with all columns
    in order too. The outputs are "output", what `model.predict` gives, or its parts by name where it gives several
    ("logits" and "boxes" of a detector), and for classifiers "label": the name of the most probable class, or its id
    where classes have no names.

    Raises ValueError for a model that was never fitted: how its input is prepared is not known then.
    """

    def __init__(self, model: Door, name: str, version: str = "1"):
        preprocessing = model.learner.preprocessing
        if preprocessing is None:
            raise ValueError(
                f"deploy: the model {name!r} has never seen data, so it is not known how to prepare its input; "
                "fit it, or call predict once, before it is saved"
            )
        self.model, self.name, self.version = model, name, version
        self.preprocessing: Preprocessing = preprocessing
        self.inputs = _inputs(preprocessing.input)
        self._label, label = _labeller(model, preprocessing)
        several = model.learner.spec.several()
        self._several = bool(several)
        shapes = several or {OUTPUT: model.learner.spec.output_shape()}
        self.outputs = (
            *(Tensor(name, "FP32", (-1, *(-1 if n is None else n for n in shape))) for name, shape in shapes.items()),
            *(() if several else label),
        )
        # One call at a time: the cores are shared anyway, and memory is needed once.
        self._running = threading.Lock()

    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/{name}."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "jax",
            "inputs": [tensor.metadata() for tensor in self.inputs],
            "outputs": [tensor.metadata() for tensor in self.outputs],
        }

    def example(self) -> list[dict[str, Any]]:
        """What a first request may hold: name, datatype and shape of each input, and a value to fill it with."""
        wanted = self.preprocessing.wanted or [t.name for t in self.inputs]
        return [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.example[0]), "fill": t.example[1]}
            for t in self.inputs
            if t.name in wanted
        ]

    def warm(self, rows: int = 1) -> None:
        """Compiles and runs the program for so many rows, so that no request waits for it."""

        def zeros(part: Any) -> np.ndarray:
            return np.zeros((rows, *part.shape), part.dtype)

        whole = self.preprocessing.input
        if not isinstance(whole, tuple):
            self._forward(zeros(whole))
            return
        # With the needed inputs alone, and with all: a program each.
        for names in {self.preprocessing.wanted, tuple(name for name, _ in whole)}:
            arrays = {name: zeros(part) for name, part in whole if name in names}
            self._forward(arrays[names[0]] if len(names) == 1 and self.preprocessing.needed else arrays)

    def infer(self, tensors: Mapping[str, np.ndarray], outputs: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The outputs asked for, or all of them.

        Raises ValueError or TypeError for a request that does not fit the model. What else is raised is the model's.
        """
        wanted = tuple(outputs) or tuple(tensor.name for tensor in self.outputs)
        known = [tensor.name for tensor in self.outputs]
        for name in wanted:
            if name not in known:
                raise errors.unknown("infer", "output", name[:60], known)
        encoded = self._encode(tensors)
        try:
            y = self._forward(encoded)
        except (ValueError, TypeError) as error:
            # The input was accepted, so this is no fault of the sender's.
            raise RuntimeError(f"infer: the model failed: {error}") from error
        found = dict(y._asdict()) if self._several else {OUTPUT: y}
        if LABEL in wanted:
            found[LABEL] = self._label(y)
        return {name: found[name] for name in wanted}

    def _encode(self, tensors: Mapping[str, np.ndarray]) -> Any:
        whole = self.preprocessing.input
        if isinstance(whole, TableInput) and tensors.keys() == {INPUT}:
            raw: Any = tensors[INPUT]
            if raw.ndim < 2 and len(whole.columns) == 1 and whole.columns[0].name == INPUT:
                raw = {INPUT: raw}
        elif isinstance(whole, TableInput):
            self._check_names(tensors)
            raw = {name: array.reshape(-1) for name, array in tensors.items()}
            if len(sizes := {name: len(column) for name, column in raw.items()}) and len(set(sizes.values())) > 1:
                raise ValueError(f"infer: the columns have different numbers of rows: {sizes}")
        else:
            self._check_names(tensors)
            raw = dict(tensors) if isinstance(whole, tuple) else tensors[INPUT]
        who = "infer: input" if isinstance(raw, dict) else f"infer: {INPUT!r}"
        encoded = self.model.learner.encode(raw, who)
        self._check_lengths(encoded)
        return encoded

    def _check_names(self, tensors: Mapping[str, np.ndarray]) -> None:
        known = [tensor.name for tensor in self.inputs]
        for name in tensors:
            if name not in known:
                raise errors.unknown("infer", "input", name[:60], known)
        wanted = self.preprocessing.wanted or known
        if lacking := [name for name in wanted if name not in tensors]:
            raise ValueError(f"infer: the inputs {', '.join(lacking)} are missing")

    def _check_lengths(self, encoded: Any) -> None:
        # Where lengths are free, a layer may still refuse one: a series shorter than its window.
        part = self.preprocessing.input
        if isinstance(part, tuple):
            name, part = part[0]
            encoded = encoded[name] if isinstance(encoded, Mapping) else encoded
        if isinstance(part, ArrayInput) and part.free:
            output_shapes(self.model.learner.spec.layers, encoded.shape[1:])

    def _forward(self, encoded: Any) -> Any:
        with self._running:
            return self.model.learner.predict_encoded(encoded)


def _inputs(whole: Any) -> tuple[Tensor, ...]:
    if isinstance(whole, TableInput):
        return tuple(
            Tensor(c.name, "FP64", (-1,), ((1,), round(c.mean, 4)))
            if c.categories is None
            else Tensor(c.name, "BYTES", (-1,), ((1,), c.categories[0] if c.categories else None))
            for c in whole.columns
        )
    if isinstance(whole, TextInput):
        return (Tensor(INPUT, "BYTES", (-1,), ((1,), " ".join(whole.vocabulary[:3]))),)
    parts = whole if isinstance(whole, tuple) else ((INPUT, whole),)
    return tuple(
        Tensor(
            name,
            _DATATYPES[part.dtype],
            (-1, *(-1 if axis in part.free else n for axis, n in enumerate(part.shape))),
            ((1, *part.shape), 0),
        )
        for name, part in parts
    )


def _labeller(model: Door, preprocessing: Preprocessing) -> tuple[Callable[[np.ndarray], np.ndarray], list[Tensor]]:
    """The function from outputs to labels, and the tensor it gives; none for a model that is no classifier."""
    learner = model.learner
    shape = tuple(-1 if n is None else n for n in learner.spec.output_shape())
    names, head = preprocessing.label_names, learner.spec.head
    loss = learner.recipe.loss if learner.recipe else None
    if shape[-1:] == (1,):
        binary = head == "sigmoid" and (loss is None or loss.reads == "logits")
        classes, rank = (2 if binary else 0), shape[:-1]

        def ids(y: np.ndarray) -> np.ndarray:
            return (y[..., 0] > 0.5).astype(np.int64)
    else:
        classes = shape[-1] if shape and (head == "softmax" or (loss and loss.targets == "class")) else 0
        rank = shape[:-1]

        def ids(y: np.ndarray) -> np.ndarray:
            return y.argmax(axis=-1).astype(np.int64)

    if not classes:
        return ids, []
    if names is None or len(names) < classes:
        return ids, [Tensor(LABEL, "INT64", (-1, *rank))]
    # An object array: BYTES, whatever the lengths of the names.
    named = np.array(names, object)
    return lambda y: named[ids(y)], [Tensor(LABEL, "BYTES", (-1, *rank))]
