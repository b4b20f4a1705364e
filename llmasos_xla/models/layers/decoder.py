"""A stack of decoder blocks, scanned."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from llmasos_xla.models.layers._attend import attend as attend_over_devices
from llmasos_xla.models.layers._base import Layer, Shape
from llmasos_xla.models.layers._checks import known_channels, number, one_of, sample_rank, whole
from llmasos_xla.models.layers._experts import Mixing, mixture
from llmasos_xla.models.layers._modules import MaskModule, random_key
from llmasos_xla.models.layers._named import NamedArrays, drawn
from llmasos_xla.models.layers._rotary import rotate
from llmasos_xla.models.layers.dense import affine
from llmasos_xla.models.layers.regularization import drop
from llmasos_xla.models.layers.rms import check_epsilon, rms_norm
from llmasos_xla.sharding import placement, ring

REMATERIALIZE = ("none", "dots", "block")
"""What a block's derivative computes again."""

_DOT = "decoder_dot"


@dataclasses.dataclass(frozen=True)
class Decoder(Layer):
    """`depth` equal blocks of attention and a gated feed-forward network, as in Llama (Touvron et al. 2023).

    [batch, time, width] -> the same. A block is x + attention(norm(x)), then x + mlp(norm(x)): RMS normalization ahead
    of each half, queries and keys turned by rotary position embedding, `kv_heads` keys and values shared by groups of
    query heads (Ainslie et al. 2023), mlp(x) = W_down (silu(W_gate x) * W_up x) (Shazeer 2020), no biases. With
    `experts` the feed-forward network is a mixture of that many (`MixtureOfExperts` says how it routes). Softmax and
    normalization are float32. Steps that a mask calls padding are not looked at; their own outputs mean nothing.

    The blocks' arrays are stacked, [depth, ...], and the blocks run in one `jax.lax.scan`: a program is as large, and
    compiles as long, for 64 blocks as for 2. What follows a stack usually is `RMSNormalization`.

    Arrays, each with a leading axis [depth]: attention_norm/scale and mlp_norm/scale [width]; attention/query/kernel
    [width, num_heads, key_dim], attention/key/kernel and attention/value/kernel [width, kv_heads, key_dim],
    attention/output/kernel [num_heads, key_dim, width]; mlp/gate/kernel and mlp/up/kernel [width, hidden_dim],
    mlp/down/kernel [hidden_dim, width]; with experts those of `MixtureOfExperts` under mlp/, and its state.

    Args:
        depth: number of blocks.
        num_heads: number of query heads.
        key_dim: features of a head; width / num_heads if None.
        kv_heads: number of heads of keys and values, a divisor of num_heads; num_heads if None.
        hidden_dim: features inside of the feed-forward network (of each expert); if None 8/3 of the width, up to the
            next multiple of 64.
        rope_base: base of the rotary frequencies.
        rope_scaling: (factor,) divides the frequencies, (factor, low, high, context) does as Llama 3.1; see
            `_rotary.frequencies`.
        epsilon: of the normalizations.
        dropout: share of each half's outputs that is dropped in training.
        experts: number of experts a block; 0 for a plain feed-forward network.
        experts_per_token: how many of them see each token.
        capacity_factor, prediction_capacity_factor, balance_rate: as in `MixtureOfExperts`.
        rematerialize: what the derivative computes again instead of keeping it from the forward pass: "none"; "dots",
            all but the results of matrix products and attention; "block", everything but each block's input.
        causal: whether a step sees itself and earlier ones only.

    >>> Decoder(2, num_heads=4).output_shape((20, 64))
    (20, 64)
    """

    stacked: ClassVar[bool] = True
    """Its arrays have a leading axis of blocks; a part of the stack is `dataclasses.replace(layer, depth=...)`."""

    depth: int
    num_heads: int
    key_dim: int | None = None
    kv_heads: int | None = None
    hidden_dim: int | None = None
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    dropout: float = 0.0
    experts: int = dataclasses.field(default=0, metadata={"checked": False})
    experts_per_token: int = 2
    capacity_factor: float = 1.25
    prediction_capacity_factor: float | None = None
    balance_rate: float = 1e-3
    rematerialize: str = "none"
    causal: bool = True
    kernel_initializer: str = "glorot_uniform"
    rope_scaling: tuple[float, ...] | None = None

    @property
    def mixing(self) -> Mixing:
        """How tokens find experts."""
        return Mixing.of(self)

    def check(self) -> None:
        """Refuses heads that do not divide into groups, odd head sizes, and what makes no sense of the rest."""
        for name in ("key_dim", "kv_heads", "hidden_dim"):
            if getattr(self, name) is not None:
                self._set(**{name: whole(self.who, name, getattr(self, name))})
        if self.num_heads % (self.kv_heads or 1):
            raise ValueError(
                f"{self.who}: num_heads ({self.num_heads}) wants to be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.key_dim is not None and self.key_dim % 2:
            raise ValueError(f"{self.who}: rotary embedding turns pairs of features, key_dim is odd ({self.key_dim})")
        if number(self.who, "rope_base", self.rope_base, least=0.0) == 0:
            raise ValueError(f"{self.who}: rope_base wants a positive number, got 0")
        if self.rope_scaling is not None:
            self._set(rope_scaling=tuple(number(self.who, "rope_scaling", v, least=0.0) for v in self.rope_scaling))
            if len(self.rope_scaling) not in (1, 4) or 0 in self.rope_scaling:
                raise ValueError(
                    f"{self.who}: rope_scaling wants (factor,) or (factor, low, high, context), positive numbers, got "
                    f"{self.rope_scaling}"
                )
        check_epsilon(self.who, self.epsilon)
        number(self.who, "dropout", self.dropout, least=0.0, below=1.0)
        self._set(
            experts=whole(self.who, "experts", self.experts, least=0),
            rematerialize=one_of(self.who, "rematerialize", self.rematerialize, REMATERIALIZE),
        )
        if self.experts:
            self.mixing.check(self.who)

    def build(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """The module with the stacked arrays."""
        self.output_shape(shape)
        return DecoderModule(self, known_channels(self.who, shape), rngs)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        sample_rank(self.who, shape, "time, channels")
        self.shapes(known_channels(self.who, shape))
        return shape

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The trained arrays of one block, by name.

        >>> Decoder(2, num_heads=4, kv_heads=2).shapes(64)["attention/key/kernel"]
        (64, 2, 16)
        """
        heads, kv_heads = self.num_heads, self.kv_heads or self.num_heads
        dim = self.key_dim or width // heads
        if self.key_dim is None and (width % heads or dim % 2):
            raise ValueError(
                f"{self.who}: a width of {width} does not divide into {heads} heads of even size; say key_dim="
            )
        hidden = self.hidden(width)
        mlp = {"gate/kernel": (width, hidden), "up/kernel": (width, hidden), "down/kernel": (hidden, width)}
        if self.experts:
            mlp = self.mixing.shapes(width, hidden)
        return {
            "attention_norm/scale": (width,),
            "attention/query/kernel": (width, heads, dim),
            "attention/key/kernel": (width, kv_heads, dim),
            "attention/value/kernel": (width, kv_heads, dim),
            "attention/output/kernel": (heads, dim, width),
            "mlp_norm/scale": (width,),
            **{f"mlp/{name}": shape for name, shape in mlp.items()},
        }

    def hidden(self, width: int) -> int:
        """Features inside of the feed-forward network."""
        return self.hidden_dim or -(-8 * width // (3 * 64)) * 64


class DecoderModule(MaskModule, NamedArrays):
    """The stacked arrays and the scan over them. `prefix` is what the names of its arrays begin with in the model."""

    def __init__(self, spec: Decoder, width: int, rngs: nnx.Rngs, prefix: str | None = None):
        self.spec, self.prefix = spec, prefix or spec.name or "decoder"
        params = {
            name: drawn(rngs.params(), name, shape, spec.kernel_initializer, stack=(spec.depth,))
            for name, shape in spec.shapes(width).items()
        }
        state = spec.mixing.state() if spec.experts else {}
        self.hold(params, {f"mlp/{n}": jnp.broadcast_to(a, (spec.depth, *a.shape)) for n, a in state.items()})

    def masked(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The output and the mask; `positions` [time] or [batch, time] count from 0 if they are not given."""
        spec, params = self.spec, self.params()
        x = x.astype(jnp.result_type(x, params["attention/query/kernel"]))
        positions = jnp.arange(x.shape[1]) if positions is None else positions
        keys = jax.random.split(random_key(rngs, spec.who), spec.depth) if train and spec.dropout else None

        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return attend_over_devices(query, key, value, mask, causal=spec.causal)

        def layer(x: jax.Array, of_layer: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            params, state, key = of_layer
            arrays = {**_gathered(self.prefix, params), **state}
            return block(arrays, x, spec, positions, attend, mask=mask, train=train, key=key)

        layer, stacks = _rematerialized(layer, spec.rematerialize), (params, self.state(), keys)
        if spec.depth == 1:
            # A loop would keep XLA from fusing what stands before it and behind it.
            x, state = layer(_whole(x), jax.tree.map(lambda a: a[0], stacks))
            state = jax.tree.map(lambda a: a[None], state)
        else:
            x, state = jax.lax.scan(layer, _whole(x), stacks)
        x = _whole(x)
        self.carry(state)
        return x, mask

    def step(
        self, x: jax.Array, positions: jax.Array, look: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]
    ) -> jax.Array:
        """Some steps of a text that is written one after the other: `look(block, query, key, value)` keeps keys and
        values of each block, and gives what the queries see."""
        spec, params, state = self.spec, self.params(), self.state()
        x = x.astype(jnp.result_type(x, params["attention/query/kernel"]))
        for i in range(spec.depth):
            arrays = {name: a[i] for name, a in {**params, **state}.items()}
            x, _ = block(arrays, x, spec, positions, functools.partial(look, i))
        return x


def block(
    arrays: dict[str, jax.Array],
    x: jax.Array,
    spec: Decoder,
    positions: jax.Array,
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    mask: jax.Array | None = None,
    train: bool = False,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One block of a decoder: [batch, time, width] -> the same, and the new state of its experts (none without).

    Args:
        arrays: those of this block, by name, without the axis [depth].
        x: the input.
        spec: the decoder.
        positions: of the steps, [time] or [batch, time].
        attend: (query, key, value) -> what the queries see, [batch, time, heads, dim]; queries and keys are turned
            already. Who decodes step by step puts keys and values into a cache here, and looks at all of it.
        mask: False where a step is padding, which no expert sees; what attention sees is up to `attend`.
        train: whether dropout drops and experts have a capacity.
        key: for dropout.
    """

    def dropped(y: jax.Array, number: int) -> jax.Array:
        return y if key is None or not train else drop(y, jax.random.fold_in(key, number), spec.dropout, y.shape)

    def product(x: jax.Array, name: str, summed: int = 1) -> jax.Array:
        kernel = arrays[name]
        x = x.reshape(*x.shape[: x.ndim - summed], -1)
        y = affine(x, kernel.reshape(x.shape[-1], -1), None)
        return checkpoint_name(y.reshape(*x.shape[:-1], *kernel.shape[summed:]), _DOT)

    x = _whole(x)
    h = _whole(rms_norm(x, arrays["attention_norm/scale"], spec.epsilon))
    query, keys, value = (product(h, f"attention/{name}/kernel") for name in ("query", "key", "value"))
    query, keys = (rotate(a, positions, spec.rope_base, spec.rope_scaling) for a in (query, keys))
    seen = checkpoint_name(attend(query, keys, value), _DOT)
    x = _whole(x + dropped(product(seen, "attention/output/kernel", summed=2), 0))
    h = _whole(rms_norm(x, arrays["mlp_norm/scale"], spec.epsilon))
    if not spec.experts:
        h = product(jax.nn.silu(product(h, "mlp/gate/kernel")) * product(h, "mlp/up/kernel"), "mlp/down/kernel")
        return _whole(x + dropped(h, 1)), {}
    of_mlp = {name.removeprefix("mlp/"): a for name, a in arrays.items() if name.startswith("mlp/")}
    h, state = mixture(of_mlp, h, mask, spec.mixing, train=train)
    return _whole(x + dropped(h, 1)), {f"mlp/{name}": a for name, a in state.items()}


def _whole(x: jax.Array) -> jax.Array:
    """What products read, with all of its features on each device: told of one array alone, XLA divides the next."""
    here = placement.current()
    return x if here is None else here.whole_features(x)


def _rematerialized(layer: Callable, what: str) -> Callable:
    """The layer such that its derivative computes `what` again."""
    if what == "none":
        here = placement.current()
        # Weights put together for this layer are not kept whole until the backward pass, those of all layers at once.
        return placement.gathered_again(layer) if here is not None and here.spec.fsdp > 1 else layer
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(_DOT, ring.SAVED) if what == "dots" else policies.nothing_saveable
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]


def _gathered(prefix: str, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """One block's arrays, whole: the one place where a scan's step puts together what FSDP has split."""
    here = placement.current()
    return params if here is None else here.gathered_layer(prefix, params)
