"""Jobs for tests of the queue, and who runs of them."""

import contextlib
import os
import time

from llmasos_xla.runtime.jobs import Spec

SCRIPT = """
import sys, time
import numpy as np
import jax
import llmasos_xla as lm

folder, epochs = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
x = rng.normal(size=(960, 16)).astype("float32")
y = (x[:, :4].sum(1) > 0).astype("int32")
model = lm.Sequential([lm.layers.Dense(32, activation="relu"), lm.layers.Dense(2, activation="softmax")])
model.compile(lm.Optimizer("sgd", 0.05), "sparse_categorical_crossentropy")
print("devices", len(jax.devices()), flush=True)
history = model.fit(
    x, y, epochs=epochs, batch_size=120, checkpoint=folder, resume=True,
    shard="data" if len(jax.devices()) > 1 else None, callbacks=lambda event: time.sleep(0.1),
)
print(f"loss {history.history['loss'][-1]:.9f} of {len(history.history['loss'])} epochs")
"""
"""A fit that saves itself: a folder for that, and a number of epochs."""


def marked(token):
    """Processes of an attempt."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if f"LLMASOS_ATTEMPT={token}".encode() in file.read().split(b"\0"):
                found.append(int(name))
    return found


def spec(*command, **more):
    """A job that runs a shell's command."""
    return Spec(**{"name": "job", "command": ("sh", "-c", *command), "folder": "/", "user": "u", **more})


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
