"""Run by the tests of resuming: one fit that saves itself and is ended where it is told to be; then its weights.

    python resume_child.py FOLDER [WHERE NUMBER [SIGNAL]]

WHERE is "step" (the number-th dispatch), "load" (the number-th group that is read), "write" (the number-th save just
begun), "commit" (its files written, its name not), "seconds" (so long after the first dispatch).
"""

import os
import pathlib
import signal
import sys
import threading

import numpy as np

import llmasos_xla as lm
from llmasos_xla.data import batches
from llmasos_xla.training import loop, store

EPOCHS, ROWS = 3, 101


def blobs():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, ROWS).astype(np.int32)
    return (rng.normal(size=(3, 4))[y] * 2 + rng.normal(size=(ROWS, 4))).astype(np.float32), y


def fit(folder, **options):
    model = lm.Sequential(
        [
            lm.layers.Dense(8, activation="relu", input_shape=(4,)),
            lm.layers.BatchNormalization(),
            lm.layers.Dropout(0.1),
            lm.layers.Dense(3, activation="softmax"),
        ],
        seed=3,
    )
    model.compile(lm.Optimizer("adam", lr=0.01, ema=0.9), "sparse_categorical_crossentropy", ["accuracy"])
    x, y = blobs()
    stopping = lm.callbacks.early_stopping("val_accuracy", patience=2, restore_best=True)
    history = model.fit(
        x,
        y,
        epochs=EPOCHS,
        batch_size=8,
        validation_data=(x, y),
        callbacks=[stopping],
        steps_per_dispatch=2,
        verbose=0,
        checkpoint=lm.Checkpoint(folder, every_steps=3, keep=2),
        resume=True,
        **options,
    )
    return model, history


def arm(where, number, kind):
    def end():
        os.kill(os.getpid(), kind)

    seen = iter(range(1, 1 << 20))

    def counted(function, after=False):
        def counting(*args):
            here = next(seen) == number
            if here and not after:
                end()
            result = function(*args)
            if here and after:
                end()
            return result

        return counting

    if where == "step":
        loop.arrays_of = counted(loop.arrays_of)
    elif where == "load":
        batches._Groups.__getitem__ = counted(batches._Groups.__getitem__)
    elif where == "write":
        store.Store.save = counted(store.Store.save, after=True)
    elif where == "commit":
        store.digests = counted(store.digests, after=True)
    elif where == "seconds":
        first = loop.arrays_of

        def started(group):
            loop.arrays_of = first
            threading.Timer(number, end).start()
            return first(group)

        loop.arrays_of = started
    else:
        raise ValueError(where)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        kind = signal.Signals[sys.argv[4]] if len(sys.argv) > 4 else signal.SIGKILL
        arm(sys.argv[2], float(sys.argv[3]), kind)
    model, history = fit(folder / "run")
    state = model.learner.training_state
    arrays = {f"param {n}": np.asarray(a) for n, a in state.variables.params.items()}
    arrays |= {f"state {n}": np.asarray(a) for n, a in state.variables.state.items()}
    arrays |= {f"average {n}": np.asarray(a) for n, a in state.average.items()}
    arrays |= {f"metric {n}": np.array(v) for n, v in history.history.items()}
    np.savez(folder / "end.npz", step=int(state.step), epochs=history.epoch, **arrays)
