"""Published weights in our models: every array accounted for, by whichever file, straight onto a mesh."""

import dataclasses
import json
import re

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from goldens.seeded import seeded
from models_sample import images
from pretrained_toy import ToyConfig, published
from safetensors.numpy import load_file, save_file
from torch_file import tensor, write_legacy, write_zip

import llmasos_xla as lm
from llmasos_xla.api.pretrained import config_of
from llmasos_xla.models import BertConfig, GPT2Config, LlamaConfig, T5Config, VGGConfig, ViTConfig, pretrained
from llmasos_xla.models.layers._base import LAYERS
from llmasos_xla.models.pretrained import fill as filling
from llmasos_xla.models.pretrained.fill import fill, match, table_of
from llmasos_xla.models.pretrained.names import CONV1D, CONV2D, DENSE, heads_bias, heads_in, heads_out
from llmasos_xla.sharding.mesh import MeshSpec

TOY = ToyConfig()
IDS = np.arange(24).reshape(4, 6)
_SMALL = {"vocab": 13, "width": 8, "depth": 1, "heads": 2, "hidden": 12}


@pytest.fixture
def shelf(monkeypatch):
    """The toy stands on the shelf."""
    monkeypatch.setattr("llmasos_xla.api.pretrained.FAMILIES", (VGGConfig, ToyConfig))
    monkeypatch.setitem(LAYERS, "ToyConfig", ToyConfig)


@pytest.fixture
def folder(tmp_path):
    """A folder as Hugging Face has them."""
    save_file(published(TOY), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy-net", "hidden_size": 32}))
    return tmp_path


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_is_a_model(shelf, folder):
    model = lm.load_pretrained(folder)
    assert model.config == TOY
    _same(model.variables, fill(TOY, published(TOY), "huggingface"))
    assert model(IDS).shape == (4, 3)
    _same(lm.load_pretrained(folder / "model.safetensors").variables, model.variables)
    (folder / "config.json").write_text(json.dumps({"architectures": ["ToyNetForNothing"], "hidden_size": 32}))
    _same(lm.load_pretrained(folder).variables, model.variables)
    model.save(folder / "own.safetensors")
    _same(lm.load(folder / "own.safetensors").variables, model.variables)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_torch_files_give_the_same(folder, write):
    arrays = published(TOY)
    write(folder / "x.th", {"state_dict": {f"module.{name}": tensor(a) for name, a in arrays.items()}})
    _same(pretrained.load(TOY, folder / "x.th"), fill(TOY, arrays, "huggingface"))


def test_half_precision_is_widened(folder):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        arrays = published(TOY, dtype)
        save_file(arrays, folder / "model.safetensors")
        loaded = pretrained.load(TOY, folder)
        wide = {name: a.astype(np.float32) for name, a in arrays.items()}
        _same(loaded, fill(TOY, wide, "huggingface"))
        assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(loaded))


def test_a_body_is_found_with_and_without_its_prefix_and_under_old_names():
    arrays = published(TOY)
    wanted = fill(TOY, arrays, "huggingface")
    body = {name.removeprefix("toy."): a for name, a in arrays.items()}
    _same(pretrained.load(TOY, body), wanted)
    _same(pretrained.load(TOY, {f"model.{name}": a for name, a in arrays.items()}), wanted)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): a for name, a in arrays.items()}
    _same(pretrained.load(TOY, old), wanted)


def test_what_may_lack_is_drawn_as_a_fresh_model_has_it(shelf, folder):
    body = {name: a for name, a in published(TOY).items() if not name.startswith("classifier")}
    save_file({**body, "toy.position_ids": np.arange(9)}, folder / "model.safetensors")
    model = lm.load_pretrained(folder, classes=5, seed=7)
    fresh = jax.jit(model.config.net().init)(jax.random.key(7))
    assert model.variables.params["toy/classifier/kernel"].shape == (32, 5)
    _same(model.variables.params["toy/classifier/kernel"], fresh.params["toy/classifier/kernel"])
    _same(model.variables.params["toy/embeddings"], body["toy.embeddings.weight"])
    with pytest.raises(ValueError, match=r"2 missing: classifier.bias, classifier.weight"):
        pretrained.load(TOY, folder)


