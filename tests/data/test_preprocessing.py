import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from llmasos_xla.data import Dataset, Preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)


def fitted(x, y=None, shape=None, *, tokens=False, **options):
    return Preprocessing.fit(Dataset(x, y, **options), shape, tokens=tokens)


def seen(preprocessing, x):
    """What the model sees."""
    return np.asarray(jax.jit(preprocessing.on_device)(preprocessing.encode(x)))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("given_shape", [(28, 28), (28, 28, 1), (784,)])
@pytest.mark.parametrize("wanted", [(28, 28, 1), (784,), (28, 28)])
def test_pixels_reach_the_model_the_same_however_they_come(dtype, given_shape, wanted):
    x = IMAGES.reshape(6, *given_shape).astype(dtype)
    preprocessing = fitted(x, shape=wanted)
    assert preprocessing.shape == wanted
    assert preprocessing.dtype == "uint8"
    assert preprocessing.encode(x).dtype == np.uint8
    assert_close(seen(preprocessing, x), IMAGES.reshape(6, *wanted) / 255)


def test_every_form_of_array_is_taken(unchecked):
    torch_like = type(
        "Tensor", (), {"detach": lambda s: s, "cpu": lambda s: s, "__array__": lambda s, *a, **k: IMAGES}
    )()
    preprocessing = fitted(IMAGES, shape=(28, 28, 1))
    wanted = preprocessing.encode(IMAGES)
    for form in (IMAGES.tolist(), list(IMAGES), jnp.asarray(IMAGES), torch_like, IMAGES.reshape(6, -1)):
        np.testing.assert_array_equal(preprocessing.encode(form), wanted)


def test_pictures_are_taken():
    from PIL import Image

    preprocessing = fitted(IMAGES, shape=(28, 28, 1))
    pictures = [Image.fromarray(image) for image in IMAGES]
    np.testing.assert_array_equal(preprocessing.encode(pictures), IMAGES[..., None])
    colored = [picture.convert("RGB").resize((56, 56)) for picture in pictures]
    assert preprocessing.encode(colored).shape == (6, 28, 28, 1)
    with pytest.raises(ValueError, match=r"predict: one picture came; a batch is wanted: pass \[picture\]"):
        preprocessing.encode(pictures[0], who="predict")


def test_floats_are_left_as_they_are():
    x = np.random.default_rng(0).normal(size=(5, 3))
    preprocessing = fitted(x)
    assert preprocessing.dtype == "float32"
    assert_close(seen(preprocessing, x), x)


@pytest.mark.parametrize("x", [np.arange(20).reshape(10, 2), np.full((4, 28, 28), 0.5), np.eye(49)])
def test_what_does_not_look_like_pixels_is_not_scaled(x):
    assert_close(seen(fitted(x), x), x)


def test_bytes_of_flags_are_not_scaled():
    x = np.eye(4, dtype=np.uint8)
    np.testing.assert_array_equal(seen(fitted(x), x), x)


def test_bool_is_zero_and_one():
    x = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(seen(fitted(x), x), np.eye(3))


@pytest.mark.parametrize("shape", [(50, 4), (50, 6, 4), (9, 5, 6, 3)])
def test_standard_gives_mean_zero_and_deviation_one(shape):
    # A large mean beside a small deviation: naive sums of squares would lose it.
    x = np.random.default_rng(0).normal(1000, 0.5, shape)
    y = seen(fitted(x, normalize="standard"), x).reshape(-1, shape[-1])
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=2e-2)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-2)


def test_standard_of_a_constant_feature_is_zero():
    x = np.stack([np.ones(4), np.arange(4.0)], axis=1)
    np.testing.assert_array_equal(seen(fitted(x, normalize="standard"), x)[:, 0], 0)


def test_normalize_none_keeps_bytes_as_numbers():
    assert_close(seen(fitted(IMAGES, normalize=None), IMAGES), IMAGES.astype(np.float32))


def test_digits_are_scaled_by_their_own_range():
    preprocessing = Preprocessing.fit(Dataset.named("digits"), (8, 8, 1))
    assert preprocessing.describe() == "uint8 (rows, 8, 8, 1), times 1/16"
    y = seen(preprocessing, Dataset.named("digits").rows().x)
    assert y.min() == 0
    assert y.max() == 1


