"""What a layer is: a frozen specification that builds an nnx module for an input shape.

A `Layer` holds no arrays. It is what a user writes down, what `summary` prints, and what a saved model stores as JSON.
`build(shape, rngs)` makes the module that holds the arrays, `output_shape(shape)` tells the shape that comes out.
Shapes leave out the batch axis; None stands for an axis of any length (time).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_xla.errors import unknown
from llmasos_xla.kernels.activation import ACTIVATIONS, activation
from llmasos_xla.models.layers._checks import Shape as Shape
from llmasos_xla.models.layers._checks import flag, number, per_axis, short, whole
from llmasos_xla.models.layers.initializers import initializer

LAYERS: dict[str, type["Layer"]] = {}

HEADS = ("softmax", "sigmoid")
"""Last activations that a loss on logits takes over."""

DEEPEST = 64
"""Levels of a saved model's JSON: some twenty layers inside each other, more than anybody writes."""

# A name is a part of array names, whose parts are joined by "/", and an attribute of the module around it.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Base of all layer specifications.

    Arguments are put into one form and checked on construction: an `int` is a count of at least 1 (unless the field's
    metadata says `checked: False`), a `float` is finite, activations and initializers are known names; anything else is
    the layer's own `check`.

    Attributes:
        input_shape: shape of one sample, without the batch axis; needed on a model's first layer only, and there too
            only if the model is to be built before it sees data.
        name: the first part of the layer's array names, "conv2d" in "conv2d/kernel"; made up from the class if None.
    """

    input_shape: Shape | None = dataclasses.field(default=None, kw_only=True)
    name: str | None = dataclasses.field(default=None, kw_only=True)

    ends_in_activation: ClassVar[bool] = False
    """Whether `activation` is the last thing the layer does."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """The names of the arrays that it reads, where it takes a dict of them; empty for what reads one array."""
    needed: ClassVar[int] = 1
    """How many of them, from the first, a call cannot do without."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Set before the dataclass decorator runs, which leaves a class its own __repr__.
        cls.__repr__ = Layer.__repr__
        if not cls.__name__.startswith("_"):
            LAYERS[cls.__name__] = cls

    def __post_init__(self) -> None:
        if self.name is not None and not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise ValueError(
                f"{type(self).__name__}: name wants a letter, then letters, digits, '_', '.' and '-', got {self.name!r}"
            )
        if self.input_shape is not None:
            self._set(input_shape=_input_shape(self.who, self.input_shape))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("activation"):
                self._set(**{field.name: _activation_name(self.who, value)})
            elif field.name.endswith("initializer"):
                initializer(value, self.who)
                self._set(**{field.name: value.lower()})
            elif field.type in _FIELD_CHECKS and field.metadata.get("checked", True):
                self._set(**{field.name: _FIELD_CHECKS[field.type](self.who, field.name, value)})
        self.check()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._given().items())})"

    def _given(self) -> dict[str, Any]:
        """The arguments that are not at their default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def _set(self, **values: Any) -> None:
        """Puts arguments into their one form; only on construction."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def who(self) -> str:
        """How errors call this layer."""
        return f"{type(self).__name__} {self.name!r}" if self.name else type(self).__name__

    @property
    def base_name(self) -> str:
        """The first part of its array names where it was given no name."""
        return _snake(type(self).__name__)

    @property
    def tokens(self) -> bool:
        """Whether the layer reads integer ids rather than numbers; of several inputs, whether the first are ids."""
        return False

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Which of several `inputs` hold whole numbers from 0, and how many different ones: ids as many as there are
        vectors, a mask 2; None where any goes."""
        return {}

    def input_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The shape of one sample of each of several `inputs`, where that of the first is `shape`."""
        return {}

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        """Those of several `inputs` that training cannot do without."""
        return self.inputs[: self.needed]

    def check_tokens(self, ids: Any) -> None:
        """Refuses ids [batch, ...] that it has no vector for, naming the row; no matter to layers that read none."""

    def abstract(self, shape: Shape, rows: int, length: int = 1, names: Sequence[str] | None = None) -> Any:
        """A batch of `rows` samples as shapes and dtypes; `length` stands for sizes that are open.

        Of several inputs those of `fit_inputs`, or of `names`.
        """
        return abstract(shape, rows, length, self.tokens)

    @property
    def fuses_activation(self) -> bool:
        """Whether its module is a `MaskModule` whose `masked` takes `activation`, a name, and applies it cheaply."""
        return False

    def check(self) -> None:
        """Refuses arguments that no input shape could make right; called once, on construction."""

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with this layer's arrays, for samples of `shape`."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one output sample, for input samples of `shape`; raises ValueError if they do not fit."""
        raise NotImplementedError(f"{type(self).__name__} does not define output_shape")

    def split_head(self) -> tuple["Layer", str | None]:
        """The layer without a last softmax or sigmoid, and that activation's name; the layer itself if it has none."""
        head = getattr(self, "activation", None) if self.ends_in_activation else None
        if head not in HEADS:
            return self, None
        return dataclasses.replace(self, **{"activation": None}), head

    def to_json(self) -> dict[str, Any]:
        """`{"class": class name, argument: value, ...}`, arguments at their default left out."""
        return {"class": type(self).__name__, **{name: _value_to_json(value) for name, value in self._given().items()}}


