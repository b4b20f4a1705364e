"""Plans: which layouts fit, which is fastest, and what the table says."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import llmasos_xla as lm
from llmasos_xla.api.planning import step_of
from llmasos_xla.models.decoder import DecoderConfig
from llmasos_xla.sharding import plan as planning
from llmasos_xla.sharding.mesh import MeshSpec
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.sharding.plan import candidates, largest_batch
from llmasos_xla.sharding.planning.collectives import Collective
from llmasos_xla.sharding.planning.estimate import Efficiency, Estimator
from llmasos_xla.sharding.planning.hardware import KNOWN
from llmasos_xla.sharding.planning.memory import Memory
from llmasos_xla.sharding.planning.program import collectives
from llmasos_xla.sharding.planning.topology import Topology, topology

GIB = 1 << 30


def model(width=128):
    layers = [lm.layers.Dense(width, activation="relu", input_shape=(64,)), lm.layers.Dense(10, activation="softmax")]
    net = lm.Sequential(layers)
    net.compile("adam", "sparse_categorical_crossentropy")
    return net


def small(memory, count=8):
    """CPU devices with so much memory."""
    found = topology(f"cpu:{count}")
    return dataclasses.replace(found, hardware=dataclasses.replace(found.hardware, memory=memory))


@pytest.fixture(scope="module")
def plan():
    return lm.plan(model(), batch_size=64, topology="cpu:8")


def test_best_first(plan):
    compiled = [row for row in plan.rows if row.compiled]
    assert 1 <= len(compiled) <= 4 < len(plan.rows)
    assert plan.best is compiled[0]
    assert [row.seconds for row in compiled] == sorted(row.seconds for row in compiled)
    assert all(row.fits for row in plan.rows)


def test_bytes_are_those_of_the_layout(plan):
    """Weights and optimizer of FSDP are an eighth of those of data, but for arrays too small to split."""
    rows = {row.spec: row for row in plan.rows}
    data, fsdp = rows[MeshSpec(data=8)], rows[MeshSpec(fsdp=8)]
    params = 64 * 128 + 128 + 128 * 10 + 10
    assert data.memory.parts["weights"] == 4 * params
    assert fsdp.memory.parts["weights"] == 4 * (64 * 128 // 8 + 128 + 128 * 10 // 8 + 10)
    assert data.memory.parts["optimizer"] == pytest.approx(2 * 4 * params, rel=0.01)
    for row in plan.rows:
        if row.compiled:
            assert row.memory.peak >= sum(row.memory.parts.values())
            assert row.memory.arguments == pytest.approx(sum(row.memory.parts.values()), rel=0.02)


def test_messages_are_those_of_the_program():
    data = lm.plan(model(), batch_size=64, topology="cpu:8", shard="data").best
    gradients = 4 * (64 * 128 + 128 + 128 * 10 + 10)
    assert data.sent["data"] == pytest.approx(2 * 7 / 8 * gradients, rel=0.02)


def test_operations_are_those_of_the_model(plan):
    weights = 64 * 128 + 128 * 10
    # The first layer has no gradient of its input.
    assert plan.best.flops == pytest.approx(2 * 64 * (3 * weights - 64 * 128) / 8, rel=0.01)


def test_the_table(plan):
    text = str(plan)
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["layout", "weights", "optimizer", "activations", "peak"]
    assert len(lines) == len(plan.rows) + 4
    assert "data 8" in text
    assert "may fit (formula)" in text
    assert "predicted, not measured; planned in" in text
    assert f"{sum(r.compiled for r in plan.rows)} of {len(plan.rows)} layouts compiled" in text


def test_json_holds_all_figures(plan):
    found = json.loads(plan.to_json())
    assert found["batch_size"] == 64
    assert [row["spec"] for row in found["rows"]] == [repr(row.spec) for row in plan.rows]
    assert found["rows"][0]["peak"] == plan.best.memory.peak


def test_what_does_not_fit_is_not_compiled_and_said():
    """Adam's 12 bytes a weight alone are too many for a copy on each device, not for an eighth of it."""
    net = model(width=1 << 14)
    weights = 4 * (1 << 14) * 74
    found = lm.plan(net, batch_size=64, topology=small(3 * weights), shard="data")
    assert not found.rows[0].compiled
    assert not found.rows[0].fits
    assert "needs" in found.rows[0].why
    assert "(formula)" in str(found)
    with pytest.raises(
        ValueError, match=r"no layout of a batch of 64 fits .*data=8.*use more devices or a smaller batch"
    ):
        _ = found.best


