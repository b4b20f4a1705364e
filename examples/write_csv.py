"""Writes train.csv and test.csv in the common MNIST layout from a named data set (default: fashion_mnist)."""

import sys

import numpy as np

import llmasos_xla as lm


def main(name: str) -> None:
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    for mode in ("train", "test"):
        x, y, _ = lm.Dataset.named(name, mode=mode).rows()
        rows = np.column_stack([y, x.reshape(len(x), -1)])
        np.savetxt(f"{mode}.csv", rows, fmt="%d", delimiter=",", header=header, comments="")
        print(f"wrote {mode}.csv: {len(rows)} rows")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fashion_mnist")
