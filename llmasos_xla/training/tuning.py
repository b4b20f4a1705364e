"""Which of a model's arrays a fit may change, and how fast each: by patterns on their names."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from llmasos_xla.core import Net, Variables

_SHOWN = 8
# "blocks/3/", "stages/0/blocks/3/", "stage0_block3/", "block3_expand_conv/", "conv0_3/".
_NUMBER = re.compile(
    r"(?:^|/)(?:(blocks|layers|stages)/(\d+)(?=/)|(?:stage|block|conv|norm|slope)(\d+)(?:_(?:block)?(\d+))?(?=/|_[a-z]))"
)
# Blocks of a decoder lie in one array, whose first axis counts them.
_STACK = re.compile(r"(^|/)decoder/(attention|mlp|experts|router|feed_forward)")
# What stands before the first numbered layer; all else without a number stands behind the last one.
_FIRST = re.compile(r"embedding|token|position|patch|stem|stft|features|subsampling|(^|/)(w[tp]e|projection)/")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is trained. An array is, if its name matches `only` (where that is given) and does not match `frozen`.

    Attributes:
        frozen: a regular expression, searched for in the names of arrays that stay as they are, or None.
        only: a regular expression for the only ones that change, or None.
    """

    frozen: str | None = None
    only: str | None = None

    def __post_init__(self) -> None:
        for what, pattern in (("frozen", self.frozen), ("only", self.only)):
            check_pattern("freeze", what, pattern)

    def trains(self, name: str) -> bool:
        """Whether the array of that name changes in a fit."""
        if self.only is not None and re.search(self.only, name) is None:
            return False
        return self.frozen is None or re.search(self.frozen, name) is None

    @property
    def all(self) -> bool:
        """Whether everything is trained."""
        return self.frozen is None and self.only is None

    def transformation(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer for the trained arrays alone: the others have no state in it, and no updates come for them.

        Of parameters and gradients as flat dicts by name.
        """
        if self.all:
            return inner

        def trained(arrays: Mapping[str, Any]) -> dict[str, Any]:
            return {name: a for name, a in arrays.items() if self.trains(name)}

        def init(params: Any) -> Any:
            return inner.init(trained(params))

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return inner.update(trained(updates), state, None if params is None else trained(params))

        return optax.GradientTransformation(init, update)

    def net(self, net: Net) -> Net:
        """The network, with the statistics among the frozen arrays as they are."""
        if self.all:
            return net

        def apply(variables: Variables, *inputs: Any, **options: Any) -> Any:
            y, state = net.apply(variables, *inputs, **options)
            return y, {name: a if self.trains(name) else variables.state[name] for name, a in state.items()}

        return Net(net.init, apply)

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError for a pattern that names no array, and if nothing is left to train."""
        for what, pattern in (("freeze", self.frozen), ("only", self.only)):
            if pattern is not None and not any(re.search(pattern, name) for name in names):
                raise ValueError(f"{what}: no array's name matches {pattern!r}; there are {shown(names)}")
        if not any(map(self.trains, names)):
            raise ValueError(f"freeze: {self.frozen!r} freezes all arrays; nothing would be left to train")

    def to_json(self) -> dict[str, str | None]:
        """As JSON values."""
        return {"frozen": self.frozen, "only": self.only}

    @classmethod
    def from_json(cls, config: Any) -> "Tuning":
        """The inverse of `to_json`; None, of files from before there was any, trains everything."""
        if config is None:
            return cls()
        try:
            return cls(**config)
        except TypeError as error:
            raise ValueError(f"load: what is frozen is damaged: {error}") from error


def check_pattern(who: str, what: str, pattern: Any) -> None:
    """Raises ValueError for what is no regular expression."""
    try:
        if pattern is not None:
            re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{who}: {what} wants a regular expression such as 'embeddings|blocks/[0-3]/', got {pattern!r}: {error}"
        ) from None