def test_misfits_are_listed(shelf, folder):
    arrays = published(TOY)
    arrays["extra.weight"] = np.ones(3, np.float32)
    arrays["toy.layers.1.q.weight"] = np.ones((32, 31), np.float32)
    del arrays["toy.embeddings.weight"]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit the model") as error:
        lm.load_pretrained(folder)
    for text in ("1 missing: toy.embeddings.weight", "1 left over: extra.weight", "1 of another shape: toy.layers.0.q"):
        assert text in str(error.value)
    arrays = published(TOY)
    arrays["toy.embeddings.weight"] = arrays["toy.embeddings.weight"].astype(np.int32)
    with pytest.raises(ValueError, match="is of int32, toy/embeddings is of float32"):
        pretrained.load(TOY, arrays)
    _same(
        pretrained.load(TOY, {**published(TOY), "old_head.weight": np.ones(3)}, ignored=(r"^old_head\.",)),
        fill(TOY, published(TOY), "huggingface"),
    )
    # A head of another size makes room for a new one.
    save_file(published(TOY), folder / "model.safetensors")
    with pytest.raises(ValueError, match="2 of another shape: classifier"):
        lm.load_pretrained(folder, classes=7)
    model = lm.load_pretrained(folder, classes=7, ignored="^classifier")
    assert model.variables.params["toy/classifier/bias"].shape == (7,)
    with pytest.raises(ValueError, match="1 missing: toy.embeddings.weight"):
        lm.load_pretrained(folder, ignored="embeddings")
    with pytest.raises(ValueError, match="no table of names for weights of the source 'keras'"):
        pretrained.load(TOY, folder, source="keras")


def test_ids_that_end_a_text_are_read_of_the_generation_config(tmp_path):
    sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, "eos_token_id": 2}))
    assert config_of(tmp_path).ends == (2,)
    for said, ends in (({}, (2,)), ({"eos_token_id": [3, 4]}, (3, 4)), ({"eos_token_id": 5}, (5,))):
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
        assert config_of(tmp_path).ends == ends
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="generation_config.json' is damaged"):
        config_of(tmp_path)


def test_unknown_models_are_refused_with_what_is_known(shelf, folder):
    config = folder / "config.json"
    for text, wanted in (
        ('{"model_type": "mamba"}', r"of type 'mamba' .* not on the shelf; known are .*toy-net"),
        ('{"architectures": ["MambaForCausalLM"]}', "MambaForCausalLM"),
        ('{"architectures": 3}', "architectures 3"),
        ('{"model_type": "toy-net"}', "does not say 'hidden_size' of a toy"),
        ("[1]", "is no table of sizes"),
        ("{", "is damaged"),
        ("[" * 100000, "is damaged"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=wanted):
            lm.load_pretrained(folder)
    config.write_text(json.dumps({"model_type": "toy-net", "hidden_size": 32}))
    with pytest.raises(ValueError, match="unexpected keyword argument 'clases'"):
        lm.load_pretrained(folder, clases=3)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"no '.*config.json' to say what model it is"):
        lm.load_pretrained(folder)


@pytest.mark.parametrize("shard", ["fsdp", MeshSpec(fsdp=2, tensor=4), "data"], ids=str)
def test_pieces_on_a_mesh_are_the_whole(shelf, folder, shard):
    whole = lm.load_pretrained(folder)
    model = lm.load_pretrained(folder, shard=shard)
    _same(jax.device_get(model.variables), jax.device_get(whole.variables))
    assert model.learner.placement.spec == MeshSpec.of(shard).over(8)
    wanted = model.learner.placement.shardings(model.variables, {**model.variables.params, **model.variables.state})
    assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, model.variables, wanted))
    np.testing.assert_allclose(model(IDS), whole(IDS), rtol=1e-5, atol=1e-5)


