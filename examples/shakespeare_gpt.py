"""A GPT on the characters of tiny Shakespeare, in nanoGPT's configuration for a CPU: 2,000 steps of 12 x 64 characters.

Run with the folder of data sets in LLMASOS_DATA (tinyshakespeare/input.txt, karpathy/char-rnn):

    python examples/shakespeare_gpt.py
"""

import os
import pathlib
import sys

import numpy as np

import llmasos_xla as lm
from llmasos_xla.data.tokenizers import Characters

STEPS, BATCH, BLOCK = 2000, 12, 64

path = pathlib.Path(os.environ.get("LLMASOS_DATA", "data")) / "tinyshakespeare" / "input.txt"
if not path.is_file():
    sys.exit(f"{path} is not there: set LLMASOS_DATA to the folder of data sets")
text = path.read_text()
tokenizer = Characters.fit(text)
ids = np.array(tokenizer.encode(text), np.int32)
train, validation = np.split(ids, [int(0.9 * len(ids))])


def windows(ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of BLOCK ids from `starts`, and the ids that follow each of them."""
    rows = ids[starts[:, None] + np.arange(BLOCK + 1)]
    return rows[:, :-1], rows[:, 1:]


model = lm.models.nanogpt(vocab=tokenizer.size, context=BLOCK, seed=1337)
# nanoGPT's peak is 1e-3. Of 1, 2, 4 and 6e-3 this was the best on the last tenth of the training text, held out.
rate = lm.Schedule(
    "warmup_cosine_decay", init_value=0.0, peak_value=4e-3, warmup_steps=100, decay_steps=STEPS, end_value=4e-4
)
optimizer = lm.Optimizer("adamw", rate, b2=0.99, eps=1e-8, weight_decay=0.1, decay_exclude="norm", clip_norm=1.0)
model.compile(optimizer, "sparse_categorical_crossentropy")
# One epoch over windows drawn at random is nanoGPT's training: each step sees 12 of them.
starts = np.random.default_rng(1337).integers(0, len(train) - BLOCK, STEPS * BATCH)
model.fit(*windows(train, starts), batch_size=BATCH, epochs=1)
# The whole validation text, each character once.
logs = model.evaluate(*windows(validation, np.arange(0, len(validation) - BLOCK, BLOCK)))
print(f"validation loss {logs['loss']:.4f}")
print(lm.generate(model, "\n", tokenizer=tokenizer, max_new_tokens=BLOCK - 1, temperature=0.8, seed=1337))
