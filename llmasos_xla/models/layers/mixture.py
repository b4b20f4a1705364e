"""A mixture of experts."""

import dataclasses

import jax
from flax import nnx

from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, sample_rank
from llmasos_xla.models.layers._experts import Mixing, mixture
from llmasos_xla.models.layers._modules import MaskModule
from llmasos_xla.models.layers._named import NamedArrays, drawn


@dataclasses.dataclass(frozen=True)
class MixtureOfExperts(Layer):
    """Sends each token to the `experts_per_token` of `experts` feed-forward networks that score it highest.

    [batch, time, width] -> the same. The score of an expert is sigmoid(x . router); the answers of the chosen ones,
    W_down (silu(W_gate x) * W_up x), are summed with their scores as weights, which are divided by their sum where
    there are two or more (Shazeer et al. 2017, DeepSeek-AI 2024).

    In training an expert takes ceil(capacity_factor * time * experts_per_token / experts) tokens of a row, in the order
    of time (Lepikhin et al. 2020); those over it are dropped there, and counted in `router/dropped`. In prediction
    nothing is dropped, for which every expert runs over the whole row, unless `prediction_capacity_factor` says how
    many tokens it takes. Padding is not routed and gives zeros.

    The load is balanced without a loss (Wang et al. 2024): `router/balance` is added to the scores where experts are
    chosen, and in each training step lowered by `balance_rate` for experts with more than their share of the batch,
    raised for those with less.

    Arrays: router/kernel [width, experts], experts/gate/kernel and experts/up/kernel [experts, width, hidden_dim],
    experts/down/kernel [experts, hidden_dim, width]. State: router/balance [experts], float32; router/dropped [],
    int32, the choices of the last training batch that found no place.

    >>> MixtureOfExperts(8, 128).output_shape((20, 64))
    (20, 64)
    """

    experts: int
    hidden_dim: int
    experts_per_token: int = 2
    capacity_factor: float = 1.25
    prediction_capacity_factor: float | None = None
    balance_rate: float = 1e-3
    kernel_initializer: str = "glorot_uniform"

    @property
    def mixing(self) -> Mixing:
        """How tokens find experts."""
        return Mixing.of(self)

    def check(self) -> None:
        """Refuses more experts a token than there are, and factors that leave no place."""
        self.mixing.check(self.who)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with router and experts."""
        self.output_shape(shape)
        return _MixtureOfExperts(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        sample_rank(self.who, shape, "time, channels")
        known_channels(self.who, shape)
        return shape


class _MixtureOfExperts(MaskModule, NamedArrays):
    def __init__(self, spec: MixtureOfExperts, width: int, rngs: nnx.Rngs):
        self.spec = spec
        shapes = spec.mixing.shapes(width, spec.hidden_dim)
        self.hold(
            {name: drawn(rngs.params(), name, shape, spec.kernel_initializer) for name, shape in shapes.items()},
            spec.mixing.state(),
        )

    def masked(
        self, x: jax.Array, mask: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
        y, state = mixture({**self.params(), **self.state()}, x, mask, self.spec.mixing, train=train)
        self.carry(state)
        return y, mask
