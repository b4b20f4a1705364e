"""What a model looks like from outside: the tensors that requests name, and the arrays that its program takes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np

from llmasos_xla import errors
from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import forward_of
from llmasos_xla.data.array_input import ArrayInput
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.table_input import TableInput
from llmasos_xla.data.text_input import TextInput
from llmasos_xla.deployment.raw_input import INPUT, TEXT
from llmasos_xla.deployment.tensors import datatype_of
from llmasos_xla.deployment.texts import Texts
from llmasos_xla.models.stack import output_shapes
from llmasos_xla.storage.bundle import Content

OUTPUT, LABEL = "output", "label"
_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
# Of lengths that any number will do for, in a first request.
_SOME_LENGTH = 8

Key = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape of a row and dtype of each array that a program takes."""


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


@runtime_checkable
class Face(Protocol):
    """What stands between requests and a program."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What requests may hold."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What answers may hold."""
        ...

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What is done to raw input; None if nothing is."""
        ...

    @property
    def first(self) -> tuple[str, ...]:
        """The inputs of a first request."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes that "output" has probabilities of, in order; None where they have none."""
        ...

    def encode(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A request's tensors as the program takes them; raises ValueError or TypeError for what does not fit."""
        ...

    def finish(self, found: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """The outputs that are wanted, of what the program gave."""
        ...

    def shapes(self) -> list[Key]:
        """What a first request's arrays would be like; several where inputs may be left out."""
        ...


@final
class ModelFace:
    """The face of a model that is rebuilt here.

    A single input is called "input". A table has an input for each of its columns, and takes "input" with all columns
    in order too. A network that tells classes apart by ids takes "text" in their place where it has a tokenizer. The
    outputs are "output", what `model.predict` gives, or its parts by name where it gives several ("logits" and "boxes"
    of a detector), and for classifiers "label": the name of the most probable class, or its id where classes have no
    names.

    Raises ValueError for a model that was never fitted: how its input is prepared is not known then.
    """

    def __init__(self, model: Door, name: str):
        model.settle()
        preprocessing = model.learner.preprocessing
        if preprocessing is None:
            raise ValueError(
                f"deploy: the model {name!r} has never seen data, so it is not known how to prepare its input; "
                "fit it, or call predict once, before it is saved"
            )
        self.model = model
        self.preprocessing: Preprocessing = preprocessing
        self.forward = forward_of(model, "deploy")
        self._texts = Texts.of_model(model, preprocessing)
        text = () if self._texts is None else (Tensor(TEXT, "BYTES", (-1,), ((1,), "a fine film")),)
        self.inputs = (*text, *_inputs(preprocessing.input))
        self.first = (TEXT,) if text else preprocessing.wanted or tuple(tensor.name for tensor in self.inputs)
        self._label, label = _labeller(model, preprocessing)
        several = model.learner.spec.several()
        shapes = several or {OUTPUT: model.learner.spec.output_shape()}
        self.outputs = (
            *(Tensor(name, "FP32", (-1, *(-1 if n is None else n for n in shape))) for name, shape in shapes.items()),
            *(() if several else label),
        )
        named = not several and any(t.datatype == "BYTES" for t in label)
        self.labels = tuple(map(str, preprocessing.label_names or ())) if named else None

    def encode(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Face` has it."""
        if self._texts is not None and TEXT in tensors:
            tensors = self._texts.encode(tensors)
        return self.forward.named(self._encode(tensors))

    def finish(self, found: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """As `Face` has it."""
        return {name: self._label(found[OUTPUT]) if name == LABEL else found[name] for name in wanted}

    def shapes(self) -> list[Key]:
        """As `Face` has it."""
        seen = self.forward.seen
        tensors = {t.name: t for t in self.forward.tensors}
        wanted = self.preprocessing.wanted or tuple(tensors)
        others = tuple(tensors)
        if self._texts is not None:
            # What texts become, and ids alone at the same length, which is as good as any.
            seen, others = dict.fromkeys(seen, self._texts.length(1)), self._texts.names
        whole = {
            n: (n, tuple(seen[m] if isinstance(m, str) else m for m in t.shape[1:]), t.dtype)
            for n, t in tensors.items()
        }
        return [tuple(whole[n] for n in names) for names in dict.fromkeys((tuple(wanted), others))]

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


@final
class ProgramFace:
    """The face of programs alone: their own inputs and outputs, arrays as they are."""

    preprocessing = labels = None

    def __init__(self, content: Content):
        self.content = content
        self._tensors = {t.name: t for t in content.inputs}
        self.inputs = tuple(
            Tensor(t.name, _datatype(t.dtype), _shape(t.shape), ((1, *_some(t.shape)), 0)) for t in content.inputs
        )
        self.first = tuple(t.name for t in content.inputs)
        self.outputs = tuple(Tensor(t.name, _datatype(t.dtype), _shape(t.shape)) for t in content.outputs)

    def encode(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Face` has it."""
        known = [p.inputs for p in self.content.programs]
        if not any(tensors.keys() == set(names) for names in known):
            wanted = " or ".join(dict.fromkeys(", ".join(names) for names in known))
            raise ValueError(f"infer: inputs {', '.join(tensors)[:200]} came; {wanted} are wanted")
        found, sizes = {}, {}
        for name, array in tensors.items():
            wanted, who = self._tensors[name], f"infer: {name!r}"
            if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
                raise TypeError(f"{who}: text came where {wanted.dtype} is wanted")
            if array.ndim != len(wanted.shape):
                raise ValueError(f"{who} has shape {array.shape}; {_wanted(wanted.shape)} is wanted")
            for n, came in zip(wanted.shape, array.shape, strict=True):
                if came != (sizes.setdefault(n, came) if isinstance(n, str) else n):
                    raise ValueError(f"{who} has shape {array.shape}; {_wanted(wanted.shape)} is wanted")
            found[name] = _cast(array, np.dtype(wanted.dtype), who)
        for name, (least, most) in self.content.limits.items():
            if name in sizes and not least <= sizes[name] <= (most or sizes[name]):
                raise ValueError(f"infer: a length of {sizes[name]} came; {least} to {most or 'any'} is wanted")
        lengths = [p.lengths for p in self.content.programs if set(p.inputs) == found.keys()]
        if not any(all(sizes.get(n) == m for n, m in fixed.items()) for fixed in lengths):
            came = {n: m for n, m in sizes.items() if n in lengths[0]}
            raise ValueError(
                f"infer: lengths {came} came; {', '.join(str(dict(fixed)) for fixed in lengths)} are wanted"
            )
        return found

    def finish(self, found: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """As `Face` has it."""
        return {name: found[name] for name in wanted}

    def shapes(self) -> list[Key]:
        """As `Face` has it."""
        return [
            tuple(
                (n, _some(self._tensors[n].shape, p.lengths, self.content.limits), self._tensors[n].dtype)
                for n in p.inputs
            )
            for p in self.content.programs
        ]


def _datatype(dtype: str) -> str:
    return datatype_of(np.zeros(0, dtype))


def _shape(shape: Iterable[int | str]) -> tuple[int, ...]:
    return tuple(-1 if isinstance(n, str) else n for n in shape)


def _some(
    shape: tuple[int | str, ...], lengths: Mapping[str, int] | None = None, limits: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """A shape of one row."""

    def size(name: str) -> int:
        least, most = (limits or {}).get(name, (1, None))
        return (lengths or {}).get(name, min(max(_SOME_LENGTH, least), most or max(_SOME_LENGTH, least)))

    return tuple(size(n) if isinstance(n, str) else n for n in shape[1:])


def _wanted(shape: Iterable[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _cast(array: np.ndarray, dtype: np.dtype, who: str) -> np.ndarray:
    if array.dtype == dtype:
        return array
    if np.can_cast(array.dtype, dtype, "same_kind"):
        return array.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    if not (cast.astype(np.float64) == array.astype(np.float64)).all():
        raise ValueError(f"{who}: values came that are no {dtype}")
    return cast


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
