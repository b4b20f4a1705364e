"""The third front door: a model of the shelf, with published weights or fresh ones."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.api.fitted import Fitted
from llmasos_xla.models.config import Config
from llmasos_xla.models.spec import StackSpec


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
        super().__init__(config.spec(), seed=seed)
        self._called: Any = None
        if weights is not None:
            from llmasos_xla.models import pretrained

            self.variables = pretrained.load(config, weights, self.variables)

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
        if self._called is None:
            apply = self.config.net().apply
            self._called = jax.jit(lambda variables, x: apply(variables, x, train=False)[0])
        return self._called(self.learner.evaluation_variables, x)

    def _door(self) -> dict[str, Any]:
        return {"door": "Network"}

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Network":
        network = object.__new__(cls)
        Fitted.__init__(network, StackSpec(()), seed=0)
        network._called = None
        return network
