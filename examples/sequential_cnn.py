"""A small CNN on Fashion-MNIST by the first front door.

Run with the data set's four .gz files in a folder that LLMASOS_DATA names, or with a network to fetch them:

    python examples/sequential_cnn.py
"""

import llmasos_xla as lm

x_train, y_train, _ = lm.Dataset.named("fashion_mnist", mode="train").rows()
x_test, y_test, _ = lm.Dataset.named("fashion_mnist", mode="test").rows()

model = lm.Sequential(
    [
        lm.layers.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)),
        lm.layers.MaxPooling2D((2, 2)),
        lm.layers.Flatten(),
        lm.layers.Dense(128, activation="relu"),
        lm.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, epochs=5)
model.evaluate(x_test, y_test)
