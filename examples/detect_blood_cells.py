"""A small RT-DETR on BCCD: where are red cells, white cells and platelets in a picture of a blood smear?

Trained from nothing on the source's 205 training pictures, mirrored, cropped and brightened; its 72 test pictures are
looked at once, at the end. Run with bccd/bccd.tar.gz in a folder that LLMASOS_DATA names:

    python examples/detect_blood_cells.py [epochs]
"""

import io
import os
import pathlib
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image

import llmasos_xla as lm
from llmasos_xla.training.detection_scores import best_boxes, mean_average_precision

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
BATCH, COPIES, HEIGHT, WIDTH, OBJECTS = 8, 8, 240, 320, 32
NAMES = ("RBC", "WBC", "Platelets")

path = pathlib.Path(os.environ.get("LLMASOS_DATA", ".")) / "bccd" / "bccd.tar.gz"
if not path.is_file():
    raise SystemExit(f"{path} is not there: set LLMASOS_DATA to the folder that holds bccd/bccd.tar.gz")


def read(part):
    """Pictures [rows, 240, 320, 3] and targets [rows, objects, 5] of a part of the split."""
    images, targets = [], []
    with tarfile.open(path) as tar:
        files = {name.split("BCCD/")[-1]: name for name in tar.getnames()}
        for name in tar.extractfile(files[f"ImageSets/Main/{part}.txt"]).read().decode().split():
            image = Image.open(io.BytesIO(tar.extractfile(files[f"JPEGImages/{name}.jpg"]).read())).convert("RGB")
            rows = []
            for item in ElementTree.fromstring(tar.extractfile(files[f"Annotations/{name}.xml"]).read()).iter("object"):
                box = np.array([int(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")])
                low, high = box[:2] / image.size, np.minimum(box[2:] / image.size, 1)
                if np.all(high > low):  # two boxes have no area
                    rows.append([NAMES.index(item.findtext("name")), *(low + high) / 2, *(high - low)])
            images.append(np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)))
            targets.append(np.array([*rows, *[[-1, 0, 0, 0, 0]] * (OBJECTS - len(rows))], np.float32))
    return np.stack(images), np.stack(targets)


def changed(image, target, rng):
    """The picture mirrored, cropped to 60 to 100 %, brighter or darker, and its boxes; slivers of boxes are dropped."""
    share = rng.uniform(0.6, 1.0)
    left, top = rng.uniform(0, 1 - share, 2)
    crop = (left * WIDTH, top * HEIGHT, (left + share) * WIDTH, (top + share) * HEIGHT)
    image = Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=crop)
    low, high = ((target[:, 1:3] + sign * target[:, 3:] / 2 - (left, top)) / share for sign in (-1, 1))
    inside = np.clip(low, 0, 1), np.clip(high, 0, 1)
    kept = np.prod(inside[1] - inside[0], axis=1) > 0.4 * np.prod(high - low, axis=1)
    boxes = np.concatenate([(inside[0] + inside[1]) / 2, inside[1] - inside[0]], axis=1)
    target = np.where(
        (kept & (target[:, 0] >= 0))[:, None], np.concatenate([target[:, :1], boxes], 1), [[-1] + [0] * 4]
    )
    image = np.clip(np.asarray(image) * rng.uniform(0.8, 1.2, 3), 0, 255).astype(np.uint8)
    for axis in (1, 0):
        if rng.random() < 0.5:
            image, target[:, 2 - axis] = np.flip(image, axis), 1 - target[:, 2 - axis]
    return image, np.where(target[:, :1] >= 0, target, [[-1] + [0] * 4]).astype(np.float32)


rng = np.random.default_rng(0)
images, targets = read("train")
pairs = [changed(*pair, rng) for _ in range(COPIES) for pair in zip(images, targets)]
x, y = (np.stack(part) for part in zip(*pairs))
config = lm.models.RTDETRConfig.rtdetr_r18(
    depths=(1, 1, 1, 1), widths=(32, 48, 64, 96), stem=32, classes=3, queries=60, width=64, heads=4, hidden=128,
    encoder_width=64, encoder_heads=4, encoder_hidden=128, input_shape=(HEIGHT, WIDTH, 3),
)  # fmt: skip
model = lm.Network(config, seed=0)
steps = EPOCHS * (len(x) // BATCH)
rate = lm.Schedule("warmup_cosine_decay", init_value=0.0, peak_value=2e-3, warmup_steps=steps // 20, decay_steps=steps)
model.compile(lm.Optimizer("adamw", rate, weight_decay=1e-4, clip_norm=10.0, ema=0.998), "detection")
start = time.time()
model.fit(x, y, epochs=EPOCHS, batch_size=BATCH, validation_data=read("val"))
minutes = (time.time() - start) / 60
for part in ("val", "test"):
    images, targets = read(part)
    scores = mean_average_precision(best_boxes(model.predict(images)), targets)
    each = ", ".join(f"{NAMES[kind]} {value:.3f}" for kind, value in scores.by_class.items())
    print(f"{part}: AP50 {scores.ap50:.3f} ({each}), AP50:95 {scores.ap:.3f}; {minutes:.1f} minutes", flush=True)