def test_tokens_stay_integers():
    x = np.array([[0, 3, 2], [1, 0, 0]])
    preprocessing = fitted(x, tokens=True)
    y = jax.jit(preprocessing.on_device)(preprocessing.encode(x))
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(preprocessing.encode(x.astype(np.float32)), x)
    with pytest.raises(ValueError, match=r"token ids are whole numbers, .*0.5.* came"):
        preprocessing.encode(x + 0.5)
    with pytest.raises(ValueError, match=r"token ids run from 0 to 2147483647, -1 to 2 came"):
        preprocessing.encode(x - 1)


def test_free_axes_take_any_length():
    x = np.zeros((4, 10, 3), np.float32)
    preprocessing = fitted(x, shape=(None, 3))
    assert preprocessing.shape == (10, 3)
    assert preprocessing.encode(np.zeros((2, 7, 3), np.float32)).shape == (2, 7, 3)
    with pytest.raises(ValueError, match=r"x has shape \(2, 7, 4\), the model wants \(rows, any, 3\)"):
        preprocessing.encode(np.zeros((2, 7, 4), np.float32))
    series = fitted(np.zeros((4, 10), np.float32), shape=(None, 1))
    assert series.shape == (10, 1)
    assert series.encode(np.zeros((2, 5), np.float32)).shape == (2, 5, 1)


def test_several_inputs():
    data = Dataset({"image": IMAGES, "age": np.arange(6.0)}, np.arange(6))
    assert data.inputs == ("image", "age")
    preprocessing = Preprocessing.fit(data, {"image": (28, 28, 1), "age": (1,)})
    assert preprocessing.shape == {"image": (28, 28, 1), "age": (1,)}
    assert preprocessing.dtype == {"image": "uint8", "age": "float32"}
    x = preprocessing.on_device(preprocessing.encode({"age": np.arange(2), "image": IMAGES[:2]}))
    assert x["age"].shape == (2, 1)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    with pytest.raises(ValueError, match=r"predict: a dict of the inputs image, age is wanted, a dict of image came"):
        preprocessing.encode({"image": IMAGES}, who="predict")
    with pytest.raises(ValueError, match=r"different numbers of rows: {'image': 6, 'age': 2}"):
        preprocessing.encode({"age": np.arange(2), "image": IMAGES})


def test_on_device_is_pure_and_strict():
    preprocessing = fitted(IMAGES, normalize="standard")
    program = jax.make_jaxpr(preprocessing.on_device)(jnp.zeros((2, 28, 28), jnp.uint8))
    assert program.out_avals[0].dtype == jnp.float32
    assert hash(preprocessing) == hash(fitted(IMAGES, normalize="standard"))


class TestShapes:
    preprocessing = fitted(IMAGES, shape=(28, 28, 1))

    @pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1)])
    def test_one_sample_is_refused_with_the_cure(self, shape):
        with pytest.raises(
            ValueError,
            match=r"predict: x has shape .* which is one sample; the model wants \(rows, 28, 28, 1\): add",
        ):
            self.preprocessing.encode(np.zeros(shape, np.uint8), who="predict")

    def test_one_flat_sample(self):
        with pytest.raises(ValueError, match=r"x has shape \(784,\), .* x\[None\]"):
            fitted(IMAGES, shape=(784,)).encode(np.zeros(784))

    def test_another_shape_is_named(self):
        with pytest.raises(ValueError, match=r"x has shape \(2, 27, 28\), the model wants \(rows, 28, 28, 1\)$"):
            self.preprocessing.encode(np.zeros((2, 27, 28)), who="predict")

    def test_transposed_axes_are_not_reshaped(self):
        preprocessing = fitted(np.zeros((2, 4, 6, 3), np.float32), shape=(4, 6, 3))
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 6\), the model wants \(rows, 4, 6, 3\)"):
            preprocessing.encode(np.zeros((2, 3, 4, 6)))

    def test_ragged_rows(self):
        with pytest.raises(ValueError, match=r"rows have different shapes \(\(2,\), \(1,\)\)"):
            self.preprocessing.encode([[1, 2], [1]])

    def test_text(self):
        with pytest.raises(TypeError, match=r"text came \('a'\) where numbers of shape \(rows, 28, 28, 1\) are wanted"):
            self.preprocessing.encode(["a", "b"])

    def test_objects(self):
        with pytest.raises(TypeError, match=r"numbers or text are wanted, list of NoneType, int came"):
            self.preprocessing.encode([None, 1])

    def test_the_model_decides_at_fit(self):
        with pytest.raises(ValueError, match=r"fit: the model wants \(rows, 32, 32, 3\), x has \(rows, 28, 28\)"):
            fitted(IMAGES, shape=(32, 32, 3))


