"""The rows that one version writes at once: compiled programs over them, and who sits in which row."""

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api.exporting import variables_of
from llmasos_xla.api.network import Network
from llmasos_xla.compiling import CompileRecord, compile
from llmasos_xla.core import Variables
from llmasos_xla.deployment.served import Served
from llmasos_xla.models.generation import continuous
from llmasos_xla.models.generation.programs import bucket, left_padded
from llmasos_xla.models.generation.protocol import Generative, functions
from llmasos_xla.models.generation.sampling import Sampling

MOST_ENDS = 8
"""Ids that may end a text, at most."""
MOST_STEPS = 32
"""Ids that are written in one call of a program, at most."""
SHORTEST = 128
"""Slots of the shortest ring."""

Key = tuple[str, tuple[int, ...]]


def writer_of(served: Served) -> Network:
    """The model behind a version, if it goes on with a row of ids; raises TypeError for others."""
    model = getattr(served.face, "model", None)
    config = model.config if isinstance(model, Network) else None
    if not isinstance(model, Network) or not isinstance(config, Generative):
        what = type(config or model).__name__ if model is not None else "a program without its model"
        raise TypeError(f"write: model {served.name!r} writes no text; it is {what}")
    if config.encoder_inputs:
        raise TypeError(
            f"write: model {served.name!r} reads one text and writes another ({type(config).__name__}); this address "
            "is for models that go on with a text"
        )
    return model


def writes(served: Served) -> bool:
    """Whether the model behind a version goes on with a row of ids."""
    try:
        writer_of(served)
    except TypeError:
        return False
    return True


@final
class RowPrograms:
    """The programs of `continuous` for one architecture, each compiled when it is first needed or ahead of that.

    Any thread may ask; what is being compiled is waited for, not compiled twice.
    """

    def __init__(self, config: Generative, variables: Variables):
        self.config = config
        self.compiled: list[CompileRecord] = []
        """What was compiled, in order."""
        self._functions = functions(config)
        self._dtype = next(a.dtype for a in variables.params.values() if jnp.issubdtype(a.dtype, jnp.floating))
        self._variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
        self._programs: dict[Key, Callable] = {}
        self._locks: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()

    def empty(self, rows: int, length: int) -> continuous.Rows:
        """Rows that nobody writes in."""
        return continuous.empty(self._functions, rows, length, self._dtype, MOST_ENDS)

    def read(self, variables: Variables, ids: Any, real: Any, wanted: continuous.Wanted) -> continuous.Rows:
        """A prompt in a ring of its own."""
        return self._program(("read", (ids.shape[1],)))(variables, ids, real, wanted)

    def join(self, rows: continuous.Rows, new: continuous.Rows, at: int) -> continuous.Rows:
        """The rows with a new one; their memory is taken."""
        return self._program(("join", (*rows.seen.shape, new.length)))(rows, new, jnp.asarray(at, jnp.int32))

    def advance(
        self, variables: Variables, rows: continuous.Rows, keep: np.ndarray, steps: int
    ) -> tuple[continuous.Rows, jax.Array]:
        """More ids; the rows' memory is taken."""
        return self._program(("advance", rows.seen.shape))(
            variables, rows, jnp.asarray(keep), jnp.asarray(steps, jnp.int32)
        )

    def rearranged(self, rows: continuous.Rows, of: Sequence[int], length: int) -> continuous.Rows:
        """Rows in other places of a longer or shorter ring."""
        return self._program(("rearrange", (*rows.seen.shape, len(of), length)))(rows, jnp.asarray(of, jnp.int32))

    def ready(self, keys: Sequence[Key]) -> bool:
        """Whether nothing of these need be compiled."""
        return all(key in self._programs for key in keys)

    def prepare(self, keys: Sequence[Key]) -> None:
        """Compiles what of these there is not."""
        for key in keys:
            self._program(key)

    @property
    def keys(self) -> tuple[Key, ...]:
        """What there are programs for."""
        return tuple(self._programs)

    def _program(self, key: Key) -> Callable:
        found = self._programs.get(key)
        if found is not None:
            return found
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._programs:
                function, arguments, donated = self._what(*key)
                what = f"{key[0]} {' x '.join(map(str, key[1]))}"
                self._programs[key] = compile(function, *arguments, what=what, donate=donated, log=self.compiled)
            return self._programs[key]

    def _what(self, kind: str, sizes: tuple[int, ...]) -> tuple[Callable, tuple, tuple[int, ...]]:
        calls, variables = self._functions, self._variables

        def scalar() -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((), jnp.int32)

        if kind == "read":
            shape, wanted = (1, *sizes), jax.eval_shape(lambda: self.empty(1, 1).wanted)
            prompt = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool)

            def read(*arguments: Any) -> continuous.Rows:
                return continuous.read(calls, *arguments, dtype=self._dtype)

            return read, (variables, *prompt, wanted), ()
        rows = jax.eval_shape(lambda: self.empty(*sizes[:2]))
        if kind == "join":
            new = jax.eval_shape(lambda: self.empty(1, sizes[2]))
            return lambda *arguments: continuous.join(calls, *arguments), (rows, new, scalar()), (0,)
        if kind == "advance":
            keep = jax.ShapeDtypeStruct(sizes[:1], jnp.bool)

            def advance(*arguments: Any) -> tuple[continuous.Rows, jax.Array]:
                return continuous.advance(calls, *arguments, most=MOST_STEPS)

            return advance, (variables, rows, keep, scalar()), (1,)
        of = jax.ShapeDtypeStruct(sizes[2:3], jnp.int32)
        return lambda *arguments: continuous.rearranged(calls, *arguments, length=sizes[3]), (rows, of), ()


