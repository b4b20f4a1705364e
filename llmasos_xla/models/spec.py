"""A model as its user wrote it down: a list of layers, before any array exists."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from llmasos_xla.core import Net, Variables, pure
from llmasos_xla.models.layers._base import Layer, Shape, layer_from_json, layer_names
from llmasos_xla.models.layers._modules import counted
from llmasos_xla.models.lora import PREFIX, LoRA
from llmasos_xla.models.stack import Stack, output_shapes, split_head


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """Layers applied one after the other to samples of `input_shape`.

    Attributes:
        layers: the layers, the last with its softmax or sigmoid if it has one.
        input_shape: shape of one sample; None until data tells it.
        lora: adapters beside some of the kernels, or None.
    """

    layers: tuple[Layer, ...]
    input_shape: Shape | None = None
    lora: LoRA | None = None

    @property
    def head(self) -> str | None:
        """The activation from logits to outputs: "softmax", "sigmoid" or None."""
        return split_head(self.layers)[1]

    @property
    def tokens(self) -> bool:
        """Whether the model reads integer ids; of several inputs, whether the first are ids."""
        return bool(self.layers) and self.layers[0].tokens

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs of a model that takes a dict of them; empty for one of a single array."""
        return self.layers[0].inputs if self.layers else ()

    @property
    def needed(self) -> tuple[str, ...]:
        """Those that a call cannot do without."""
        return self.inputs[: self.layers[0].needed] if self.layers else ()

    @property
    def fit_inputs(self) -> tuple[str, ...]:
        """Those that training cannot do without."""
        return self.layers[0].fit_inputs if self.layers else ()

    @property
    def integers(self) -> Mapping[str, int | None]:
        """Which of several inputs hold whole numbers from 0, and how many different ones; None where any goes."""
        return self.layers[0].integers if self.layers else {}

    @property
    def reads_integers(self) -> bool:
        """Whether any input is ids or a mask, which `check_tokens` checks."""
        return self.tokens or bool(self.integers)

    def input_shapes(self) -> dict[str, Shape]:
        """The shape of one sample of each of several inputs."""
        return self.layers[0].input_shapes(self.known_shape())

    def abstract(self, rows: int, length: int = 1, names: Sequence[str] | None = None) -> Any:
        """A batch as shapes and dtypes, as `Layer.abstract` of the first layer has it."""
        shape = self.known_shape()
        return self.layers[0].abstract(shape, rows, length, names)

    @property
    def stacked(self) -> tuple[str, ...]:
        """Beginnings of the names of arrays whose first axis counts layers."""
        names = layer_names(self.layers)
        return tuple(f"{n}/" for n, layer in zip(names, self.layers, strict=True) if getattr(layer, "stacked", False))

    def net(self, method: str = "__call__") -> Net:
        """The pure functions, up to the logits; `apply` calls another method if one is named (see `pure`)."""
        shape = self.known_shape()
        layers, _ = split_head(self.layers)
        output_shapes(layers, shape)
        net = pure(lambda rngs: Stack(layers, shape, rngs=counted(rngs)), method)
        return net if self.lora is None else self.lora.adapted(net)

    def output_shape(self) -> Shape:
        """Shape of one output sample."""
        return output_shapes(self.layers, self.known_shape())[-1]

    def several(self) -> dict[str, Shape]:
        """The shapes of one sample's outputs by name, where the last layer gives a tuple of them, else {}."""
        several = getattr(self.layers[-1], "several", None)
        if several is None:
            return {}
        return several([self.known_shape(), *output_shapes(self.layers[:-1], self.known_shape())][-1])

    def known_shape(self) -> Shape:
        """The input shape; an error if nothing has told it yet."""
        if not self.layers:
            raise ValueError("model: it has no layers; add some before it is used")
        if self.input_shape is None:
            raise ValueError("model: the input shape is not known yet; give the first layer input_shape=, or fit first")
        return self.input_shape

    def check_tokens(self, ids: Any) -> None:
        """Refuses ids [batch, ...] that the first layer has no vector for; no matter to other models."""
        if self.layers:
            self.layers[0].check_tokens(ids)

    def table(self, variables: Variables) -> str:
        """Layer, output shape and number of parameters, a line each; of a model of the shelf its parts as well."""
        shapes = output_shapes(self.layers, self.known_shape())
        rows = [("layer", "output shape", "parameters")]
        for name, layer, shape in zip(layer_names(self.layers), self.layers, shapes, strict=True):
            count = sum(a.size for key, a in variables.params.items() if key.removeprefix(PREFIX).split("/")[0] == name)
            rows.append((f"{name} ({type(layer).__name__})", str(("batch", *shape)).replace("'", ""), f"{count:,}"))
            if getattr(layer, "family", ""):
                rows += [(f"  {part}", "", f"{count:,}") for part, count in _parts(name, variables).items()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in rows]
        lines.insert(1, "-" * len(lines[0]))
        total = sum(a.size for a in variables.params.values())
        carried = sum(a.size for a in variables.state.values())
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(variables))
        more = f", {carried:,} values carried" if carried else ""
        return "\n".join([*lines, "-" * len(lines[0]), f"{total:,} parameters{more}, {math.ceil(size / 1024):,} KiB"])

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON values."""
        shape = None if self.input_shape is None else list(self.input_shape)
        config = {"layers": [layer.to_json() for layer in self.layers], "input_shape": shape}
        return config if self.lora is None else {**config, "lora": self.lora.to_json()}

    @classmethod
    def from_json(cls, config: Any) -> "StackSpec":
        """The inverse of `to_json`; raises ValueError for anything else."""
        if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
            raise ValueError("load: the model's specification has no list of layers")
        shape = config.get("input_shape")
        fits = shape is None or (
            isinstance(shape, list) and all(n is None or (isinstance(n, int) and n > 0) for n in shape)
        )
        if not fits:
            raise ValueError(f"load: the model's input_shape {str(shape)[:80]!r} is no shape")
        lora = LoRA.from_json(config["lora"]) if config.get("lora") is not None else None
        return cls(tuple(layer_from_json(c) for c in config["layers"]), None if shape is None else tuple(shape), lora)


def _parts(network: str, variables: Variables) -> dict[str, int]:
    """The parts of a network, blocks of a number together, and their parameters."""
    parts: dict[str, int] = {}
    for name, array in variables.params.items():
        first, *rest = name.removeprefix(f"{network}/").split("/")
        part = f"{first}/{rest[0]}" if rest and rest[0].isdigit() else first
        parts[part] = parts.get(part, 0) + array.size
    return dict(
        sorted(parts.items(), key=lambda item: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", item[0])])
    )
