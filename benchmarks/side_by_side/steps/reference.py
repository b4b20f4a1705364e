"""What the large models predict for one sample, in NumPy and float64."""

import numpy as np

from side_by_side.steps.architectures import EPSILON, HIDDEN, RESNET50, VGG11, VGG11_DENSE, weights
from side_by_side.steps.rows import Row

Weights = dict[str, np.ndarray]


def expected(row: Row, padding: str) -> np.ndarray:
    """The logits for the first sample of the row's data.

    `padding` says where a window of stride 2 begins: "same" as in TensorFlow, "symmetric" as in PyTorch.
    """
    x = row.data()[0][0]
    scaled = x * (1 / 255) if x.dtype == np.uint8 else x.astype(np.float64)
    return _MODELS[row.kind](scaled, weights(row.kind), padding)


def _vgg11(x: np.ndarray, w: Weights, padding: str) -> np.ndarray:
    number = 0
    for entry in VGG11:
        if entry == "pool":
            x = _max_pool(x, 2, 2, "valid")
        else:
            x = _relu(_conv(x, w[f"conv{number}/kernel"], 1, padding) + w[f"conv{number}/bias"])
            number += 1
    x = x.reshape(-1)
    for number in range(len(VGG11_DENSE)):
        x = _relu(_dense(x, w, f"dense{number}"))
    return _dense(x, w, "head")


def _resnet50(x: np.ndarray, w: Weights, padding: str) -> np.ndarray:
    def normalized(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        y = _conv(x, w[name + "/kernel"], stride, padding)
        scale = w[name + "/scale"] / np.sqrt(w[name + "/var"] + EPSILON)
        return (y - w[name + "/mean"]) * scale + w[name + "/bias"]

    x = _max_pool(_relu(normalized(x, "stem", 2)), 3, 2, padding)
    for block in RESNET50:
        y = _relu(normalized(x, f"{block.name}/a"))
        y = _relu(normalized(y, f"{block.name}/b", block.stride))
        y = normalized(y, f"{block.name}/c")
        x = _relu(y + (normalized(x, f"{block.name}/shortcut", block.stride) if block.projects else x))
    return _dense(x.mean((0, 1)), w, "head")


def _lstm(x: np.ndarray, w: Weights, padding: str) -> np.ndarray:
    h, c = np.zeros(HIDDEN), np.zeros(HIDDEN)
    for step in x:
        gates = step @ w["lstm/kernel"] + h @ w["lstm/recurrent_kernel"] + w["lstm/bias"]
        i, f, g, o = np.split(gates, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
    return _dense(h, w, "head")


_MODELS = {"vgg11": _vgg11, "resnet50": _resnet50, "lstm": _lstm}


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _dense(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[name + "/kernel"].astype(np.float64) + w[name + "/bias"]


def _padded(x: np.ndarray, size: int, stride: int, padding: str, fill: float) -> np.ndarray:
    if padding == "valid":
        return x
    pads = []
    for n in x.shape[:2]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        low = total // 2 if padding == "same" else size // 2
        pads.append((low, total - low if padding == "same" else size // 2))
    return np.pad(x, (*pads, (0, 0)), constant_values=fill)


def _windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """`[height, width, channels, size, size]`: what each position of the window sees."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def _conv(x: np.ndarray, kernel: np.ndarray, stride: int, padding: str) -> np.ndarray:
    windows = _windows(_padded(x, kernel.shape[0], stride, padding, 0.0), kernel.shape[0], stride)
    return np.tensordot(windows, kernel.astype(np.float64), ((3, 4, 2), (0, 1, 2)))


def _max_pool(x: np.ndarray, size: int, stride: int, padding: str) -> np.ndarray:
    return _windows(_padded(x, size, stride, padding, -np.inf), size, stride).max((3, 4))
