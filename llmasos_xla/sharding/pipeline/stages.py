"""What the stages of a pipeline compute, in terms of the buffers that all of them share."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from llmasos_xla.sharding.pipeline.carrier import Carrier, split_floats
from llmasos_xla.sharding.pipeline.flat import Arrangement, Arrays, Held


class Sums(NamedTuple):
    """What is added up, or carried, from micro-batch to micro-batch."""

    state: Held
    gradients: Held
    loss: jax.Array
    sums: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a pipeline with all shapes known.

    Attributes:
        stages: the functions.
        finish: the last stage's end.
        params: how the parameters lie.
        state: how the state lies.
        inputs: for each stage the shapes and dtypes of the carry it is given, of a micro-batch.
        branches: for each stage the number of its branch, from 0.
        carrier: how a carry becomes one array.
        microbatches: how many.
        rows: of a micro-batch.
        ends: shapes and dtypes of what `finish` gives.
    """

    stages: tuple[Callable[..., Any], ...]
    finish: Callable[[Any, Any], tuple[jax.Array, Any]]
    params: Arrangement
    state: Arrangement
    inputs: tuple[Any, ...]
    branches: tuple[int, ...]
    carrier: Carrier
    microbatches: int
    rows: int
    ends: tuple[Any, Any]

    @classmethod
    def make(
        cls,
        stages: Sequence[Callable[..., Any]],
        kinds: Sequence[Hashable],
        finish: Callable[[Any, Any], tuple[jax.Array, Any]],
        params: Arrangement,
        state: Arrangement,
        microbatches: int,
        lies: P,
        batch: Any,
        key: Any,
    ) -> "Plan":
        """Finds the shapes of everything, computing nothing."""
        rows = batch_rows(batch) // microbatches
        small = jax.eval_shape(lambda b: microbatch(cut(b, microbatches), jnp.int32(0), microbatches), batch)
        carry, inputs = small["x"], []
        for number, stage in enumerate(stages):
            inputs.append(carry)
            carry, new = jax.eval_shape(stage, params.abstract(number), state.abstract(number), carry, key)
            if new.keys() != state.abstract(number).keys():
                raise ValueError(
                    f"pipeline: stage {number} was given the state {sorted(state.abstract(number))} and gave back "
                    f"{sorted(new)}; the same names are wanted"
                )
        ends = jax.eval_shape(finish, carry, small)
        alike: list[Any] = []
        for number, kind in enumerate(kinds):
            layouts = [(a.layouts[number].shapes, a.layouts[number].dtypes) for a in (params, state)]
            leaves, structure = jax.tree.flatten((inputs[number], (*inputs, carry)[number + 1]))
            shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
            alike.append((kind, layouts, shapes, structure, number == 0, number == len(stages) - 1))
        branches = [alike.index(one) for one in alike]
        order = sorted(set(branches))
        return cls(
            tuple(stages),
            finish,
            params,
            state,
            tuple(inputs),
            tuple(order.index(first) for first in branches),
            Carrier(inputs[1:], rows, lies),
            microbatches,
            rows,
            ends,
        )

    def firsts(self) -> list[int]:
        """For each branch the first stage that takes it."""
        return [self.branches.index(branch) for branch in range(max(self.branches) + 1)]

    def given(self, stage: int, inbox: jax.Array, batch: Any) -> Any:
        """What the stage is called with."""
        return batch["x"] if stage == 0 else self.carrier.unpack(inbox, self.inputs[stage])

    def forward(self, stage: int, weights: Held, state: Held, inbox: jax.Array, batch: Any, key: Any) -> Any:
        """The words for the next stage and the new state."""
        arrays = self.params.arrays(stage, weights), self.state.arrays(stage, state)
        carry, new = self.stages[stage](*arrays, self.given(stage, inbox, batch), key)
        return self.carrier.pack(carry), self.state.held(stage, new)

    def backward(
        self,
        stage: int,
        weights: Held,
        state: Held,
        inbox: jax.Array,
        cotangent: jax.Array,
        batch: Any,
        key: Any,
        sums: Sums,
    ) -> tuple[jax.Array, Sums]:
        """The cotangent for the stage before and the sums with this micro-batch; `state` is that of the forward."""
        given = self.given(stage, inbox, batch)
        # Nobody asks for the gradient of a model's input.
        floats, put = ([], lambda _: given) if stage == 0 else split_floats(given)
        arrays = self.params.arrays(stage, weights)
        before = self.state.arrays(stage, state)
        if stage == len(self.stages) - 1:

            def end(arrays: Arrays, floats: list[jax.Array]) -> Any:
                carry, new = self.stages[stage](arrays, before, put(floats), key)
                loss, more = self.finish(carry, batch)
                return loss, (more, new)

            (loss, (more, new)), gradients = jax.value_and_grad(end, (0, 1), has_aux=True)(arrays, floats)
            sums = Sums(
                self.state.held(stage, new),
                sums.gradients,
                sums.loss + loss.astype(sums.loss.dtype),
                jax.tree.map(jnp.add, sums.sums, more),
            )
        else:

            def through(arrays: Arrays, floats: list[jax.Array]) -> list[jax.Array]:
                carry, _ = self.stages[stage](arrays, before, put(floats), key)
                return split_floats(carry)[0]

            _, pull = jax.vjp(through, arrays, floats)
            gradients = pull(self.carrier.unpack_cotangents(cotangent, self.inputs[stage + 1]))
        added = jax.tree.map(jnp.add, sums.gradients, self.params.held(stage, gradients[0], wide=True))
        return self.carrier.pack_cotangents(gradients[1]), sums._replace(gradients=added)


def batch_rows(batch: Any) -> int:
    """Rows of a batch."""
    return jax.tree.leaves(batch["x"])[0].shape[0]


def cut(batch: Any, microbatches: int) -> Any:
    """Arrays of rows as [rows of a micro-batch, micro-batches, ...], which moves nothing from device to device."""
    rows = batch_rows(batch)

    def one(a: jax.Array) -> jax.Array:
        return a.reshape(rows // microbatches, microbatches, *a.shape[1:]) if a.shape[:1] == (rows,) else a

    return jax.tree.map(one, batch)


def microbatch(batch: Any, number: jax.Array, microbatches: int) -> Any:
    """One micro-batch of a batch that is `cut`."""
    rows = batch_rows(batch)

    def one(a: jax.Array) -> jax.Array:
        if a.shape[:2] != (rows, microbatches):
            return a
        return jax.lax.dynamic_index_in_dim(a, number, axis=1, keepdims=False)

    return jax.tree.map(one, batch)
