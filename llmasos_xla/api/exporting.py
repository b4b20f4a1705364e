"""A model as a bundle: what it predicts, exported for every platform and any number of rows, and its weights."""

import contextlib
import importlib.metadata
import os
import pathlib
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from llmasos_xla.api import files
from llmasos_xla.api.door import Door
from llmasos_xla.core import Net, Variables
from llmasos_xla.sharding.transfer import fetch
from llmasos_xla.storage import bundle
from llmasos_xla.storage.exported import PLATFORMS, shapes

INPUT, OUTPUT = "input", "output"
ROWS = "rows"
# One, since a program for one row is what every server has.
_EXAMPLE_ROWS = 1
# Largest number of ids that made-up input is drawn from.
_MOST_IDS = 1 << 20
LEAST = (1, 2, 4, 8, 16, 32, 64, 128)


class Forward(NamedTuple):
    """What a model predicts, as a function of arrays and inputs by name."""

    run: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    """(arrays, encoded inputs) -> outputs, by name; to be traced."""
    tensors: tuple[bundle.Tensor, ...]
    """The encoded inputs."""
    groups: tuple[tuple[str, ...], ...]
    """Which of them come together: those that must first, all of them last."""
    seen: Mapping[str, int]
    """The lengths that the training data had, of axes that are free."""

    def named(self, encoded: Any) -> dict[str, np.ndarray]:
        """What `Learner.encode` gave, by name."""
        return dict(encoded) if isinstance(encoded, Mapping) else {self.tensors[0].name: np.asarray(encoded)}


