"""A bundle that one Python with its JAX writes and another reads: `python across.py write|read FILE`, for .ci/run."""

import sys

import jax
import numpy as np


def write(path: str) -> None:
    """Exports a small network."""
    import llmasos_xla as lm

    model = lm.Sequential(
        [
            lm.layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1)),
            lm.layers.Flatten(),
            lm.layers.Dense(3, activation="softmax"),
        ]
    )
    model.predict(np.full((1, 8, 8, 1), 255, np.uint8))
    model.export(path)


def read(path: str) -> None:
    """Runs its program, and the model that is rebuilt from it, and holds both to the answer it brings."""
    import llmasos_xla as lm
    from llmasos_xla.storage.bundle import Bundle

    content = Bundle.open(path).content
    inputs, outputs = content.example
    answer = jax.jit(Bundle.open(path).program())(dict(content.arrays), dict(inputs))
    np.testing.assert_allclose(answer["output"], outputs["output"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lm.load(path).predict(inputs["input"]), outputs["output"], rtol=1e-5, atol=1e-6)
    print(f"a bundle of JAX {content.made_by['jax']} runs on JAX {jax.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](sys.argv[2])
