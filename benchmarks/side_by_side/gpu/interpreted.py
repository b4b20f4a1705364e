"""Kernels run by Triton's interpreter on the CPU, so that all of this can be seen to work where there is no GPU."""

import importlib.util
from pathlib import Path

# The tests' own; by its path, since this folder has a `kernels` too.
_INTERPRETER = Path(__file__).resolve().parents[3] / "tests" / "kernels" / "triton" / "interp.py"


def install() -> None:
    """From here on programs that are traced for a GPU run on the CPU, their kernels interpreted."""
    from llmasos_xla.kernels._triton import engine, primitive

    spec = importlib.util.spec_from_file_location("interp", _INTERPRETER)
    assert spec is not None
    assert spec.loader is not None
    interp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interp)
    primitive.INTERPRETER, engine.ENGINE.elsewhere = interp.interpreter, engine.lower
