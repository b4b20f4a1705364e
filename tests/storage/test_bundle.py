"""The `.lmx` bundle: what is written is read, and nothing else is."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.api.exporting import export_net
from llmasos_xla.storage import signatures
from llmasos_xla.storage.bundle import Bundle, DamagedBundleError, Program, write
from llmasos_xla.storage.exported import check_calls

pytestmark = pytest.mark.usefixtures("unchecked")  # numbers of rows are symbols where programs are exported


@pytest.fixture(scope="module")
def model():
    model = lm.Sequential([lm.layers.Dense(4, activation="tanh", input_shape=(3,)), lm.layers.Dense(2)])
    model.predict(np.ones((1, 3), np.float32))
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    before = __import__("jaxtyping").config.jaxtyping_disable
    __import__("jaxtyping").config.update("jaxtyping_disable", True)
    found = model.export(tmp_path_factory.mktemp("bundle") / "tiny.lmx")
    __import__("jaxtyping").config.update("jaxtyping_disable", before)
    return found


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_its_program_gives_what_predict_gives(model, path, rows, rng):
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    content = Bundle.open(path).content
    answer = jax.jit(Bundle.open(path).program())(dict(content.arrays), {"input": x})["output"]
    np.testing.assert_allclose(answer, model.predict(x), rtol=1e-6)


def test_its_example_is_answered(path):
    found = Bundle.open(path)
    inputs, outputs = found.content.example
    answer = jax.jit(found.program())(dict(found.content.arrays), dict(inputs))
    np.testing.assert_allclose(answer["output"], outputs["output"], rtol=1e-6)


def test_it_is_a_model_again(model, path, rng):
    x = rng.normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(lm.load(path).predict(x), model.predict(x))


def test_equal_models_give_equal_files_that_name_no_folder(model, path, tmp_path):
    assert str(pathlib.Path(lm.__file__).parent).encode() not in path.read_bytes()
    assert model.export(tmp_path / "tiny.lmx").read_bytes() == path.read_bytes()


def test_jax_alone_runs_it(path):
    code = f"""
import sys
banned = {{"flax", "optax", "orbax", "grain", "h5py"}}
class Gate:
    def find_spec(self, name, *rest):
        ours = ("models", "training", "api", "kernels", "data", "sharding", "core", "deployment")
        parts = name.split(".")
        if parts[0] in banned or (parts[0] == "llmasos_xla" and len(parts) > 1 and parts[1] in ours):
            raise ImportError(name)
sys.meta_path.insert(0, Gate())
import jax
from llmasos_xla.storage.bundle import Bundle
found = Bundle.open({str(path)!r})
inputs, outputs = found.content.example
answer = jax.jit(found.program())(dict(found.content.arrays), dict(inputs))
print(float(abs(answer["output"] - outputs["output"]).max()) < 1e-6)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (
            lambda: lm.models.bert(vocab=11, context=16, width=8, depth=1, heads=2, classes=3, task="classification"),
            ["ids", "attention_mask"],
        ),
        (lambda: lm.models.gpt2(vocab=11, context=16, width=8, depth=1, heads=2), ["ids"]),
    ],
)
def test_rows_of_any_length_are_one_program(make, inputs, tmp_path, rng):
    model = make()
    one = np.ones((2, 8), np.int32)
    model.predict(one if len(inputs) == 1 else dict.fromkeys(inputs, one))
    found = Bundle.open(model.export(tmp_path / "x.lmx"))
    assert found.content.limits == {"length0": (found.content.limits["length0"][0], 16)}
    ids = found.content.inputs[0].name
    program = jax.jit(found.program([ids, *inputs[1:]]))
    for size in ((1, 8), (3, 12)):
        x = rng.integers(1, 11, size).astype(np.int32)
        given = {"ids": x, "attention_mask": np.ones_like(x)} if len(inputs) > 1 else {ids: x}
        wanted = model.predict(given if len(inputs) > 1 else x)
        np.testing.assert_allclose(program(dict(found.content.arrays), given)["output"], wanted, rtol=1e-4, atol=1e-5)


