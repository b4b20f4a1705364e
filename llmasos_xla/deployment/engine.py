"""A model's program, compiled for a few numbers of rows. Weights are its arguments: other weights compile nothing."""

import collections
import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import numpy as np

from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import forward_of
from llmasos_xla.compiling import CompileRecord, compile
from llmasos_xla.storage.bundle import Bundle

LARGEST = 256
"""Rows of one call, at most."""
_MOST_PROGRAMS = 64

Arrays = Mapping[str, Any]
Key = tuple[int, tuple[tuple[str, tuple[int, ...], str], ...]]
"""What a program is compiled for: rows, and name, shape of a row and dtype of each input."""


def fingerprint_of(model: Door) -> str:
    """Equal for models that differ in their weights alone: they compute the same, and call their classes the same."""
    assert model.learner.preprocessing is not None
    about = [Engine.of_model(model).fingerprint, model.learner.preprocessing.label_names]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@final
class Engine:
    """Calls a function (arrays, inputs) -> outputs on any number of rows, by programs for powers of two.

    Args:
        run: the function, to be traced.
        fingerprint: equal for functions that are the same but for their arrays.
        largest: rows of one call, at most; more go in several.
    """

    def __init__(self, run: Callable[[Arrays, Arrays], dict[str, Any]], fingerprint: str, largest: int = LARGEST):
        self.fingerprint, self.largest = fingerprint, largest
        self.compiled: list[CompileRecord] = []
        """What was compiled, in order."""
        self._run = run
        self._programs: collections.OrderedDict[Key, Callable] = collections.OrderedDict()
        # Programs are looked up by the thread that serves, while another may compile for it.
        self._lock = threading.Lock()

    @classmethod
    def of_model(cls, model: Door, largest: int = LARGEST) -> "Engine":
        """What `model.predict` computes, by the kernels that are fastest here."""
        forward, learner = forward_of(model, "deploy"), model.learner
        assert learner.preprocessing is not None
        precision = learner.recipe.precision if learner.recipe else None
        about = [learner.spec.to_json(), learner.preprocessing.to_json()["input"], precision or "float32"]
        return cls(forward.run, hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest(), largest)

    @classmethod
    def of_bundle(cls, bundle: Bundle, largest: int = LARGEST) -> "Engine":
        """The programs of a bundle as they are; raises ValueError if they cannot run here."""
        tensors = {t.name: t for t in bundle.content.inputs}
        digest = hashlib.sha256()
        for program in bundle.content.programs:
            digest.update(program.content)
        # All of them now: a program that this JAX cannot read shall not be found out by a request.
        for program in bundle.content.programs:
            bundle.program(program.inputs, program.lengths or None)

        def run(arrays: Arrays, inputs: Arrays) -> dict[str, Any]:
            lengths = {
                n: m
                for name, a in inputs.items()
                for n, m in zip(tensors[name].shape[1:], a.shape[1:])
                if isinstance(n, str)
            }
            return bundle.program(inputs, lengths)(dict(arrays), dict(inputs))

        return cls(run, digest.hexdigest(), largest)

    @property
    def keys(self) -> tuple[Key, ...]:
        """What there are programs for."""
        with self._lock:
            return tuple(self._programs)

    def __call__(self, arrays: Arrays, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs [rows, ...] by name of inputs [rows, ...] by name."""
        rows = len(next(iter(inputs.values())))
        if rows > self.largest:
            parts = [
                self(arrays, {n: a[start : start + self.largest] for n, a in inputs.items()})
                for start in range(0, rows, self.largest)
            ]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        size = self.bucket(rows)
        if size > rows:
            inputs = {n: np.concatenate([a, np.repeat(a[:1], size - rows, 0)]) for n, a in inputs.items()}
        outputs = self._program(size, arrays, inputs)(arrays, inputs)
        found = {name: np.asarray(a) for name, a in outputs.items()}
        return {name: a[:rows] for name, a in found.items()} if size > rows else found

    def row_bytes(self, arrays: Arrays, inputs: Mapping[str, np.ndarray]) -> int:
        """Bytes of the outputs of one row like these; nothing is compiled or run."""
        one = {n: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for n, a in inputs.items()}
        found = jax.eval_shape(self._run, dict(arrays), one)
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in found.values())

    def bucket(self, rows: int) -> int:
        """The number of rows of the program that runs so many.

        >>> Engine(lambda arrays, inputs: inputs, "same").bucket(5)
        8
        """
        return min(1 << (rows - 1).bit_length(), self.largest)

    def warm(self, arrays: Arrays, key: Key) -> None:
        """Compiles the program for `key`, if there is none, and runs it once on zeros."""
        rows, tensors = key
        inputs = {name: np.zeros((rows, *shape), dtype) for name, shape, dtype in tensors}
        jax.block_until_ready(self._program(rows, arrays, inputs)(arrays, inputs))

    def _program(self, rows: int, arrays: Arrays, inputs: Mapping[str, np.ndarray]) -> Callable:
        key = (rows, tuple((n, a.shape[1:], a.dtype.name) for n, a in inputs.items()))
        with self._lock:
            found = self._programs.get(key)
            if found is not None:
                # Those that are not asked for go first.
                self._programs.move_to_end(key)
                return found
        found = compile(
            self._run,
            *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (dict(arrays), dict(inputs))),
            what=f"predict {rows} rows",
            log=self.compiled,
        )
        with self._lock:
            self._programs[key] = found
            # Where lengths are free, requests choose how many programs there are.
            while len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        return found
