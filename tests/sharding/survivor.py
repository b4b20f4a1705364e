"""Run by test_survival.py under `llmasos launch`: one fit over all ranks that saves itself, hit as told.

    survivor.py FOLDER STRATEGY [RANK WHERE NUMBER SIGNAL]

WHERE and NUMBER are those of tests/api/resume_child.py. Rank 0 writes the weights at the end.
"""

import pathlib
import signal
import sys

import jax
import numpy as np
from api.resume_child import arm, blobs

import llmasos_xla as lm
from llmasos_xla.sharding.transfer import fetch

EPOCHS, BATCH = 3, 8


def fit(folder, shard):
    model = lm.Sequential(
        [
            # Large enough for fsdp to split it.
            lm.layers.Dense(256, activation="relu", input_shape=(4,)),
            lm.layers.BatchNormalization(),
            lm.layers.Dropout(0.1),
            lm.layers.Dense(3, activation="softmax"),
        ],
        seed=3,
    )
    model.compile(lm.Optimizer("adam", lr=0.01), "sparse_categorical_crossentropy", ["accuracy"])
    x, y = blobs()
    history = model.fit(
        x,
        y,
        epochs=EPOCHS,
        batch_size=BATCH,
        validation_data=(x, y),
        steps_per_dispatch=2,
        verbose=0,
        shard=shard,
        checkpoint=lm.Checkpoint(folder, every_steps=3, keep=2),
        resume=True,
    )
    return model, history


if __name__ == "__main__":
    folder, shard, *how = sys.argv[1:]
    if how and int(how[0]) == jax.process_index():
        arm(how[1], float(how[2]), signal.Signals[how[3]])
    model, history = fit(pathlib.Path(folder) / "run", shard)
    arrays = fetch({**model.variables.params, **model.variables.state})
    if jax.process_index() == 0:
        np.savez(pathlib.Path(folder) / "end.npz", losses=history.history["loss"], epochs=history.epoch, **arrays)
