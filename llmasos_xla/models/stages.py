"""A list of layers cut into stages, for the devices of a pipeline (`sharding.pipeline`)."""

import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmasos_xla.core import Net, Variables, pure
from llmasos_xla.models.layers._base import Layer, Shape, layer_names
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.stack import Stack, output_shapes, split_head
from llmasos_xla.sharding.pipeline.flat import Part, Rows
from llmasos_xla.sharding.planning.flops import flops

_ANY_LENGTH = 128
"""What an axis of any length counts as when costs are compared."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some layers of a model, one after the other, as a function of the arrays that the whole model has.

    Attributes:
        layers: the layers, named as in the whole model.
        shape: shape of one sample that comes in.
        number: which stage it is, from 0.
        draws: how many random keys the stages before it draw.
        owned: the arrays that only this stage uses, or rows of them.
        stacked: arrays whose rows all stages share evenly.
    """

    layers: tuple[Layer, ...]
    shape: Shape
    number: int
    draws: int
    owned: tuple[Part, ...]
    stacked: tuple[str, ...]

    def __call__(
        self, params: dict[str, jax.Array], state: dict[str, jax.Array], carry: Any, key: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Training's output and mask, which go on to the next stage, and the new state.

        `carry` is the model's input in stage 0, what the stage before gave in the others. `key` is None or a pair: the
        key that the whole model would get and `draws`, so that a stage draws what it would draw in the whole model.
        """
        x, mask = (carry, None) if self.number == 0 else carry
        variables = Variables(*({_PREFIX + name: a for name, a in arrays.items()} for arrays in (params, state)))
        key, draws = (None, 0) if key is None else key
        out, new = self._net.apply(variables, x, mask, draws, train=True, key=key)
        return out, {name.removeprefix(_PREFIX): a for name, a in new.items()}

    @property
    def kind(self) -> Hashable:
        """Equal for stages that compute the same, whatever their arrays are called."""
        return tuple(dataclasses.replace(layer, name=None, input_shape=None) for layer in self.layers), self.shape

    @functools.cached_property
    def _net(self) -> Net:
        return pure(lambda rngs: _Part(self.layers, self.shape, rngs))


_PREFIX = "stack/"


class _Part(nnx.Module):
    def __init__(self, layers: Sequence[Layer], shape: Shape, rngs: nnx.Rngs):
        self.stack = Stack(layers, shape, rngs=rngs)

    def __call__(self, x: Any, mask: Any, draws: Any, *, train: bool, rngs: nnx.Rngs | None = None) -> Any:
        if rngs is not None:
            rngs["dropout"].count[...] += jnp.asarray(draws, jnp.uint32)
        return self.stack.masked(x, mask, train=train, rngs=rngs)


def split(spec: StackSpec, stages: int, costs: Sequence[float | int] | None = None) -> list[Stage]:
    """A model's layers, up to its logits, as `stages` runs of layers whose largest cost is as small as it can be.

    Of equally good cuts the one that hands on the least is taken. A layer with `stacked = True` and a field `depth`,
    whose arrays all have a leading axis of that size, may be cut into parts of lesser depth. If a model has one such
    layer and the stages divide its depth, each stage gets as many of its rows (the layers ahead go to the first stage,
    those behind to the last), so that rows never move; give `costs` to have it cut where it balances best instead.

    Args:
        spec: the model.
        stages: how many.
        costs: one number a layer, all of its depth together; by default operations of the forward computation.

    Raises ValueError if there are too few layers or other than one cost a layer.

    >>> from llmasos_xla.models.layers import Dense
    >>> spec = StackSpec((Dense(8), Dense(8), Dense(64), Dense(3, activation="softmax")), (8,))
    >>> [[layer.name for layer in stage.layers] for stage in split(spec, 2)]
    [['dense', 'dense_1', 'dense_2'], ['dense_3']]
    """
    if spec.lora is not None:
        raise ValueError('shard: a pipeline takes no adapters; call model.merge_lora() first, or split over "fsdp"')
    layers, _ = split_head(spec.layers)
    shape = spec.known_shape()
    inputs = [shape, *output_shapes(layers, shape)]
    named = tuple(dataclasses.replace(one, name=n) for one, n in zip(layers, layer_names(layers), strict=True))
    depths = [_depth(layer) for layer in named]
    names = ", ".join(layer.name or "" for layer in named)
    if stages < 1 or sum(depths) < stages:
        raise ValueError(
            f"split: the model has {sum(depths)} layers ({names}), too few for {stages} stages of at least one; take a "
            f"mesh with pipe={max(sum(depths), 1)} or less"
        )
    if costs is not None and len(costs) != len(named):
        raise ValueError(
            f"split: got {len(costs)} costs for {len(named)} layers ({names}); one a layer is wanted, a last softmax "
            "or sigmoid being part of the layer before it"
        )
    rows = [(number, row) for number, depth in enumerate(depths) for row in range(depth)]
    deep = [number for number, depth in enumerate(depths) if depth > 1]
    if costs is None and len(deep) == 1 and depths[deep[0]] % stages == 0:
        first, part = rows.index((deep[0], 0)), depths[deep[0]] // stages
        ends = [*(first + part * (s + 1) for s in range(stages - 1)), len(rows)]
    else:
        by_layer = [_cost(*pair) for pair in zip(named, inputs)] if costs is None else list(costs)
        handed = [float(math.prod(_known(inputs[number + (row == depths[number] - 1)]))) for number, row in rows[:-1]]
        ends = partition([by_layer[number] / depths[number] for number, _ in rows], handed, stages)
    return _stages(named, inputs, depths, [rows[a:b] for a, b in zip([0, *ends[:-1]], ends)])


def partition(costs: Sequence[float | int], handed: Sequence[float | int], parts: int) -> list[int]:
    """Where each of `parts` runs of items ends, so that the largest sum of a run is least.

    Exact, by dynamic programming. `handed[i]` is what goes from item i to item i + 1; of equally good partitions the
    one whose runs hand on the least in total is taken.

    >>> partition([1, 1, 4, 1, 1], [1, 1, 1, 1], 3)
    [2, 3, 5]
    """
    total = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])
    count = len(costs)

    def runs(end: int, done: int) -> range:
        return range(done, end)

    largest = [{0: 0.0}]
    for done in range(parts):
        before = largest[-1]
        last = [count] if done == parts - 1 else range(done + 1, count + 1)
        largest.append(
            {e: min(max(before[b], total[e] - total[b]) for b in runs(e, done) if b in before) for e in last}
        )
    limit = largest[-1][count] * (1 + 1e-9)
    least: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
    for done in range(parts):
        found: dict[int, tuple[float, list[int]]] = {}
        for end in [count] if done == parts - 1 else range(done + 1, count):
            over = handed[end - 1] if end < count else 0.0
            options = [
                (least[-1][b][0] + over, [*least[-1][b][1], end])
                for b in runs(end, done)
                if b in least[-1] and total[end] - total[b] <= limit
            ]
            if options:
                found[end] = min(options)
        least.append(found)
    return least[-1][count][1]


def _stages(
    layers: Sequence[Layer], inputs: Sequence[Shape], depths: Sequence[int], runs: Sequence[Sequence[tuple[int, int]]]
) -> list[Stage]:
    """The stages of those runs of (layer, row)."""
    cuts: list[dict[int, tuple[int, int]]] = []
    for run in runs:
        first, last = run[0], run[-1]
        cuts.append({n: (0, depths[n]) for n in range(first[0], last[0] + 1)})
        cuts[-1][first[0]] = (first[1], cuts[-1][first[0]][1])
        cuts[-1][last[0]] = (cuts[-1][last[0]][0], last[1] + 1)
    stages: list[Stage] = []
    draws = 0
    for number, cut in enumerate(cuts):
        parts = [
            layers[n] if stop - start == depths[n] else dataclasses.replace(layers[n], **{"depth": stop - start})
            for n, (start, stop) in cut.items()
        ]
        stage = Stage(tuple(parts), inputs[min(cut)], number, draws, (), ())
        names, drawn = _look(stage)
        owned: list[Part] = []
        stacked: list[str] = []
        for (n, (start, stop)), part in zip(cut.items(), parts):
            share = depths[n] // len(runs)
            even = len(runs) > 1 and all(c.get(n) == (s * share, (s + 1) * share) for s, c in enumerate(cuts))
            for name in (name for name in names if name.split("/")[0] == part.name):
                if even:
                    stacked.append(name)
                else:
                    owned.append(name if stop - start == depths[n] else Rows(name, start, stop))
        stages.append(dataclasses.replace(stage, owned=tuple(owned), stacked=tuple(stacked)))
        draws += drawn
    return stages


def _look(stage: Stage) -> tuple[list[str], int]:
    """The names of a stage's arrays, and how many random keys it draws in training."""
    drawn = 0

    class Counting(nnx.Rngs):
        def dropout(self) -> jax.Array:
            nonlocal drawn
            drawn += 1
            return self.default()

    def run(x: Any) -> Any:
        stack = Stack(stage.layers, stage.shape, rngs=nnx.Rngs(0))
        return stack.masked(x, None, train=True, rngs=Counting(0))[0]

    jax.eval_shape(run, _sample(stage.layers[0], stage.shape))
    variables = jax.eval_shape(stage._net.init, jax.random.key(0))
    names = [name.removeprefix(_PREFIX) for arrays in variables for name in arrays]
    order = [layer.name for layer in stage.layers]
    # By layer and not by name, so that equal stages have their arrays in the same order.
    return sorted(names, key=lambda name: (order.index(name.split("/")[0]), name)), drawn


def _depth(layer: Any) -> int:
    """The parts that a layer may be cut into."""
    return layer.depth if getattr(layer, "stacked", False) else 1


def _cost(layer: Layer, shape: Shape) -> float:
    """Operations of one sample's forward computation."""
    net = pure(lambda rngs: Stack((layer,), shape, rngs=rngs))
    variables = jax.eval_shape(net.init, jax.random.key(0))
    run = functools.partial(net.apply, train=True, key=jax.random.key(0))
    return sum(flops(run, variables, _sample(layer, shape), passes=True).values(), 0.0)


def _sample(layer: Layer, shape: Shape) -> Any:
    return layer.abstract(shape, 1, _ANY_LENGTH)


def _known(shape: Shape) -> tuple[int, ...]:
    return tuple(_ANY_LENGTH if size is None else size for size in shape)
