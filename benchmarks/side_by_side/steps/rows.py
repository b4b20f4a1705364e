"""The workloads, and the synthetic data that they learn from or predict.

Images are uint8 and every contestant multiplies them by 1/255 inside its step. A tenth of the labels are random: the
loss then stays away from zero, and with it gradients stay away from the denormal numbers that slow some processors
(and so some frameworks) down.
"""

import dataclasses

import numpy as np

CLASSES = 10
_WRONG_LABELS = 0.1
_SERIES = (128, 64)
_PHOTO = (224, 224, 3)
_SHAPES = {
    "cnn": (28, 28, 1),
    "mlp": (784,),
    "lstm": _SERIES,
    "gru": _SERIES,
    "resnet": (32, 32, 3),
    "resnet18": (32, 32, 3),
    "vgg11": _PHOTO,
    "resnet50": _PHOTO,
}
_LARGEST_DEVIATION = {"float32": 1e-3, "bfloat16": 0.1}


@dataclasses.dataclass(frozen=True)
class Row:
    """One workload.

    Attributes:
        kind: "cnn", "mlp", "lstm", "gru", "resnet" or "resnet18"; in inference "lstm", "vgg11" or "resnet50".
        batch: rows a step.
        steps: steps an epoch, each one update or one prediction; there is no ragged batch.
        warm_up: epochs before anything is measured.
        about: what it is, for people.
        trains: False for inference.
        precision: "float32", or "bfloat16" for mixed precision as each framework offers it.
    """

    kind: str
    batch: int
    steps: int
    warm_up: int
    about: str
    trains: bool = True
    precision: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return _SHAPES[self.kind]

    @property
    def limit(self) -> float:
        """What must be undercut for a speed to be shown.

        In training by the mean loss of the last warm-up epoch, which starts at about 2.3; in inference by the largest
        deviation from the float64 prediction, as a share of its largest value.
        """
        return 1.3 if self.trains else _LARGEST_DEVIATION[self.precision]

    def data(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """x [steps * batch, *shape], uint8 images or float32 series, and y [steps * batch] int32, in random order."""
        rng = np.random.default_rng(seed)
        count = self.steps * self.batch
        truth = rng.integers(0, CLASSES, count)
        if self.shape == _SERIES:
            waves = rng.normal(size=(CLASSES, *self.shape)).astype(np.float32)
            x = 0.5 * waves[truth] + rng.normal(size=(count, *self.shape)).astype(np.float32)
        else:
            height, width, channels = (28, 28, 1) if self.kind == "mlp" else self.shape
            # Patches larger than a 3x3 kernel, so that a convolution sees them.
            patches = rng.random((CLASSES, 4, 4, channels), np.float32)
            pictures = patches.repeat(height // 4, axis=1).repeat(width // 4, axis=2)
            noise = rng.random((count, height, width, channels), np.float32)
            x = (255 * (0.6 * pictures[truth] + 0.4 * noise)).astype(np.uint8).reshape(count, *self.shape)
        wrong = rng.random(count) < _WRONG_LABELS
        y = np.where(wrong, rng.integers(0, CLASSES, count), truth).astype(np.int32)
        return x, y


ROWS = {
    "cnn-32": Row("cnn", 32, 100, 3, "seed CNN, 28x28x1, batch 32"),
    "cnn-128": Row("cnn", 128, 50, 4, "seed CNN, 28x28x1, batch 128"),
    "cnn-512": Row("cnn", 512, 20, 5, "seed CNN, 28x28x1, batch 512"),
    "mlp-32": Row("mlp", 32, 500, 3, "MLP 784-128-10, batch 32"),
    "lstm-32": Row("lstm", 32, 20, 5, "LSTM(256), 128 steps of 64 features, batch 32"),
    "gru-32": Row("gru", 32, 20, 5, "GRU(256), 128 steps of 64 features, batch 32"),
    "resnet-64": Row("resnet", 64, 20, 5, "ResNet of 6 blocks (16/32/64), 32x32x3, batch 64"),
    "resnet18-64": Row("resnet18", 64, 4, 6, "ResNet-18, 32x32x3, batch 64"),
    "vgg11-1": Row("vgg11", 1, 10, 2, "VGG-11 inference, 224x224x3, batch 1", trains=False),
    "vgg11-8": Row("vgg11", 8, 3, 2, "VGG-11 inference, 224x224x3, batch 8", trains=False),
    "resnet50-1": Row("resnet50", 1, 10, 2, "ResNet-50 inference, 224x224x3, batch 1", trains=False),
    "resnet50-8": Row("resnet50", 8, 3, 2, "ResNet-50 inference, 224x224x3, batch 8", trains=False),
    "cnn-128-bf16": Row("cnn", 128, 50, 4, "seed CNN, 28x28x1, batch 128, bfloat16", precision="bfloat16"),
    "resnet-64-bf16": Row("resnet", 64, 20, 5, "ResNet of 6 blocks, 32x32x3, batch 64, bfloat16", precision="bfloat16"),
    "resnet50-8-bf16": Row("resnet50", 8, 3, 2, "ResNet-50 inference, batch 8, bfloat16", False, "bfloat16"),
    "lstm-32-forward-bf16": Row("lstm", 32, 20, 3, "LSTM(256) inference, batch 32, bfloat16", False, "bfloat16"),
}
"""Name on the command line -> workload."""
