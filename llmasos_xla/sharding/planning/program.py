"""Reading a compiled program: the messages in its text, loops counted as often as they run.

XLA prints a program as computations, each a list of lines `%name = type opcode(operands), attributes`. Messages stand
in the entry computation or in ones that it calls: bodies of loops (times their trip count), branches (the one that
sends most), fusions and asynchronous calls.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmasos_xla.sharding.planning.collectives import Collective, axes_of, merged

_BITS = {"pred": 8, "c64": 64, "c128": 128}
# Opcode -> kind; "-start" is cut off before, "-done" belongs to a start that was counted.
_OPCODES = {
    "all-gather": "all-gather",
    "all-reduce": "all-reduce",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "permute",
    "collective-broadcast": "permute",
}
_LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")
_MESH = re.compile(r"replica_groups=mesh\[(?P<sizes>[^\]]*)\](?P<order>[^{]*)\{(?P<axes>[^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[(?P<shape>[\d,]+)\]<=\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")


class Line(NamedTuple):
    """One instruction."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    """Operands and attributes as they stand."""


def collectives(
    compiled: Any, mesh: Mapping[str, int] | None = None, groups: Sequence[int] | None = None
) -> list[Collective]:
    """The messages of a compiled program, equal ones together, those that send most first.

    Args:
        compiled: what `jax.stages.Lowered.compile` returns, or its text.
        mesh: axis -> size of the mesh it was compiled for, to name the axes of each message.
        groups: for each device in the mesh's order, which group of fast links it is in; None: all in one.

    >>> text = '''
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %x = f32[8]{0} parameter(0)
    ...   ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
    ... }'''
    >>> print(*collectives(text, {"data": 2, "tensor": 2}))
    all-reduce of 32 bytes over tensor (2), 1 times
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    computations, entry = computations_of(text)
    count = math.prod(mesh.values()) if mesh else 0
    started = {channel: name for name, lines in computations.items() for channel in _started(lines)}

    @functools.cache
    def inside(name: str) -> tuple[Collective, ...]:
        found: list[Collective] = []
        for line in computations.get(name, ()):
            kind = _OPCODES.get(line.opcode.removesuffix("-start"))
            if kind is not None:
                if started.get(_channel(line), name) != name:
                    continue
                # libtpu fuses an all-reduce with the slice that follows it: only the slice is sent back.
                scatters = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                found.append(_collective("reduce-scatter" if scatters else kind, line, mesh, groups, count))
                continue
            for times, exact, called in _calls(line, computations):
                options = [inside(c) for c in called]
                most = max(options, key=lambda cs: sum(c.sent for c in cs), default=())
                found += [_repeated(c, times, exact) for c in most]
        return tuple(found)

    return merged([c for c in inside(entry) if c.devices > 1])


def computations_of(text: str) -> tuple[dict[str, list[Line]], str]:
    """Computation -> its lines, and the name of the entry computation."""
    computations: dict[str, list[Line]] = {}
    entry, current = "", None
    for raw in text.splitlines():
        head = _HEAD.match(raw)
        if head:
            current = computations.setdefault(head[2], [])
            if head[1]:
                entry = head[2]
        elif current is not None and (found := _LINE.match(raw)):
            operands = found["rest"].split(")", 1)[0]
            names = tuple(re.findall(r"%([\w.-]+)", operands)) or tuple(re.findall(r"[\w.-]+", operands))
            current.append(Line(found["name"], found["type"], found["opcode"], names, found["rest"]))
    if not entry:
        raise ValueError("collectives: this is no text of a compiled program: it has no ENTRY computation")
    return computations, entry