def test_not_finite_values_are_counted():
    x = np.zeros((5, 3))
    preprocessing = fitted(x)
    x[2, 1] = np.nan
    x[3, 0] = np.inf
    x[3, 1] = -np.inf
    with pytest.raises(ValueError, match=r"predict: 1 NaN and 2 infinite of 15 values, the first in row 2; mend"):
        preprocessing.encode(x, who="predict")
    with pytest.raises(ValueError, match=r"fit: x: 1 NaN and 2 infinite"):
        fitted(x)
    with pytest.raises(ValueError, match=r"\(as float32\): 1 infinite of 3"):
        preprocessing.encode(np.array([[1e300, 0, 0]]))


def test_scaled_input_to_a_model_of_pixels_is_refused():
    with pytest.raises(ValueError, match=r"pixels 0..255 and scales them itself: pass the raw pixels \(x \* 255\)"):
        fitted(IMAGES).encode(IMAGES / 255)


def test_pixels_to_a_model_of_scaled_input_are_refused():
    with pytest.raises(ValueError, match=r"trained on floats from 0 to 1: scale x as for training"):
        fitted(IMAGES / 255).encode(IMAGES)


def test_pixels_between_whole_numbers_are_taken():
    x = IMAGES * 0.99
    assert_close(seen(fitted(IMAGES), x), x / 255)


def test_normalize_pixels_refuses_other_values():
    with pytest.raises(ValueError, match=r"wants whole numbers from 0 to 255; x runs from -1.0 to 1.0"):
        fitted(np.array([[-1.0, 1.0]]), normalize="pixels")


arrays = st.sampled_from(
    [
        (IMAGES, {"shape": (28, 28, 1)}),
        (IMAGES, {"normalize": "standard"}),
        (np.random.default_rng(1).normal(size=(7, 3)), {"normalize": "standard"}),
        (np.zeros((4, 10, 3), np.float32), {"shape": (None, 3)}),
        (np.arange(12).reshape(3, 4), {"tokens": True}),
        (["one two", "two \N{SNOWMAN}", ""], {}),
        (["one two", "two \N{SNOWMAN}"], {"level": "character"}),
    ]
)


@settings(max_examples=20, deadline=None)
@given(arrays, st.sampled_from([None, "names"]))
def test_json_round_trip(case, labels):
    x, options = case
    y = [f"class {i % 2}" for i in range(len(x))] if labels else np.arange(len(x))
    preprocessing = fitted(x, y, **options)
    again = Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json())))
    assert again == preprocessing
    np.testing.assert_array_equal(again.encode(x), preprocessing.encode(x))
    np.testing.assert_array_equal(seen(again, x), seen(preprocessing, x))
    np.testing.assert_array_equal(again.encode_labels(y), preprocessing.encode_labels(y))