_FIELD_CHECKS = {int: whole, float: number, bool: flag}


def make_layer(kind: str, *args: Any, **kwargs: Any) -> Layer:
    """The layer of that class name; the name is case-insensitive.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> make_layer("dense", 3, activation="relu").units
    3
    """
    by_lower = {name.lower(): cls for name, cls in LAYERS.items()}
    if not isinstance(kind, str) or kind.lower() not in by_lower:
        raise unknown("add_layer", "layer", kind, LAYERS)
    return by_lower[kind.lower()](*args, **kwargs)


def layer_from_json(config: Any, depth: int = 0) -> Layer:
    """The inverse of `Layer.to_json`. Builds known layer classes only and runs nothing else.

    Raises ValueError if the configuration is not one that `to_json` could have written.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> layer_from_json({"class": "Dense", "units": 3}) == Dense(3)
    True
    """
    if not isinstance(config, dict) or "class" not in config:
        raise ValueError(f"layer_from_json: wanted an object with a 'class' entry, got {short(config)}")
    kind = config["class"]
    if not isinstance(kind, str) or kind not in LAYERS:
        raise unknown("layer_from_json", "layer", kind if isinstance(kind, str) else short(kind), LAYERS)
    names = {f.name for f in dataclasses.fields(LAYERS[kind])}
    arguments = {name: value for name, value in config.items() if name != "class"}
    if extra := sorted(str(name)[:80] for name in arguments.keys() - names):
        raise ValueError(f"layer_from_json: {kind} has no argument {', '.join(extra)}")
    arguments = {name: _value_from_json(value, depth + 1) for name, value in arguments.items()}
    try:
        return LAYERS[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"layer_from_json: {kind}: {error}") from error


def layer_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """One name a layer, unique: the given name, or the class as Keras spells it, with _1, _2 where it repeats.

    >>> from llmasos_xla.models.layers.dense import Dense
    >>> layer_names([Dense(3), Dense(3, name="last"), Dense(3)])
    ('dense', 'last', 'dense_1')
    """
    given = [layer.name for layer in layers if layer.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"layers: the name {name!r} is given twice; names must be unique")
        if hasattr(nnx.Module, name):
            raise ValueError(f"layers: the name {name!r} is taken by nnx.Module itself; choose another")
    taken = set(given)
    names = []
    for layer in layers:
        name = layer.name
        if name is None:
            name = base = layer.base_name
            count = 0
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            taken.add(name)
        names.append(name)
    return tuple(names)


def layer_list(who: str, what: str, layers: Any) -> tuple[Layer, ...]:
    """A layer or a sequence of layers as a tuple."""
    if isinstance(layers, Layer):
        return (layers,)
    if not isinstance(layers, Sequence) or not all(isinstance(layer, Layer) for layer in layers):
        raise ValueError(f"{who}: {what} wants a list of layers, got {short(layers)}")
    return tuple(layers)


def abstract(shape: Shape, rows: int, length: int, integers: bool) -> jax.ShapeDtypeStruct:
    """`rows` samples of one input, with `length` for sizes that are open."""
    sizes = (length if n is None else n for n in shape)
    return jax.ShapeDtypeStruct((rows, *sizes), jnp.int32 if integers else jnp.float32)


def _input_shape(who: str, value: Any) -> Shape:
    wanted = "wants the sizes of one sample without the batch axis, None for an axis of any length"
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{who}: input_shape {wanted}, got {short(value)}")
    try:
        return tuple(None if v is None else per_axis(who, "input_shape", v, 1)[0] for v in value)
    except ValueError as error:
        raise ValueError(f"{who}: input_shape {wanted}, got {short(value)}") from error


def _activation_name(who: str, value: Any) -> str | None:
    if callable(value):
        for name, function in ACTIVATIONS.items():
            if function is value:
                return name
        raise ValueError(
            f"{who}: activation {getattr(value, '__name__', value)!r} is a function without a known name, so it could "
            f"not be saved; use a name: {', '.join(sorted(ACTIVATIONS))}"
        )
    activation(value, who)
    return value.lower() if isinstance(value, str) else value


def _snake(name: str) -> str:
    """`Conv2DTranspose` as `conv2d_transpose`: Keras' own spelling, so that imported names agree."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _value_to_json(value: Any) -> Any:
    if isinstance(value, Layer):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_value_to_json(v) for v in value]
    return value


def _value_from_json(value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"layer_from_json: layers stand more than {DEEPEST} levels of JSON deep")
    if isinstance(value, dict):
        return layer_from_json(value, depth + 1)
    if isinstance(value, list):
        return tuple(_value_from_json(v, depth + 1) for v in value)
    return value
