"""What a pipeline refuses."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmasos_xla.sharding.pipeline.flat import Part, Rows, name_of


def check_arrays(
    owned: Sequence[Sequence[Part]], stacked: Sequence[str], params: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Refuses arrays that no stage, or too many, would have."""
    arrays = {**params, **state}
    owners: dict[str, list[Part]] = {}
    for parts in owned:
        for part in parts:
            owners.setdefault(name_of(part), []).append(part)
    known = owners.keys() | set(stacked)
    for what, names in (
        ("no stage owns, and none are stacked", arrays.keys() - known),
        ("are both owned and stacked", owners.keys() & set(stacked)),
        (f"the model does not have (it has {_few(arrays)})", known - arrays.keys()),
    ):
        if names:
            raise ValueError(f"pipeline: arrays that {what}: {_few(names)}; name each once")
    for name in stacked:
        shape = arrays[name].shape
        if not shape or shape[0] % len(owned):
            raise ValueError(
                f"pipeline: {len(owned)} stages cannot share the rows of the stacked array {name!r} of shape {shape} "
                "evenly; let stages own Rows of it, or take a number of stages that divides them"
            )
    for name, parts in owners.items():
        rows = sorted((part.start, part.stop) for part in parts if isinstance(part, Rows))
        if name in state and not rows and len(parts) > 1:
            raise ValueError(f"pipeline: {len(parts)} stages own the state {name!r}; only one may change it")
        ends = [0, *(stop for _, stop in rows)]
        if rows and (len(rows) < len(parts) or [a for a, _ in rows] != ends[:-1] or ends[-1] != arrays[name].shape[0]):
            raise ValueError(
                f"pipeline: the stages own {parts} of {name!r}, which has the shape {arrays[name].shape}; all of its "
                "rows are to be owned once"
            )


def check_batch(rows: int, microbatches: int, shards: int) -> None:
    """Refuses batches that cannot be cut evenly."""
    if microbatches < 1 or rows % (microbatches * shards):
        raise ValueError(
            f"pipeline: {rows} rows cannot be cut into {microbatches} micro-batches that {shards} data shards share "
            f"evenly; take a batch that is a multiple of {max(microbatches, 1) * shards}"
        )


def _few(names: Collection[str]) -> str:
    first = ", ".join(sorted(names)[:8])
    return first + (f" and {len(names) - 8} more" if len(names) > 8 else "")