def _good():
    return fitted(IMAGES, ["a", "b"] * 3, normalize="standard").to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: [], "preprocessing is \\[\\]; an object with input, label_names, version is wanted"),
        (lambda v: v | {"version": 2}, "version is 2; 1; a newer file needs"),
        (lambda v: v | {"extra": 1}, "lacks \\[\\] and has \\['extra'\\] left over"),
        (lambda v: v | {"input": {"kind": "pickle"}}, "input.kind is 'pickle'; one of array, table, text"),
        (lambda v: v | {"input": v["input"] | {"shape": [-1]}}, "input.shape is \\[-1\\]; whole numbers from 0"),
        (lambda v: v | {"input": v["input"] | {"shape": [True]}}, "input.shape"),
        (lambda v: v | {"input": v["input"] | {"dtype": "object"}}, "input.dtype is 'object'; one of uint8"),
        (lambda v: v | {"input": v["input"] | {"scale": "1"}}, "input.scale is '1'; a finite number"),
        (lambda v: v | {"input": v["input"] | {"scale": float("nan")}}, "input.scale is nan; a finite number"),
        (lambda v: v | {"input": v["input"] | {"std": None}}, "input.std is None; as many numbers above 0"),
        (lambda v: v | {"input": v["input"] | {"mean": [0.0] * 5, "std": [1.0] * 5}}, "input.mean"),
        (lambda v: v | {"input": v["input"] | {"free": [7]}}, "input.free is \\[7\\]; different axes below 2"),
        (lambda v: v | {"label_names": ["a", 1]}, "label_names is \\['a', 1\\]; a list of strings"),
        (lambda v: v | {"label_names": ["a", "a"]}, "label_names is .*different strings"),
    ],
)
def test_a_damaged_file_is_refused_by_field(change, message):
    with pytest.raises(ValueError, match=f"^preprocessing: .*{message}|^preprocessing.*{message}"):
        Preprocessing.from_json(change(_good()))


leaves = st.one_of(st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=4))
junk = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["shape", "dtype", "free", "scale", "mean", "std", "columns", "unit"]), junk)
def test_junk_in_a_field_is_refused_or_harmless(field, value):
    good = _good()
    good["input"][field] = value
    try:
        preprocessing = Preprocessing.from_json(good)
    except ValueError:
        with pytest.raises(ValueError, match=r"^preprocessing: "):
            Preprocessing.from_json(good)
    else:
        json.dumps(preprocessing.to_json())


def test_numbers_too_large_for_float32_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n1.5,0\n2.5,1\n")
    preprocessing = Preprocessing.fit(Dataset(path))
    with pytest.raises(ValueError, match="predict: 1e[+]200 in column 'a', row 1, is too large for float32"):
        preprocessing.encode([{"a": 1.0}, {"a": 1e200}], who="predict")
    path.write_text("a,label\n1e308,0\n-1e308,1\n")
    with pytest.raises(ValueError, match="the column 'a' holds 1e[+]308, too large"):
        Preprocessing.fit(Dataset(path))


def test_a_table_takes_columns_of_values_and_nothing_else(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,label\n1.5,u,0\n2.5,v,1\n")
    preprocessing = Preprocessing.fit(Dataset(path))
    rows = preprocessing.encode([{"a": 1.0, "b": "u"}, {"a": 2.0, "b": "v"}])
    for raw in ({"a": [1.0, 2.0], "b": ["u", "v"]}, {"b": [["u"], ["v"]], "a": np.array([[1.0], [2.0]])}):
        np.testing.assert_array_equal(preprocessing.encode(raw), rows)
    for raw, text in (
        ({"a": 1.0, "b": "u"}, r"the column 'a' is a single value \(1.0\); .* a single row goes as \[row\]"),
        ({"a": [1.0], "b": "u"}, r"the column 'b' is a single value \('u'\)"),
        ({"a": [1.0, 2.0], "b": ["u"]}, r"the columns have different numbers of rows: {'a': 2, 'b': 1}"),
        ({"a": np.ones((2, 3)), "b": ["u", "v"]}, r"the column 'a' has shape \(2, 3\); one value a row is wanted"),
    ):
        with pytest.raises(ValueError, match=f"predict: {text}"):
            preprocessing.encode(raw, who="predict")


def test_how_many_inputs_are_needed_is_read_back_and_checked():
    preprocessing = dataclasses.replace(
        Preprocessing.fit(Dataset({"ids": np.ones((2, 3), int), "mask": np.ones((2, 3), int)}), tokens=("ids", "mask")),
        needed=1,
    )
    value = json.loads(json.dumps(preprocessing.to_json()))
    assert Preprocessing.from_json(value) == preprocessing
    for needed in (0, 3, "1", True):
        with pytest.raises(ValueError, match="needed is .*; a whole number from 1 to 2 is wanted"):
            Preprocessing.from_json(value | {"needed": needed})
