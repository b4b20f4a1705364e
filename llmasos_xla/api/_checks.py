"""What a fit refuses before it begins."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmasos_xla.data.array_input import ArrayInput
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.sharding.placement import Placement


def fitted_preprocessing(dataset: Dataset, spec: StackSpec) -> Preprocessing:
    """How the data become the model's input; raises ValueError for data that it cannot read."""
    if dataset.inputs is not None and not spec.inputs:
        raise ValueError(
            f"model: it takes one input, the data are a dict of {' and '.join(dataset.inputs)}: pass one "
            f"array, x[{dataset.inputs[0]!r}] or np.concatenate(list(x.values()), axis=-1); columns become a "
            "table with pandas.DataFrame(x)"
        )
    if dataset.inputs is not None:
        return _of_several(dataset, spec)
    fitted = Preprocessing.fit(dataset, spec.input_shape, tokens=spec.tokens)
    if (size := fitted.vocabulary_size) is not None and not spec.tokens:
        raise ValueError(
            f"model: the data are text, encoded to ids 0 to {size - 1}, and its first layer reads numbers: "
            f"begin with lm.layers.Embedding({size}, ...); a table's only text column is categories with "
            "categories=[...]"
        )
    if (missing := spec.needed[1:]) and spec.inputs:
        raise ValueError(
            f"model: it reads a dict of {', '.join(spec.needed)}; the data are one array, and {missing[0]!r} is missing"
        )
    if len(spec.inputs) > 1 and isinstance(fitted.input, ArrayInput):
        return _with_optional({spec.inputs[0]: fitted.input}, fitted, spec)
    return fitted


def _of_several(dataset: Dataset, spec: StackSpec) -> Preprocessing:
    given = dataset.inputs or ()
    if unknown := [name for name in given if name not in spec.inputs]:
        raise ValueError(f"model: it has no input {unknown[0]!r}; it reads {', '.join(spec.inputs)}")
    if missing := [name for name in spec.needed if name not in given]:
        raise ValueError(
            f"model: the input {missing[0]!r} is missing; it reads {', '.join(spec.inputs)}, the data are a dict of "
            f"{', '.join(given)}"
        )
    shapes = None if spec.input_shape is None else {name: spec.input_shapes()[name] for name in given}
    fitted = Preprocessing.fit(dataset, shapes, tokens=tuple(spec.integers))
    assert isinstance(fitted.input, tuple)
    return _with_optional(dict(fitted.input), fitted, spec)


def _with_optional(parts: Mapping[str, ArrayInput], fitted: Preprocessing, spec: StackSpec) -> Preprocessing:
    """With the ids and masks that these data lack and others may bring: nothing about them is learnt from data."""
    length = (*parts[spec.inputs[0]].shape, 1)[0]
    shapes = {} if spec.input_shape is None else spec.input_shapes()
    found = []
    for name in spec.inputs:
        if name in parts:
            found.append((name, parts[name]))
        elif name in shapes and name in spec.integers:
            shape = tuple(length if n is None else n for n in shapes[name])
            found.append((name, ArrayInput(shape, "int32", tuple(i for i, n in enumerate(shapes[name]) if n is None))))
    return dataclasses.replace(fitted, input=tuple(found), needed=len(spec.needed))


def class_weights(
    class_weight: Mapping[int, float] | None, labels: np.ndarray, outputs: int | None
) -> tuple[float, ...] | None:
    """The weight of each class, or None; raises ValueError for labels and weights that do not fit."""
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping):
        raise ValueError(f"fit: class_weight wants {{class id: weight}}, {{0: 1.0, 1: 3.0}}, got {class_weight!r}")
    classes = max(outputs or 0, 2)
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and bool(np.all(np.sort(labels) == np.eye(labels.shape[1])[-1]))
    ids = labels.size == len(labels) and bool(np.all(np.isin(labels, np.arange(classes))))
    if not one_hot and not ids:
        raise ValueError(
            f"fit: class_weight wants labels that are one class a row, ids from 0 to {classes - 1} or one-hot, got "
            f"{labels.dtype} {labels.shape}; sample_weight= weighs rows of any kind"
        )
    if bad := [c for c in class_weight if not isinstance(c, int | np.integer) or not 0 <= c < classes]:
        raise ValueError(f"fit: class_weight names class {bad[0]!r}; the classes are 0 to {classes - 1}")
    if bad := [w for w in class_weight.values() if not 0 <= w < float("inf")]:
        raise ValueError(f"fit: class_weight wants finite weights >= 0, got {bad[0]!r}")
    return tuple(float(class_weight.get(c, 1.0)) for c in range(classes))


def check_layout(spec: StackSpec, placement: Placement) -> None:
    """Refuses to divide the time of samples that have none, and a user's rule that names no array of the model."""
    shape = spec.known_shape()
    if placement.spec.seq > 1 and len(shape) < 2 and not spec.tokens:
        raise ValueError(
            f"shard: seq={placement.spec.seq} divides the time of samples; this model's have the shape {shape}, "
            "of which no axis is time; choose data, fsdp or tensor"
        )
    if not placement.spec.rules:
        return
    variables = jax.eval_shape(spec.net().init, jax.random.key(0))
    names = [*variables.params, *variables.state]
    for pattern, _ in placement.spec.rules:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"shard: the rule {pattern!r} names no array of this model; it has {', '.join(names[:8])}"
                f"{', ...' if len(names) > 8 else ''}"
            )


def check_whole(who: str, **numbers: Any) -> None:
    """Refuses what is no whole number from 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{who}: {name} wants a whole number >= 1, got {value!r}")
