"""What a recurrence is for the persistent kernels: its static description, and the tiles it is cut into."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels._triton import tuned
from llmasos_xla.kernels._triton.devices import Device

GATES = {"lstm": 4, "lnlstm": 4, "slstm": 4, "gru": 3, "rnn": 1, "relu": 1}
STATES = {
    "lstm": ("h", "c"), "lnlstm": ("h", "c"), "slstm": ("h", "c", "n", "m"), "gru": ("h",), "rnn": ("h",),
    "relu": ("h",),
}  # fmt: skip
# Of a step: activated gates; sLSTM adds the slope of its forget gate, a GRU the recurrent product of n, layer
# normalization what it made of h R, gate by gate, and of c.
SAVED_GATES = {"lstm": 4, "lnlstm": 9, "slstm": 5, "gru": 4, "rnn": 1, "relu": 1}
NORMS = ("input_scale", "recurrent_scale", "cell_scale", "cell_offset")
SAVED_STATES = {"lstm": ("cells",), "lnlstm": ("cells", "rates"), "slstm": ("cells", "counts")}

# Bytes of operands, for each warp, that a program of so many rows reads at once. On their way to shared memory they
# take 96 registers of a thread, or 64.
_READ_AHEAD = {16: 12288, 32: 8192}

# Of the tuned tables: which tiles are fastest forward and backward, and whether these kernels are faster than XLA.
TABLES, CHOICE = ("rnn forward", "rnn backward"), "rnn"

# Elements of a state: CUDA launches 65,535 tiles of 16 rows and 16 units, and offsets inside of a step are of 32 bits.
MOST_STATES = 65535 * 256
# How often a program takes another tile of rows at most: the steps of a larger batch keep XLA's products busy.
MOST_ROUNDS = 8
# int32 from one counter to the next: each has a line of the cache for itself.
COUNTER_LINE = 32


class Tiles(NamedTuple):
    """How a launch is cut into programs."""

    rows: int
    """Of the batch, a program's."""
    units: int
    """Of a block, a program's."""
    inner: int
    """Terms of one matrix product."""
    depth: int
    """Into how many shares a product is cut, a warp each."""
    splits: int
    """Programs that share a block, and wait for each other after each step; 1 for none."""
    warps: int
    resident: int = 1
    """Tiles of rows that run at a time."""
    rounds: int = 1
    """How often each program takes another tile."""
    held: int = 1
    """Operands of products that are read at once."""
    quads: bool = False
    """Forward: whether all four gates of a unit stand together in one product, or two each in two."""


