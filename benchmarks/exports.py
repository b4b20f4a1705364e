"""How far exported copies are from our own outputs: small models with random weights, every target that is installed.

    python benchmarks/exports.py [target ...]   # small ones, in all targets or these
    python benchmarks/exports.py shelf          # some of the shelf in their own sizes, in ONNX: a minute

A line for each model and target: the largest difference over all outputs of all checks, and the largest output.
"""

import importlib.metadata
import pathlib
import sys
import tempfile

import jax
import numpy as np

import llmasos_xla as lm

TARGETS = ("onnx", "onnx int8", "openvino", "openvino float16", "openvino int8", "iree", "savedmodel", "tflite")
PACKAGES = ("jax", "jax2onnx", "onnxruntime", "openvino", "nncf", "iree-base-compiler", "tensorflow", "tensorflow-cpu")


def models() -> dict[str, tuple[lm.Sequential | lm.Network, np.ndarray]]:
    """The models, and input for each."""
    rng, layers, shelf = np.random.default_rng(0), lm.layers, lm.models
    ids = rng.integers(1, 1000, (32, 24)).astype(np.int32)
    cnn = [
        layers.Conv2D(16, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(10, activation="softmax"),
    ]
    words = {"vocab": 1000, "context": 64, "width": 64, "depth": 2}
    return {
        "CNN": (lm.Sequential(cnn), rng.integers(0, 256, (32, 28, 28, 1)).astype(np.uint8)),
        "LSTM": (
            lm.Sequential([layers.LSTM(64), layers.Dense(5, activation="softmax")]),
            rng.standard_normal((32, 30, 12)).astype(np.float32),
        ),
        "ResNet": (
            lm.Network(shelf.ResNetConfig((2, 2), (64, 128), classes=10, stem_width=16, input_shape=(64, 64, 3))),
            rng.standard_normal((32, 64, 64, 3)).astype(np.float32),
        ),
        "BERT": (lm.Network(shelf.BertConfig(**words, heads=4, hidden=128, classes=3)), ids),
        "GPT-2": (lm.Network(shelf.GPT2Config(**words, heads=4)), ids),
    }


def main(wanted: list[str]) -> None:
    """Prints the table."""
    versions = [f"{p} {v}" for p in PACKAGES if (v := _version(p))]
    print(f"{jax.devices()[0].device_kind}; {', '.join(versions)}")
    if wanted == ["shelf"]:
        _shelf()
        return
    for name, (model, x) in models().items():
        largest = float(np.abs(np.asarray(model.predict(x))).max())
        for target in wanted or TARGETS:
            kind, _, precision = target.partition(" ")
            options = {"precision": precision} if precision else {}
            if precision == "int8":
                options["calibration"] = x
            # These two are for fixed sizes where a model reads words.
            if kind in ("iree", "tflite"):
                options |= {"rows": 1} | ({"length": x.shape[1]} if x.dtype == np.int32 else {})
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / {"onnx": "m.onnx", "tflite": "m.tflite"}.get(kind, "m")
                try:
                    told = f"{lm.export(model, path, target=kind, example=x, **options).difference:.1e}"
                except (ImportError, ValueError) as error:
                    told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{name:8}{target:18}{told}  (largest output {largest:.2g})", flush=True)


def _shelf() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 60, (2, 24)).astype(np.int32)
    for name in ("seed_cnn", "lstm_lm", "resnet18", "resnet50", "minilm", "bert", "nanogpt", "gpt2"):
        side = {"seed_cnn": (28, 28, 1), "resnet18": (224, 224, 3), "resnet50": (224, 224, 3)}.get(name)
        x = words if side is None else rng.standard_normal((2, *side)).astype(np.float32)
        model = getattr(lm.models, name)()
        largest = float(np.abs(np.asarray(model.predict(x))).max())
        # Recurrences are for one length.
        options = {"length": x.shape[1]} if name == "lstm_lm" else {}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "m.onnx"
            # Told, whatever it is.
            difference = lm.export(model, path, example=x, tolerance=1.0, **options).difference
        print(f"{name:10}{difference:.1e}  (largest output {largest:.2g})", flush=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
