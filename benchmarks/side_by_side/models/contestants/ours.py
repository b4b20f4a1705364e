"""The package's models, as a user calls them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import llmasos_xla as lm
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.fill import fill
from side_by_side.models import weights
from side_by_side.models.rows import BLOCK, IMAGE, LENGTH, NEW, PROMPT, VOCAB, Row


def job(row: Row, variant: str) -> Callable[[], Any]:
    """The row's call."""
    return {"resnet50": _resnet, "vgg16": _vgg, "bert": _bert, "gpt2": _gpt2, "nanogpt": _nanogpt}[row.kind](row)


def _network(config: Config, source: str) -> Any:
    wanted = jax.eval_shape(config.net().init, jax.random.key(0))
    shapes = {**wanted.params, **wanted.state}
    arrays = {}
    for name in config.names(source):
        ours = shapes[f"{config.base_name}/{name.ours}"]
        several = not isinstance(name.theirs, str)
        for theirs in name.theirs if several else (name.theirs,):
            blank = np.broadcast_to(np.float32(0), ours.shape[1:] if several else ours.shape)
            arrays[theirs] = weights.drawn(theirs, name.layout.theirs(blank).shape)
    network = lm.Network(config)
    network.variables = jax.tree.map(jax.numpy.asarray, fill(config, arrays, source))
    return network


def _resnet(row: Row) -> Callable[[], Any]:
    network = _network(lm.models.ResNetConfig.resnet50(), "huggingface")
    x = weights.images(row.batch, *IMAGE)
    return lambda: np.asarray(network(x))


def _vgg(row: Row) -> Callable[[], Any]:
    network = _network(lm.models.VGGConfig.vgg16(), "torch")
    x = weights.images(row.batch, *IMAGE)
    return lambda: np.asarray(network(x))


def _bert(row: Row) -> Callable[[], Any]:
    config = lm.models.BertConfig.base(task="hidden")
    network = _network(config, "huggingface")
    ids = weights.ids(config.vocab, row.batch, LENGTH).astype(np.int32)
    mask = np.ones_like(ids)
    return lambda: np.asarray(network(ids, mask))


def _gpt2(row: Row) -> Callable[[], Any]:
    config = lm.models.GPT2Config.gpt2()
    network = _network(config, "huggingface")
    ids = weights.ids(config.vocab, row.batch, PROMPT).astype(np.int32)
    return lambda: np.asarray(lm.generate(network, ids, max_new_tokens=NEW, temperature=0.0))[:, -NEW:]


def _nanogpt(row: Row) -> Callable[[], Any]:
    """The package's own step as `fit` compiles it, on batches that lie ready."""
    config = lm.models.GPT2Config.nanogpt(vocab=VOCAB, dropout=0.0)
    network = _network(config, "huggingface")
    network.compile(lm.Optimizer("adamw", learning_rate=1e-3, beta_1=0.9, beta_2=0.99, weight_decay=0.1))
    ids = weights.ids(VOCAB, row.batch * 20, BLOCK + 1).astype(np.int32)
    data = lm.Dataset((ids[:, :-1], ids[:, 1:]), mode="test")

    def call() -> Any:
        # Twenty steps a call, as a peer's has; in another order, since fit shuffles, so that the losses are only near.
        history = network.fit(data, epochs=1, batch_size=row.batch, verbose=0)
        return [history.history["loss"][-1]]

    return call
