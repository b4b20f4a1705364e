"""The one file that knows how an nnx.Module becomes a pure function.

Models are written in flax.nnx and run as plain flat dicts: `pure` splits a module once, and from then on parameters
are arrays by name, `{"blocks/0/conv/kernel": array}`. Sharding rules, optimizer masks, checkpoints, weight import and
live updates all speak these names.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
from flax import nnx


class Variables(NamedTuple):
    """All arrays of a model, by name."""

    params: dict[str, jax.Array]
    """Trained: `{"blocks/0/conv/kernel": ...}`."""
    state: dict[str, jax.Array]
    """Carried from call to call, not trained: `{"blocks/0/norm/mean": ...}`."""


# By its name, programs that take it as an argument can be written to a file and read where this package is.
jax.export.register_namedtuple_serialization(Variables, serialized_name="llmasos_xla.Variables")


class Net(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[jax.Array], Variables]
    """`init(key) -> Variables`"""
    apply: Callable[..., tuple[Any, dict[str, jax.Array]]]
    """`apply(variables, *inputs, train=False, key=None, **inputs) -> (output, new state)`"""


def pure(make: Callable[[nnx.Rngs], nnx.Module], method: str = "__call__") -> Net:
    """Turns a module constructor into `init(key)` and `apply(variables, x, train=..., key=...)`.

    `make(rngs)` builds the module; the module's `__call__` takes `train: bool` and `rngs: nnx.Rngs | None`. What it
    holds as `nnx.Param` becomes `params`; every other variable (batch statistics, a cache) becomes `state`.

    With `method`, `apply` calls that method of the module in the place of `__call__`, in the same way; "decoder.step"
    is the method "step" of what the module calls "decoder".

    Raises TypeError for a module that is made already.

    >>> import jax.numpy as jnp
    >>> class Scale(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.scale = nnx.Param(jnp.ones(()))
    ...     def __call__(self, x, *, train, rngs=None):
    ...         return x * self.scale[...]
    >>> net = pure(Scale)
    >>> variables = net.init(jax.random.key(0))
    >>> y, state = net.apply(variables, jnp.ones((2, 3)), train=False)
    >>> sorted(variables.params), y.shape
    (['scale'], (2, 3))
    """
    if isinstance(make, nnx.Module) or not callable(make):
        kind, way_out = type(make).__name__, ""
        if isinstance(make, nnx.Module):
            way_out = f": pass pure({kind}), or pure(lambda rngs: {kind}(..., rngs=rngs)) where it takes arguments"
        elif hasattr(make, "build"):
            way_out = ": pass pure(lambda rngs: layer.build(sample_shape, rngs))"
        raise TypeError(
            f"pure: a constructor is wanted, which makes the module of an nnx.Rngs, got an instance of {kind}{way_out}"
        )
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef = nnx.graphdef(abstract)
    path_of = {_name(path): path for path, _ in nnx.to_flat_state(nnx.state(abstract))}

    def init(key: jax.Array) -> Variables:
        return _split(make(nnx.Rngs(key)))

    def apply(
        variables: Variables, *args: Any, train: bool = False, key: jax.Array | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        leaves = {**variables.params, **variables.state}
        if leaves.keys() != path_of.keys():
            raise ValueError(
                f"apply: the variables do not fit the model: missing {sorted(path_of.keys() - leaves.keys())}, "
                f"left over {sorted(leaves.keys() - path_of.keys())}"
            )
        model = nnx.merge(graphdef, nnx.from_flat_state([(path_of[n], a) for n, a in leaves.items()]))
        call = operator.attrgetter(method)(model)
        y = call(*args, train=train, rngs=None if key is None else nnx.Rngs(key), **kwargs)
        return y, _split(model).state

    return Net(init, apply)


def _split(model: nnx.Module) -> Variables:
    _, params, state = nnx.split(model, nnx.Param, ...)
    return Variables(_by_name(params), _by_name(state))


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _by_name(state: Any) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in nnx.to_flat_state(nnx.as_pure(state))}