def sizes_of(type_: str) -> list[int]:
    """Bytes of each array of a type as XLA prints it.

    >>> sizes_of("(bf16[2,3]{1,0}, (f32[], s4[10]))")
    [12, 4, 5]
    """
    found = []
    for dtype, dims in _SHAPE.findall(re.sub(r"/\*.*?\*/", "", type_)):
        bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
        sizes = [int(re.sub(r"\D", "", n)) for n in dims.split(",") if n.strip()]
        found.append(-(-math.prod(sizes) * bits // 8))
    return found


def _started(lines: Sequence[Line]) -> list[str | None]:
    """Channels of the messages that libtpu starts in a computation; it repeats them where they go on, and end."""
    starts = any(line.opcode == "custom-call" and "AsyncCollectiveStart" in line.rest for line in lines)
    return [_channel(line) for line in lines if starts and line.opcode in _OPCODES]


def _channel(line: Line) -> str | None:
    found = re.search(r"channel_id=(\d+)", line.rest)
    return found and found[1]


def _calls(line: Line, computations: Mapping[str, list[Line]]) -> list[tuple[int, bool, list[str]]]:
    """What a line runs: how often, whether that is known, and which computations (several: one of them)."""
    if line.opcode == "while":
        body = re.findall(r"body=%?([\w.-]+)", line.rest)
        trips = _trip_count(line, computations)
        return [(1 if trips is None else trips, trips is not None, body)]
    if line.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
        branches = re.findall(r"%?([\w.-]+)", listed[1]) if listed else []
        branches += re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line.rest)
        return [(1, True, branches)]
    called = re.findall(r"(?:to_apply|calls)=%?([\w.-]+)", line.rest)
    return [(1, True, [name]) for name in called]


def _trip_count(line: Line, computations: Mapping[str, list[Line]]) -> int | None:
    """How often a loop runs: as XLA found it, else the bound that its condition compares with; None if unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.rest)
    if known:
        return int(known[1])
    condition = computations.get((re.findall(r"condition=%?([\w.-]+)", line.rest) or [""])[0], [])
    constants = {c.name: c.rest for c in condition if c.opcode == "constant" and c.type.startswith("s32[]")}
    # Loops of JAX count up from zero by one.
    for compare in condition:
        if compare.opcode == "compare" and "direction=LT" in compare.rest and compare.operands[-1] in constants:
            return int(constants[compare.operands[-1]].split(")", 1)[0])
    return None


def _collective(
    kind: str, line: Line, mesh: Mapping[str, int] | None, groups: Sequence[int] | None, count: int
) -> Collective:
    members = _members(line.rest, count)
    devices = max(map(len, members), default=1)
    if kind == "permute":
        # Pairs (from, to): each a message; who takes part is all that are named along the same axes.
        devices = max((len({i for pair in members for i in pair}), 1))
    sizes = sizes_of(line.type)
    # A start's type is (operands, results, ...): as many results as there are operands.
    results = sizes if len(sizes) <= len(line.operands) else sizes[len(line.operands) : 2 * len(line.operands)]
    whole = sum(results)
    if kind == "reduce-scatter":
        whole *= 1 if line.opcode.startswith("all-reduce") else devices
    axes: tuple[str, ...] = ()
    crossed = 1
    if mesh:
        named = {axis for member in members for axis in axes_of(member, mesh)}
        axes = tuple(axis for axis in mesh if axis in named)
        if kind == "permute":
            devices = math.prod(mesh[axis] for axis in axes)
    if groups is not None and members:
        crossed = max(len({groups[i] for i in member}) for member in members)
    return Collective(kind, whole, devices, axes, crossed)


def _members(rest: str, count: int) -> list[list[int]]:
    """The groups of devices of a message, in any of the ways that XLA writes them."""
    if found := _MESH.search(rest):
        return _of_mesh(found)
    if found := _IOTA.search(rest):
        shape = [int(n) for n in found["shape"].split(",")]
        dims = [int(n) for n in found["dims"].split(",")]
        order = [int(n) for n in found["order"].split(",")] if found["order"] else list(range(len(dims)))
        ids = _transposed(dims, order)
        size = shape[-1]
        return [ids[i : i + size] for i in range(0, len(ids), size)]
    if found := _LISTS.search(rest):
        listed = [[int(n) for n in g.split(",") if n] for g in re.findall(r"\{([\d,]*)\}", found[1])]
        if any(listed):
            return listed
    return [list(range(count))] if count else []


def _of_mesh(found: re.Match) -> list[list[int]]:
    """Groups along axes of a mesh: `mesh['data'=2,'tensor'=4] {'tensor'}`; a part of an axis is `'data':(2)4`."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found["sizes"])}
    ids = _device_ids(found["order"], math.prod(sizes.values()))
    strides, stride = {}, 1
    for name in reversed(sizes):
        strides[name] = stride
        stride *= sizes[name]
    parts = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found["axes"]):
        length = int(size) if size else sizes[name]
        parts.append((length, strides[name] * (sizes[name] // (int(before) * length) if size else 1)))
    varying = [0]
    for length, step in parts:
        varying = [i + j * step for i in varying for j in range(length)]
    left, groups = set(range(math.prod(sizes.values()))), []
    while left:
        first = min(left)
        groups.append([ids[first + i] for i in varying])
        left -= {first + i for i in varying}
    return groups


def _device_ids(order: str, count: int) -> list[int]:
    """The devices of a mesh in its order: counted, or `device_ids=([4,2]T(1,0))`, or listed."""
    if "device_ids" not in order:
        return list(range(count))
    if found := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        dims = [int(n) for n in found[1].split(",")]
        axes = [int(n) for n in found[2].split(",")] if found[2] else list(range(len(dims)))
        return _transposed(dims, axes)
    return [int(n) for n in re.findall(r"\d+", order.split("device_ids", 1)[1])]


def _transposed(dims: Sequence[int], order: Sequence[int]) -> list[int]:
    """arange(prod(dims)).reshape(dims).transpose(order).ravel()"""
    ids = [0]
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    for axis in order:
        ids = [i + j * strides[axis] for i in ids for j in range(dims[axis])]
    return ids


def _repeated(found: Collective, times: int, exact: bool) -> Collective:
    return dataclasses.replace(found, times=found.times * times, exact=found.exact and exact)
