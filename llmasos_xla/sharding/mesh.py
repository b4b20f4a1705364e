"""MeshSpec: over how many devices a program is spread, and along what."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from llmasos_xla.errors import unknown

AXES = ("pipe", "data", "fsdp", "expert", "seq", "tensor")
"""The axes of every mesh, those that send little ahead of those that send much: neighbors in the last axis are
neighbors in the machine."""
BATCH_AXES = ("data", "fsdp", "expert")
"""The axes over which the rows of a batch are split."""
STRATEGIES = ("data", "fsdp", "tensor", "seq", "pipe", "expert")

Rules = tuple[tuple[str, PartitionSpec], ...]


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """How many parts each strategy makes; their product is the number of devices.

    Args:
        data: copies of the model, each with its share of a batch.
        fsdp: as `data`, with weights and optimizer state split as well, each array gathered where it is used (ZeRO-3,
            Rajbhandari et al. 2020).
        tensor: parts of each product's features (Shoeybi et al. 2019).
        seq: parts of the time axis, with ring attention (Liu et al. 2023).
        pipe: stages of layers, one batch going through in `microbatches` (Narayanan et al. 2021).
        expert: parts of the experts of a mixture; for all other arrays as `data`.
        microbatches: pieces of a batch in a pipeline; None chooses.
        rules: `((regular expression, PartitionSpec), ...)` for arrays whose names match, ahead of the package's own.

    One of the numbers may be -1: as many as there are devices for.

    >>> MeshSpec(data=-1, tensor=2).over(8)
    MeshSpec(data=4, tensor=2)
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    seq: int = 1
    pipe: int = 1
    expert: int = 1
    microbatches: int | None = None
    rules: Rules = ()

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or (size < 1 and size != -1):
                raise ValueError(f"MeshSpec: {name} wants a whole number >= 1, or -1 for the rest, got {size!r}")
        if sum(size == -1 for size in self.sizes.values()) > 1:
            raise ValueError(f"MeshSpec: at most one axis may be -1, got {self}")
        if self.microbatches is not None and (type(self.microbatches) is not int or self.microbatches < 1):
            raise ValueError(f"MeshSpec: microbatches wants a whole number >= 1, got {self.microbatches!r}")
        object.__setattr__(self, "rules", _rules(self.rules))

    @classmethod
    def of(cls, shard: Any) -> "MeshSpec":
        """A MeshSpec from what `fit(shard=)` takes: one of `STRATEGIES` for all devices, or a MeshSpec.

        >>> MeshSpec.of("fsdp")
        MeshSpec(fsdp=-1)
        """
        if isinstance(shard, MeshSpec):
            return shard
        if isinstance(shard, str) and shard == "auto":
            raise ValueError(
                'shard: "auto" is for fit and lm.plan, which have a training step to plan; name a strategy or a '
                "MeshSpec here, or leave shard out: the model then stays where fit has put it"
            )
        if not isinstance(shard, str) or shard not in STRATEGIES:
            raise unknown("shard", "strategy", shard, (*STRATEGIES, "auto", "MeshSpec(data=2, tensor=4)"))
        return cls(**{shard: -1})  # pyright: ignore[reportArgumentType]

    @property
    def sizes(self) -> dict[str, int]:
        """Axis -> size, in the order of `AXES`."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def devices(self) -> int:
        """How many devices it needs; an axis of -1 counts once."""
        return math.prod(max(size, 1) for size in self.sizes.values())

    @property
    def batch_parts(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return math.prod(getattr(self, name) for name in BATCH_AXES)

    def over(self, devices: int) -> "MeshSpec":
        """The spec for that many devices, with no -1 left; raises ValueError if it does not come out."""
        free = [name for name, size in self.sizes.items() if size == -1]
        fixed = self.devices
        if free and devices % fixed == 0:
            return dataclasses.replace(self, **{free[0]: devices // fixed})  # pyright: ignore[reportArgumentType]
        if free:
            raise ValueError(
                f"MeshSpec: {free[0]}=-1 stands for the rest of {devices} devices, which {self._product()} = {fixed} "
                f"does not divide; choose sizes whose product divides {devices}"
            )
        if fixed > devices:
            raise ValueError(
                f"MeshSpec: {self._product()} = {fixed} devices are wanted, {devices} are here; choose smaller sizes, "
                "or -1 for one of them"
            )
        return self

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh, all of `AXES` in it and all of them Auto: XLA partitions, shard_map takes axes over by name.

        Neighbors along the last axes are neighbors in the machine: on TPU slices the torus is followed; hosts and
        slices are divided along the first axes. With several processes all devices must be used.

        Raises ValueError if the devices are too few, or would be left over in another process.
        """
        devices = list(jax.devices() if devices is None else devices)
        spec = self.over(len(devices))
        used = devices[: spec.devices]
        idle = devices[spec.devices :]
        if idle and len({d.process_index for d in devices}) > 1:
            raise ValueError(
                f"MeshSpec: {spec._product()} = {spec.devices} of {len(devices)} devices in several processes; all of "
                "them have to take part: make one size -1, or start fewer processes"
            )
        return Mesh(_arranged(used, tuple(spec.sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def legal_world_sizes(self, batch_size: int, most: int) -> tuple[int, ...]:
        """On how many devices, up to `most`, the spec's -1 axis can be resolved for a batch of `batch_size` rows.

        What a scheduler may resize a job to: the numbers learnt do not change, since the batch stays the same. Without
        a -1 the spec's own size is the only one.

        >>> MeshSpec.of("data").legal_world_sizes(batch_size=48, most=9)
        (1, 2, 3, 4, 6, 8)
        >>> MeshSpec(fsdp=-1, tensor=2).legal_world_sizes(batch_size=6, most=12)
        (2, 4, 6, 12)
        """
        for name, value in (("batch_size", batch_size), ("most", most)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"legal_world_sizes: {name} wants a whole number >= 1, got {value!r}")
        if -1 not in self.sizes.values():
            return (self.devices,) if self.devices <= most and batch_size % self.batch_parts == 0 else ()
        found = []
        for devices in range(self.devices, most + 1, self.devices):
            if batch_size % self.over(devices).batch_parts == 0:
                found.append(devices)
        return tuple(found)

    def _product(self) -> str:
        return " x ".join(f"{name}={size}" for name, size in self.sizes.items() if size not in (1, -1)) or "1"

    def __repr__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in _in_order() if getattr(self, f.name) != f.default]
        return f"MeshSpec({', '.join(given)})"


def divided(batch_size: int, spec: MeshSpec) -> None:
    """Refuses a batch whose rows do not divide over the mesh, naming the sizes that would."""
    parts = spec.batch_parts
    if batch_size % parts == 0:
        return
    axes = " x ".join(f"{name}={getattr(spec, name)}" for name in BATCH_AXES if getattr(spec, name) > 1)
    below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
    near = f"{below} or {above}" if below else str(above)
    raise ValueError(
        f"shard: a batch of {batch_size} rows does not divide into {parts} parts ({axes}); use batch_size={near}, or "
        f"a mesh whose parts divide {batch_size}"
    )


def _rules(rules: Any) -> Rules:
    found = []
    for rule in rules:
        # A text is a sequence too, and would become a PartitionSpec of its letters.
        if (
            not isinstance(rule, tuple | list)
            or len(rule) != 2
            or not isinstance(rule[1], PartitionSpec | tuple | list)
        ):
            raise ValueError(
                "MeshSpec: rules wants ((regular expression, PartitionSpec), ...), as "
                f'((r"dense/kernel$", PartitionSpec(None, "tensor")),), got {rule!r} in it'
            )
        try:
            re.compile(rule[0])
        except (re.error, TypeError) as error:
            raise ValueError(f"MeshSpec: rules has {rule[0]!r}, which is no regular expression: {error}") from error
        found.append((rule[0], PartitionSpec(*rule[1])))
    return tuple(found)


def _arranged(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    from jax.experimental import mesh_utils

    if len(devices) == 1:
        return np.array(devices, dtype=object).reshape(shape)
    slices = {getattr(d, "slice_index", 0) for d in devices}
    if len(slices) > 1 and devices[0].platform == "tpu":
        between = _between(shape, len(slices))
        within = tuple(n // m for n, m in zip(shape, between, strict=True))
        return mesh_utils.create_hybrid_device_mesh(within, between, devices)
    # On other platforms devices come ordered by process, so that the last axes stay within a host.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _between(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """How the slices divide the first axes of the mesh; the rest stays within one.

    >>> _between((2, 8, 4, 1, 1, 8), 4)
    (2, 2, 1, 1, 1, 1)
    """
    between, left = [], slices
    for axis, size in zip(AXES, shape, strict=True):
        part = math.gcd(size, left) if axis in ("pipe", "data", "fsdp") else 1
        between.append(part)
        left //= part
    if left > 1:
        sizes: Mapping[str, int] = dict(zip(AXES, shape, strict=True))
        raise ValueError(
            f"MeshSpec: {slices} slices cannot be divided along {sizes}; make the product of pipe, data and fsdp a "
            f"multiple of {slices}"
        )
    return tuple(between)


def _in_order() -> Iterable[dataclasses.Field]:
    return dataclasses.fields(MeshSpec)
