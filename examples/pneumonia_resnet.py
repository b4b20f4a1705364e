"""A ResNet-20 on PneumoniaMNIST: is there pneumonia on a chest X-ray of 28x28 pixels?

The official split: 4,708 images to train, 524 to choose the epoch by, 624 for the test, which are looked at once, at
the end. Run with pneumonia_mnist/pneumoniamnist.npz in a folder that LLMASOS_DATA names:

    python examples/pneumonia_resnet.py [epochs]
"""

import os
import pathlib
import sys
import time

import numpy as np

import llmasos_xla as lm

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 15
BATCH = 64

path = pathlib.Path(os.environ.get("LLMASOS_DATA", ".")) / "pneumonia_mnist" / "pneumoniamnist.npz"
if not path.is_file():
    raise SystemExit(
        f"{path} is not there: set LLMASOS_DATA to the folder that holds pneumonia_mnist/pneumoniamnist.npz"
    )
with np.load(path) as file:
    data = {
        part: (file[f"{part}_images"][..., None], file[f"{part}_labels"].astype(np.int32))
        for part in ("train", "val", "test")
    }

model = lm.Sequential(
    [
        lm.layers.RandomShift(3, fill="edge", input_shape=(28, 28, 1)),
        lm.models.ResNetConfig.resnet20_cifar(classes=1, shortcut="projection"),
        lm.layers.Activation("sigmoid"),
    ],
    seed=0,
)
steps = EPOCHS * (len(data["train"][0]) // BATCH)
rate = lm.Schedule("warmup_cosine_decay", init_value=0.0, peak_value=2e-3, warmup_steps=steps // 10, decay_steps=steps)
model.compile(
    lm.Optimizer("adamw", rate, weight_decay=5e-2, decay_exclude="bias|scale"),
    "binary_crossentropy",
    ["auc", "accuracy"],
)
start = time.time()
best = lm.callbacks.early_stopping("val_auc", patience=EPOCHS, restore_best=True)
model.fit(*data["train"], epochs=EPOCHS, batch_size=BATCH, validation_data=data["val"], callbacks=best)
seconds = time.time() - start
result = model.evaluate(*data["test"], batch_size=208, verbose=0)
print(f"test AUC {result['auc']:.4f}, accuracy {result['accuracy']:.4f}, {seconds / 60:.1f} minutes")
