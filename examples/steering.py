"""Steering from a camera: the CNN of Bojarski et al. 2016 ("End to end learning for self-driving cars") on 300 frames.

The frames of a simulated drive are split by time: the first 70 % to train, the next 10 % to choose the epoch by, the
last 20 % for the test, which are looked at once, at the end. The error stands beside that of always saying the training
part's mean. Run with sim_steering/sim_steering.tar in a folder that LLMASOS_DATA names:

    python examples/steering.py [epochs]
"""

import csv
import io
import os
import pathlib
import sys
import tarfile
import time

import numpy as np
from PIL import Image

import llmasos_xla as lm

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 60

path = pathlib.Path(os.environ.get("LLMASOS_DATA", ".")) / "sim_steering" / "sim_steering.tar"
if not path.is_file():
    raise SystemExit(f"{path} is not there: set LLMASOS_DATA to the folder that holds sim_steering/sim_steering.tar")
with tarfile.open(path) as tar:
    log = list(csv.DictReader(io.TextIOWrapper(tar.extractfile("driving_log.csv"))))
    log.sort(key=lambda row: row["image"])  # named by the time of the frame
    # Without sky and hood, in the size that the paper's network reads.
    frames = [Image.open(tar.extractfile(f"IMG/{row['image']}")).crop((0, 60, 320, 135)) for row in log]
x = np.stack([np.asarray(frame.resize((200, 66), Image.Resampling.BILINEAR)) for frame in frames])
y = np.array([[float(row["steering"])] for row in log], np.float32)
first, second = int(0.7 * len(x)), int(0.8 * len(x))
train, held_out, test = (slice(0, first), slice(first, second), slice(second, None))

# Every frame has a mirror image, which is steered the other way.
x_train = np.concatenate([x[train], x[train][:, :, ::-1]])
y_train = np.concatenate([y[train], -y[train]])

layers = [lm.layers.RandomShift((4, 8), fill="edge", input_shape=(66, 200, 3)), lm.layers.Rescaling(2.0, offset=-1.0)]
for filters, window, stride in ((24, 5, 2), (36, 5, 2), (48, 5, 2), (64, 3, 1), (64, 3, 1)):
    layers.append(lm.layers.Conv2D(filters, window, strides=stride, activation="elu", kernel_initializer="he_normal"))
layers += [lm.layers.Flatten(), lm.layers.Dropout(0.5)]
layers += [lm.layers.Dense(units, activation="elu") for units in (100, 50, 10)]
model = lm.Sequential([*layers, lm.layers.Dense(1)], seed=0)
model.compile(lm.Optimizer("adamw", 3e-4, weight_decay=1e-2), "mse", ["mae"])
start = time.time()
best = lm.callbacks.early_stopping("val_loss", patience=EPOCHS, restore_best=True)
model.fit(x_train, y_train, epochs=EPOCHS, batch_size=32, validation_data=(x[held_out], y[held_out]), callbacks=best)
seconds = time.time() - start


def errors(said: np.ndarray) -> str:
    """Root mean square and mean absolute error on the test part."""
    difference = said - y[test]
    return f"RMSE {np.sqrt(np.mean(difference**2)):.4f}, MAE {np.mean(np.abs(difference)):.4f}"


print(f"test: {errors(model.predict(x[test]))}, {seconds / 60:.1f} minutes")
print(f"the training part's mean: {errors(np.full_like(y[test], y[train].mean()))}")
print(f"straight ahead: {errors(np.zeros_like(y[test]))}")
