"""English to German on Multi30k, from scratch: GRUs with attention, byte pairs, label smoothing; a loop of one's own.

Run with the folder of data sets in LLMASOS_DATA (multi30k/{train,val}.{en,de}.gz, multi30k/dataset task 1):

    python examples/translate_multi30k.py [epochs]

Rows are batched with others of their length, so that little of a batch is padding.
"""

import gzip
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import llmasos_xla as lm
from llmasos_xla.core import Variables
from llmasos_xla.data.tokenizers import HuggingFace
from llmasos_xla.training.scores import bleu, words

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 14
WARMUP, RATE, SMOOTHING, AVERAGE = 400, 2e-3, 0.1, 0.998
LENGTHS, TOKENS, (PAD, START, END) = (16, 22, 32, 72), 2560, range(3)

folder = pathlib.Path(os.environ.get("LLMASOS_DATA", "data")) / "multi30k"
if not folder.is_dir():
    sys.exit(f"{folder} is not there: set LLMASOS_DATA to the folder of data sets")
files = [[(folder / f"{part}.{language}.gz").read_bytes() for language in ("en", "de")] for part in ("train", "val")]
train, validation = ([gzip.decompress(file).decode().splitlines() for file in part] for part in files)
tokenizer = HuggingFace.train(train[0] + train[1], 4000)
# English as `generate` encodes it, from <start> to <end>; German without <start>, which the decoder reads first.
pairs = [(tokenizer.encode(a), tokenizer.encode(b)[1:]) for a, b in zip(*train, strict=True)]
sizes = {"width": 256, "hidden": 512, "dropout": 0.3}
model = lm.models.seq2seq(vocab=tokenizer.size, **sizes, start_id=START, end=END, seed=0)
net = model.config.net()


def batches(rng: np.random.Generator):
    """The pairs once, in random order, rows of like length together, about TOKENS steps a side and batch."""
    longest = np.array([max(map(len, pair)) for pair in pairs])
    found = []
    for shorter, length in zip((0, *LENGTHS[:-1]), LENGTHS, strict=True):
        rows, size = rng.permutation(np.flatnonzero((longest > shorter) & (longest <= length))), TOKENS // length
        found += [(rows[i : i + size], size, length) for i in range(0, len(rows), size)]
    for i in rng.permutation(len(found)):
        rows, size, length = found[i]
        sides = np.zeros((2, size, length), np.int32)
        for at, row in enumerate(rows):
            for side, ids in zip(sides, pairs[row], strict=True):
                side[at, : len(ids)] = ids
        yield sides


def loss(params: dict[str, jax.Array], english: jax.Array, german: jax.Array, key: jax.Array) -> jax.Array:
    """Cross-entropy of the wanted ids with smoothed labels, the mean over real steps."""
    before = jnp.pad(german[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    x = {"ids": english, "attention_mask": english != PAD, "decoder_input_ids": before}
    logits = net.apply(Variables(params, {}), x, train=True, key=key)[0]
    log_p = jax.nn.log_softmax(logits)
    wanted = jnp.take_along_axis(log_p, german[..., None], axis=-1)
    smoothed = (1 - SMOOTHING) * wanted[..., 0] + SMOOTHING * log_p.mean(axis=-1)
    return -jnp.sum(smoothed, where=german != PAD) / jnp.sum(german != PAD)


rate = optax.warmup_cosine_decay_schedule(0.0, RATE, WARMUP, EPOCHS * len(list(batches(np.random.default_rng(0)))))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


@jax.jit(donate_argnums=(0, 1, 2))
def step(params, state, average, english, german, key):
    """One update; the average of the weights is what translates in the end."""
    value, gradients = jax.value_and_grad(loss)(params, english, german, key)
    updates, state = optimizer.update(gradients, state)
    params = optax.apply_updates(params, updates)
    return params, state, jax.tree.map(lambda a, b: AVERAGE * a + (1 - AVERAGE) * b, average, params), value


params = jax.tree.map(jnp.copy, model.variables.params)
state, average = optimizer.init(params), jax.tree.map(jnp.copy, params)
rng, begun = np.random.default_rng(0), time.time()
for epoch in range(EPOCHS):
    values, key = [], jax.random.fold_in(jax.random.key(0), epoch)
    for i, (english, german) in enumerate(batches(rng)):
        *trained, value = step(params, state, average, english, german, jax.random.fold_in(key, i))
        (params, state, average), values = trained, [*values, value]
    print(f"epoch {epoch + 1}: loss {np.mean(jax.device_get(values)):.3f}, {time.time() - begun:.0f} s", flush=True)
model.variables = Variables(average, {})

found = []
for i in range(0, len(validation[0]), 100):
    found += lm.generate(model, validation[0][i : i + 100], tokenizer=tokenizer, max_new_tokens=64, num_beams=4)
print("\n".join(f"{a}\n  {b}" for a, b in zip(validation[0][:3], found[:3], strict=True)))
print(f"BLEU on the {len(found)} validation sentences: {100 * bleu(found, validation[1], split=words):.1f}")
