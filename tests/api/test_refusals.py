"""What users get wrong, and what they are told. Each text is part of the interface."""

import numpy as np
import pytest

import llmasos_xla as lm

pytestmark = pytest.mark.usefixtures("unchecked")


def model(units=3, shape=(4,), compiled=True):
    size = {} if shape is None else {"input_shape": shape}
    made = lm.Sequential([lm.layers.Dense(units, activation="softmax", **size)])
    if compiled:
        made.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return made


def image_model(channels=(1,)):
    made = lm.Sequential(
        [
            lm.layers.Conv2D(2, 3, input_shape=(8, 8, *channels)),
            lm.layers.Flatten(),
            lm.layers.Dense(2, activation="softmax"),
        ]
    )
    made.compile("adam", "sparse_categorical_crossentropy")
    return made


def token_model(**options):
    made = lm.Sequential(
        [lm.layers.Embedding(5, 3, **options), lm.layers.LSTM(2), lm.layers.Dense(3, activation="softmax")]
    )
    made.compile("adam", "sparse_categorical_crossentropy")
    return made


X, Y = np.ones((6, 4), np.float32), np.array([0, 1, 2, 0, 1, 2])
NAN = X.copy()
NAN[3, 1] = np.nan

CASES = {
    "wrong width": (lambda: model().fit(np.ones((6, 5)), Y, verbose=0), r"\(4,\)|4.*5"),
    "wrong image shape": (
        lambda: image_model().fit(np.ones((6, 9, 9), np.uint8), Y % 2, verbose=0),
        r"9, 9.*8, 8|8, 8.*9, 9",
    ),
    "one sample without its batch axis": (lambda: (m := model(), m.fit(X, Y, verbose=0), m.predict(X[0])), r"\[None"),
    "text for numbers": (lambda: model().fit(np.array([["a"] * 4] * 6), Y, verbose=0), "text|str|wanted"),
    "lengths differ": (lambda: model().fit(X, Y[:5], verbose=0), "6.*5|5.*6"),
    "labels out of range": (
        lambda: model().fit(X, Y + 1, verbose=0),
        "label 3 of row 2 is out of range: the model has 3",
    ),
    "float labels": (lambda: model().fit(X, Y + 0.5, verbose=0), "wants integer class labels, got float32"),
    "class ids as floats": (
        lambda: (m := lm.Model(4, 3), m.add_layer("Dense", 3, activation="softmax"), m.train((X, Y * 1.0), verbose=0)),
        r"integer class labels, got float32.*cast them with y.astype\('int32'\) \(of a table.*categories=",
    ),
    "a softmax of one output": (
        lambda: (m := lm.Model(4, 1), m.add_layer("Dense", 1, activation="softmax"), m.train((X, Y), verbose=0)),
        "label 1 of row 1 is out of range: the model has 1 outputs.*make the last layer larger",
    ),
    "several inputs": (
        lambda: model().fit({"a": X, "b": X}, Y, verbose=0),
        r"it takes one input, the data are a dict of a and b: .*x\['a'\] or np.concatenate.*pandas.DataFrame",
    ),
    "images without channels": (
        lambda: image_model(()).fit(np.ones((6, 8, 8), np.uint8), Y % 2, verbose=0),
        r"samples of shape \(height, width, channels\), got \(8, 8\); with one channel.* input_shape=\(8, 8, 1\) in",
    ),
    "names under a loss of numbers": (
        lambda: (m := model(1), m.compile("adam", "mse"), m.fit(X, np.array(list("abcabc")), verbose=0)),
        r"names of 3 classes \('a', 'b', 'c'\).*Dense\(3, activation='softmax'\).*numbers that came as text",
    ),
    "a metric of the whole batch": (
        lambda: (m := model(), m.compile("adam", "mse", [lambda p, y: p.mean()]), m.fit(X, np.eye(3)[Y], verbose=0)),
        "metric '<lambda>' gave a single number for a batch of 6 rows; one value a row is wanted",
    ),
    "text for a model of numbers": (
        lambda: model(shape=None).fit(lm.Dataset(["a b", "c", "d e"], Y[:3]), verbose=0),
        r"the data are text, encoded to ids 0 to 6, and its first layer reads numbers: begin with .*Embedding\(7,",
    ),
    "several inputs in predict": (lambda: model().predict({"a": X}), "the data are a dict of a: pass one array"),
    "several inputs after fit": (
        lambda: (m := model(), m.fit(X, Y, verbose=0), m.predict({"a": X})),
        "predict: an array is wanted, a dict of a came; pass one of its arrays",
    ),
    "no labels": (lambda: model().fit(X, verbose=0), "the data have no labels; pass y"),
    "nan in the data": (lambda: model().fit(NAN, Y, verbose=0), "(?i)nan.*row 3"),
    "empty data": (lambda: model().fit(X[:0], Y[:0], verbose=0), "no rows"),
    "not compiled": (
        lambda: model(compiled=False).fit(X, Y, verbose=0),
        r"call compile\(optimizer=, loss=, metrics=\) first",
    ),
    "no layers": (lambda: lm.Sequential([]).predict(X), "it has no layers"),
    "no shape yet": (lambda: lm.Sequential([lm.layers.Dense(2)]).summary(), "give the first layer input_shape="),
    "unknown optimizer": (lambda: model().compile("adamm", "mse"), "unknown optimizer 'adamm'; did you mean 'adam"),
    "unknown loss": (lambda: model().compile("adam", "crossentropy"), "unknown loss 'crossentropy'.*Known: .*huber"),
    "unknown metric": (lambda: model().compile("adam", "mse", ["acc2"]), "unknown metric 'acc2'"),
    "unknown precision": (lambda: model().compile("adam", "mse", precision="int8"), "unknown precision 'int8'"),
    "unknown layer": (lambda: lm.Model(4, 2).add_layer("Dence", 3), "unknown layer 'Dence'; did you mean 'Dense'"),
    "unknown activation": (
        lambda: lm.layers.Dense(3, activation="rellu"),
        "unknown activation 'rellu'; did you mean 'relu'",
    ),
    "no layer": (lambda: lm.Sequential(["Dense"]), "wants layers such as lm.layers.Dense"),
    "ids without a vector": (
        lambda: token_model().fit(np.array([[1, 2], [3, 9]]), Y[:2], verbose=0),
        r"Embedding: ids must be 0 to 4 \(input_dim 5\), got 9 in row 1",
    ),
    "padding at the left": (
        lambda: token_model(mask_zero=True).fit(np.array([[1, 2, 0], [0, 3, 4]]), Y[:2], verbose=0),
        r"row 1 has a 0 before other ids; pad at the right \(Keras' pad_sequences\(padding='post'\)\)",
    ),
    "ids without a vector in predict": (
        lambda: (
            m := token_model(),
            m.fit(np.array([[1, 2], [3, 4]]), Y[:2], verbose=0),
            m.predict(np.array([[0, 7]])),
        ),
        "got 7 in row 0",
    ),
    "layers that do not fit": (
        lambda: lm.Sequential([lm.layers.Conv2D(4, 9, input_shape=(8, 8, 1))]).summary(),
        r"layer 0 \(Conv2D\).*a window of 9 does not fit an axis of 8",
    ),
    "layer after use": (lambda: (m := model(), m.summary(), m.add(lm.layers.Flatten())), "it is built already"),
    "output_dim": (
        lambda: (m := lm.Model(4, 2), m.add_layer("Dense", 3), m.train((X, Y), verbose=0)),
        "output_dim is 2, but the last layer gives 3",
    ),
    "input_dim": (lambda: lm.Model(0, 2), "want positive whole numbers, got 0 and 2"),
    "seed": (lambda: lm.Model(4, 2, seed="a"), "seed wants a whole number, got 'a'"),
    "epochs": (lambda: model().fit(X, Y, epochs=0, verbose=0), "epochs wants a whole number >= 1, got 0"),
    "batch size": (
        lambda: model().fit(X, Y, batch_size=2.5, verbose=0),
        "batch_size wants a whole number >= 1, got 2.5",
    ),
    "verbose": (lambda: model().fit(X, Y, verbose=2), r"verbose wants 0 \(quiet\) or 1"),
    "validation split": (lambda: model().fit(X, Y, validation_split=1.5, verbose=0), "between 0 and 1, got 1.5"),
    "validation data": (lambda: model().fit(X, Y, validation_data=X, verbose=0), r"validation_data wants \(x, y\)"),
    "class weight": (
        lambda: model().fit(X, Y, class_weight={7: 1.0}, verbose=0),
        "names class 7; the classes are 0 to 2",
    ),
    "class weight of another kind": (
        lambda: model().fit(X, Y, class_weight="balanced", verbose=0),
        "class_weight wants {class id: weight}.*got 'balanced'",
    ),
    "class weight below zero": (
        lambda: model().fit(X, Y, class_weight={0: -1.0}, verbose=0),
        "class_weight wants finite weights >= 0, got -1.0",
    ),
    "class weight of targets": (
        lambda: (m := lm.Model(4, 1), m.add_layer("Dense", 1), m.train((X, Y / 7), class_weight={0: 2.0}, verbose=0)),
        "class_weight wants labels that are one class a row.*sample_weight=",
    ),
    "labels of a binary loss": (
        lambda: (m := lm.Model(4, 1), m.add_layer("Dense", 1, activation="sigmoid"), m.train((X, Y + 2), verbose=0)),
        "binary_crossentropy: labels run from 2 to 4, wanted 0 to 1",
    ),
    "steps_per_dispatch": (
        lambda: model().fit(X, Y, steps_per_dispatch=0, verbose=0),
        "steps_per_dispatch wants a whole number >= 1, got 0",
    ),
    "a callback's factory": (
        lambda: model().fit(X, Y, callbacks=[lm.callbacks.early_stopping], verbose=0),
        r"write callbacks=\[early_stopping\(\)\]",
    ),
    "monitor": (
        lambda: model().fit(X, Y, callbacks=[lm.callbacks.early_stopping()], verbose=0),
        "no metric 'val_loss', only loss, accuracy; pass validation_data=",
    ),
    "variables": (
        lambda: setattr(model(), "variables", lm.Variables({"dense/kernel": X}, {})),
        r"these params do not fit: dense/bias: wanted \(\(3,\), 'float32'\), got none",
    ),
    "a Dataset with y": (lambda: model().fit(lm.Dataset((X, Y)), Y), "a Dataset brings its own labels"),
    "train without data": (
        lambda: (m := lm.Model(4, 3), m.add_layer("Dense", 3), m.train(X)),
        r"wants a Dataset or \(x, y\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal(name):
    call, text = CASES[name]
    with pytest.raises((ValueError, TypeError), match=text):
        call()


def test_a_model_whose_fit_was_refused_predicts():
    refused, fresh = model(), model()
    with pytest.raises(ValueError, match="unknown strategy 'fdsp'; did you mean 'fsdp'"):
        refused.fit(X, Y, shard="fdsp")
    np.testing.assert_array_equal(refused.predict(X), fresh.predict(X))