def test_a_network_of_one_size_is_exported_for_that(tmp_path, rng):
    # How many pixels a window at the border holds is counted by NumPy.
    pool = lm.layers.AveragePooling2D(3, strides=2, padding="same", input_shape=(None, None, 3))
    model = lm.Sequential([pool, lm.layers.GlobalAveragePooling2D(), lm.layers.Dense(2)])
    x = rng.normal(size=(3, 8, 8, 3)).astype(np.float32)
    wanted = model.predict(x)
    with pytest.warns(UserWarning, match=r"for the one it has seen, {'length0': 8, 'length1': 8}"):
        found = Bundle.open(model.export(tmp_path / "x.lmx"))
    np.testing.assert_allclose(
        found.program()(dict(found.content.arrays), {"input": x})["output"], wanted, rtol=1e-4, atol=1e-5
    )


def test_lengths_that_are_asked_for_are_programs_of_their_own(tmp_path, rng):
    model = lm.models.t5(vocab=11, width=8, depth=1, heads=2, hidden=8, key_dim=4)
    ids = np.ones((1, 4), np.int32)
    model.predict({"ids": ids, "decoder_input_ids": ids})
    found = Bundle.open(model.export(tmp_path / "t5.lmx", lengths=(4, 8)))
    x = rng.integers(1, 11, (2, 8)).astype(np.int32)
    given = {"ids": x, "decoder_input_ids": x[:, :8]}
    program = found.program(given, {"length0": 8, "decoder_length0": 8})
    answer = jax.jit(program)(dict(found.content.arrays), given)["output"]
    np.testing.assert_allclose(answer, model.predict(given), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no program takes the lengths"):
        found.program(given, {"length0": 5, "decoder_length0": 8})
    with pytest.raises(ValueError, match=r"no program takes ids; there is one for ids, decoder_input_ids or"):
        found.program(["ids"])


def test_pure_functions_are_exported(tmp_path, rng):
    variables = lm.Variables({"w": jnp.ones((3, 2))}, {"shift": jnp.ones(2)})
    path = export_net(
        lambda v, x: {"sum": x["a"] @ v.params["w"] + v.state["shift"][None], "same": x["a"]},
        variables,
        tmp_path / "f.lmx",
        example={"a": np.ones((2, 3), np.float32)},
    )
    found = Bundle.open(path)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    answer = found.program()(dict(found.content.arrays), {"a": x})
    np.testing.assert_allclose(answer["sum"], x.sum(1, keepdims=True) + np.ones((4, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="exported from functions"):
        lm.load(path)


def test_what_cannot_be_exported_says_why(model, tmp_path):
    fresh = lm.Sequential([lm.layers.Dense(2)])
    with pytest.raises(ValueError, match="has never seen data"):
        fresh.export(tmp_path / "x.lmx")
    with pytest.raises(ValueError, match=r"a bundle ends in \.lmx"):
        model.export(tmp_path / "x.zip")
    with pytest.raises(FileNotFoundError, match="make it first"):
        model.export(tmp_path / "none" / "x.lmx")
    with pytest.raises(ValueError, match="platforms are some of cpu"):
        model.export(tmp_path / "x.lmx", platforms=("amiga",))
    assert not list(tmp_path.iterdir())


def test_another_platform_is_refused(model, tmp_path):
    path = model.export(tmp_path / "x.lmx", platforms=("cuda",))
    with pytest.raises(ValueError, match="exported for cuda, not for cpu"):
        Bundle.open(path).program()


def test_signatures_are_checked(model, path, tmp_path):
    public = signatures.new_key(tmp_path / "key.pem")
    other = signatures.new_key(tmp_path / "other.pem")
    signed = model.export(tmp_path / "x.lmx", key=tmp_path / "key.pem")
    assert Bundle.open(signed, key=public).signed
    assert not Bundle.open(signed).signed
    with pytest.raises(PermissionError, match="was not signed by this key"):
        Bundle.open(signed, key=other)
    with pytest.raises(PermissionError, match="is not signed"):
        Bundle.open(path, key=public)
    with pytest.raises(ValueError, match="a public ed25519 key in PEM is wanted"):
        Bundle.open(signed, key=tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0


def rewritten(path, to, change):
    """The bundle with its entries as `change(name, bytes)` gives them."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            for entry, data in change(name, old.read(name)):
                new.writestr(entry, data)
    return to


def manifest_with(path, to, **changes):
    def change(name, data):
        if name == "manifest.json":
            data = json.dumps({**json.loads(data), **changes}).encode()
        return [(name, data)]

    return rewritten(path, to, change)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, d: [(n, d + b" " if n == "model.json" else d)], "'model.json' has"),
        (lambda n, d: [(n, d[:-1] + b"\1" if n.startswith("w") else d)], "the bytes of 'weights.safetensors' are not"),
        (lambda n, d: [] if n == "weights.safetensors" else [(n, d)], "it has no weights.safetensors"),
        (lambda n, d: [(n, d), ("../evil", b"")], "an entry '../evil' is none of a bundle"),
        (lambda n, d: [(n, d), (n, d)], "is there twice"),
        (lambda n, d: [(n, b"[]" if n == "manifest.json" else d)], "its manifest is no table"),
        (lambda n, d: [(n, b"{" if n == "manifest.json" else d)], "is refused"),
    ],
)
def test_a_changed_bundle_is_refused(path, tmp_path, change, reason):
    with pytest.raises(DamagedBundleError, match=reason):
        Bundle.open(rewritten(path, tmp_path / "x.lmx", change))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "llmasos_xla/bundle/2"},
        {"format": 3},
        {"name": "a/b"},
        {"parts": {}},
        {"parts": None},
        {"programs": []},
        {"programs": [{"file": "manifest.json", "inputs": [], "platforms": [], "lengths": {}}]},
        {"inputs": [{"name": "input", "dtype": "object", "shape": [-1]}]},
        {"inputs": []},
        {"preprocessing": []},
        {"made_by": {"jax": 1}},
        {"limits": {"x": [1]}},
    ],
)
def test_a_manifest_that_lies_is_refused(path, tmp_path, changes):
    with pytest.raises(DamagedBundleError):
        Bundle.open(manifest_with(path, tmp_path / "x.lmx", **changes))


def test_compressed_entries_are_refused(path, tmp_path):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "x.lmx", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DamagedBundleError, match="is compressed or encrypted"):
        Bundle.open(tmp_path / "x.lmx")


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_anywhere_is_found(path, tmp_path, rng, count):
    """A byte that is changed, or an end that is missing, is refused, or changes nothing that is read."""
    whole = path.read_bytes()
    good = Bundle.open(path).content
    for number in range(count):
        data = bytearray(whole)
        if number % 3:
            data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        else:
            del data[int(rng.integers(len(data))) :]
        (tmp_path / "x.lmx").write_bytes(data)
        try:
            found = Bundle.open(tmp_path / "x.lmx").content
        except DamagedBundleError:
            continue
        assert found.programs == good.programs
        assert all(np.array_equal(found.arrays[name], good.arrays[name]) for name in good.arrays)


@pytest.mark.parametrize(
    "call",
    [
        "stablehlo.custom_call @xla_ffi_python_cpu_callback(%0)",
        'stablehlo.custom_call @"x y"(%0)',
        '"stablehlo.custom_call"(%0) <{call_target_name = "xla_ffi_python_cpu_callback"}>',
        "stablehlo.infeed",
    ],
)
def test_programs_that_reach_out_are_refused(call):
    with pytest.raises(ValueError, match="which no bundle may"):
        check_calls(f"module {{ {call} }}")


def test_a_program_that_calls_into_a_library_is_refused(path, tmp_path):
    def function(arrays, inputs):
        del arrays
        return {"output": jax.ffi.ffi_call("anything", jax.ShapeDtypeStruct((1, 2), jnp.float32))(inputs["input"])}

    allowed = jax.export.DisabledSafetyCheck.custom_call("anything")
    exported = jax.export.export(jax.jit(function), disabled_checks=[allowed], platforms=("cpu",))(
        {}, {"input": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
    )
    content = dataclasses.replace(
        Bundle.open(path).content, programs=(Program(("input",), ("cpu",), bytes(exported.serialize())),)
    )
    with pytest.raises(ValueError, match="a program calls anything, which no bundle may"):
        Bundle.open(write(tmp_path / "x.lmx", content)).program()