def test_a_layout_that_is_not_legal_is_a_row_with_its_reason():
    step = step_of(model().learner, topology("cpu:8"))
    unknown = step._replace(arrays={**step.arrays, "mystery": jax.ShapeDtypeStruct((8, 8), jnp.float32)})
    found = planning.plan(unknown, 64, topology("cpu:8"), specs=[MeshSpec(tensor=8)])
    assert "no rule of tensor names the array 'mystery'" in found.rows[0].why


def test_no_layout_for_that_batch():
    step = step_of(model().learner, topology("cpu:8"))
    with pytest.raises(
        ValueError, match="a batch of 32 rows does not divide into 3 or 6 parts, as layouts of 6 dev.*shard="
    ):
        planning.plan(step, 32, topology("cpu:6"))


def test_candidates_keep_tensor_within_fast_links():
    hosts = Topology("h100:16", KNOWN["h100"], tuple(range(16)), 8)
    found = candidates(hosts, batch_size=256)
    assert all(spec.devices == 16 for spec in found)
    assert max(spec.tensor for spec in found) == 8
    assert MeshSpec(data=2, fsdp=8) in found
    assert all(spec.pipe == 1 for spec in found)
    assert all(4 % spec.batch_parts == 0 for spec in candidates(hosts, batch_size=4))


def judged(flops, temporary, sent, efficiency=Efficiency(1.0, 1.0, 1.0, 0.5)):
    estimator = Estimator(step_of(model().learner, topology("cpu:1")), 64, HUNDREDS, 80 * GIB, efficiency)
    memory = Memory(0, 0, 0, temporary, parts={})
    return estimator._row(MeshSpec(), True, memory, {"bfloat16": flops}, sent).seconds


HUNDREDS = Topology("h100:8", KNOWN["h100"], tuple(range(8)), 8)


def test_time_is_the_slowest_of_computing_and_memory_and_what_is_not_hidden():
    peak, bandwidth = KNOWN["h100"].flops["bfloat16"], KNOWN["h100"].bandwidth
    assert judged(peak, 0, []) == pytest.approx(1.0)
    assert judged(peak, int(bandwidth), []) == pytest.approx(2.0)
    message = [Collective("permute", int(KNOWN["h100"].link), 2, ("data",))]
    assert judged(peak, 0, message) == pytest.approx(1.5, rel=1e-4)
    # What computing takes no time for hides nothing.
    assert judged(0.0, 0, message) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("base", "slope", "limit", "most"),
    [
        (1000, 10, 5000, 10_000), (358e6, 121e3, 16e9, 1 << 20), (5e9, 3e6, 9e9, 1 << 20), (0, 10, 75, 1000),
        (10, 50, 65, 9),
    ],
)  # fmt: skip
def test_batch_search_finds_the_largest_in_few_tries(base, slope, limit, most):
    tried = []

    def peak(rows):
        tried.append(rows)
        return int(base + slope * rows)

    found = planning._largest(peak, int(limit), most, 6)
    truth = min(int((limit - base) / slope), most)
    assert peak(found) <= limit
    assert truth - found < 8
    assert len(tried) <= 8


def test_batch_search_when_bytes_do_not_grow_in_a_line():
    def peak(rows):
        return 1000 + 10 * rows + (3000 if rows > 100 else 0) + (rows % 7) * 20

    found = planning._largest(peak, 9000, 10_000, 8)
    assert peak(found) <= 9000
    assert found > 350
    assert planning._largest(lambda rows: 10, 5, 100, 6) == 0


