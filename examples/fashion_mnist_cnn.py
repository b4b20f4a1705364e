"""A CNN on Fashion-MNIST with augmentation inside of the compiled step: four convolutions, two dense layers.

The last 5,000 of the 60,000 training images are kept for validation; the 10,000 test images are looked at once, at the
end. Run with the data set's four .gz files in a folder that LLMASOS_DATA names, or with a network to fetch them:

    python examples/fashion_mnist_cnn.py [epochs]
"""

import sys
import time

import llmasos_xla as lm

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
BATCH, HELD_OUT = 128, 5000


def convolution(filters: int) -> list:
    """A convolution with normalization and ReLU."""
    layers = lm.layers
    conv = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")
    return [conv, layers.BatchNormalization(momentum=0.9), layers.ReLU()]


x, y, _ = lm.Dataset.named("fashion_mnist", mode="train").rows()
x_test, y_test, _ = lm.Dataset.named("fashion_mnist", mode="test").rows()

model = lm.Sequential(
    [
        lm.layers.RandomFlip(input_shape=(28, 28, 1)),
        lm.layers.RandomShift(2),
        *convolution(32),
        *convolution(32),
        lm.layers.MaxPooling2D(2),
        *convolution(64),
        *convolution(64),
        lm.layers.MaxPooling2D(2),
        lm.layers.Flatten(),
        lm.layers.Dropout(0.4),
        lm.layers.Dense(256, activation="relu"),
        lm.layers.Dropout(0.4),
        lm.layers.Dense(10, activation="softmax"),
    ],
    seed=0,
)
steps = EPOCHS * ((len(x) - HELD_OUT) // BATCH)
rate = lm.Schedule("warmup_cosine_decay", init_value=0.0, peak_value=3e-3, warmup_steps=steps // 10, decay_steps=steps)
model.compile(
    lm.Optimizer("adamw", rate, weight_decay=1e-2, decay_exclude="bias|scale"),
    "sparse_categorical_crossentropy",
    ["accuracy"],
)
start = time.time()
model.fit(
    x[:-HELD_OUT],
    y[:-HELD_OUT],
    epochs=EPOCHS,
    batch_size=BATCH,
    validation_data=(x[-HELD_OUT:], y[-HELD_OUT:]),
)
seconds = time.time() - start
result = model.evaluate(x_test, y_test, batch_size=500, verbose=0)
print(f"test accuracy {result['accuracy']:.4f} after {EPOCHS} epochs, {seconds / 60:.1f} minutes")
