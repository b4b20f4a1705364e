"""LoRA (Hu et al. 2021): small products beside frozen kernels, trained in their place.

A kernel W that a pattern names is used as W + alpha / rank * down @ up. The adapters are parameters by name like any
other, "lora/<name of the kernel>/down" and ".../up"; what the network computes is untouched, so all of them can have
some, whatever their layers.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.core import Net, Variables

PREFIX = "lora/"
_SHOWN = 8
# Kernels by name: how many axes one has, of which so many go in. What stands before counts layers or experts, each of
# which has adapters of its own. Of all other kernels, convolutions among them, all axes but the last go in.
_KERNELS = (
    (re.compile(r"(^|/)(query|key|value)/kernel$"), 3, 1),
    (re.compile(r"(^|/)qkv/kernel$"), 4, 1),
    (re.compile(r"attention\w*/output/kernel$"), 3, 2),
    (re.compile(r"(^|/)(gate|up|down)/kernel$"), 2, 1),
)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels get adapters, and of what size.

    Args:
        rank: columns of `down` and rows of `up`.
        alpha: the product counts alpha / rank times.
        where: a regular expression, searched for in the names of arrays.

    Raises ValueError for sizes and patterns that cannot be.
    """

    rank: int = 8
    alpha: float | int = 16.0
    where: str = r"attention\w*/(query|value|qkv)/kernel$"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"LoRA: rank wants a whole number >= 1, got {self.rank!r}")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"LoRA: alpha wants a number > 0, got {self.alpha!r}")
        object.__setattr__(self, "alpha", float(self.alpha))
        try:
            re.compile(self.where)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"LoRA: where wants a regular expression such as 'attention/(query|value)/kernel', got {self.where!r}: "
                f"{error}"
            ) from None

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    def shapes(self, params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the adapters of a model with these parameters: [..., cin, rank] and [..., rank, cout].

        Raises ValueError if no name matches, and for an array that is no kernel or smaller than the rank.
        """
        found = {}
        for name, a in params.items():
            if name.startswith(PREFIX) or re.search(self.where, name) is None:
                continue
            shape = tuple(np.shape(a))
            if len(shape) < 2:
                raise ValueError(f"LoRA: {name} {shape} is no kernel; let where= name kernels alone")
            axes, into = next(((n, i) for p, n, i in _KERNELS if p.search(name)), (len(shape), len(shape) - 1))
            first = max(len(shape) - axes, 0)
            layers, cin, cout = shape[:first], math.prod(shape[first : first + into]), math.prod(shape[first + into :])
            if self.rank > min(cin, cout):
                raise ValueError(f"LoRA: rank {self.rank} is more than {name} {shape} has, {min(cin, cout)}")
            found[f"{PREFIX}{name}/down"] = (*layers, cin, self.rank)
            found[f"{PREFIX}{name}/up"] = (*layers, self.rank, cout)
        if not found:
            kernels = sorted(n for n, a in params.items() if len(np.shape(a)) > 1)
            raise ValueError(
                f"LoRA: no array's name matches {self.where!r}; kernels are {', '.join(kernels[:_SHOWN])} ..."
            )
        return found

    def init(self, key: jax.Array, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Fresh adapters: `up` is zero, so that the model is what it was; `down` is normal of variance 1 / cin."""
        made = {}
        for name, shape in self.shapes(params).items():
            dtype = params[kernel_of(name)].dtype
            if name.endswith("/up"):
                made[name] = jnp.zeros(shape, dtype)
            else:
                own = jax.random.fold_in(key, zlib.crc32(name.encode()) >> 1)
                made[name] = jax.random.normal(own, shape, dtype) / math.sqrt(shape[-2])
        return made

    def adapted(self, net: Net) -> Net:
        """The network with adapters: `init` makes them too, `apply` wants them among the parameters."""

        def init(key: jax.Array) -> Variables:
            variables = net.init(key)
            adapters = self.init(jax.random.fold_in(key, 1), variables.params)
            return Variables({**variables.params, **adapters}, variables.state)

        def apply(variables: Variables, *inputs: Any, **options: Any) -> Any:
            return net.apply(self.merged(variables), *inputs, **options)

        return Net(init, apply)

    def merged(self, variables: Variables) -> Variables:
        """The variables without adapters, which are added to their kernels."""
        adapters = adapters_in(variables.params)
        base = {name: a for name, a in variables.params.items() if name not in adapters}
        return Variables(self._added(base, adapters, self.scale), variables.state)

    def unmerged(self, variables: Variables, adapters: Mapping[str, jax.Array]) -> Variables:
        """The inverse of `merged`, within rounding: adapters taken out of their kernels and put beside them."""
        base = self._added(variables.params, adapters, -self.scale)
        return Variables({**base, **adapters}, variables.state)

    def _added(
        self, params: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], scale: float
    ) -> dict[str, Any]:
        params = dict(params)
        for name, down in adapters.items():
            if not name.endswith("/down"):
                continue
            kernel = params[kernel_of(name)]
            product = jnp.matmul(down, adapters[name.removesuffix("down") + "up"])
            params[kernel_of(name)] = kernel + (scale * product).reshape(kernel.shape).astype(kernel.dtype)
        return params

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, config: Any) -> "LoRA":
        """The inverse of `to_json`; raises ValueError for anything else."""
        try:
            return cls(**config)
        except TypeError as error:
            raise ValueError(f"LoRA: its sizes are damaged: {error}") from error


def kernel_of(adapter: str) -> str:
    """The name of the kernel that an adapter belongs to.

    >>> kernel_of("lora/bert/blocks/0/attention/query/kernel/down")
    'bert/blocks/0/attention/query/kernel'
    """
    return adapter.removeprefix(PREFIX).rpartition("/")[0]


def adapters_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """The adapters among a model's parameters."""
    return {name: a for name, a in params.items() if name.startswith(PREFIX)}
