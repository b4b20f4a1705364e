"""Which axis of which array lies along which axis of the mesh: tables from array names to PartitionSpecs.

A rule is a regular expression on an array's name and which of its axes, counted from the end, is split over what; so
an array of one layer and the same with a leading axis of layers have one rule. The first rule that matches holds. Names
that no rule matches are an error: a new kind of array wants a decision, not a silent copy on every device.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from llmasos_xla.sharding.mesh import MeshSpec


class Rule(NamedTuple):
    """One line of a table."""

    pattern: str
    """Regular expression, searched for in the name."""
    split: Mapping[int, str]
    """Axis of the array from its end (-1 is the last) -> axis of the mesh; empty: whole on every device."""
    gathered: bool = False
    """Stored split, put together where it is used: for operations that XLA cannot divide along that axis."""


TENSOR: tuple[Rule, ...] = (
    # Adapters are small, and their products lie as the kernels that they are added to.
    Rule(r"^lora/", {}),
    # Attention is divided by heads, a gated product by its hidden units: one sum over devices a half block.
    Rule(r"(^|/)(query|key|value)/kernel$", {-2: "tensor"}),
    Rule(r"(^|/)(query|key|value)/bias$", {-2: "tensor"}),
    Rule(r"(^|/)qkv/(kernel|bias)$", {-3: "tensor"}),
    Rule(r"(^|/)(cross_)?attention\w*/output/kernel$|(^|/)multi_head_attention\w*/output/kernel$", {-3: "tensor"}),
    Rule(r"(^|/)relative/kernel$|(content|position)_bias$", {-2: "tensor"}),
    Rule(r"(^|/)output/bias$", {}),
    Rule(r"(^|/)(gate|up)/kernel$", {-1: "tensor"}),
    Rule(r"(^|/)down/kernel$", {-2: "tensor"}),
    Rule(r"(^|/)router/", {}),
    Rule(r"_norm/(scale|bias)$|rms_normalization\w*/scale$|layer_normalization\w*/(scale|bias)$", {}),
    # Used whole: vectors in parts would keep what is added to them in parts, and each product would gather its input.
    Rule(r"(^|/)embeddings$", {-1: "tensor"}, gathered=True),
    # A recurrence or a depthwise window divided by features would talk at each step or window: kept split, used whole.
    Rule(r"recurrent_(kernel|bias|scale)$|(input|cell)_(scale|offset)$", {-1: "tensor"}, gathered=True),
    Rule(
        r"(^|/)(lstm|gru|simple_rnn|min_gru|recurrence)\w*/|(forward|backward)/(kernel|bias)$",
        {-1: "tensor"},
        gathered=True,
    ),
    Rule(r"depthwise_kernel$|depthwise_conv\w*/(kernel|bias)$", {-1: "tensor"}, gathered=True),
    Rule(r"conv2d_transpose\w*/kernel$", {-2: "tensor"}),
    # Columns of products and of convolutions, and what goes with each output feature.
    Rule(r"(^|/)(kernel|pointwise_kernel)$", {-1: "tensor"}),
    Rule(r"(^|/)(bias|scale|mean|var|alpha)$", {-1: "tensor"}),
)

EXPERT: tuple[Rule, ...] = (
    Rule(r"(^|/)experts/(gate|up|down)/kernel$", {-3: "expert"}),
    Rule(r".", {}),
)

SMALLEST = 1024
"""Arrays of fewer values are not split by fsdp or pipe: the message would cost more than the bytes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one array lies.

    Attributes:
        stored: its PartitionSpec between steps.
        used: that in which the step computes with it; where the two differ it is gathered.
        note: why it is not split as its rule says, or "".
    """

    stored: PartitionSpec
    used: PartitionSpec
    note: str = ""


def layout(name: str, shape: Sequence[int], spec: MeshSpec, *, stacked: bool = False) -> Layout:
    """Where the array of that name lies on a mesh of `spec`.

    Rules of the spec's own come first and are taken as they are; then the tables of tensor and expert, then fsdp, and
    pipe for what is not a stack of layers, split the largest axis that is left and divides.

    Args:
        name: "decoder/attention/query/kernel".
        shape: its sizes.
        spec: with no -1 in it.
        stacked: whether its first axis counts layers, which belongs to the pipeline.

    Raises ValueError for a name that no rule matches, and for a rule of the user's own that does not divide.

    >>> tuple(layout("dense/kernel", (512, 128), MeshSpec(fsdp=2, tensor=4)).stored)
    ('fsdp', 'tensor')
    >>> layout("dense/kernel", (512, 10), MeshSpec(tensor=4)).note
    'whole over tensor: its axis 1 of 10 does not divide by 4'
    """
    for pattern, given in spec.rules:
        if re.search(pattern, name):
            _check_given(name, shape, given, spec)
            return Layout(given, given)
    stored: list[Any] = [None] * len(shape)
    used: list[Any] = [None] * len(shape)
    notes = []
    if stacked and spec.pipe > 1:
        if shape[0] % spec.pipe:
            raise ValueError(
                f"shard: {name} {tuple(shape)} has {shape[0]} layers on axis 0, which do not divide into "
                f"pipe={spec.pipe} stages; choose a depth that does"
            )
        stored[0] = used[0] = "pipe"
    for strategy, table in (("expert", EXPERT), ("tensor", TENSOR)):
        size = getattr(spec, strategy)
        if size == 1:
            continue
        rule = _rule(name, table, strategy)
        for back, axis in rule.split.items():
            at = len(shape) + back
            if at < int(stacked) or stored[at] is not None:
                continue
            if shape[at] % size:
                notes.append(f"whole over {axis}: its axis {at} of {shape[at]} does not divide by {size}")
                continue
            stored[at] = axis
            if not rule.gathered:
                used[at] = axis
    for axis in ("fsdp", "pipe"):
        size = getattr(spec, axis)
        if size == 1 or axis in stored:
            continue
        if math.prod(shape) < SMALLEST:
            notes.append(f"whole over {axis}: {math.prod(shape)} values, fewer than {SMALLEST}")
            continue
        at = _largest(shape, stored, size, spec, first=int(stacked))
        if at is None:
            notes.append(f"whole over {axis}: no axis of {tuple(shape)} that is left divides by {size}")
            continue
        stored[at] = axis if stored[at] is None else (*axes_in(stored[at]), axis)
    return Layout(_trimmed(stored), _trimmed(used), "; ".join(notes))


def _rule(name: str, table: Sequence[Rule], strategy: str) -> Rule:
    for rule in table:
        if re.search(rule.pattern, name):
            return rule
    raise ValueError(
        f"shard: no rule of {strategy} names the array {name!r}; say where it lies: "
        f'MeshSpec(..., rules=((r"{re.escape(name)}$", PartitionSpec(...)),)), with PartitionSpec() for a copy on each '
        "device"
    )


def _largest(shape: Sequence[int], stored: Sequence[Any], size: int, spec: MeshSpec, first: int) -> int | None:
    """The largest axis, by what a device holds of it, that can be split once more; a free one where there is one."""

    def held(at: int) -> int:
        return shape[at] // math.prod(getattr(spec, a) for a in axes_in(stored[at]))

    fits = [at for at in range(first, len(shape)) if held(at) % size == 0]
    return max(fits, key=lambda at: (stored[at] is None, held(at)), default=None)


def axes_in(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one entry of a PartitionSpec names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _trimmed(entries: Sequence[Any]) -> PartitionSpec:
    entries = list(entries)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _check_given(name: str, shape: Sequence[int], given: PartitionSpec, spec: MeshSpec) -> None:
    if len(given) > len(shape):
        raise ValueError(f"shard: {name} has {len(shape)} axes {tuple(shape)}, the rule's {given} names {len(given)}")
    named = [axis for entry in given for axis in axes_in(entry)]
    if twice := [axis for axis in named if named.count(axis) > 1]:
        raise ValueError(f"shard: the rule's {given} for {name} names the axis {twice[0]!r} twice; an axis splits once")
    for at, entry in enumerate(given):
        for axis in axes_in(entry):
            if axis not in spec.sizes:
                known = ", ".join(spec.sizes)
                raise ValueError(f"shard: the rule's {given} for {name} names the axis {axis!r}; a mesh has {known}")
        parts = math.prod(getattr(spec, axis) for axis in axes_in(entry))
        if shape[at] % parts:
            axes = " x ".join(f"{axis}={getattr(spec, axis)}" for axis in axes_in(entry))
            raise ValueError(
                f"shard: axis {at} of {name} {tuple(shape)} has {shape[at]} elements, which {axes} does not divide; "
                "change the rule or the mesh"
            )
