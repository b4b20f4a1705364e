"""Ours: a bundle behind `Deployer`, as it comes."""

import sys
import time
from pathlib import Path

import numpy as np

import llmasos_xla as lm


def model(path: str) -> lm.Sequential:
    """The network of the benchmark with the weights of the file."""
    found = lm.Sequential(
        [
            lm.layers.Conv2D(32, 3, activation="relu", input_shape=(28, 28, 1)),
            lm.layers.MaxPooling2D(2),
            lm.layers.Flatten(),
            lm.layers.Dense(128, activation="relu"),
            lm.layers.Dense(10, activation="softmax"),
        ]
    )
    # Bytes above 1: what is seen first says that these are pixels.
    found.predict(np.full((1, 28, 28, 1), 255, np.uint8))
    with np.load(path) as weights:
        params = {name: weights[name] for name in found.variables.params}
    found.variables = lm.Variables(params, found.variables.state)
    return found


def main() -> None:
    port, weights = int(sys.argv[1]), sys.argv[2]
    path = model(weights).export(Path(weights).with_suffix(".lmx"), name="digits")
    server = lm.Deployer(path).deploy(port=port, name="digits", warm=(1, 2, 4, 8, 16, 32, 64))
    while server.running:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