def shown(names: Sequence[str]) -> str:
    """A few of many names, for an error."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def scaled_by_name(
    rates: Mapping[str, float], layer_decay: float | None, stacked: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Each array's update times its factor; the last link of an optimizer.

    Args:
        rates: regular expression -> factor; of an array that several match the first counts, one that none matches
            keeps its update. 0 keeps an array as it is.
        layer_decay: an array's factor besides is `layer_decay ** n` where n layers stand behind its own (Clark et al.
            2020, ELECTRA). A layer's number is that in its arrays' names, "blocks/3/"; embeddings stand before
            the first, heads behind the last.
        stacked: beginnings of the names of arrays whose first axis counts layers.
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        factors = _factors(updates, rates, layer_decay, stacked)
        return {n: a * jnp.asarray(factors[n], a.dtype) for n, a in updates.items()}, state

    def init(params: Any) -> optax.EmptyState:
        # Patterns that name nothing are told before the first step.
        _factors(params, rates, layer_decay, stacked)
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def _factors(
    arrays: Mapping[str, Any], rates: Mapping[str, float], layer_decay: float | None, stacked: Sequence[str]
) -> dict[str, Any]:
    for pattern in rates:
        if not any(re.search(pattern, name) for name in arrays):
            raise ValueError(f"Optimizer: rates: no array's name matches {pattern!r}; there are {shown(list(arrays))}")
    found: dict[str, Any] = {n: next((f for p, f in rates.items() if re.search(p, n)), 1.0) for n in arrays}
    if layer_decay is not None:
        behind = layers_behind({n: np.shape(a) for n, a in arrays.items()}, stacked)
        for name, factor in found.items():
            powers = factor * layer_decay ** np.asarray(behind[name], np.float32)
            found[name] = powers.reshape(-1, *[1] * (np.ndim(arrays[name]) - 1)) if powers.ndim else powers
    return found


def layers_behind(shapes: Mapping[str, Sequence[int]], stacked: Sequence[str] = ()) -> dict[str, Any]:
    """How many layers stand behind that of each array: a number, or one for each layer of a stack.

    Raises ValueError if no name tells a layer's number, and for several sequences, an encoder's and a decoder's.

    >>> layers_behind({"embeddings": (9, 4), "blocks/0/bias": (4,), "blocks/1/bias": (4,), "head/bias": (4,)})
    {'embeddings': 3, 'blocks/0/bias': 2, 'blocks/1/bias': 1, 'head/bias': 0}
    """
    places = {name: _place(name.removeprefix("lora/")) for name in shapes}
    stacks = {n for n in shapes if (stacked and n.startswith(tuple(stacked))) or (not places[n] and _STACK.search(n))}
    numbered = {name: place for name, place in places.items() if place is not None and name not in stacks}
    chains = {chain for chain, _ in numbered.values()} | {f"a stack of {shapes[name][0]}" for name in stacks}
    if len(chains) != 1:
        told = f"name several, {', '.join(sorted(chains)[:4])}" if chains else "tell none"
        raise ValueError(
            "Optimizer: layer_decay wants one sequence of layers that are numbered in their arrays' names, blocks/0/, "
            f"blocks/1/; these {told}. Give rates={{pattern: factor}} instead; there are {shown(list(shapes))}"
        )
    order = sorted({number for _, number in numbered.values()})
    depth = len(order) or shapes[next(iter(stacks))][0]
    behind: dict[str, Any] = {}
    for name in shapes:
        if name in stacks:
            behind[name] = np.arange(depth, 0, -1)
        elif name in numbered:
            behind[name] = depth - order.index(numbered[name][1])
        else:
            behind[name] = depth + 1 if _FIRST.search(name) else 0
    return behind


def _place(name: str) -> tuple[str, tuple[int, ...]] | None:
    """Where an array's layer stands: what is before its number, and its number, or that of stage and block."""
    found = list(_NUMBER.finditer(name))
    if not found:
        return None
    # Numbers within a block count its parts.
    found = found[: 2 if found[0][1] == "stages" else 1]
    return name[: found[0].start()], tuple(int(n) for match in found for n in match.groups()[1:] if n is not None)
