"""Is a sentence of a film review friendly? rt-polarity from scratch: word vectors and convolutions (Kim 2014).

Run with the folder of data sets in LLMASOS_DATA (rt_polarity/rt-polarity.{neg,pos}):

    python examples/sentiment.py [folds]

The data have no test part of their own; as in the papers on them, ten folds are made and each is the test once. All
choices were made on a tenth of the training part of the first fold.
"""

import os
import pathlib
import sys

import numpy as np

import llmasos_xla as lm

FOLDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
WIDTHS, VECTOR, FILTERS, EPOCHS, LENGTH = (3, 4, 5), 300, 100, 5, 56

folder = pathlib.Path(os.environ.get("LLMASOS_DATA", "data")) / "rt_polarity"
if not folder.is_dir():
    sys.exit(f"{folder} is not there: set LLMASOS_DATA to the folder of data sets")
texts, labels = [], []
for label, name in enumerate(("neg", "pos")):
    lines = (folder / f"rt-polarity.{name}").read_text(encoding="latin-1").splitlines()
    texts += [line.strip() for line in lines]
    labels += [label] * len(lines)
texts, labels = np.array(texts, object), np.array(labels, np.int32)
order = np.random.default_rng(0).permutation(len(texts))


def trained(train: np.ndarray, seed: int) -> lm.Sequential:
    """A model that has seen these rows; the vocabulary is theirs too."""
    data = lm.Dataset(list(texts[train]), labels[train], max_words=20000, max_length=LENGTH)
    branches = [
        [lm.layers.Conv1D(FILTERS, width, activation="relu"), lm.layers.GlobalMaxPooling1D()] for width in WIDTHS
    ]
    model = lm.Sequential(
        [
            lm.layers.Embedding(20000, VECTOR),
            lm.layers.Dropout(0.5),
            lm.layers.Concatenate(branches),
            lm.layers.Dropout(0.5),
            lm.layers.Dense(2, activation="softmax"),
        ],
        seed=seed,
    )
    model.compile(lm.Optimizer("adam", 5e-4, ema=0.995), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(data, epochs=EPOCHS, batch_size=50, verbose=0)
    return model


scores = []
for fold in range(FOLDS):
    test = order[fold::10]
    model = trained(np.setdiff1d(order, test), seed=fold)
    scores.append(model.evaluate(list(texts[test]), labels[test], verbose=0)["accuracy"])
    print(f"fold {fold + 1}: accuracy {scores[-1]:.4f}", flush=True)
print(f"mean of {FOLDS} folds: {np.mean(scores):.4f}, deviation {np.std(scores):.4f}")