class Spec(NamedTuple):
    """A recurrence over `[batch, time, cin]` of `blocks` blocks of `head` units each.

    A block is a direction and a head. The columns of `w_input` are those of the first direction, gate by gate, then
    those of the second.
    """

    kind: str
    """"lstm", "lnlstm" (with layer normalization), "gru", "slstm", "rnn" (tanh) or "relu"."""
    batch: int
    time: int
    cin: int
    blocks: int
    heads: int
    """Blocks of one direction."""
    head: int
    reverse: int
    """0 forward in time, 1 backward, 2 one direction each."""
    dtype: str
    lengths: bool
    resets: bool
    mask: bool
    precision: str
    """Of float32 products: "tf32x3", which is as exact as float32, "tf32" or "ieee"."""
    device: Device
    forward: Tiles
    backward: Tiles
    counted: int = 0
    """Units of a head that are no filling, where a layer normalization counts them."""
    epsilon: float = 0.0
    """Of that normalization."""
    groups: int = 1
    """Parts of the batch, each of which has gradients of the weights of its own."""

    @property
    def units(self) -> int:
        """Of the whole state."""
        return self.blocks * self.head

    @property
    def gates(self) -> int:
        """Of a unit."""
        return GATES[self.kind]

    @property
    def together(self) -> int:
        """Gates whose columns stand together, unit by unit, in the forward kernel's first product."""
        return self.gates if self.forward.quads and self.gates == 4 else min(self.gates, 2)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arrays that forward takes and that have gradients."""
        states = tuple(f"{name}0" for name in STATES[self.kind])
        return "x", *self.shared, *states, *(("mask",) if self.mask else ())

    @property
    def shared(self) -> tuple[str, ...]:
        """The arguments that all rows of the batch share."""
        more = {"gru": ("recurrent_bias",), "lnlstm": NORMS}
        return "w_input", "w_recurrent", "bias", *more.get(self.kind, ())

    @property
    def integers(self) -> tuple[str, ...]:
        """The arrays that forward takes and that have no gradients."""
        return *(("lengths",) if self.lengths else ()), *(("resets",) if self.resets else ())

    @property
    def outputs(self) -> tuple[str, ...]:
        """The arrays that forward gives and that have cotangents."""
        return "y", *STATES[self.kind]

    @property
    def saved(self) -> tuple[str, ...]:
        """The arrays that training passes from forward to backward."""
        return "gates", "previous", *SAVED_STATES.get(self.kind, ())

    @property
    def operands(self) -> tuple[str, ...]:
        """The arrays that backward takes; forward takes the first of them."""
        return *self.arguments, *self.integers, *self.outputs, *self.saved, *(f"d{name}" for name in self.outputs)

    def by_group(self, a: jax.Array) -> jax.Array:
        """An array of all rows, a group's rows each."""
        return a.reshape(self.groups, self.batch // self.groups, *a.shape[1:])

    def gradient(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an argument's gradient, or of those of all groups."""
        one = self.struct(name)
        if self.groups == 1 or name not in self.shared:
            return one
        return jax.ShapeDtypeStruct((self.groups, *one.shape), one.dtype)

    def struct(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array in the program."""
        columns = self.gates * self.units
        over_time = (self.batch, self.time, self.units)
        shape = {
            "x": (self.batch, self.time, self.cin),
            "w_input": (self.cin, columns),
            "w_recurrent": (self.blocks, self.head, self.gates * self.head),
            "bias": (columns,),
            **dict.fromkeys(("recurrent_bias", "input_scale", "recurrent_scale"), (columns,)),
            **dict.fromkeys(("cell_scale", "cell_offset"), (self.units,)),
            "lengths": (self.batch,),
            "resets": (self.batch, self.time),
            "gates": (self.batch, self.time, SAVED_GATES[self.kind], self.units),
            "rates": (self.batch, self.time, self.blocks, 2),
            **dict.fromkeys(("y", "previous", "cells", "counts"), over_time),
        }
        low = ("x", "w_input", "w_recurrent", "y", "gates", "previous", "cells", "counts")
        dtype = {"lengths": "int32", "resets": "uint8"}.get(name, self.dtype if name in low else "float32")
        return jax.ShapeDtypeStruct(shape.get(name, (self.batch, self.units)), jnp.dtype(dtype))


def tiles(
    kind: str, batch: int, blocks: int, head: int, dtype: str, precision: str, device: Device, backward: bool
) -> Tiles | None:
    """The tiles that were measured fastest, or that the cost model finds so; None where no cut fits."""
    cuts = allowed(kind, batch, blocks, head, dtype, precision, device, backward)
    key = shape_class(kind, batch, blocks, head, dtype, precision)
    return tuned.pick(cuts, device.name, TABLES[backward], key) or next(iter(cuts), None)


@functools.cache
def allowed(
    kind: str, batch: int, blocks: int, head: int, dtype: str, precision: str, device: Device, backward: bool
) -> tuple[Tiles, ...]:
    """Every cut that keeps the weights on chip and all programs resident, the fastest first by the cost model."""
    itemsize = jnp.dtype(dtype).itemsize
    # Three products of TF32 for one of float32 keep the weights in two parts.
    parts = 2 if itemsize == 4 and precision == "tf32x3" else 1
    problem = _Problem(kind, batch, blocks, head, itemsize, parts, device, backward)
    return tuple(sorted(filter(problem.fits, problem.cuts()), key=problem.nanoseconds))


def shape_class(kind: str, batch: int, blocks: int, head: int, dtype: str, precision: str, time: int = 0) -> str:
    """What of a recurrence decides how fast it is, as tuned tables name it.

    >>> shape_class("lstm", 16, 12, 64, "bfloat16", "ieee")
    'lstm b=16 n=12 u=64 16-bit'
    """
    steps = f" t={time}" if time else ""
    return f"{kind} b={batch}{steps} n={blocks} u={head} {tuned.numbers(dtype, precision)}"


def origin(s: Spec) -> str:
    """Where the tiles of a problem come from, for `explain`."""
    shape = s.kind, s.batch, s.blocks, s.head, s.dtype, s.precision
    measured = (
        tuned.pick(allowed(*shape, s.device, bool(back)), s.device.name, table, shape_class(*shape))
        for back, table in enumerate(TABLES)
    )
    return tuned.origin(s.device.name, None not in measured)


class _Problem(NamedTuple):
    """What decides the tiles."""

    kind: str
    batch: int
    blocks: int
    head: int
    itemsize: int
    parts: int
    """Of each weight, in shared memory."""
    device: Device
    backward: bool

    @property
    def gates(self) -> int:
        """Of a unit."""
        return GATES[self.kind]

    def cuts(self) -> list[Tiles]:
        """Every cut whose sums and states fit the registers."""
        found = []
        for rows in (16, 32, 64, 128):
            if rows > 16 and rows >= 2 * self.batch:
                break
            units, splits = 16 if self.itemsize == 2 else 8, self.head
            while splits > 1:
                splits = -(-self.head // units)
                units = max(16, units) if splits == 1 else units
                for warps in (4, 8):
                    depth = warps if splits > 1 else 1
                    for inner in (units,) if splits == 1 else (16, 32, 64, 128)[: 6 - self.itemsize // 2]:
                        t = Tiles(rows, units, inner, depth, splits, warps)
                        if self._registers(t):
                            t = self._in_rounds(t)
                            found.append(t._replace(held=self._held(t), quads=self._quads(t)))
                units *= 2
        return found

    def fits(self, t: Tiles) -> bool:
        """Whether the weights lie on chip and programs that wait for each other are all resident."""
        if self.batch * self.blocks * self.head > MOST_STATES or t.rounds > MOST_ROUNDS:
            return False
        weights = self._weights(t) * self.parts
        # The operand of a product passes through shared memory, and so do sums that change their layout.
        passing = max(t.held * self._operand(t), self._sums(t, 1 if self.backward else 4 if t.quads else 2))
        if weights + passing > self.device.shared_memory or (self.kind == "lnlstm" and t.splits > 1):
            return False
        return t.splits == 1 or t.splits * self.blocks <= self.device.multiprocessors

    def _sums(self, t: Tiles, gates: int) -> int:
        """Bytes of the sums of all warps, of so many gates."""
        return t.rows * gates * t.units * t.depth * 4

    def _operand(self, t: Tiles) -> int:
        """Bytes of a product's operand, which passes through shared memory."""
        return t.rows * t.inner * t.depth * self.itemsize

    def _held(self, t: Tiles) -> int:
        if t.splits == 1 or self.itemsize == 4 or (t.rows > 16 and t.rounds > 1):
            return 1
        room = min(self.device.shared_memory - self._weights(t), _READ_AHEAD[t.rows] * t.warps)
        return max(1, min(self._products(t), room // self._operand(t)))

    def _quads(self, t: Tiles) -> bool:
        """One product halves the passes through shared memory, and only then does Triton read operands ahead.

        In smaller programs the layouts that it chooses cost more passes than that saves.
        """
        small = self.backward or self.gates < 4 or t.splits == 1 or t.warps < 8 or t.rows > 16 or t.units != 16
        return not small and self._weights(t) * self.parts + self._sums(t, 4) <= self.device.shared_memory

    def _in_rounds(self, t: Tiles) -> Tiles:
        at_once = count = -(-self.batch // t.rows)
        if t.splits > 1:
            at_once = min(count, max(1, self.device.multiprocessors // (t.splits * self.blocks)))
        return t._replace(resident=at_once, rounds=-(-count // at_once))

    def _registers(self, t: Tiles) -> bool:
        """Whether a program of these tiles was seen to compile without spilling."""
        if t.splits == 1:
            norm = self.kind == "lnlstm"
            if norm and (t.rows > 16 or t.warps != (4 if t.units == 16 else 8)):
                return False
            half = self.itemsize == 4 and (norm or self.backward)
            return t.rows * t.units <= (128 if half else 256) * t.warps
        weights, many = self._weights(t), self.kind == "slstm"
        if self.itemsize == 4:
            wide = self.parts == 2 and not self.backward and self.kind != "gru"
            inner = (16, 32) if t.units == 16 else (32, 64) if wide else (32,)
            return t.rows == 16 and t.units <= (8 if self.backward else 16) and t.warps == 8 and t.inner in inner
        if t.rows > 32 or t.rows * t.units > 64 * t.warps or (self.backward and t.units > 16):
            return False
        if t.rows > 16:
            most = 6 if self.kind == "gru" else 8
            return weights <= 1 << 17 and not (self.backward and (many or self._products(t) > most or t.inner > 64))
        return weights <= (3 << 14 if t.warps == 4 else 1 << 18)

    def nanoseconds(self, t: Tiles) -> float:
        """A model of one step, from latencies that the literature gives for an H100; not yet fitted to measurements."""
        weights = self._weights(t)
        step = 300.0  # the cell's exponentials, the loop, a change of layout
        step += weights / 200  # read from shared memory, 128 bytes a clock
        step += 20 * self._products(t)
        step += 2 * t.rows * weights / self.itemsize / (3000 if self.itemsize == 2 else 200)
        if t.splits > 1:
            exchanged = t.rows * self.head * self.itemsize * (self.gates if self.backward else 1)
            step += 1400 + exchanged / 60  # the counter there and back, then a read from the second cache
        return step * t.rounds * -(-t.splits * self.blocks * t.resident // self.device.multiprocessors)

    def _terms(self) -> int:
        return self.gates * self.head if self.backward else self.head

    def _products(self, t: Tiles) -> int:
        """Matrix products of one sum, each with addresses of its own."""
        return self.gates if t.splits == 1 else -(-self._terms() // (t.depth * t.inner))

    def _weights(self, t: Tiles) -> int:
        """Bytes of recurrent weights that a program keeps."""
        if t.splits == 1:
            return self.gates * t.units * t.units * self.itemsize
        columns = t.units if self.backward else self.gates * t.units
        return self._products(t) * t.inner * t.depth * columns * self.itemsize
