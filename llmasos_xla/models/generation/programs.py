"""The loops, compiled: a prefill for each bucket of prompt lengths, one decode program for each size of cache."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.compiling import CompileRecord, compile
from llmasos_xla.core import Variables
from llmasos_xla.models.generation import beams, tokens
from llmasos_xla.models.generation.protocol import Generative, Memory, functions
from llmasos_xla.models.generation.sampling import Sampling

SMALLEST = 16
"""Ids in the smallest bucket."""


def bucket(length: int) -> int:
    """The length that programs are compiled for: the next power of two, 16 at least.

    >>> bucket(3), bucket(17)
    (16, 32)
    """
    return max(SMALLEST, 1 << (length - 1).bit_length())


def left_padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids at the right of [rows, length], and which steps are real."""
    ids, real = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if len(row):
            ids[i, length - len(row) :], real[i, length - len(row) :] = row, True
    return ids, real


class Programs:
    """A model's compiled programs for writing, made when they are first needed.

    Args:
        config: the model as it decodes (`Generative.serving`).
        dtype: of keys and values in the cache; that of the weights if None.
        log: receives a `CompileRecord` of each program.
    """

    def __init__(self, config: Generative, *, dtype: Any = None, log: list[CompileRecord] | None = None):
        self.config, self.dtype, self._log = config, dtype, log
        self._functions = functions(config)
        self._programs: dict[Any, Callable] = {}

    def encode(self, variables: Variables, x: Any) -> Memory:
        """What the encoder gives; {} for a model without one."""
        if not self.config.encoder_inputs:
            return {}
        return self._run("encoder", (), self._functions.encode, (variables, x))

    def prefill(
        self,
        variables: Variables,
        memory: Memory,
        ids: Any,
        real: Any,
        keys: Any,
        sampling: Sampling,
        ends: Any,
        *,
        new: int,
    ) -> tokens.State:
        """Reads prompts that lie at the right of `ids` and writes the first id of each row; `new` is a bucket."""
        dtype = self._dtype(variables)

        def run(*arguments: Any) -> tokens.State:
            return tokens.prefill(self._functions, self.config.adjust, *arguments, new=new, dtype=dtype)

        what = f"prefill of {ids.shape[0]} x {ids.shape[1]} ids"
        return self._run(what, (new, dtype), run, (variables, memory, ids, real, keys, sampling, ends))

    def advance(
        self,
        variables: Variables,
        memory: Memory,
        state: tokens.State,
        keys: Any,
        sampling: Sampling,
        ends: Any,
        until: int,
    ) -> tokens.State:
        """Writes until `until` ids stand in each row, in one dispatch; the old state's memory is taken."""

        def run(*arguments: Any) -> tokens.State:
            return tokens.advance(self._functions, self.config.adjust, *arguments)

        what = f"decoding of {state.seen.shape[0]} x {state.seen.shape[1]} ids"
        arguments = (variables, memory, state, keys, sampling, ends, jnp.asarray(until, jnp.int32))
        return self._run(what, (), run, arguments, donate=(2,))

    def search(
        self,
        variables: Variables,
        memory: Memory,
        ids: Any,
        real: Any,
        ends: Any,
        until: int | Sequence[int],
        *,
        beams_kept: int,
        new: int,
        length_penalty: float,
        early_stopping: bool,
    ) -> beams.Written:
        """Beam search, in one dispatch."""
        dtype = self._dtype(variables)

        def run(*arguments: Any) -> beams.Written:
            return beams.search(
                self._functions,
                self.config.adjust,
                *arguments,
                beams=beams_kept,
                new=new,
                dtype=dtype,
            )

        what = f"search with {beams_kept} beams over {ids.shape[0]} x {ids.shape[1] + new} ids"
        rooms = np.broadcast_to(np.asarray(until, np.int32), ids.shape[:1])
        arguments = (variables, memory, ids, real, ends, rooms)
        arguments = (*arguments, jnp.asarray(length_penalty, jnp.float32), jnp.asarray(early_stopping))
        return self._run(what, (new, dtype), run, arguments)

    def _dtype(self, variables: Variables) -> Any:
        return self.dtype or next(a.dtype for a in variables.params.values() if jnp.issubdtype(a.dtype, jnp.floating))

    def _run(self, what: str, key: tuple, function: Callable, arguments: tuple, donate: Sequence[int] = ()) -> Any:
        variables, *others = arguments
        arguments = (variables, *jax.tree.map(jnp.asarray, others))
        leaves, tree = jax.tree.flatten(arguments)
        key = (what, *key, tree, tuple((a.shape, a.dtype) for a in leaves))
        if key not in self._programs:
            self._programs[key] = compile(function, *arguments, what=what, donate=donate, log=self._log)
        return self._programs[key](*arguments)
