"""Tables of what was measured on a GPU: how they are read, and that the public functions choose from them."""

import json

import jax
import jax.numpy as jnp
import pytest

from llmasos_xla import kernels
from llmasos_xla.kernels import _dispatch
from llmasos_xla.kernels._triton import current, tuned
from llmasos_xla.kernels.rnn import triton_spec
from llmasos_xla.kernels.rnn.cases import GPU_BENCH
from llmasos_xla.kernels.rnn.triton_spec import Tiles

DEVICE = "NVIDIA H100 80GB HBM3"
SHAPES = {"x": (16, 64, 96), "w_input": (96, 768), "w_recurrent": (192, 768), "bias": (768,)}
ARRAYS = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in SHAPES.items()}
KEY, CHOICE_KEY = "lstm b=16 n=1 u=192 16-bit", "lstm b=16 t=64 n=1 u=192 16-bit"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the H100's table, which is read from then on."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)

    def write(ops, **changed):
        content = {
            "format": tuned.FORMAT,
            "device": DEVICE,
            "date": "2026-01-02",
            "versions": {},
            "ops": ops,
            **changed,
        }
        (tmp_path / "nvidia-h100-80gb-hbm3.json").write_text(json.dumps(content))
        tuned._read.cache_clear()

    yield write
    tuned._read.cache_clear()


def explained():
    with _dispatch.tracing_for("gpu", DEVICE):
        return kernels.explain(kernels.lstm, **ARRAYS)


def test_the_nearest_class_is_taken(written):
    written({"rnn": {"lstm b=16 u=64": {"near": 1}, "lstm b=24 u=64": {"near": 2}, "gru b=8 u=64": {"near": 3}}})
    near = {key: tuned.lookup(DEVICE, "rnn", key) for key in ("lstm b=17 u=64", "lstm b=25 u=64", "lstm b=64 u=64")}
    assert near == {"lstm b=17 u=64": {"near": 1}, "lstm b=25 u=64": {"near": 2}, "lstm b=64 u=64": None}
    assert tuned.lookup(DEVICE, "no such op", "lstm b=16 u=64") is None
    assert tuned.lookup("another GPU", "rnn", "lstm b=16 u=64") is None


def test_a_launch_has_the_sizes_of_the_table(written):
    with _dispatch.tracing_for("gpu", DEVICE):
        shape = "lstm", 16, 1, 192, "bfloat16", "ieee", current()
        cuts = {back: triton_spec.allowed(*shape, back) for back in (False, True)}
        assert triton_spec.tiles(*shape, True) == cuts[True][0]
        wanted = cuts[True][-1]
        entry = {name: getattr(wanted, name) for name in ("rows", "units", "inner", "warps")}
        written({"rnn backward": {KEY: entry}, "rnn forward": {KEY: {}}})
        assert triton_spec.tiles(*shape, True) == wanted
        # No such cut: the cost model's.
        written({"rnn backward": {KEY: {**entry, "units": 4096}}})
        assert triton_spec.tiles(*shape, True) == cuts[True][0]


def test_tuning_names_each_cut():
    """The fields that the benchmark writes into a table tell the cuts apart."""
    with _dispatch.tracing_for("gpu", DEVICE):
        for c in GPU_BENCH:
            head = -(-c.hidden // c.heads // 16) * 16
            for back in (False, True):
                precision = "tf32x3" if c.dtype == "float32" else "ieee"
                cuts = triton_spec.allowed(c.op, c.batch, c.heads, head, c.dtype, precision, current(), back)
                assert len({(t.rows, t.units, t.inner, t.warps) for t in cuts}) == len(cuts) > 0


def test_explain_says_where_sizes_come_from(written):
    assert explained().chosen.reason.endswith(tuned.UNMEASURED)
    written({"rnn forward": {KEY: {}}, "rnn backward": {KEY: {}}})
    assert explained().chosen.reason.endswith(f"tuned on {DEVICE}, 2026-01-02")


def test_xla_runs_where_it_was_faster(written):
    written({"rnn": {CHOICE_KEY: {"triton": 1.04, "xla": 1.0}}})
    assert explained().chosen.implementation == "triton"
    written({"rnn": {CHOICE_KEY: {"triton": 2.1, "xla": 1.0}}})
    assert explained().chosen.implementation == "xla"
    assert f"takes 2.10 times as long as XLA; tuned on {DEVICE}, 2026-01-02" in str(explained())
    with _dispatch.tracing_for("gpu", DEVICE):
        named = kernels.explain(kernels.lstm, **ARRAYS, implementation="triton")
    assert named.chosen.implementation == "triton"


def test_entries_in_trial_take_the_place_of_the_table(written):
    written({"toy": {"n=8": {"rows": 1}}})
    with tuned.trying({"toy": {"n=8": {"rows": 2}}}) as asked:
        assert tuned.lookup(DEVICE, "toy", "n=8") == {"rows": 2}
        assert asked == [("toy", "n=8")]
    assert tuned.lookup(DEVICE, "toy", "n=8") == {"rows": 1}


def test_a_table_of_another_version_is_refused(written):
    default = Tiles(16, 16, 16, 1, 1, 4)
    written({"toy": {"n=8": {"rows": 32}}})
    assert tuned.replaced(default, DEVICE, "toy", "n=8").rows == 32
    written({"toy": {"n=8": {"blocks": 2}}})
    with pytest.raises(ValueError, match=r'"toy" has blocks, its kernel has rows, units.*measure again with'):
        tuned.replaced(default, DEVICE, "toy", "n=8")
    for changed, said in (({"format": 0}, "has format 0, this version reads 1"), ({"date": None}, "lacks its date")):
        written({}, **changed)
        with pytest.raises(ValueError, match=rf"nvidia-h100-80gb-hbm3.json: {said}.*or delete the file"):
            tuned.lookup(DEVICE, "toy", "n=8")
