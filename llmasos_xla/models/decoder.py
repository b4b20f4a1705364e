"""Decoder language models by their sizes."""

import dataclasses

from llmasos_xla.models.layers._base import Layer
from llmasos_xla.models.layers.decoder import Decoder
from llmasos_xla.models.layers.dense import Dense
from llmasos_xla.models.layers.embedding import Embedding
from llmasos_xla.models.layers.rms import RMSNormalization


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a Llama-style decoder language model (Touvron et al. 2023): ids [batch, time] -> logits of the next.

    `lm.Sequential(config.layers())` is the model. It is trained with
    `compile("adam", "sparse_categorical_crossentropy")` on ids `x[:, :-1]` with labels `x[:, 1:]`.

    Attributes:
        vocab: number of ids.
        width: features of a token.
        depth: number of blocks.
        num_heads: number of query heads.
        kv_heads: number of heads of keys and values; num_heads if None.
        key_dim: features of a head; width / num_heads if None.
        hidden_dim: features inside of the feed-forward network, of each expert; 8/3 of the width if None.
        rope_base: base of the rotary frequencies.
        epsilon: of the normalizations.
        dropout: share of each half block's outputs that is dropped in training.
        experts: number of experts a block, 0 for none.
        experts_per_token: how many of them see each token.
        rematerialize: what the derivative computes again, see `lm.layers.Decoder`.
        mask_zero: whether id 0 is padding, which stands at the right.

    >>> import llmasos_xla as lm
    >>> config = DecoderConfig.tiny(vocab=64)
    >>> model = lm.Sequential(config.layers())
    >>> sum(a.size for a in model.variables.params.values()) == config.parameters
    True
    """

    vocab: int
    width: int
    depth: int
    num_heads: int
    kv_heads: int | None = None
    key_dim: int | None = None
    hidden_dim: int | None = None
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    dropout: float = 0.0
    experts: int = 0
    experts_per_token: int = 2
    rematerialize: str = "none"
    mask_zero: bool = False

    @classmethod
    def tiny(cls, vocab: int = 256) -> "DecoderConfig":
        """For tests and first tries: 2 blocks of width 64."""
        return cls(vocab, width=64, depth=2, num_heads=4, kv_heads=2, hidden_dim=128)

    @classmethod
    def llama_7b(cls) -> "DecoderConfig":
        """Llama 2's smallest: 6.7 billion parameters."""
        return cls(32000, width=4096, depth=32, num_heads=32, hidden_dim=11008, rematerialize="block")

    @classmethod
    def llama_52b(cls) -> "DecoderConfig":
        """52.3 billion parameters of the same form, to plan for; there are no published weights of this size."""
        return cls(32000, width=8192, depth=64, num_heads=64, hidden_dim=22016, rematerialize="block")

    def layers(self) -> tuple[Layer, ...]:
        """The layers of the model, for `lm.Sequential`; time is of any length."""
        return (
            Embedding(self.vocab, self.width, mask_zero=self.mask_zero, input_shape=(None,)),
            self.decoder(),
            RMSNormalization(self.epsilon),
            Dense(self.vocab, use_bias=False),
        )

    def decoder(self) -> Decoder:
        """The blocks."""
        return Decoder(
            self.depth,
            self.num_heads,
            key_dim=self.key_dim,
            kv_heads=self.kv_heads,
            hidden_dim=self.hidden_dim,
            rope_base=self.rope_base,
            epsilon=self.epsilon,
            dropout=self.dropout,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            rematerialize=self.rematerialize,
        )

    @property
    def parameters(self) -> int:
        """Number of trained values: 2 vocab width + width + depth (attention + feed-forward + 2 width)."""
        decoder = self.decoder()
        width, heads, kv_heads = self.width, decoder.num_heads, decoder.kv_heads or decoder.num_heads
        attention = 2 * (heads + kv_heads) * (decoder.key_dim or width // heads) * width
        return 2 * self.vocab * width + width + self.depth * (attention + self._feed_forward(self.experts) + 2 * width)

    @property
    def parameters_per_token(self) -> int:
        """Those that each token meets: all but the experts that it is not sent to, which cost memory and no time."""
        idle = max(self.experts - self.experts_per_token, 0)
        return self.parameters - self.depth * idle * 3 * self.width * self.decoder().hidden(self.width)

    def _feed_forward(self, experts: int) -> int:
        hidden = self.decoder().hidden(self.width)
        return experts * (3 * self.width * hidden + self.width) if experts else 3 * self.width * hidden
