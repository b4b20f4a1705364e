"""An MLP from CSV files by the second front door, saved and served.

Wants train.csv and test.csv in the working directory: a `label` column and 784 pixel columns, 0 to 255.
`python examples/write_csv.py` writes them from Fashion-MNIST. The server runs until Ctrl-C.
"""

from llmasos_xla import Dataset, Deployer, Model, Optimizer

model = Model(input_dim=784, output_dim=10)
model.add_layer("Dense", 128, activation="relu")
model.add_layer("Dense", 10, activation="softmax")
train_dataset = Dataset("train.csv", mode="train")
test_dataset = Dataset("test.csv", mode="test")
optimizer = Optimizer("Adam", lr=0.001)
model.train(train_dataset, optimizer, epochs=10, batch_size=32)
model.evaluate(test_dataset)
model.save("model.h5")
deployer = Deployer("model.h5")
deployer.deploy()
