"""The third front door: a model of the shelf, with published weights or fresh ones."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.api.fitted import Fitted
from llmasos_xla.core import Variables
from llmasos_xla.models import pretrained
from llmasos_xla.models.config import Config
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.streaming import Stream
from llmasos_xla.sharding.placement import Placement, current
from llmasos_xla.training.placed import Programs, shardings_of, whole_batches


class Network(Fitted):
    """A model of the shelf: `lm.models.resnet50(...)` and `lm.load_pretrained(...)` make one.

    It is compiled, fitted, evaluated, saved, sharded and served as `Sequential` is; called, it gives its logits.

    Args:
        config: the model by its sizes.
        weights: a file or folder of published weights; fresh ones if None.
        seed: of the initial weights, the data's order and dropout; equal seeds give equal weights.
    """

    def __init__(self, config: Config, *, weights: str | os.PathLike | None = None, seed: int = 0):
        if not isinstance(config, Config):
            raise ValueError(
                f"Network: wants a configuration such as lm.models.ResNetConfig.resnet50(), got {type(config).__name__}"
            )
        self._set_up(config.spec(), seed)
        if weights is not None:
            self.read(weights)

    def read(
        self,
        weights: str | os.PathLike | Mapping[str, Any],
        *,
        shard: Any = None,
        source: str | None = None,
        ignored: Sequence[str] = (),
    ) -> None:
        """Takes published weights in the place of those it has.

        Args:
            weights: a file or folder, or arrays by the names that their source has for them.
            shard: a strategy's name or a `MeshSpec`: each device's part is read by itself, straight onto the mesh.
            source: "huggingface", "torch", "keras" or "llama2.c"; found from the names if None.
            ignored: regular expressions of names that may be left over.

        Raises FileNotFoundError, and ValueError that lists the arrays that are missing, left over or of another shape.
        """
        if isinstance(weights, str | os.PathLike):
            path = pathlib.Path(weights)
            self.folder = path if path.is_dir() else path.parent
        learner = self.learner
        learner.shard(shard)
        # What the weights may lack, a new head, is that of a fresh model of this seed.
        key, placement = jax.random.key(learner.seed), learner.placement
        learner.begin(
            pretrained.load(self.config, weights, source=source, ignored=ignored, key=key, placement=placement)
        )

    @property
    def config(self) -> Config:
        """The model by its sizes."""
        layer = self.learner.spec.layers[0]
        assert isinstance(layer, Config)
        return layer

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The logits of a batch of ready inputs, arrays as the network takes them: no preprocessing is applied.

        Positional and keyword arguments are the inputs by the names of `config.inputs`; the program is compiled once
        for each shape. Raises TypeError for missing and unknown inputs.
        """
        x = jax.tree.map(jnp.asarray, self.config.bind(*inputs, **named))
        variables, placement = self.learner.evaluation_variables, self.learner.placement
        if placement is None:
            if self._called is None:
                self._called = jax.jit(self._forward)
            return self._called(variables, x)
        rows = len(jax.tree.leaves(x)[0])
        size = whole_batches(rows, placement)
        x = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[:1], size - rows, 0)]) if size > rows else a, x)
        program = self._program(placement, size, variables, x)
        x = jax.device_put(x, placement.batch({"x": x})["x"])
        return jax.tree.map(lambda a: a[:rows], program(variables, x))

    def stream(self, *, batch: int = 1, chunk: int | None = None) -> Stream:
        """The network on sound that comes piece by piece, with the weights of this moment; see `models.Stream`.

        Raises ValueError for a network that does not stream.
        """
        return Stream(self.config, self.learner.evaluation_variables, batch=batch, chunk=chunk)

    def _forward(self, variables: Variables, x: Any) -> Any:
        placement = current()
        if placement is not None:
            variables = Variables(placement.gathered(variables.params), variables.state)
        return self.learner.spec.net().apply(variables, x, train=False)[0]

    def _program(self, placement: Placement, rows: int, variables: Variables, x: Any) -> Callable:
        shapes = (placement, str(jax.tree.map(lambda a: (a.shape, a.dtype), x)))
        if shapes not in self._on_mesh:

            def shardings(placement: Placement) -> tuple[tuple, Any]:
                weights = shardings_of(placement, variables, variables)
                return (weights, placement.batch({"x": x})["x"]), placement.replicated

            self._on_mesh[shapes] = Programs(placement, rows).compile(
                self._forward, variables, x, shardings=shardings, what=f"call of {rows} rows", log=self.learner.compiled
            )
        return self._on_mesh[shapes]

    def _door(self) -> dict[str, Any]:
        return {"door": "Network"}

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Network":
        network = object.__new__(cls)
        network._set_up(StackSpec(()), seed=0)
        return network

    def _set_up(self, spec: StackSpec, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.folder: pathlib.Path | None = None
        """Where its published weights were read from, with what else lies there: tokenizer, names of classes."""
        self._called: Callable | None = None
        self._on_mesh: dict[Any, Callable] = {}
