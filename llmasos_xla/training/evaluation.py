"""Evaluation and prediction: batches of one shape, so that every size of input runs the same few programs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.compiling import CompileRecord
from llmasos_xla.core import Variables
from llmasos_xla.data.batches import batches
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.training.placed import Programs, shardings_of, tracing, whole_batches
from llmasos_xla.training.report import Quiet
from llmasos_xla.training.step import Objective, make_eval_step, over_group


class Evaluator:
    """Evaluates a data set, on one device or as a placement says; keeps the compiled programs, one a batch shape."""

    def __init__(
        self,
        objective: Objective,
        batch_size: int = 128,
        log: list[CompileRecord] | None = None,
        placement: Placement | None = None,
    ):
        self.objective, self.batch_size, self.log, self.placement = objective, batch_size, log, placement
        self._programs: dict[Any, tuple[Callable, Any]] = {}

    def __call__(
        self,
        variables: Variables,
        dataset: Any,
        preprocessing: Any,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        report: Quiet | None = None,
        prefix: str = "",
    ) -> dict[str, float]:
        """Loss and metrics over the data set, padding left out."""
        report = report or Quiet()
        size = whole_batches(min(batch_size or self.batch_size, len(dataset)), self.placement)
        programs = Programs(self.placement, size)
        source = batches(dataset, preprocessing, batch_size=size, shuffle=False, workers=workers, share=programs.share)
        totals = None
        for group in source:
            arrays = programs.batch(arrays_of(group), axis=1)
            if totals is None:
                program, totals = self._program(programs, arrays, variables, report)
            totals = program(totals, arrays, np.int32(group.steps), variables)
        if totals is None:
            raise ValueError("evaluate: the data set has no rows")
        return totals.read(self.objective.metrics, prefix)

    def _program(
        self, programs: Programs, arrays: dict[str, Any], variables: Variables, report: Quiet
    ) -> tuple[Callable, Any]:
        shapes = str(jax.tree.map(lambda a: (a.shape, a.dtype), arrays))
        if shapes not in self._programs:
            one = jax.tree.map(lambda a: jnp.asarray(a[0]), arrays)
            with tracing(self.placement):
                empty = programs.everywhere(self.objective.empty(one["y"], one["x"], variables))
            step = over_group(make_eval_step(self.objective))

            def shardings(placement: Placement) -> tuple[tuple, Any]:
                whole = placement.replicated
                rows, weights = placement.batch(arrays, axis=1), shardings_of(placement, variables, variables)
                return (whole, rows, whole, weights), whole

            with report.compiling("evaluation"):
                program = programs.compile(
                    step, empty, arrays, np.int32(1), variables, shardings=shardings, what="evaluation", log=self.log
                )
            self._programs[shapes] = program, empty
        return self._programs[shapes]


class Predictor:
    """Predicts rows in batches padded to a power of two, so that few programs serve every number of rows.

    On a mesh the rows are padded until they divide over it; in several processes all of them are given all rows, and
    get all outputs.
    """

    def __init__(
        self,
        objective: Objective,
        batch_size: int = 256,
        log: list[CompileRecord] | None = None,
        placement: Placement | None = None,
    ):
        self.objective, self.batch_size, self.log, self.placement = objective, batch_size, log, placement
        self._programs: dict[Any, Callable] = {}

    def __call__(self, variables: Variables, x: Any) -> Any:
        """Outputs [rows, ...] float32 of encoded input [rows, ...]; several where the model gives several."""
        rows = len(jax.tree.leaves(x)[0])
        if not rows:
            raise ValueError("predict: the input has no rows")
        parts = []
        for start in range(0, rows, self.batch_size):
            part = jax.tree.map(lambda a, start=start: np.asarray(a[start : start + self.batch_size]), x)
            size = len(jax.tree.leaves(part)[0])
            bucket = whole_batches(min(1 << (size - 1).bit_length(), self.batch_size), self.placement)
            padded = jax.tree.map(
                lambda a, n=bucket - size: np.concatenate([a, np.repeat(a[:1], n, 0)]) if n else a, part
            )
            programs = Programs(self.placement, bucket)
            mine = padded if programs.share is None else jax.tree.map(lambda a, rows=programs.share: a[rows], padded)
            outputs = self._program(programs, padded, variables)(variables, programs.batch({"x": mine}, axis=0)["x"])
            parts.append(jax.tree.map(lambda a, size=size: a[:size], outputs))
        return jax.tree.map(lambda *part: np.concatenate([np.asarray(a) for a in part]), *parts)

    def _program(self, programs: Programs, x: Any, variables: Variables) -> Callable:
        shapes = str(jax.tree.map(lambda a: (a.shape, a.dtype), x))
        if shapes not in self._programs:
            rows = len(jax.tree.leaves(x)[0])

            def shardings(placement: Placement) -> tuple[tuple, Any]:
                weights = shardings_of(placement, variables, variables)
                return (weights, placement.batch({"x": x}, axis=0)["x"]), placement.replicated

            self._programs[shapes] = programs.compile(
                self.objective.predict, variables, x, shardings=shardings, what=f"predict {rows} rows", log=self.log
            )
        return self._programs[shapes]


def arrays_of(group: Any) -> dict[str, Any]:
    """The arrays of a group of batches, as the steps take them."""
    return {"x": group.x, "y": group.y, "weight": group.weight, "count": group.count}
