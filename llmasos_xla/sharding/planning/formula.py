"""The messages of a training step, from its arrays' shapes and layouts alone."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llmasos_xla.sharding.placement import Placement
from llmasos_xla.sharding.planning.collectives import Collective
from llmasos_xla.sharding.rules import axes_in


def _process(device: Any) -> int:
    return device.process_index


def messages(
    arrays: Mapping[str, Any], placement: Placement, units: int, group_of: Callable[[Any], int] = _process
) -> list[Collective]:
    """What one step sends.

    A weight that is stored otherwise than it is used is gathered for the forward pass and again for the backward one;
    its gradient is summed over the devices that see other rows, and scattered where the weight is (on CPU XLA has no
    such message: it is summed whole, which sends twice as much). Products divided by
    features come in pairs, the first by its outputs, the second by its inputs: the pair sums its activations once in
    each pass, rows or tokens times features. Without a partner, the outputs of one divided by outputs are gathered, and
    the gradient of its inputs is summed. Keys and values go around a ring in each pass, and their gradients in the
    second. Left out: the activations that stages of a pipeline pass on, and the tokens that experts exchange. Of the
    layer that reads the data it counts too much: its input has no gradient, for which a step would gather or sum.

    Args:
        arrays: parameters by name.
        placement: where they lie.
        units: rows of the batch, times tokens of a row.
        group_of: device -> which of the groups it is in that are joined by fast links; by default its process.

    A mesh of one device sends nothing.

    >>> import jax, jax.numpy as jnp
    >>> from llmasos_xla.sharding.mesh import MeshSpec
    >>> spec = MeshSpec(data=4)
    >>> weights = {"dense/kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    >>> print(*messages(weights, Placement(spec, spec.mesh(jax.devices()[:4])), units=8))
    all-reduce of 1,048,576 bytes over data (4), 1 times
    """
    sizes = placement.spec.sizes
    layouts = {name: placement.layout(name, a.shape) for name, a in arrays.items()}
    features = {name: _tensor_axis(layouts[name].used, a.shape) for name, a in arrays.items()}
    divided_inputs = any(at == int(placement.is_stacked(name)) for name, at in features.items())
    scattered = "all-reduce" if placement.mesh.devices.flat[0].platform == "cpu" else "reduce-scatter"
    found = []
    for name, a in arrays.items():
        layout, at = layouts[name], features[name]
        stored, used = _axes(layout.stored), _axes(layout.used)
        size = a.size * a.dtype.itemsize
        split = math.prod(sizes[axis] for axis in used)
        gathered = tuple(axis for axis in stored if axis not in used)
        if gathered:
            over = math.prod(sizes[axis] for axis in gathered)
            found += [
                Collective("all-gather", size // split, over, gathered, _groups(placement, gathered, group_of))
            ] * 2
            found.append(Collective(scattered, size // split, over, gathered, _groups(placement, gathered, group_of)))
        summed = tuple(axis for axis in (*placement.batch_axes, "seq") if sizes[axis] > 1 and axis not in stored)
        if summed:
            over = math.prod(sizes[axis] for axis in summed)
            held = size // math.prod(sizes[axis] for axis in stored)
            found.append(Collective("all-reduce", held, over, summed, _groups(placement, summed, group_of)))
        if sizes["seq"] > 1 and re.search(r"(^|/)(key|value)/kernel$", name):
            found.append(_around_the_ring(a, split, placement, units, _groups(placement, ("seq",), group_of)))
        if at is not None:
            crossed = _groups(placement, ("tensor",), group_of)
            found += _of_features(a, at, divided_inputs, placement, units, crossed, int(placement.is_stacked(name)))
    return found


def _tensor_axis(used: Any, shape: tuple[int, ...]) -> int | None:
    """The axis of a matrix, or a stack of them, that is divided over tensor."""
    return next((i for i, entry in enumerate(used) if "tensor" in axes_in(entry)), None) if len(shape) > 1 else None


def _of_features(
    a: Any, at: int, divided_inputs: bool, placement: Placement, units: int, crossed: int, first: int
) -> list[Collective]:
    """What a product sends whose axis `at` is divided over tensor; `first` is its first axis that is no stack."""
    spec = placement.spec
    layers = a.shape[0] if first else 1
    rows = units // spec.batch_parts // spec.seq

    def message(kind: str, features: int, times: int) -> Collective:
        whole = rows * features * a.dtype.itemsize
        return Collective(kind, whole, spec.tensor, ("tensor",), crossed, times)

    if at == first:
        return [message("all-reduce", a.shape[-1], 2 * layers)]
    if divided_inputs:
        return []
    return [message("all-gather", a.shape[-1], layers), message("all-reduce", a.shape[-2], layers)]


def _around_the_ring(a: Any, split: int, placement: Placement, units: int, crossed: int) -> Collective:
    """The blocks of keys or values that a device passes on: S - 1 a pass, and S of their gradients."""
    spec, stacked = placement.spec, a.ndim > 3
    features = math.prod(a.shape[-2:]) // split
    block = units // spec.batch_parts // spec.seq * features * a.dtype.itemsize
    times = (3 * spec.seq - 2) * (a.shape[0] if stacked else 1)
    return Collective("permute", block, spec.seq, ("seq",), crossed, times)


def _axes(spec: Any) -> tuple[str, ...]:
    return tuple(axis for entry in spec for axis in axes_in(entry))


def _groups(placement: Placement, axes: tuple[str, ...], group_of: Callable[[Any], int]) -> int:
    """Over how many groups the devices along those axes are spread."""
    mesh = placement.mesh
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    return len({group_of(device) for device in np.ravel(mesh.devices[index])})
