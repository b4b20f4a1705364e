"""`lm.export`: a model in another form, checked against our own outputs before anybody gets it."""

import importlib
import inspect
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from llmasos_xla.api.door import Door
from llmasos_xla.core import Net
from llmasos_xla.deployment.targets.checking import Export
from llmasos_xla.deployment.targets.subject import subject_of, subject_of_net
from llmasos_xla.errors import unknown

_SUBJECT = ("example", "rows", "length")


class Target(NamedTuple):
    """A form that a model is exported to."""

    module: str
    """Where it stands in `deployment.targets`."""
    ending: str
    """Of its file; "" for a folder."""
    function: str = "export"
    rows: int | None = None
    """The number of rows where none is said, None for any."""


TARGETS = {
    "bundle": Target("bundle", ".lmx"),
    "onnx": Target("to_onnx", ".onnx"),
    "openvino": Target("to_openvino", ""),
    "iree": Target("to_iree", "", rows=1),
    "savedmodel": Target("to_tensorflow", "", "export_savedmodel"),
    "tflite": Target("to_tensorflow", ".tflite", "export_tflite"),
}
"""The targets by name."""


def export(model: Any, *where: Any, target: str | None = None, **options: Any) -> Export:
    """Writes a model for another place to run it: `export(model, path)` or `export(net, variables, path, example=x)`.

    The copy is run on an example and compared with our own outputs; one that differs too much is not handed over, and
    what was at `path` before stays. Nothing is printed.

    Args:
        model: a `Sequential`, `Model` or `Network` that has seen data; or a `Net`, or a function (variables, x), with
            its variables behind it.
        *where: the path; of pure functions the variables and the path.
        target: "bundle", "onnx", "openvino", "iree", "savedmodel" or "tflite"; by the path's ending if None.
        **options: `example`, raw input to check with, the `calibration` data or made up if None (a `Net` wants one);
            `rows` and `length`, the number of rows and the size of free axes, any if None (IREE: one row); `tolerance`;
            and those of the target, which docs/export.md lists.

    Returns an `Export`: path, target, precision, and the largest difference from our own outputs.

    Raises ValueError for a model that the target cannot hold, `DifferentOutputError` (a ValueError) for a copy that
    differs too much, ImportError that names what to install, TypeError for unknown options.
    """
    if isinstance(model, Door):
        if len(where) != 1:
            raise TypeError(f"export: a model goes with its path, export(model, path); {len(where)} arguments came")
        variables, path = None, _path(where[0])
    else:
        if not (isinstance(model, Net) or callable(model)):
            raise TypeError(f"export: wants a Sequential, Model, Network, Net or function, got {type(model).__name__}")
        if len(where) != 2:
            raise TypeError(
                "export: pure functions go with their variables and a path, export(net, variables, path, example=x)"
            )
        variables, path = where[0], _path(where[1])
        if options.get("example") is None:
            raise ValueError("export: pure functions want example=, inputs [rows, ...]: they do not say what they read")
    name = _named(path, target)
    if name == "bundle":
        from llmasos_xla.deployment.targets import bundle

        return bundle.export(model, variables, path, **_known(bundle.of(model), options, name))
    entry = TARGETS[name]
    function = getattr(importlib.import_module(f"llmasos_xla.deployment.targets.{entry.module}"), entry.function)
    if options.get("example") is None and options.get("calibration") is not None:
        options["example"] = options["calibration"]
    known = inspect.signature(subject_of if isinstance(model, Door) else subject_of_net).parameters
    given = {"rows": entry.rows} | {k: v for k, v in options.items() if k in known}
    own = _known(function, {k: v for k, v in options.items() if k not in known}, name)
    subject = subject_of(model, **given) if isinstance(model, Door) else subject_of_net(model, variables, **given)
    return function(subject, path, **own)


def _path(path: Any) -> pathlib.Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"export: a path is wanted, got {type(path).__name__}")
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: there is no folder {str(path.parent)!r}; make it first")
    return path


def _named(path: pathlib.Path, target: str | None) -> str:
    endings = {t.ending: name for name, t in TARGETS.items() if t.ending}
    if target is None:
        if path.suffix not in endings:
            known = ", ".join(f"{ending} ({name})" for ending, name in endings.items())
            folders = ", ".join(f'target="{name}"' for name, t in TARGETS.items() if not t.ending)
            raise ValueError(f"export: {path.name!r} ends in none of {known}; for a folder say {folders}")
        return endings[path.suffix]
    if target not in TARGETS:
        raise unknown("export", "target", target, TARGETS)
    ending = TARGETS[target].ending
    if ending and path.suffix != ending:
        raise ValueError(f"export: target={target!r} is a file that ends in {ending}; {path.name!r} came")
    if not ending and path.is_file():
        raise FileExistsError(f"export: target={target!r} is a folder, and {str(path)!r} is a file")
    return target


def _known(function: Callable, options: dict[str, Any], target: str) -> dict[str, Any]:
    """The options, all of which the function takes by name; TypeError for others."""
    known = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            every = sorted({*known, *(() if target == "bundle" else _SUBJECT)})
            raise TypeError(f"export: target {target!r} has no option {name!r}; it has {', '.join(every)}")
    return options