def forward_of(model: Door, who: str, precision: str | None = None) -> Forward:
    """What `model.predict` computes between encoded input and outputs; raises ValueError for one without data.

    `precision` is that of the arithmetic, the model's own if None.
    """
    model.settle()
    learner = model.learner
    preprocessing = learner.preprocessing
    if preprocessing is None:
        raise ValueError(
            f"{who}: the model has never seen data, so it is not known how to prepare its input; fit it, or call "
            "predict once"
        )
    several = learner.spec.several()
    outputs = learner.outputs if precision is None else learner.outputs_in(precision)
    names = tuple(several) or (OUTPUT,)
    parts = preprocessing.input if isinstance(preprocessing.input, tuple) else ((INPUT, preprocessing.input),)
    # A single input goes in as an array; so does the first of several where the others need not come.
    alone = not isinstance(preprocessing.input, tuple) or preprocessing.needed is not None

    def run(arrays: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = next(iter(inputs.values())) if alone and len(inputs) == 1 else dict(inputs)
        y = outputs(variables_of(arrays), x)
        return {n: getattr(y, n) for n in names} if several else {OUTPUT: y}

    tensors = tuple(bundle.Tensor(n, part.dtype, _shape(n, part)) for n, part in parts)
    seen = {n: m for t, (_, part) in zip(tensors, parts) for n, m in zip(t.shape[1:], part.shape) if isinstance(n, str)}
    groups = _groups(tuple(t.name for t in tensors), {*preprocessing.wanted, *learner.spec.fit_inputs})
    return Forward(run, tensors, tuple(groups), seen)


def arrays_of(model: Door) -> dict[str, Any]:
    """The arrays that the model predicts with, by the names that files have for them."""
    return files.arrays_by_name(model.learner.evaluation_variables, None)


def export_model(
    model: Door,
    path: str | os.PathLike,
    *,
    name: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    lengths: Sequence[int] = (),
    example: Any = None,
    key: Any = None,
) -> pathlib.Path:
    """Writes a model as a `.lmx` bundle; see `Door.export`."""
    learner = model.learner
    forward = forward_of(model, "export")
    tensors, seen = forward.tensors, forward.seen
    if example is None:
        request = made_up(learner.spec, tensors, dict.fromkeys(seen, min(lengths)) if lengths else seen, _EXAMPLE_ROWS)
    else:
        request = forward.named(learner.encode(example, "export: example"))
    preprocessing = learner.preprocessing
    assert preprocessing is not None
    return _write(
        path,
        forward.run,
        fetch(arrays_of(model)),
        tensors,
        forward.groups,
        {n: a for n, a in request.items() if example is not None or n in forward.groups[-1]},
        platforms,
        name,
        key,
        getattr(learner.spec.layers[0], "context", None),
        lengths,
        seen,
        preprocessing=preprocessing.to_json(),
        model=specification_of(model),
    )


def specification_of(model: Door) -> dict[str, Any]:
    """What `lm.load` rebuilds the model from, beside `arrays_of(model)`.

    The training state stays behind; how it was trained is kept, since the precision of prediction is part of it.
    """
    return {**files.specification(model.learner, {**model._door(), **model._kept()}), "unfinished": None}


def export_net(
    net: Net | Callable,
    variables: Variables,
    path: str | os.PathLike,
    *,
    example: Any,
    name: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    key: Any = None,
) -> pathlib.Path:
    """Writes pure functions and their variables as a `.lmx` bundle.

    Args:
        net: `Net`, whose `apply(variables, x, train=False)` gives the outputs first; or a function (variables, x).
        variables: the weights.
        path: ends in ".lmx".
        example: inputs, an array [rows, ...] or a dict of such. Any number of rows can be asked for later.
        name: what the model is called; the file's name without its ending if None.
        platforms: of "cpu", "cuda", "rocm" and "tpu".
        key: a private ed25519 key to sign with.

    Raises ValueError where the function cannot be exported for any number of rows.
    """
    forward, request = forward_of_net(net, variables, example)
    arrays = fetch(files.arrays_by_name(variables, None))
    return _write(path, forward.run, arrays, forward.tensors, forward.groups, request, platforms, name, key)


def forward_of_net(net: Net | Callable, variables: Variables, example: Any) -> tuple[Forward, dict[str, np.ndarray]]:
    """What pure functions compute, and the example, by name; raises ValueError for an example that is no batch."""
    alone = not isinstance(example, Mapping)
    request = {INPUT: np.asarray(example)} if alone else {n: np.asarray(a) for n, a in example.items()}
    if not request or any(a.ndim < 1 for a in request.values()) or len({len(a) for a in request.values()}) != 1:
        raise ValueError("export: example holds arrays of the same number of rows, [rows, ...]")

    def run(arrays: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = inputs[INPUT] if alone else dict(inputs)
        y = net.apply(variables_of(arrays), x, train=False)[0] if isinstance(net, Net) else net(variables_of(arrays), x)
        if hasattr(y, "_asdict"):
            return y._asdict()
        return dict(y) if isinstance(y, Mapping) else {OUTPUT: y}

    tensors = tuple(bundle.Tensor(n, str(a.dtype), (ROWS, *a.shape[1:])) for n, a in request.items())
    return Forward(run, tensors, (tuple(request),), {}), request


def variables_of(arrays: Mapping[str, Any]) -> Variables:
    """The inverse of `files.arrays_by_name` for weights alone."""
    halves: dict[str, dict[str, Any]] = {"params": {}, "state": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        halves[kind][rest] = array
    return Variables(**halves)


def _write(
    path: str | os.PathLike,
    run: Callable,
    arrays: Mapping[str, np.ndarray],
    tensors: tuple[bundle.Tensor, ...],
    groups: Sequence[tuple[str, ...]],
    request: Mapping[str, np.ndarray],
    platforms: Sequence[str],
    name: str | None,
    key: Any,
    most: int | None = None,
    lengths: Sequence[int] = (),
    seen: Mapping[str, int] = types.MappingProxyType({}),
    **more: Any,
) -> pathlib.Path:
    if unknown := [p for p in platforms if p not in PLATFORMS] or not platforms:
        raise ValueError(f"export: platforms are some of {', '.join(PLATFORMS)}; {unknown!r} came")
    abstract = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
    programs, limits, outputs = [], {}, {}
    for group in groups:
        for sizes, least, found in _exported(jax.jit(run), abstract, tensors, group, platforms, most, lengths, seen):
            content = bytes(found.serialize(vjp_order=0))
            programs.append(bundle.Program(tuple(group), tuple(platforms), content, sizes))
            if not sizes:
                limits = {n: (max(least, limits.get(n, (1,))[0]), most) for n in _free(tensors)}
            outputs = jax.tree.unflatten(found.out_tree, found.out_avals)
    group = next(g for g in reversed(groups) if set(g) <= set(request))
    request = {n: np.asarray(request[n]) for n in group}
    answer = jax.tree.map(np.asarray, jax.jit(run)(arrays, request))
    path = pathlib.Path(path)
    return bundle.write(
        path,
        bundle.Content(
            name or re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:200] or "model",
            tensors,
            tuple(bundle.Tensor(n, str(a.dtype), tuple(_size(m) for m in a.shape)) for n, a in outputs.items()),
            arrays,
            tuple(programs),
            (request, answer),
            limits=limits,
            made_by={"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")},
            **more,
        ),
        key=key,
    )


def _exported(
    run: Any,
    abstract: Mapping[str, Any],
    tensors: Sequence[bundle.Tensor],
    group: Sequence[str],
    platforms: Sequence[str],
    most: int | None,
    lengths: Sequence[int],
    seen: Mapping[str, int],
) -> Iterator[tuple[dict[str, int], int, Any]]:
    """(lengths, {} for any; the smallest that it takes; program): one for all lengths if that can be."""

    def export(inputs: Mapping[str, Any]) -> Any:
        with unlocated():
            return jax.export.export(run, platforms=tuple(platforms))(abstract, {n: inputs[n] for n in group})

    free, why = _free(tensors), ""
    # The smallest size that a network takes is nowhere written down; the largest is, where there is one.
    for least in (LEAST if free else (1,)) if not lengths else ():
        bounds = [f"{n} >= {least}" for n in free if least > 1] + [f"{n} <= {most}" for n in free if most is not None]
        try:
            found = export(shapes(tensors, bounds))
        except Exception as error:
            # The first one: what fails at larger sizes may be another thing.
            why = why or str(error)[:600]
            continue
        yield {}, least, found
        return
    if not free:
        raise ValueError(f"export: the model cannot be exported for any number of rows: {why}")
    if not lengths:
        warnings.warn(
            f"export: the model cannot be exported for any size at once; it is for the one it has seen, "
            f"{dict(seen)}; lengths=(16, 32, ...) exports a program for each of these. The reason: {why}",
            stacklevel=5,
        )
    for sizes in [dict.fromkeys(free, size) for size in lengths] or [dict(seen)]:
        fixed = [
            t._replace(shape=tuple(sizes.get(n, n) if isinstance(n, str) else n for n in t.shape)) for t in tensors
        ]
        yield sizes, 1, export(shapes(fixed))


def _free(tensors: Sequence[bundle.Tensor]) -> list[str]:
    """The names of lengths that differ from call to call, besides the number of rows."""
    return sorted({n for t in tensors for n in t.shape if isinstance(n, str)} - {ROWS})


@contextlib.contextmanager
def unlocated() -> Iterator[None]:
    """Programs without the places in the source that they came from: nobody's folders go into a file."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _groups(names: tuple[str, ...], wanted: set[str]) -> list[tuple[str, ...]]:
    """Which inputs come together: those that must, those with the mask that tells padding, all."""
    least = wanted & set(names) or set(names)
    sets = [least, least | ({"attention_mask"} & set(names)), set(names)]
    return list(dict.fromkeys(tuple(n for n in names if n in group) for group in sets))


def _size(n: Any) -> int | str:
    if isinstance(n, int):
        return n
    text = str(n)
    # Lengths that follow from others, time//2, are only told to be free.
    return text if text.isidentifier() else "any"


def _shape(name: str, part: Any) -> tuple[int | str, ...]:
    """The shape of an encoded input; free axes of inputs that are read together are the same."""
    side = "decoder_" if name.startswith("decoder_") else ""
    free = getattr(part, "free", ())
    return (ROWS, *(f"{side}length{axis}" if axis in free else n for axis, n in enumerate(part.shape)))


def made_up(
    spec: Any, tensors: Sequence[bundle.Tensor], lengths: Mapping[str, int], rows: int
) -> dict[str, np.ndarray]:
    """Inputs that a model takes, the same each time: random pixels, numbers and ids, masks with padding behind."""
    rng, sizes = np.random.default_rng(0), {ROWS: rows, **lengths}
    found = {}
    for tensor in tensors:
        shape = tuple(sizes[n] if isinstance(n, str) else n for n in tensor.shape)
        if tensor.dtype == "uint8":
            found[tensor.name] = rng.integers(0, 256, shape, np.uint8)
        elif tensor.dtype == "int32" and tensor.name.endswith("mask") and len(shape) == 2:
            kept = shape[1] - np.arange(shape[0]) % max(shape[1] // 2, 1)
            found[tensor.name] = (np.arange(shape[1]) < kept[:, None]).astype(np.int32)
        elif tensor.dtype == "int32":
            known = spec.integers.get(tensor.name) or _ids(spec, tensor.name, shape)
            # 0 is often padding, which stands behind words alone.
            found[tensor.name] = rng.integers(min(1, known - 1), known, shape, np.int32)
        else:
            found[tensor.name] = rng.normal(size=shape).astype(tensor.dtype)
    return found


def _ids(spec: Any, name: str, shape: Sequence[int]) -> int:
    """From how many ids may be drawn: the largest power of two that the model has vectors for."""
    known = _MOST_IDS
    while known > 1:
        ids = np.full(shape, known - 1, np.int32)
        try:
            spec.check_tokens({name: ids} if name in spec.inputs else ids)
        except ValueError:
            known //= 2
        else:
            break
    return known