def test_each_device_reads_its_own_part_alone(folder, monkeypatch):
    read = []
    part = filling.Piece.__getitem__

    def watched(piece, index):
        found = part(piece, index)
        read.append((piece.shape, found.size))
        return found

    monkeypatch.setattr(filling.Piece, "__getitem__", watched)
    placement = lm.sharding.Placement(MeshSpec(fsdp=8))
    variables = pretrained.load(TOY, folder, placement=placement)
    for shape in ((64, 32), (2, 32, 4, 8)):
        parts = [size for whole, size in read if whole == shape]
        assert parts == [np.prod(shape) // 8] * 8
    query = variables.params["toy/query/kernel"]
    assert {shard.data.size for shard in query.addressable_shards} == {query.size // 8}


def test_layouts_are_windows_on_the_file():
    for layout, shape in (
        (DENSE, (6, 4)),
        (CONV1D, (6, 4, 3)),
        (CONV2D, (6, 4, 3, 3)),
        (heads_in(2), (6, 4)),
        (heads_out(2), (4, 6)),
        (heads_bias(2), (6,)),
    ):
        array = np.arange(np.prod(shape)).reshape(shape)
        assert np.shares_memory(layout.ours(array), array), layout.name
        np.testing.assert_array_equal(layout.theirs(layout.ours(array)), array)
    found = match(TOY, arrays := published(TOY), "huggingface")
    assert np.shares_memory(found.pieces["toy/query/kernel"].parts[1], arrays["toy.layers.1.q.weight"])


def test_export_is_the_way_back(folder):
    arrays = published(TOY)
    pretrained.export(TOY, pretrained.load(TOY, arrays), folder / "out.safetensors")
    again = load_file(folder / "out.safetensors")
    assert set(again) == set(arrays)
    _same(again, arrays)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pretrained.export(TOY, pretrained.load(TOY, arrays), folder / "none" / "out.safetensors")


def test_keras_weights_lie_as_ours(tmp_path):
    config = VGGConfig((1, 2), (4, 8), classes=6, hidden=16, input_shape=(8, 8, 3))
    wanted = jax.jit(config.net().init)(jax.random.key(0))
    keras = {
        "conv0_0": "block1_conv1",
        "conv1_0": "block2_conv1",
        "conv1_1": "block2_conv2",
        "hidden0": "fc1",
        "hidden1": "fc2",
        "classifier": "predictions",
    }
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        for name, array in wanted.params.items():
            _, layer, kind = name.split("/")
            file.create_dataset(f"{keras[layer]}/{keras[layer]}/{kind}:0", data=np.asarray(array))
    _same(pretrained.load(config, tmp_path / "vgg.h5"), wanted)


def test_weights_of_a_model_by_name(tmp_path):
    config = VGGConfig((1, 1), (4, 8), classes=6, hidden=16, batch_norm=True, input_shape=(8, 8, 3))
    shapes = {}
    variables = jax.eval_shape(config.net().init, jax.random.key(0))
    for name in config.names("torch"):
        like = np.zeros({**variables.params, **variables.state}[f"vgg/{name.ours}"].shape)
        shapes[name.theirs] = name.layout.theirs(like).shape
    arrays = {name: seeded(name, shape) for name, shape in shapes.items()}
    counts = {"features.1.num_batches_tracked": np.array(3)}
    write_zip(tmp_path / "vgg.pth", {name: tensor(a) for name, a in {**arrays, **counts}.items()})
    with pytest.raises(ValueError, match="1 left over: features.1.num_batches_tracked"):
        pretrained.load(dataclasses.replace(config), tmp_path / "vgg.pth")
    write_zip(tmp_path / "vgg.pth", {name: tensor(a) for name, a in arrays.items()})
    model = lm.models.vgg11_bn  # the door of a name on the shelf takes the same files
    assert model.__name__ == "vgg11_bn"
    from llmasos_xla.api.network import Network

    network = Network(config, weights=tmp_path / "vgg.pth")
    _same(network.variables, fill(config, arrays, "torch"))
    assert network(images(8, 8, 3)).shape[-1] == 6
    pretrained.export(config, network.variables, tmp_path / "out.safetensors", source="torch")
    _same(load_file(tmp_path / "out.safetensors"), arrays)


@pytest.mark.parametrize(
    ("config", "table", "copy"),
    [
        (LlamaConfig.tinyllama(**_SMALL, kv_heads=2, tied=True), "model.embed_tokens.weight", "lm_head.weight"),
        (GPT2Config(**_SMALL), "transformer.wte.weight", "lm_head.weight"),
        (T5Config(**_SMALL, key_dim=4), "shared.weight", "lm_head.weight"),
        (T5Config(**_SMALL, key_dim=4), "shared.weight", "decoder.embed_tokens.weight"),
        (
            BertConfig(**_SMALL, task="masked-lm"),
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
        ),
    ],
    ids=lambda value: getattr(value, "family", value),
)
def test_a_head_that_is_the_table_of_embeddings_may_stand_there_too_but_not_differ(config, table, copy, tmp_path):
    variables = config.net().init(jax.random.key(1))
    pretrained.export(config, variables, tmp_path / "model.safetensors")
    arrays = load_file(tmp_path / "model.safetensors")
    both = {**arrays, copy: arrays[table]}
    _same(pretrained.load(config, both), variables)
    _same(pretrained.load(config, {name: both[name] for name in both if name != table}), variables)
    both[copy] = both[copy] * 2
    with pytest.raises(ValueError, match="1 of other values than those that they are to share: " + re.escape(copy)):
        pretrained.load(config, both)
    _same(pretrained.load(config, both, ignored=re.escape(copy)), variables)


def test_a_body_of_vit_with_its_pooler_gets_a_new_head():
    config = ViTConfig(8, 4, width=8, depth=1, heads=2, hidden=12, classes=3)
    table = [name for name in table_of(config, "huggingface") if not name.optional]
    variables = config.net().init(jax.random.key(1))
    arrays = {n.sources[0].removeprefix("vit."): n.layout.theirs(np.asarray(variables.params[n.ours])) for n in table}
    arrays |= {"pooler.dense.weight": np.ones((8, 8), np.float32), "pooler.dense.bias": np.ones(8, np.float32)}
    found = pretrained.load(config, arrays, key=jax.random.key(0))
    _same({n.ours: found.params[n.ours] for n in table}, {n.ours: variables.params[n.ours] for n in table})
