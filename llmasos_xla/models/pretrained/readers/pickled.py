"""The part of pickle that weights need, read as data: containers, numbers, text and the calls of a given table.

Pickle is a small program that can import and call anything. Here nothing is imported and nothing is called but the
functions of the caller's table; a file that names something else is refused with that name.
"""

import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class RefusedError(ValueError):
    """A pickle that wants something which weights do not need."""


Known = Callable[..., Any]
"""What a name in a pickle stands for: called with the pickle's arguments, it gives a value."""


class Stream:
    """Bytes in memory as the file that pickletools reads; no read is longer than what is left."""

    def __init__(self, memory: np.ndarray, at: int = 0):
        self.memory, self.at = memory, at

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        part = self.memory[self.at : self.at + max(size, 0)].tobytes()
        self.at += len(part)
        return part

    def readline(self) -> bytes:
        """The bytes up to and with the next line feed."""
        parts = []
        while part := self.read(256):
            cut = part.find(b"\n") + 1
            if cut:
                self.at -= len(part) - cut
                parts.append(part[:cut])
                break
            parts.append(part)
        return b"".join(parts)

    def tell(self) -> int:
        """Where the next byte is read."""
        return self.at


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def load(stream: Stream, known: Mapping[str, Known], persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle at the stream's place, which is left behind its end.

    Args:
        stream: the bytes.
        known: "module name" -> what it stands for.
        persistent: makes a value of a persistent id.

    Raises `RefusedError` for a name outside of `known`, and ValueError for what is damaged.
    """
    machine = _Machine(known, persistent)
    try:
        # A damaged text may make Python warn of its escapes.
        with warnings.catch_warnings(action="ignore"):
            for opcode, argument, _ in pickletools.genops(stream):  # pyright: ignore[reportArgumentType]
                if opcode.name == "STOP":
                    return machine.pop()
                machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"its pickle is damaged: {type(error).__name__} {str(error)[:80]}") from error
    raise ValueError("its pickle has no end")


class _Machine:
    """Pickle's stack and memo."""

    def __init__(self, known: Mapping[str, Known], persistent: Callable[[Any], Any] | None):
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("its pickle is damaged: a mark stands where a value should")
        return value

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("its pickle is damaged: a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def name(self, name: str) -> Known:
        found = self.known.get(name)
        if found is None:
            raise RefusedError(
                f"it holds an object of {name.replace(' ', '.')[:120]!r}, which is no array; nothing in a file of "
                "weights is executed. Save the arrays alone, torch.save(model.state_dict(), ...), or as safetensors"
            )
        return found

    def run(self, name: str, argument: Any) -> None:
        """One operation."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            values = [self.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(values)))
        elif name == "TUPLE":
            stack.append(tuple(self.to_mark()))
        elif name == "LIST":
            stack.append(self.to_mark())
        elif name in ("APPEND", "APPENDS"):
            values = [self.pop()] if name == "APPEND" else self.to_mark()
            _of(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            self.set_items(name)
        elif name == "GLOBAL":
            stack.append(self.name(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self.name(f"{_of(module, str)} {_of(attribute, str)}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            # Only what came out of the table is called.
            if not any(function is known for known in self.known.values()):
                raise ValueError("its pickle is damaged: it calls what is no function")
            stack.append(function(*_of(arguments, tuple)))
        elif name == "BUILD":
            # Attributes of a container, torch's record of versions for one, are no weights.
            self.pop()
            if stack[-1] is _MARK:
                raise ValueError("its pickle is damaged: attributes of nothing")
        elif name == "BINPERSID" and self.persistent is not None:
            stack.append(self.persistent(self.pop()))
        elif name not in ("PROTO", "FRAME"):
            raise RefusedError(f"its pickle uses the operation {name}, which weights do not need")

    def set_items(self, name: str) -> None:
        values = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.to_mark()
        if name == "DICT":
            self.stack.append({})
        if len(values) % 2:
            raise ValueError("its pickle is damaged: a key has no value")
        table = _of(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2]):
            if not isinstance(key, str | int | float | bool | tuple | None):
                raise ValueError(f"its pickle is damaged: a key is a {type(key).__name__}")
            table[key] = value


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle is damaged: a {kind.__name__} is wanted, it has a {type(value).__name__}")
    return value
