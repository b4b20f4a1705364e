"""What a model of the shelf is: a whole network as one layer specification."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llmasos_xla.core import Net
from llmasos_xla.models.layers._base import Layer, Shape, abstract
from llmasos_xla.models.spec import StackSpec

if TYPE_CHECKING:
    from llmasos_xla.models.pretrained.names import Name


@dataclasses.dataclass(frozen=True)
class Config(Layer):
    """Base of all models of the shelf: a frozen specification of a whole network, by its sizes.

    It is a layer like any other: `build(shape, rngs)` makes its module, a file stores it as JSON, and it may stand in a
    `Sequential`. Its module is called as `module(x, train=..., rngs=...)`, where `x` is one array (the first of
    `inputs`) or a dict of arrays by the names of `inputs`. It returns logits unless its docstring says otherwise.
    """

    family: ClassVar[str] = ""
    """What the architecture is called, "bert": the first part of its array names in a file of weights."""
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    """The names of the arrays that it reads, in the order of positional arguments."""
    needed: ClassVar[int] = 1
    """How many of them, from the first, a call cannot do without."""
    presets: ClassVar[Mapping[str, str]] = {}
    """Name on the shelf -> name of the class method that makes that configuration: {"resnet50": "resnet50"}."""
    huggingface: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of Hugging Face's config.json that `from_huggingface` reads."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of names in published weights that are buffers, not weights."""

    @property
    def base_name(self) -> str:
        """The first part of its array names."""
        return self.family

    def net(self) -> Net:
        """The pure functions: `net.init(key)`, `net.apply(variables, x, train=False)`."""
        return self.spec().net()

    def spec(self) -> StackSpec:
        """The model as the doors take it."""
        return StackSpec((self,), self.input_shape or self.sample_shape())

    def sample_shape(self) -> Shape:
        """The shape of one sample of the first input where nothing else was said; None is an axis of any length."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample_shape")

    def names(self, source: str) -> Iterator["Name"]:
        """One `Name` for each array: what it is called here and in published weights of that source, and how it lies.

        Raises ValueError for a source that the model has no table for.
        """
        raise ValueError(f"{self.who}: there is no table of names for weights of the source {source!r}")

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **sizes: Any) -> "Config":
        """The configuration that a Hugging Face config.json describes; raises ValueError for what is not built here.

        `sizes` stand in the place of what the file says.
        """
        raise ValueError(f"{cls.__name__}: it reads no Hugging Face config.json")

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Which inputs hold whole numbers from 0, and how many different ones.

        By their names: "...ids" are ids of as many vectors as the field `vocab` says, if there is one, "...mask" is a
        mask of 0 and 1, "...positions" are below `context`, if there is one, "...lengths" are any.
        """
        counts = {
            "ids": getattr(self, "vocab", None), "mask": 2, "positions": getattr(self, "context", None), "lengths": None
        }  # fmt: skip
        return {name: n for name in self.inputs for ending, n in counts.items() if name.endswith(ending)}

    @property
    def tokens(self) -> bool:
        """Whether the first input are ids."""
        return self.inputs[0] in self.integers

    def input_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The shape of one sample of each input, where that of the first is `shape`.

        Ids and masks beside ids are as long as these; those beside anything else, and "decoder_..." ones, of any
        length; "...lengths" are one number a row. Inputs of other kinds are the model's own to say.
        """
        free = {name: shape[:1] if self.tokens and not _of_decoder(name) else (None,) for name in self.integers}
        free |= {name: () for name in free if name.endswith("lengths")}
        if unknown := [name for name in self.inputs[1:] if name not in free]:
            raise NotImplementedError(f"{type(self).__name__} does not say the shape of its input {unknown[0]!r}")
        return {name: shape if name == self.inputs[0] else free[name] for name in self.inputs}

    def check_tokens(self, ids: Any) -> None:
        """Refuses ids [batch, ...] without a vector, masks that are none, and ids and masks of different lengths.

        `ids` is one array, or a dict of them by the names of `inputs`.
        """
        given = {name: a for name, a in self.unbind(ids).items() if a is not None and name in self.integers}
        for name, array in given.items():
            count = self.integers[name]
            if not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{self.who}: the input {name!r} wants whole numbers, got {array.dtype}")
            if count is not None and array.size and (array.min() < 0 or array.max() >= count):
                at = tuple(np.argwhere((array < 0) | (array >= count))[0])
                raise ValueError(
                    f"{self.who}: the input {name!r} has values from 0 to {count - 1}, got {array[at]} in row {at[0]}"
                )
        for side in (False, True):
            lengths = {name: a.shape[1] for name, a in given.items() if a.ndim == 2 and _of_decoder(name) == side}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{name!r} {n}" for name, n in lengths.items())
                raise ValueError(f"{self.who}: the inputs have different lengths: {told}; one for each id is wanted")

    def abstract(self, shape: Shape, rows: int, length: int = 1, names: Sequence[str] | None = None) -> Any:
        """A batch of `rows` samples as shapes and dtypes; one array where it is the first input alone."""
        shapes, whole = self.input_shapes(shape), self.integers
        names = self.fit_inputs if names is None else names
        arrays = {name: abstract(shapes[name], rows, length, name in whole) for name in names}
        return arrays[self.inputs[0]] if list(arrays) == [self.inputs[0]] else arrays

    def several(self, shape: Shape) -> dict[str, Shape]:
        """The shapes of one sample's outputs by name, where the model gives a tuple of them; {} where it gives one."""
        return {}

    def bind(self, *arrays: Any, **named: Any) -> Any:
        """Arguments of a call as the module takes them: the array itself where it is the first alone, else a dict.

        Raises TypeError for too many, unknown or missing inputs.
        """
        who = self.family or self.who
        if len(arrays) > len(self.inputs):
            raise TypeError(f"{who}: {len(arrays)} inputs came; it reads {', '.join(self.inputs)}")
        given = dict(zip(self.inputs, arrays, strict=False))
        for name, array in named.items():
            if name not in self.inputs:
                raise TypeError(f"{who}: it has no input {name!r}; it reads {', '.join(self.inputs)}")
            if name in given:
                raise TypeError(f"{who}: the input {name!r} came twice")
            given[name] = array
        given = {name: array for name, array in given.items() if array is not None}
        if missing := [name for name in self.inputs[: self.needed] if name not in given]:
            raise TypeError(f"{who}: the input {missing[0]!r} is missing; it reads {', '.join(self.inputs)}")
        return given[self.inputs[0]] if list(given) == [self.inputs[0]] else given

    def unbind(self, x: Any) -> dict[str, Any]:
        """The inverse of `bind`, for modules: every array by name, None for those that did not come."""
        given = dict(x) if isinstance(x, Mapping) else {self.inputs[0]: x}
        if unknown := given.keys() - set(self.inputs):
            raise ValueError(f"{self.who}: it has no input {sorted(unknown)[0]!r}; it reads {', '.join(self.inputs)}")
        return {name: given.get(name) for name in self.inputs}


def _of_decoder(name: str) -> bool:
    return name.startswith("decoder_")


def class_count(config: Mapping[str, Any]) -> int:
    """How many classes a Hugging Face config.json tells of: its "id2label", else "num_labels", else 2 as there.

    >>> class_count({"id2label": {"0": "cat", "1": "dog", "2": "cow"}})
    3
    """
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