def test_largest_batch_of_a_model_fits_and_a_larger_one_does_not():
    step = step_of(model(1024).learner, topology("cpu:8"))
    devices = small(128 << 20)
    rows = largest_batch(step, MeshSpec(data=-1), devices)
    assert rows % 64 == 0
    fitting = planning.plan(step, rows, devices, specs=[MeshSpec(data=8)], most=1)
    assert fitting.best.memory.peak <= fitting.memory
    more = planning.plan(step, rows + rows // 4 // 64 * 64 + 64, devices, specs=[MeshSpec(data=8)], most=1)
    assert more.rows[0].memory.peak > more.memory


def test_not_even_one_row_fits():
    step = step_of(model(1024).learner, topology("cpu:8"))
    with pytest.raises(ValueError, match=r"not even one row a device fits: MeshSpec\(data=8\) needs .* a device"):
        largest_batch(step, MeshSpec(data=8), small(1 << 20))


def test_auto_batch_of_the_front_door():
    found = lm.plan(model(), topology=small(64 << 20), shard="fsdp")
    assert found.best.fits
    assert found.batch_size % 64 == 0
    with pytest.raises(ValueError, match="batch_size wants a whole number or \"auto\", got 'large'"):
        lm.plan(model(), batch_size="large", topology="cpu:8")
    for wrong in ({"batch_size": 0}, {"batch_size": -4}, {"most": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"plan: {name} wants a whole number >= 1, got"):
            lm.plan(model(), **{"batch_size": 64, "topology": "cpu:8", **wrong})
    with pytest.raises(ValueError, match="plan: margin wants a share of a device's memory, 0 <= margin < 1, got 2.0"):
        lm.plan(model(), batch_size=64, topology="cpu:8", margin=2.0)
    with pytest.raises(ValueError, match=r"100 rows does not divide into 8 parts \(data=8\); use batch_size=96 or 104"):
        lm.plan(model(), batch_size=100, topology="cpu:8", shard="data")
    assert len(lm.plan(model(), batch_size=64, topology="cpu:2", shard="auto", most=1).rows) > 1


@pytest.mark.parametrize(
    "shard", [MeshSpec(data=2, pipe=2, microbatches=2), MeshSpec(tensor=2, rules=((r"kernel", PartitionSpec()),))]
)
def test_a_layout_of_ones_own_keeps_its_rules_and_pieces_beside_an_auto_batch(shard):
    made = model()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 64)).astype("float32")
    made.fit(x, np.zeros(64, int), batch_size="auto", shard=shard, verbose=0)
    assert made.learner.placement is not None
    assert made.learner.placement.spec == shard


def test_hardware_that_is_not_here_as_an_estimate():
    found = lm.plan(model(), batch_size=64, topology="h100:16", compile_on="cpu", shard="fsdp")
    assert found.best.compiled
    assert "compiled for CPU devices instead: an estimate" in str(found)


def test_tokens_are_counted():
    net = lm.Sequential([lm.layers.Embedding(50, 16, input_shape=(12,)), lm.layers.Flatten(), lm.layers.Dense(4)])
    net.compile("adam", "mean_squared_error")
    found = lm.plan(net, batch_size=16, topology="cpu:4", shard="data")
    assert found.unit == "tokens"
    assert found.best.per_second * found.best.seconds == pytest.approx(16 * 12)
    assert math.isfinite(found.best.per_second)


@pytest.mark.parametrize("name", ["v5e:2x2", "h100:4"])
def test_hardware_that_is_not_here(name, monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        devices = topology(name)
    except ImportError as error:
        pytest.skip(str(error))
    found = lm.plan(model(), batch_size=64, topology=devices, shard="fsdp")
    assert found.best.compiled
    assert found.best.sent
    assert jax.default_backend() == "cpu"


def test_layouts_that_turn_out_not_to_fit_do_not_use_up_the_compiles(monkeypatch):
    """By formula all fit; what the compiler finds too large is followed by the next best."""
    tried = []

    def compiled(self, spec):
        tried.append(spec)
        return dataclasses.replace(self.by_formula(spec), compiled=True, fits=len(tried) > 1, why="needs more")

    monkeypatch.setattr(Estimator, "by_compiling", compiled)
    found = lm.plan(model(), batch_size=64, topology="cpu:8", most=1)
    assert found.best.spec == tried[1]
    assert found.rows[-1].spec == tried[0]
    assert len(tried) == 2

    monkeypatch.setattr(Estimator, "by_compiling", lambda *a: dataclasses.replace(compiled(*a), fits=False))
    tried.clear()
    hopeless = lm.plan(model(), batch_size=64, topology="cpu:8", most=1)
    assert len(tried) == 2
    with pytest.raises(ValueError, match="no layout of a batch of 64 fits"):
        _ = hopeless.best


@pytest.mark.thorough
@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16)])
def test_pictures_are_planned_as_large_as_the_data_were(height, width):
    def unet(**shape):
        model = lm.models.unet_small(widths=(4, 8), **shape)
        model.compile("adam", "dice_crossentropy")
        return model

    fitted = unet()
    with pytest.raises(ValueError, match=r"\(None, None, 3\) leaves a size open; say how large: input_shape=\(224"):
        lm.plan(fitted, batch_size=8, topology="cpu:2", shard="data")
    fitted.predict(np.zeros((2, height, width, 3), np.uint8))
    told = unet(input_shape=(height, width, 3))
    flops = [lm.plan(net, batch_size=8, topology="cpu:2", shard="data").best.flops for net in (fitted, told)]
    assert flops[0] == flops[1]


