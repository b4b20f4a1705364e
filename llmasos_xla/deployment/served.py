"""One version of a model as the server runs it: its face, its program, its weights."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla import errors
from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import arrays_of
from llmasos_xla.deployment.engine import Engine, fingerprint_of
from llmasos_xla.deployment.faces import Face, ModelFace, ProgramFace
from llmasos_xla.storage.bundle import Bundle


@final
class Served:
    """Tensors in, tensors out.

    Args:
        face: what requests name.
        engine: what computes.
        arrays: the weights.
        name: of the model.
        version: which of the model's versions it is.
        digest: of what it was loaded from, to tell one from another.
    """

    def __init__(
        self,
        face: Face,
        engine: Engine,
        arrays: Mapping[str, Any],
        name: str,
        version: str = "1",
        digest: str | None = None,
    ):
        self.face, self.engine, self.name, self.version, self.digest = face, engine, name, version, digest
        self.arrays: dict[str, jax.Array] = {n: jnp.asarray(a) for n, a in arrays.items()}
        self.path: str | None = None
        """The file it came from; None for weights that a training handed over."""
        self.since: float = time.time()
        """When it was loaded, in seconds since the epoch."""
        self.known: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None
        """Encoded inputs and the outputs that belong to them, where a bundle brought some."""
        self._names = {tensor.name for tensor in face.outputs}
        # Of each output the values of a row, and how many of its axes are free.
        sizes = [tensor.shape[1:] for tensor in face.outputs]
        counts = [(math.prod(n for n in shape if n >= 0), sum(n < 0 for n in shape)) for shape in sizes]
        self._fixed_bytes = 4 * sum(fixed for fixed, free in counts if not free)
        self._free_sizes = [(4 * fixed, free) for fixed, free in counts if free]

    @classmethod
    def of_model(cls, model: Door, name: str, version: str = "1", *, like: "Served | None" = None) -> "Served":
        """A model that is in memory; the programs are those of `like` if it computes the same function.

        Raises ValueError for a model that was never fitted.
        """
        face, engine = ModelFace(model, name), Engine.of_model(model)
        return cls(face, _shared(engine, like), arrays_of(model), name, version)

    @classmethod
    def of_bundle(cls, bundle: Bundle, name: str, version: str = "1", *, like: "Served | None" = None) -> "Served":
        """The programs of a bundle as they are; raises ValueError if they cannot run here."""
        engine = _shared(Engine.of_bundle(bundle), like)
        served = cls(ProgramFace(bundle.content), engine, bundle.content.arrays, name, version, bundle.digest)
        served.known = bundle.content.example
        return served

    @property
    def fingerprint(self) -> str:
        """That of its model; of its program where there is no model."""
        model = getattr(self.face, "model", None)
        return self.engine.fingerprint if model is None else fingerprint_of(model)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(a.nbytes for a in self.arrays.values())

    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/{name}."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "jax",
            "inputs": [tensor.metadata() for tensor in self.face.inputs],
            "outputs": [tensor.metadata() for tensor in self.face.outputs],
        }

    def example(self) -> list[dict[str, Any]]:
        """What a first request may hold: name, datatype and shape of each input, and a value to fill it with."""
        return [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.example[0]), "fill": t.example[1]}
            for t in self.face.inputs
            if t.name in self.face.first
        ]

    def warm(self, rows: int = 1) -> None:
        """Compiles and runs the programs for so many rows, so that no request waits for them."""
        for key in self.face.shapes():
            self.engine.warm(self.arrays, (self.engine.bucket(rows), key))

    def infer(self, tensors: Mapping[str, np.ndarray], outputs: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The outputs asked for, or all of them.

        Raises ValueError or TypeError for a request that does not fit the model. What else is raised is the model's.
        """
        wanted = self.check_outputs(outputs)
        inputs = self.encode(tensors)
        try:
            found = self.run(inputs)
        except (ValueError, TypeError) as error:
            # The input was accepted, so this is no fault of the sender's.
            raise RuntimeError(f"infer: the model failed: {error}") from error
        return self.finish(found, wanted)

    def check_outputs(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """The names of the outputs that are wanted: all where none is named. Raises ValueError for unknown ones."""
        wanted = tuple(outputs) or tuple(tensor.name for tensor in self.face.outputs)
        for name in wanted:
            if name not in self._names:
                raise errors.unknown("infer", "output", name[:60], self._names)
        return wanted

    def encode(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `run` takes, by name, of a request's tensors; raises ValueError or TypeError for what does not fit."""
        return self.face.encode(tensors)

    def answer_bytes(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Bytes that the outputs have at most, where free axes are no longer than those of the inputs."""
        row = self._fixed_bytes
        if self._free_sizes:
            longest = max((n for a in inputs.values() for n in a.shape[1:]), default=1)
            row += sum(fixed * longest**free for fixed, free in self._free_sizes)
        return row * len(next(iter(inputs.values())))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The program's outputs."""
        return self.engine(self.arrays, inputs)

    def finish(self, found: Mapping[str, np.ndarray], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """The outputs that are wanted, of those that `run` gave; what fails here is raised as RuntimeError."""
        try:
            return self.face.finish(found, wanted)
        except (ValueError, TypeError, LookupError) as error:
            # Told as these are, it would seem to be the sender's fault.
            raise RuntimeError(f"infer: the model failed: its outputs cannot be told: {error}") from error


def _shared(engine: Engine, like: Served | None) -> Engine:
    return like.engine if like is not None and like.engine.fingerprint == engine.fingerprint else engine
