"""The main job in two minutes, offline: train a CNN on scanned digits, evaluate, save, deploy, ask over HTTP."""

import pathlib
import tempfile
import time

import numpy as np

import llmasos_xla as lm

SHADES = " .:-=+*#%@"


def main() -> None:
    started = time.perf_counter()
    train, test = lm.Dataset.named("digits", mode="train"), lm.Dataset.named("digits", mode="test")
    model = lm.Sequential(
        [
            lm.layers.Conv2D(32, (3, 3), activation="relu", input_shape=(8, 8, 1)),
            lm.layers.MaxPooling2D((2, 2)),
            lm.layers.Flatten(),
            lm.layers.Dense(128, activation="relu"),
            lm.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.summary()
    model.fit(train, epochs=15)
    model.evaluate(test)

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "digits.h5"
        model.save(path)
        print(f"saved {path.name}: {path.stat().st_size / 1024:.0f} KiB")
        images, labels, _ = test.take(np.arange(10))
        with lm.Deployer(path).deploy(port=0) as server:
            print(f"serving {server.name} at {server.url}")
            answers = server.predict(images)
    draw(images, labels, answers)
    same = np.array_equal(answers, model.predict(images))
    print(f"the server's answers equal model.predict's: {same}")
    print(f"done in {time.perf_counter() - started:.1f} s")


def draw(images: np.ndarray, labels: np.ndarray, answers: np.ndarray) -> None:
    """Prints the images side by side, two rows of five, with the answer, its probability and the true label."""
    for row in range(0, len(images), 5):
        part = images[row : row + 5].reshape(-1, 8, 8)
        for y in range(8):
            print("   ".join("".join(SHADES[int(v) * (len(SHADES) - 1) // 16] * 2 for v in image[y]) for image in part))
        texts = [
            f"{answer.argmax()} ({answer.max():.2f}), is {label}"
            for answer, label in zip(answers[row : row + 5], labels[row : row + 5])
        ]
        print("   ".join(text.ljust(16) for text in texts))


if __name__ == "__main__":
    main()