def _detector():
    return lm.models.rtdetr_r18(
        depths=(1, 1), widths=(4, 8), stem=4, maps=2, attended=(1,), classes=2, queries=4, width=8, depth=1, heads=2,
        points=2, hidden=8, encoder_width=8, encoder_heads=2, encoder_hidden=8, input_shape=(16, 24, 3),
    )  # fmt: skip


def _whisper():
    return lm.models.whisper(
        vocab=60, width=16, depth=1, num_heads=2, mels=8, source=100, context=40, start_ids=(1, 2), end=3,
        suppressed_first=(),
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("make", "loss", "time"),
    [
        pytest.param(_detector, "detection", None, marks=pytest.mark.slow),
        (lambda: lm.models.conformer_small(vocab=7, width=8, depth=1, num_heads=2, channels=4), "ctc", 4096),
        (lm.models.silero_vad, "binary_crossentropy", 4096),
    ],
    ids=["detector", "recognizer", "activity"],
)
def test_detectors_recognizers_and_nets_of_fewer_steps_than_samples(make, loss, time):
    net = make()
    net.compile("adam", loss)
    assert lm.plan(net, batch_size=4, topology="cpu:2", shard="data", time=time).best.flops > 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    "make",
    [
        lambda: lm.models.t5(vocab=30, width=8, depth=1, heads=2, key_dim=4, hidden=16),
        pytest.param(lambda: lm.models.seq2seq(vocab=30, width=8, hidden=8), marks=pytest.mark.slow),
        pytest.param(_whisper, marks=pytest.mark.slow),
    ],
    ids=["t5", "seq2seq", "whisper"],
)
def test_encoders_with_decoders(make):
    net = make()
    net.compile("adam", "sparse_categorical_crossentropy")
    short, long = (lm.plan(net, batch_size=4, topology="cpu:2", shard="data", time=n).best for n in (8, 32))
    assert 1.5 * short.flops < long.flops


def test_a_decoder_of_open_length():
    config = DecoderConfig.tiny()
    net = lm.Sequential(config.layers())
    net.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"input shape \(None,\) leaves a size open; say how long: plan\(time=2048\)"):
        lm.plan(net, batch_size=8, topology="cpu:4")
    found = lm.plan(net, batch_size=8, topology="cpu:4", time=32, shard=MeshSpec(fsdp=2, tensor=2))
    row = found.best
    tokens = 8 * 32
    products = config.parameters - 256 * 64 - 64 * 5  # the table is looked up in, scales multiply
    attention = 12 * 2 * 8 * 32**2 * 64
    assert row.flops * 4 == pytest.approx(6 * products * tokens + attention, rel=0.02)
    assert found.unit == "tokens"
    assert {"tensor", "fsdp"} <= set(row.sent)
    assert row.memory.parts["weights"] == pytest.approx(4 * config.parameters / 4, rel=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("rematerialize", ["none", "dots", "block"])
def test_a_stacks_weights_are_gathered_in_each_pass(rematerialize):
    """Twice the weights' bytes go over the wire: nothing that was gathered is kept from the forward pass on."""
    net = lm.Sequential(
        [
            lm.layers.Embedding(64, 256, input_shape=(8,)),
            lm.layers.Decoder(4, num_heads=4, rematerialize=rematerialize),
            lm.layers.Dense(64, use_bias=False),
        ]
    )
    net.compile("sgd", "sparse_categorical_crossentropy")
    where = topology("cpu:8")
    step = step_of(net.learner, where)
    placement = Placement(MeshSpec(fsdp=8), MeshSpec(fsdp=8).mesh(where.devices), step.stacked)
    found = collectives(step.trace(placement, 8).lower().compile().as_text(), dict(placement.mesh.shape))
    sent = sum(c.times * c.whole for c in found if c.kind == "all-gather")
    stack = sum(a.size * a.dtype.itemsize for name, a in step.arrays.items() if name.startswith("decoder/"))
    assert sent > 1.9 * stack
