"""Cell membranes in electron micrographs (ISBI 2012) by a small U-Net, with a loss of Dice and cross-entropy.

Of the 30 slices of 512x512 pixels that have labels the last 5 are the test, looked at once, at the end, the 2 before
them choose the epoch, 23 train: turned, mirrored and cut at random into windows of 256x256.
Run with isbi2012_em/isbi2012_em.tar in a folder that LLMASOS_DATA names:

    python examples/segment_membranes.py [epochs]
"""

import os
import pathlib
import sys
import tarfile
import time

import numpy as np
from PIL import Image

import llmasos_xla as lm

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 8
WINDOW, TEST, HELD_OUT = 256, 5, 2

path = pathlib.Path(os.environ.get("LLMASOS_DATA", ".")) / "isbi2012_em" / "isbi2012_em.tar"
if not path.is_file():
    raise SystemExit(f"{path} is not there: set LLMASOS_DATA to the folder that holds isbi2012_em/isbi2012_em.tar")
with tarfile.open(path) as tar:
    slices, labels = (
        np.stack([np.asarray(Image.open(tar.extractfile(f"train/{kind}/{i}.png")).convert("L")) for i in range(30)])
        for kind in ("image", "label")
    )
x = slices[..., None]
y = (labels < 128).astype(np.float32)[..., None]  # membranes are black in the labels
first, second = len(x) - TEST - HELD_OUT, len(x) - TEST


def windows(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` windows of each training slice, each turned and mirrored."""
    found = []
    for image, label in zip(x[:first], y[:first], strict=True):
        for i in range(count):
            row, column = rng.integers(0, image.shape[0] - WINDOW + 1, 2)
            cut = (a[row : row + WINDOW, column : column + WINDOW] for a in (image, label))
            turned = [np.rot90(a, i % 4) for a in cut]
            found.append([a[:, ::-1] if i % 8 > 3 else a for a in turned])
    images, masks = zip(*found, strict=True)
    return np.stack(images), np.stack(masks)


model = lm.Sequential([lm.models.UNetConfig.unet_small(input_shape=(None, None, 1)), lm.layers.Activation("sigmoid")])
x_train, y_train = windows(16, np.random.default_rng(0))
steps = EPOCHS * len(x_train) // 4
rate = lm.Schedule("warmup_cosine_decay", init_value=0.0, peak_value=2e-3, warmup_steps=steps // 10, decay_steps=steps)
model.compile(lm.Optimizer("adam", rate), "dice_crossentropy", ["accuracy"])
start = time.time()
best = lm.callbacks.early_stopping("val_loss", patience=EPOCHS, restore_best=True)
model.fit(
    x_train, y_train, epochs=EPOCHS, batch_size=4, validation_data=(x[first:second], y[first:second]), callbacks=best
)
seconds = time.time() - start

said, wanted = model.predict(x[second:]) > 0.5, y[second:] > 0.5
both, either = (said & wanted).sum(), (said | wanted).sum()
print(
    f"test: Dice {2 * both / (both + either):.4f}, IoU {both / either:.4f}, pixel error {np.mean(said != wanted):.4f}; "
    f"all cell: pixel error {wanted.mean():.4f}; {seconds / 60:.1f} minutes"
)
