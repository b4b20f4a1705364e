"""From a file to a version that may answer: opened, checked, compiled, tried on an example, beside the serving path.

And back, for versions that came from memory.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmasos_xla.api import saving
from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import specification_of
from llmasos_xla.api.load import load, of_saved
from llmasos_xla.api.pretrained import load_pretrained
from llmasos_xla.deployment.faces import ModelFace, ProgramFace
from llmasos_xla.deployment.raw_input import TEXT
from llmasos_xla.deployment.served import Served
from llmasos_xla.sharding.transfer import fetch
from llmasos_xla.storage.bundle import Bundle
from llmasos_xla.storage.bundle import write as write_bundle

TOLERANCE = 1e-2
"""How far an example's outputs may be from those in the bundle, over the largest of them: another device may round
otherwise, another model is further off."""


class UpdateError(ValueError):
    """A version that is refused; the one that answers goes on."""


def open_version(
    path: str, name: str, version: str = "1", *, like: Served | None = None, key: Any = None, program: bool = False
) -> Served:
    """The version that a bundle, a saved model or a folder of published weights holds, not yet compiled.

    A bundle's model is rebuilt, so that it runs on the kernels that are fastest here; what cannot be rebuilt, a
    function that somebody exported, runs as the program that it is. Where JAX cannot read that program any more,
    rebuilding is what is left.

    Args:
        like: a version whose programs are shared if they compute the same function.
        key: the public key of whoever must have signed the bundle.
        program: run the bundle's program even if the model could be rebuilt.

    Raises FileNotFoundError, PermissionError for a signature, ValueError for all else that is wrong with the file.
    """
    if pathlib.Path(path).suffix != ".lmx":
        if key is not None:
            raise PermissionError(f"deploy: only bundles are signed, and a signature is asked for; {path!r} is none")
        return Served.of_model(opened(path), name, version, like=like)
    bundle = Bundle.open(path, key=key)
    if bundle.content.model is None or program:
        return Served.of_bundle(bundle, name, version, like=like)
    served = Served.of_model(of_saved(saving.of_content(bundle.content)), name, version, like=like)
    served.digest = bundle.digest
    served.known = bundle.content.example
    return served


def ending(served: Served) -> str:
    """Of the file that `write_version` makes of it."""
    return ".safetensors" if isinstance(served.face, ModelFace) else ".lmx"


def write_version(served: Served, path: pathlib.Path) -> None:
    """Writes a version that has no file of its own, so that `open_version` gives the same; atomically."""
    arrays = fetch(served.arrays)
    if isinstance(served.face, ModelFace):
        saving.write(path, specification_of(served.face.model), arrays)
        return
    assert isinstance(served.face, ProgramFace)
    content = served.face.content
    inputs = content.example[0]
    write_bundle(path, dataclasses.replace(content, arrays=arrays, example=(inputs, served.run(inputs))))


def opened(path: str) -> Door:
    """The model of a file that `save` wrote, of a folder of checkpoints, or of one with config.json and weights.

    Raises FileNotFoundError, or ValueError with the reason.
    """
    return load_pretrained(path) if published(path) else load(path)


def published(path: str | os.PathLike) -> bool:
    """Whether a path is a folder of published weights, as `lm.load_pretrained` reads it."""
    return os.path.isfile(os.path.join(path, "config.json"))


def about(served: Served) -> dict[str, Any]:
    """What the process that asks wants to know of a version."""
    preprocessing = served.face.preprocessing
    return {
        "example": served.example(),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "text": TEXT in served.face.first,
        "version": served.version,
    }


def check(served: Served, now: Served | None) -> None:
    """Compiles what `now` has programs for, runs the example, and compares.

    Raises UpdateError for a version that takes or gives other tensors than `now`, that computes what is no number, or
    whose answer is not that of its bundle.
    """
    if now is not None:
        for what, mine, theirs in (
            ("inputs", served.face.inputs, now.face.inputs),
            ("outputs", served.face.outputs, now.face.outputs),
        ):
            new, old = ([t.metadata() for t in tensors] for tensors in (mine, theirs))
            if new != old:
                raise UpdateError(
                    f"update: its {what} are {_told(new)}, those of version {now.version} {_told(old)}; deploy it "
                    "under another name"
                )
        if served.engine is not now.engine:
            for key in now.engine.keys:
                served.engine.warm(served.arrays, key)
    who = "deploy" if now is None else "update"
    jax.block_until_ready(served.arrays)
    known = served.known
    if known is None:
        inputs = {n: np.zeros((1, *shape), dtype) for n, shape, dtype in served.face.shapes()[0]}
        outputs: Mapping[str, np.ndarray] = {}
    else:
        inputs, outputs = known
    found = served.run(inputs)
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UpdateError(f"{who}: the output {name!r} of its example holds NaN or infinity")
        if name in outputs:
            wanted = np.asarray(outputs[name], np.float64)
            if wanted.shape != array.shape:
                raise UpdateError(f"{who}: {name!r} of its example has shape {array.shape}, not {wanted.shape}")
            difference = np.abs(array - wanted).max(initial=0.0) / max(np.abs(wanted).max(initial=0.0), 1e-6)
            if difference > TOLERANCE:
                raise UpdateError(
                    f"{who}: {name!r} of its example differs from the bundle's by {difference:.2g} of the largest"
                )


def _told(tensors: list[dict[str, Any]]) -> str:
    return "; ".join(f"{t['name']} {t['datatype']} {t['shape']}" for t in tensors)[:300]
