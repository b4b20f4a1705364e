"""What is exported: a function of its inputs that has the weights in it, and our own answers to hold a copy to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jax.extend import core

from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import LEAST, ROWS, Forward, arrays_of, forward_of, forward_of_net, made_up
from llmasos_xla.core import Net
from llmasos_xla.kernels import dividing_by_xla, tracing_for
from llmasos_xla.sharding.transfer import fetch
from llmasos_xla.storage import bundle
from llmasos_xla.storage.exported import shapes

_MADE_UP_ROWS = 4
_MOST_ROWS = 32

Arrays = dict[str, np.ndarray]


class Traced(NamedTuple):
    """A function as JAX's own operators."""

    program: Any
    """What `jax.make_jaxpr` gave."""
    shapes: list[Any]
    """Its inputs; the symbols in them are the program's."""
    least: int
    """The smallest size of free axes that it is for."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model for export to somebody else's format.

    Attributes:
        forward: what it computes, in float32.
        arrays: the weights by name.
        inputs: the encoded inputs that the copy takes; a text in a shape is a size that is free.
        outputs: the names of what it gives.
        checks: requests of different sizes with our own answers, by name.
        most: the largest size that free axes, but the rows, may have; None for any.
        labels: the names of classes, or None.
        encode: raw input as arrays by name, as many rows as came; for calibration.
    """

    forward: Forward
    arrays: Mapping[str, np.ndarray]
    inputs: tuple[bundle.Tensor, ...]
    outputs: tuple[str, ...]
    checks: tuple[tuple[Arrays, Arrays], ...]
    most: int | None
    labels: tuple[str, ...] | None
    encode: Callable[[Any, str], Arrays]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs, in the order in which the copy takes them."""
        return tuple(t.name for t in self.inputs)

    @property
    def rows(self) -> int | None:
        """The number of rows that it is exported for, None for any."""
        rows = self.inputs[0].shape[0]
        return rows if isinstance(rows, int) else None

    def function(self, *inputs: Any) -> tuple[Any, ...]:
        """The outputs in their order; to be traced, the weights are constants of it.

        Convolutions and pooling are one operator each, as on a TPU: what reads the copy has its own for them.
        """

        # Under jit they are arrays of JAX, which may be cut to a symbolic size; NumPy's cannot.
        @jax.jit
        def run(arrays: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
            found = self.forward.run(arrays, dict(zip(self.names, inputs, strict=True)))
            return tuple(found[name] for name in self.outputs)

        with dividing_by_xla(), tracing_for("tpu"):
            return run(self.arrays, inputs)

    def bounds(self, least: int) -> tuple[str, ...]:
        """What is said of the free sizes besides that they are: how small and how large they are."""
        free = sorted({n for t in self.inputs for n in t.shape[1:] if isinstance(n, str)})
        small = [f"{n} >= {least}" for n in free if least > 1]
        return (*small, *(f"{n} <= {self.most}" for n in free if self.most is not None))

    def shapes(self, least: int = 1) -> list[Any]:
        """The inputs as shapes and dtypes in their order, free sizes as symbols."""
        found = shapes(self.inputs, self.bounds(least))
        return [found[name] for name in self.names]

    def traced(self) -> Traced:
        """The function as `jax.make_jaxpr` gives it.

        The smallest size that a network takes is nowhere written down: it is found by trying. Raises ValueError for a
        model that cannot be traced for any size.
        """
        free = any(isinstance(n, str) for t in self.inputs for n in t.shape[1:])
        why: Exception | None = None
        for least in LEAST if free else LEAST[:1]:
            found = self.shapes(least)
            try:
                return Traced(jax.make_jaxpr(self.function)(*found), found, least)
            except (core.InconclusiveDimensionOperation, ValueError, TypeError) as error:
                why = why or error
        raise ValueError(
            f"export: the model cannot be traced for these sizes: {str(why)[:400]}{self.way_out()}"
        ) from why

    def way_out(self) -> str:
        """What to say of sizes where a converter cannot do with free ones."""
        free = ["rows"] if self.rows is None else []
        free += ["length"] if any(isinstance(n, str) for t in self.inputs for n in t.shape[1:]) else []
        return f" (with fixed sizes it may: {', '.join(f'{n}=' for n in free)})" if free else ""


def subject_of(model: Door, *, example: Any = None, rows: int | None = None, length: int | None = None) -> Subject:
    """A model as what an export writes down.

    Args:
        model: one that has seen data.
        example: raw input to check the copy with; made up if None. Of several inputs the copy takes those in it; if
            None, those that must come, and the attention mask.
        rows: the number of rows that the copy takes; any if None.
        length: the size of every axis whose size is free (words of a text, steps of a sound); any if None.

    Raises ValueError for a model that has never seen data, and for sizes that are no positive whole numbers.
    """
    learner = model.learner
    forward = forward_of(model, "export", "float32")
    preprocessing = learner.preprocessing
    assert preprocessing is not None

    def encode(raw: Any, who: str) -> Arrays:
        return {n: np.asarray(a) for n, a in forward.named(learner.encode(raw, f"export: {who}")).items()}

    if example is None:
        # Those that must come and the mask that tells padding: others are there for those who know of them.
        names = next((g for g in forward.groups if "attention_mask" in g), forward.groups[0])
        lengths = dict.fromkeys(forward.seen, length) if length is not None else forward.seen
        request = made_up(learner.spec, [t for t in forward.tensors if t.name in names], lengths, _MADE_UP_ROWS)
    else:
        request = encode(example, "example")
    most = getattr(learner.spec.layers[0], "context", None)
    return _subject(forward, fetch(arrays_of(model)), request, rows, length, most, preprocessing.label_names, encode)


def subject_of_net(net: Net | Callable, variables: Any, *, example: Any, rows: int | None = None) -> Subject:
    """Pure functions as what an export writes down; see `api.exporting.export_net`."""
    from llmasos_xla.api import files

    forward, request = forward_of_net(net, variables, example)

    def encode(raw: Any, who: str) -> Arrays:
        return forward_of_net(net, variables, raw)[1]

    arrays = fetch(files.arrays_by_name(variables, None))
    return _subject(forward, arrays, request, rows, None, None, None, encode)


def _subject(
    forward: Forward,
    arrays: Mapping[str, np.ndarray],
    request: Arrays,
    rows: int | None,
    length: int | None,
    most: int | None,
    labels: tuple[str, ...] | None,
    encode: Callable[[Any, str], Arrays],
) -> Subject:
    for name, value in (("rows", rows), ("length", length)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"export: {name} wants a whole number from 1, or None for any; got {value!r}")
    tensors = [t for t in forward.tensors if t.name in request]
    free = sorted({n for t in tensors for n in t.shape[1:] if isinstance(n, str)})
    sizes = {ROWS: rows, **dict.fromkeys(free, length)}
    inputs = tuple(
        t._replace(shape=tuple(n if isinstance(n, int) or sizes[n] is None else sizes[n] for n in t.shape))
        for t in tensors
    )
    for tensor in inputs:
        came = request[tensor.name].shape[1:]
        if any(isinstance(n, int) and n != m for n, m in zip(tensor.shape[1:], came, strict=True)):
            raise ValueError(
                f"export: the example's {tensor.name!r} has the shape {('rows', *came)}, the export is for "
                f"{('rows', *tensor.shape[1:])}; pass one of that length, or length=None"
            )
    count = len(next(iter(request.values())))
    whole = _of_rows(request, -(-min(max(count, 2), _MOST_ROWS) // (rows or 1)) * (rows or 1))
    if rows is None:
        requests = [whole, _shorter(_of_rows(request, 1), inputs)]
    else:
        starts = range(0, len(next(iter(whole.values()))), rows)
        requests = [{n: a[start : start + rows] for n, a in whole.items()} for start in starts]
        requests.append(_shorter(requests[0], inputs))
    own = jax.jit(forward.run)
    checks = tuple((r, jax.tree.map(np.asarray, own(arrays, r))) for r in requests)
    for name, answer in ((n, a) for _, answers in checks for n, a in answers.items()):
        if np.isnan(answer).any():
            raise ValueError(
                f"export: our own output {name!r} has values that are no numbers for this example, and no copy can be "
                "checked against them; look at the weights, or pass another example="
            )
    return Subject(forward, arrays, inputs, tuple(checks[0][1]), checks, most, labels, encode)


def _of_rows(request: Arrays, rows: int) -> Arrays:
    """As many rows, from the first on and round again."""
    return {n: a[np.arange(rows) % len(a)] for n, a in request.items()}


def _shorter(request: Arrays, inputs: Sequence[bundle.Tensor]) -> Arrays:
    """The same one shorter along free axes, so that a copy that holds on to a size is found out."""
    found = {}
    for tensor in inputs:
        array = request[tensor.name]
        kept = [max(m - 1, 1) if isinstance(n, str) else m for n, m in zip(tensor.shape[1:], array.shape[1:])]
        found[tensor.name] = array[(slice(None), *(slice(n) for n in kept))]
    return found
