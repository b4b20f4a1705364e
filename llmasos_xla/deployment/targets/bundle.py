"""Our own bundle, read back and compared before it stands at its path."""

import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import export_model, export_net
from llmasos_xla.deployment.targets.checking import Export, largest, tolerance_of
from llmasos_xla.storage.bundle import Bundle


def of(model: Any) -> Callable:
    """The function whose options an export of this takes."""
    return export_model if isinstance(model, Door) else export_net


def export(model: Any, variables: Any, path: pathlib.Path, **options: Any) -> Export:
    """Writes an .lmx bundle; options are those of `Door.export`, or of `api.exporting.export_net`.

    It is read back and runs on its own example. One that is for other platforms than this cannot run here: its
    difference is then NaN.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # Of the same name: a bundle is called as its file.
        written = pathlib.Path(folder) / path.name
        if variables is None:
            export_model(model, written, **options)
        else:
            export_net(model, variables, written, **options)
        difference = _difference(Bundle.open(written))
        os.replace(written, path)
    return Export(path, "bundle", difference, checked_on=jax.default_backend())


def _difference(bundle: Bundle) -> float:
    content, here = bundle.content, {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    request, answers = content.example
    program = next(p for p in content.programs if set(p.inputs) == set(request))
    if here not in program.platforms:
        return math.nan
    # Of a program for fixed lengths, the one that the example has.
    shapes = {t.name: t.shape for t in content.inputs}
    lengths = {n: m for name, a in request.items() for n, m in zip(shapes[name][1:], a.shape[1:]) if isinstance(n, str)}
    given = jax.jit(bundle.program(request, lengths))(dict(content.arrays), dict(request))
    return largest(request, answers, jax.tree.map(np.asarray, given), "bundle", tolerance_of("float32", None))
