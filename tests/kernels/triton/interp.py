"""Runs `triton.jit` functions on NumPy arrays: no GPU, no torch. The interpreter is Triton's own, with faults mended.

- It keeps bfloat16 as raw bits: products of them are made in float32 here, and any other arithmetic on them raises.
- It truncates float32 to bfloat16, where a GPU rounds to the nearest.
- It makes integers of a comparison's result where that is one value and meets a block.
- Programs run one after another; `run` gives those of a kernel with a barrier turns, each in a thread of its own, so
  that the barrier is one.

Private API of Triton in use: runtime.interpreter.{_patch_lang, _implicit_cvt, _convert_float, interpreter_builder,
InterpretedFunction, TensorHandle}, JITFunction.__call__, knobs.runtime.interpret. Seen on Triton 3.6 to 3.9.
"""

import contextlib
import ctypes
import inspect
import threading
import types

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as inside
from triton.runtime.jit import JITFunction

from llmasos_xla.kernels._triton import language
from llmasos_xla.kernels._triton.compiler import LOCK, TYPES

WAIT, RESIDENT = language.wait.fn, language.refuse_more_than_resident.fn
LAUNCHES = []
"""Names of the kernels that were run, for tests that want to know that one was."""


class _Pointer:
    """All that the interpreter asks of a tensor."""

    def __init__(self, array: np.ndarray):
        assert array.flags.c_contiguous
        self.array, self.dtype = array, TYPES[array.dtype]

    def data_ptr(self) -> int:
        return self.array.ctypes.data


def _in_float32(handle):
    if handle.dtype.scalar == tl.bfloat16:
        return inside.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return handle


@contextlib.contextmanager
def _patched(overrides: dict):
    builder = inside.interpreter_builder
    with LOCK:
        scope = inside._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        scope.set_attr(tl.tensor, "__index__", lambda t: int(t.handle.data.squeeze()))
        before = JITFunction.__call__, triton.knobs.runtime.interpret, inside._convert_float
        convert, dot = inside._convert_float, type(builder).create_dot

        def call(function, *args, **kwargs):
            # By the Python function: hashing a JITFunction fails while the language is patched.
            override = overrides.get(function.fn)
            if override is not None:
                return override(*args, **kwargs)
            return inside.InterpretedFunction(function.fn).rewrite()(*args, **kwargs)

        def to_nearest(x, source, target, mode):
            if source == tl.float32 and target == tl.bfloat16 and mode is None:
                return x.astype(ml_dtypes.bfloat16).view(np.uint16)
            return convert(x, source, target, mode)

        def guarded(name):
            real = getattr(type(builder), name)

            def checked(*handles):
                for h in handles:
                    if isinstance(h, inside.TensorHandle) and h.dtype.scalar == tl.bfloat16:
                        raise TypeError("arithmetic on bfloat16: convert to float32 first")
                return real(builder, *handles)

            return checked

        def splat(result, handle):
            if handle.data.dtype == np.bool_:
                handle = inside.TensorHandle(handle.data, tl.int1)
            return type(builder).create_splat(builder, result, handle)

        JITFunction.__call__, triton.knobs.runtime.interpret, inside._convert_float = call, True, to_nearest
        builder.create_splat = splat
        builder.binary_op, builder.unary_op = guarded("binary_op"), guarded("unary_op")
        builder.create_dot = lambda a, b, d, *rest: dot(builder, _in_float32(a), _in_float32(b), d, *rest)
        try:
            with np.errstate(all="ignore"):
                yield
        finally:
            for name in ("create_splat", "create_dot", "binary_op", "unary_op"):
                delattr(builder, name)
            JITFunction.__call__, triton.knobs.runtime.interpret, inside._convert_float = before
            scope.restore()


class _Turns:
    """Programs as threads of which one runs at a time, until it ends or meets the barrier."""

    def __init__(self, grid: tuple[int, int, int]):
        self.indices = list(np.ndindex(*grid))
        self.condition, self.turn, self.done = threading.Condition(), 0, set()
        self.error: BaseException | None = None
        self.me = threading.local()

    def enter(self, i: int) -> None:
        self.me.i = i
        with self.condition:
            self._wait()

    def next(self, finished: bool = False) -> None:
        me, n = self.me.i, len(self.indices)
        with self.condition:
            if finished:
                self.done.add(me)
            others = ((me + d) % n for d in range(1, n + 1))
            self.turn = next((i for i in others if i not in self.done), me)
            self.condition.notify_all()
            if not finished:
                self._wait()

    def fail(self, error: BaseException) -> None:
        with self.condition:
            self.error = self.error or error
            self.condition.notify_all()

    def _wait(self) -> None:
        self.condition.wait_for(lambda: self.turn == self.me.i or self.error)
        if self.error:
            raise SystemExit
        inside.interpreter_builder.set_grid_idx(*map(int, self.indices[self.me.i]))


def run(kernel, grid, *args, **kwargs) -> None:
    """Interprets every program; NumPy arrays are written in place.

    A program runs until it ends or meets `language.wait`; then the next has its turn.
    """
    grid = (*grid, *(1,) * (3 - len(grid)))
    LAUNCHES.append(kernel.fn.__name__)
    constants = {p.name for p in kernel.params if p.is_constexpr}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    turns = _Turns(grid)

    def wait(counter, target, *_, **__):
        turns.next()  # after a round every program stands at its wait
        arrived = ctypes.cast(int(counter.handle.data.item()), ctypes.POINTER(ctypes.c_int32))[0]
        target = int(getattr(target, "handle", target).data.item()) if hasattr(target, "handle") else int(target)
        assert arrived >= target, f"{kernel.fn.__name__}: waits for {target} arrivals, {arrived} came"

    with _patched({WAIT: wait, RESIDENT: lambda: None}):
        values = {
            n: v
            if n in constants or v is None
            else inside._implicit_cvt(_Pointer(v) if isinstance(v, np.ndarray) else v)
            for n, v in bound.arguments.items()
        }
        function = inside.InterpretedFunction(kernel.fn).rewrite()
        inside.interpreter_builder.set_grid_dim(*grid)

        def program(i: int) -> None:
            try:
                with np.errstate(all="ignore"):
                    turns.enter(i)
                    function(**values)
                    turns.next(finished=True)
            except SystemExit:
                return
            except BaseException as error:
                turns.fail(error)

        if len(turns.indices) == 1:
            program(0)
        else:
            threads = [threading.Thread(target=program, args=(i,)) for i in range(len(turns.indices))]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
    if turns.error:
        raise turns.error


def interpreter(kernel, grid, names, arrays, results, zeroed, constants) -> list[np.ndarray]:
    """A launch, as `primitive.INTERPRETER`: results hold what no kernel would write until it writes them."""
    made = [
        np.zeros(shape, dtype) if z else np.full(shape, _poison(dtype), dtype)
        for (shape, dtype), z in zip(results, zeroed)
    ]
    run(kernel, grid, **dict(zip(names, [*arrays, *made])), **constants)
    return made


def _poison(dtype) -> float:
    return np.nan if dtype.kind == "f" or dtype == ml_dtypes.bfloat16 else 77
