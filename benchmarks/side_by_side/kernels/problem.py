"""One operation on arrays of given shapes, said without any framework."""

import dataclasses
from typing import Any

FORWARD = "forward"


@dataclasses.dataclass(frozen=True)
class Part:
    """What is timed of an operation.

    Attributes:
        name: "forward", "input gradient", ...
        of: numbers of the arrays whose gradients are computed; none in the forward pass.
        whole: whether the forward pass is timed with the gradients; otherwise what it leaves behind is given.
        flops: floating point operations, 0 where they say nothing.
    """

    name: str
    of: tuple[int, ...] = ()
    whole: bool = False
    flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operation, its arrays' shapes and its arguments.

    Attributes:
        op: "conv", "conv_transpose", "max_pool", "avg_pool", "dense", "batch_norm", "lstm", "gru", "rnn" or
            "linear_scan".
        case: the case's name in its list.
        dtype: of arrays and results, "float32" or "bfloat16".
        shapes: of the arrays, in the order in which the public function takes them.
        options: the other arguments; which ones, `cases.py` says for each op.
        parts: what is timed.
    """

    op: str
    case: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any]
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Op, case and dtype."""
        return f"{self.op} {self.case} {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Problem":
        """The inverse of `to_json`."""
        parts = tuple(Part(**{**part, "of": tuple(part["of"])}) for part in values["parts"])
        shapes, options = _tuples(values["shapes"]), _tuples(values["options"])
        return cls(**{**values, "shapes": shapes, "options": options, "parts": parts})


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