@final
class Lane:
    """One version's rows.

    Args:
        served: the version.
        most_rows: that are written at once.
        like: a lane whose programs are shared if they are of the same architecture.
    """

    def __init__(self, served: Served, most_rows: int, like: "Lane | None" = None):
        model = writer_of(served)
        variables, lora = variables_of(served.arrays), model.learner.spec.lora
        config = model.config
        assert isinstance(config, Generative)
        config, self.variables = config.serving(variables if lora is None else lora.merged(variables))
        same = like is not None and like.programs.config == config
        self.programs = like.programs if like is not None and same else RowPrograms(config, self.variables)
        self.served, self.config = served, config
        self.most_rows = most_rows
        self.sitting: list[Any] = []
        """Who sits in each row; None in a free one."""
        self._filled: list[int] = []
        self._final: list[int] = []
        self._rows: continuous.Rows | None = None

    @property
    def live(self) -> int:
        """Rows that are written."""
        return sum(prompt is not None for prompt in self.sitting)

    @property
    def longest(self) -> int | None:
        """How many ids a row may hold; None for any number."""
        return self.config.context

    def first(self, rows: int = 1) -> list[Key]:
        """The programs that so many short prompts want, who come one behind the other."""
        time, last = bucket(1), _size(min(rows, self.most_rows))
        sizes = [4**i for i in range(last.bit_length()) if 4**i <= last]
        keys: list[Key] = [("read", (time,))]
        for size in sizes:
            keys += [("join", (size, SHORTEST, time)), ("advance", (size, SHORTEST))]
        moves = [("rearrange", (a, SHORTEST, b, SHORTEST)) for a, b in itertools.pairwise(sizes)]
        return [*keys, *moves]

    def wanted_for(self, count: int, room: int) -> list[Key]:
        """The programs that it takes to let in a prompt of so many ids, to be gone on with by so many."""
        time, shape = bucket(count), self._large(self.live + 1, _need(count + 1, count + room))
        return [("read", (time,)), ("join", (*shape, time)), ("advance", shape), *self._move(shape)]

    def wanted_soon(self) -> list[Key]:
        """The programs that are worth being compiled before they are needed: to go on when the ring is full, to make
        do with less."""
        if self._rows is None:
            return []
        rows, length = self._rows.seen.shape
        small = self._small(self.live, 0)
        if math.prod(small) <= rows * length // 4:
            return [*self._move(small), ("advance", small)]
        seated = [i for i, prompt in enumerate(self.sitting) if prompt is not None]
        if any(self._filled[i] >= length // 2 and self._final[i] > length for i in seated):
            shape = (rows, 2 * length)
            return [*self._move(shape), ("advance", shape)]
        return []

    def put(self, prompt: Any, ids: Sequence[int], wanted: continuous.Wanted) -> tuple[list[int], str | None]:
        """Reads a prompt and gives it a row; its first id, and how it ended if it has."""
        time, room = bucket(len(ids)), int(wanted.room[0])
        row, real = left_padded([ids], time)
        new = self.programs.read(self.variables, jnp.asarray(row), jnp.asarray(real), wanted)
        stopped, live, first = (np.asarray(a)[0] for a in (new.stopped, new.live, new.last))
        if not live:
            return ([], "stop") if stopped else ([int(first)], "length")
        filled, final = len(ids) + 1, len(ids) + room
        self._fit(self._large(self.live + 1, _need(filled, final)))
        at, rows = self.sitting.index(None), self._taken()
        self._rows = self.programs.join(rows, new, at)
        self.sitting[at], self._filled[at], self._final[at] = prompt, filled, final
        return [int(first)], None

    def leave(self, prompt: Any) -> None:
        """Frees the row of somebody who goes."""
        self.sitting[self.sitting.index(prompt)] = None
        if not self.live:
            # A cache that nobody writes in is memory for nothing.
            self._rows, self.sitting = None, []

    def advance(self, steps: int) -> list[tuple[Any, list[int], str | None]]:
        """More ids, up to so many a row: who, the ids, and how it ended if it has."""
        shape, small = self._large(self.live, 0), self._small(self.live, 0)
        less = math.prod(small) <= math.prod(shape) // 4
        if less and self.programs.ready([*self._move(small), ("advance", small)]):
            shape = small
        self._fit(shape)
        keep = np.array([prompt is not None for prompt in self.sitting])
        new, written = self.programs.advance(self.variables, self._taken(), keep, min(steps, MOST_STEPS))
        self._rows = new
        ids, live, stopped = (np.asarray(a).tolist() for a in (written, new.live, new.stopped))
        found = []
        for at, prompt in enumerate(self.sitting):
            if prompt is not None:
                more = [i for i in ids[at] if i >= 0]
                self._filled[at] += len(more)
                found.append((prompt, more, None if live[at] else "stop" if stopped[at] else "length"))
        return found

    def _taken(self) -> continuous.Rows:
        """The rows, whose memory a program takes: whoever fails then leaves none behind."""
        rows, self._rows = self._rows, None
        assert rows is not None
        return rows

    def _small(self, live: int, need: int) -> tuple[int, int]:
        """As few rows and slots as will do for those that sit, and one that needs so many slots."""
        needs = [_need(self._filled[i], self._final[i]) for i, prompt in enumerate(self.sitting) if prompt is not None]
        return _size(live), bucket(max([*needs, need, SHORTEST]))

    def _large(self, live: int, need: int) -> tuple[int, int]:
        """The same, no fewer than there are."""
        rows, length = self._small(live, need)
        now = self._rows.seen.shape if self._rows is not None else (0, 0)
        return max(rows, now[0]), max(length, now[1])

    def _move(self, shape: tuple[int, int]) -> list[Key]:
        now = self._rows.seen.shape if self._rows is not None else shape
        return [] if now == shape else [("rearrange", (*now, *shape))]

    def _fit(self, shape: tuple[int, int]) -> None:
        if self._rows is None:
            self._rows = self.programs.empty(*shape)
            self.sitting, self._filled, self._final = [None] * shape[0], [0] * shape[0], [0] * shape[0]
        elif self._rows.seen.shape != shape:
            of = [i for i, prompt in enumerate(self.sitting) if prompt is not None]
            of += [-1] * (shape[0] - len(of))
            self._rows = self.programs.rearranged(self._rows, of, shape[1])
            self.sitting = [self.sitting[i] if i >= 0 else None for i in of]
            self._filled, self._final = [self._filled[i] for i in of], [self._final[i] for i in of]


def _need(filled: int, final: int) -> int:
    """Slots that a row of so many ids needs for the next steps, if it ends with `final`."""
    return min(filled + MOST_STEPS, final)


def wanted(
    room: int, ends: Sequence[int], seed: int, draw: int, temperature: float, top_k: int | None, top_p: float | None
) -> continuous.Wanted:
    """What a row asks for, as arrays; it draws what `lm.generate` draws for row number `draw` of the same seed."""
    return continuous.Wanted(
        jnp.asarray([room], jnp.int32),
        jnp.asarray([[*ends, *[-1] * (MOST_ENDS - len(ends))]], jnp.int32),
        jax.random.fold_in(jax.random.key(seed), draw)[None],
        Sampling(*(a[None] for a in Sampling.of(temperature, top_k, top_p))),
    )


def _size(rows: int) -> int:
    """1, 4, 16, ...: a step of three rows takes hardly longer than one of two, and each size is another program."""
    return 4 ** math.ceil(math.log(rows, 4) - 1e-9)
