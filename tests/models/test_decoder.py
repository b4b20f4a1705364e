"""The decoder against a plain one in float64, and the laws of its parts."""

import dataclasses
import functools
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from repetitions import thorough_but
from tolerances import assert_close

import llmasos_xla as lm
from llmasos_xla.compiling import compile
from llmasos_xla.core import Variables, pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers._rotary import rotate
from llmasos_xla.models.layers.decoder import block
from llmasos_xla.models.stack import Stack

WIDTH, TIME = 12, 7


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(3, TIME, WIDTH)), jnp.float32)


@functools.cache
def made(spec, shape):
    """Variables, with norms' scales away from their ones so that they matter, and `apply`, compiled."""
    net = pure(lambda rngs: spec.build(shape, rngs))
    key = jax.random.key(0)
    variables, rng = compile(net.init, key, what="initial weights", once=True)(key), np.random.default_rng(3)
    moved = {
        n: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype) if n.endswith("scale") else a
        for n, a in variables.params.items()
    }
    return variables._replace(params=moved), jax.jit(net.apply, static_argnames="train")


def apply(spec, x, *, variables=None, train=False, key=None, **inputs):
    variables_made, run = made(spec, x.shape[1:])
    variables = variables_made if variables is None else variables
    y, state = run(variables, x, train=train, key=key, **inputs)
    return y, Variables(variables.params, state)


def plain(params, x, spec, mask=None):
    """Block after block, head after head, as the papers write it; in the dtype of its arguments."""

    def norm(x, scale):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + spec.epsilon) * scale

    def turned(x):
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[1])[:, None] * spec.rope_base ** (-np.arange(half) / half)
        turns = np.exp(1j * angle)
        z = (x[..., :half] + 1j * x[..., half:]) * turns
        return jnp.concatenate([z.real, z.imag], -1)

    seen = np.ones((1, x.shape[1], x.shape[1]), bool)
    seen = np.tril(seen) if spec.causal else seen
    seen = seen if mask is None else seen & np.asarray(mask)[:, None]
    for i in range(spec.depth):
        p = {n: a[i] for n, a in params.items()}
        h = norm(x, p["attention_norm/scale"])
        group = spec.num_heads // (spec.kv_heads or spec.num_heads)
        for head in range(spec.num_heads):
            q, k, v = (
                h @ p[f"attention/{n}/kernel"][:, at]
                for n, at in (("query", head), ("key", head // group), ("value", head // group))
            )
            scores = turned(q) @ turned(k).swapaxes(1, 2) / np.sqrt(q.shape[-1])
            weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
            x = x + weights @ v @ p["attention/output/kernel"][head]
        h = norm(x, p["mlp_norm/scale"])
        gate = h @ p["mlp/gate/kernel"]
        x = x + (gate / (1 + jnp.exp(-gate)) * (h @ p["mlp/up/kernel"])) @ p["mlp/down/kernel"]
    return x


SPECS = [
    L.Decoder(2, 3, hidden_dim=10),
    L.Decoder(3, 4, key_dim=6, kv_heads=2, hidden_dim=5, rope_base=100.0, epsilon=1e-2),
    L.Decoder(1, 3, kv_heads=1, causal=False),
]


@pytest.mark.parametrize("masked", thorough_but([True], [False, True]))
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_value_and_gradients_are_those_of_a_plain_decoder_in_float64(spec, masked, x):
    mask = jnp.arange(TIME)[None] < jnp.array([TIME, 4, 1])[:, None] if masked else None
    _, variables = apply(spec, x, mask=mask)
    params = variables.params
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)
    # What padding's own outputs are means nothing.
    weights = weights if mask is None else weights * mask[..., None].astype(x.dtype)

    def ours(params, x):
        y = apply(spec, x, variables=Variables(params, {}), mask=mask)[0]
        return jnp.sum(y * weights), y

    def theirs(params, x):
        y = plain(params, x, spec, mask)
        return jnp.sum(y * weights.astype(jnp.float64)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            (_, expected), wanted = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(*wide)
    keep = np.ones((3, TIME), bool) if mask is None else np.asarray(mask)
    assert_close(y[keep], expected[keep])
    for name, gradient in gradients[0].items():
        assert_close(gradient, wanted[0][name], scale=3, message=name)
    assert_close(gradients[1], wanted[1], scale=3)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("experts", [0, 3])
def test_later_tokens_never_change_earlier_outputs(x, experts, train):
    spec = L.Decoder(2, 3, hidden_dim=8, experts=experts, capacity_factor=0.7)
    y, variables = apply(spec, x, train=train)
    later, _ = apply(spec, x.at[:, 4:].multiply(-2.0), variables=variables, train=train)
    np.testing.assert_array_equal(later[:, :4], y[:, :4])
    assert not np.allclose(later[:, 4:], y[:, 4:])
    both, _ = apply(dataclasses.replace(spec, causal=False), x, variables=variables, train=train)
    assert not np.allclose(both[:, 0], y[:, 0])


@pytest.mark.parametrize("experts", [0, 3])
def test_a_padded_row_gives_what_the_short_row_gives(x, experts):
    spec = L.Decoder(2, 3, hidden_dim=8, experts=experts, causal=False)
    short, variables = apply(spec, x[:, :3])
    mask = jnp.broadcast_to(jnp.arange(TIME) < 3, (3, TIME))
    y, _ = apply(spec, x, variables=variables, mask=mask)
    assert_close(y[:, :3], short)
    without, _ = apply(spec, x, variables=variables)
    assert not np.allclose(without[:, :3], short, atol=1e-3)


def test_a_row_of_nothing_but_padding_is_finite(x):
    mask = jnp.zeros((3, TIME), bool)
    spec, (_, variables) = SPECS[0], apply(SPECS[0], x)

    def loss(params):
        return jnp.sum(apply(spec, x, variables=Variables(params, {}), mask=mask)[0])

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables.params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_rotation_tells_distances_and_keeps_lengths(rng):
    q, k = (jnp.asarray(rng.normal(size=(1, 5, 2, 8)), jnp.float32) for _ in range(2))
    at = jnp.arange(5)

    def products(shift):
        return jnp.einsum("bthd,bshd->bhts", rotate(q, at + shift), rotate(k, at + shift))

    assert_close(products(0), products(123), scale=10)
    assert not np.allclose(products(0), jnp.einsum("bthd,bshd->bhts", q, k), atol=1e-2)
    assert_close(jnp.linalg.norm(rotate(q, at), axis=-1), jnp.linalg.norm(q, axis=-1))
    np.testing.assert_array_equal(rotate(q, jnp.zeros(5, int)), q)
    each = jnp.stack([at, at + 3])
    both = rotate(jnp.concatenate([q, q]), each)
    np.testing.assert_array_equal(both[1:], rotate(q, at + 3))


def test_rotation_in_bfloat16_tells_late_positions_apart():
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    turned = rotate(x, jnp.array([256, 257]))
    assert turned.dtype == jnp.bfloat16
    assert float(jnp.abs(turned[0, 0] - turned[0, 1]).max()) > 0.3


def test_grouped_queries_are_repeated_heads(x):
    spec = L.Decoder(2, 6, kv_heads=2, key_dim=4)
    y, variables = apply(spec, x)
    repeated = {n: jnp.repeat(a, 3, axis=2) if "key/" in n or "value/" in n else a for n, a in variables.params.items()}
    all_heads, _ = apply(dataclasses.replace(spec, kv_heads=None), x, variables=Variables(repeated, {}))
    assert_close(all_heads, y)


def test_two_halves_of_a_stack_are_the_stack(x):
    spec = L.Decoder(4, 3, experts=2, hidden_dim=6)
    assert spec.stacked
    y, variables = apply(spec, x)
    half = dataclasses.replace(spec, depth=2)
    for part in (slice(None, 2), slice(2, None)):
        x, _ = apply(half, x, variables=jax.tree.map(lambda a, part=part: a[part], variables))
    assert_close(x, y)


def test_step_by_step_with_a_cache_is_all_at_once(x):
    """What generation will do: one step a call, keys and values kept by the one who calls."""
    spec = L.Decoder(2, 6, kv_heads=3, key_dim=4, hidden_dim=8)
    y, variables = apply(spec, x)
    cache = [[], []]

    def look(layer, query, key, value):
        cache[layer].append((key, value))
        keys, values = (jnp.concatenate(a, axis=1) for a in zip(*cache[layer], strict=True))
        return jax.nn.dot_product_attention(query, keys, values)

    @jax.jit
    def run(params, x):
        steps = []
        for t in range(TIME):
            h = x[:, t : t + 1]
            for layer in range(2):
                arrays = {n: a[layer] for n, a in params.items()}
                h, _ = block(arrays, h, spec, jnp.array([t]), functools.partial(look, layer))
            steps.append(h)
        return jnp.concatenate(steps, axis=1)

    assert_close(run(variables.params, x), y)


def gradient_program(spec, shape):
    net = pure(lambda rngs: spec.build(shape[1:], rngs))
    variables = jax.eval_shape(net.init, jax.random.key(0))

    def loss(params, x):
        return jnp.sum(jnp.square(net.apply(Variables(params, {}), x, train=True, key=jax.random.key(0))[0]))

    return jax.jit(jax.grad(loss)).lower(variables.params, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_a_program_is_no_larger_for_more_blocks():
    few, many = (gradient_program(L.Decoder(depth, 2, dropout=0.1), (2, 8, 16)) for depth in (2, 40))
    assert len(many.as_text().splitlines()) == len(few.as_text().splitlines())
    compiled = [len(program.compile().as_text().splitlines()) for program in (few, many)]
    assert compiled[1] < 1.1 * compiled[0]


@pytest.mark.thorough
def test_rematerialization_changes_memory_and_nothing_else(x):
    specs = {what: L.Decoder(6, 3, dropout=0.2, rematerialize=what) for what in ("none", "dots", "block")}
    results, memory = {}, {}
    for what, spec in specs.items():
        net = pure(lambda rngs, spec=spec: spec.build(x.shape[1:], rngs))

        def loss(params, net=net):
            return jnp.sum(jnp.square(net.apply(Variables(params, {}), x, train=True, key=jax.random.key(1))[0]))

        results[what] = jax.jit(jax.grad(loss))(made(spec, x.shape[1:])[0].params)
        program = gradient_program(dataclasses.replace(spec, dropout=0.0), (4, 64, 24))
        memory[what] = program.compile().memory_analysis().temp_size_in_bytes
    for name, gradient in results["none"].items():
        assert_close(results["dots"][name], gradient, scale=3, message=name)
        assert_close(results["block"][name], gradient, scale=3, message=name)
    assert memory["block"] < 0.8 * memory["dots"] < 0.8 * 0.8 * memory["none"]


def test_dropout_differs_from_block_to_block_and_key_to_key(x):
    spec = L.Decoder(2, 3, hidden_dim=8, dropout=0.5)
    still, variables = apply(spec, x)
    one, two, again = (apply(spec, x, variables=variables, train=True, key=jax.random.key(k))[0] for k in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two)
    assert not np.allclose(one, still)
    with pytest.raises(ValueError, match="Decoder: is random in training and got no key"):
        apply(spec, x, variables=variables, train=True)


def test_rms_normalization_is_its_formula(rng):
    x = jnp.asarray(1e3 * rng.normal(size=(4, 5, 6)), jnp.float32)
    y, variables = apply(L.RMSNormalization(1e-2), x)
    assert variables.params.keys() == {"scale"}
    wide = np.asarray(x, np.float64)
    assert_close(
        y,
        np.asarray(variables.params["scale"], np.float64) * wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-2),
    )


CONFIGS = {
    "tiny": lm.models.DecoderConfig.tiny(),
    "7b": lm.models.DecoderConfig.llama_7b(),
    "52b": lm.models.DecoderConfig.llama_52b(),
    "experts": lm.models.DecoderConfig(1000, 96, 3, 6, kv_heads=3, key_dim=8, experts=5, experts_per_token=3),
    "odd": lm.models.DecoderConfig(77, 24, 3, 4, hidden_dim=9),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_count_of_parameters_is_that_of_the_arrays(config):
    net = pure(lambda rngs: Stack(config.layers(), (None,), rngs=rngs))
    arrays = jax.eval_shape(net.init, jax.random.key(0)).params
    assert config.parameters == sum(a.size for a in arrays.values())
    of_experts = sum(a.size for n, a in arrays.items() if "experts/" in n)
    idle = of_experts * (config.experts - config.experts_per_token) / max(config.experts, 1) if of_experts else 0
    assert config.parameters_per_token == config.parameters - idle


def test_known_sizes():
    assert CONFIGS["7b"].parameters == 6_738_415_616
    assert round(CONFIGS["52b"].parameters / 1e9, 1) == 52.3


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"experts": 3, "rematerialize": "block"}], ids=str)
def test_a_language_model_learns_counts_and_keeps(options, tmp_path):
    config = dataclasses.replace(lm.models.DecoderConfig.tiny(vocab=16), width=32, hidden_dim=32, **options)
    start = np.random.default_rng(0).integers(0, 16, (96, 1))
    ids = (start + np.arange(11)) % 16
    x, y = ids[:, :-1], ids[:, 1:]
    model = lm.Sequential(config.layers())
    model.compile(lm.Optimizer("adam", lr=0.01), "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(x, y, epochs=6, batch_size=16, verbose=0).history
    assert history["accuracy"][-1] > 0.95
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    logits = model.predict(x[:5])
    assert logits.shape == (5, 10, 16)
    assert_close(model.predict(x[:5, :4]), logits[:, :4], scale=10)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(lm.load(tmp_path / "model.safetensors").predict(x[:5]), logits)
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"labels have shape \(96, 9\), the outputs \(96, 10, 16\); one label"):
        model.fit(x, y[:, 1:], batch_size=96, verbose=0)


def test_an_export_takes_batches_and_rows_of_any_length():
    config = dataclasses.replace(lm.models.DecoderConfig.tiny(vocab=16), experts=3, mask_zero=True)
    net = pure(lambda rngs: Stack(config.layers(), (None,), rngs=rngs))
    variables = compile(net.init, jax.random.key(0), what="initial weights", once=True)(jax.random.key(0))
    batch, time = jax.export.symbolic_shape("batch, time")
    exported = jax.export.export(jax.jit(lambda params, state, ids: net.apply(Variables(params, state), ids)[0]))(
        *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tuple(variables)),
        jax.ShapeDtypeStruct((batch, time), jnp.int32),
    )
    again = jax.export.deserialize(exported.serialize())
    for shape in ((1, 3), (5, 8)):
        ids = jnp.asarray(np.random.default_rng(1).integers(1, 16, shape), jnp.int32)
        assert_close(again.call(*variables, ids), jax.jit(net.apply)(variables, ids)[0])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: L.Decoder(2, 6, kv_heads=4), r"num_heads \(6\) wants to be a multiple of kv_heads \(4\)"),
        (lambda: L.Decoder(2, 6, key_dim=3), r"pairs of features, key_dim is odd \(3\)"),
        (
            lambda: L.Decoder(2, 5).output_shape((7, 12)),
            "width of 12 does not divide into 5 heads of even size",
        ),
        (lambda: L.Decoder(2, 2, rematerialize="all"), "unknown rematerialize 'all'.* Known: block, dots, none"),
        (lambda: L.Decoder(2, 2, experts=-1), "experts wants an int of at least 0, got -1"),
        (lambda: L.Decoder(2, 2, experts=2, experts_per_token=3), "experts_per_token is 3, of experts there are 2"),
        (lambda: L.Decoder(0, 2), "depth wants an int of at least 1, got 0"),
        (lambda: L.Decoder(2, 2, epsilon=0.0), "epsilon wants a positive number, got 0"),
        (lambda: L.Decoder(2, 2, rope_base=0.0), "rope_base wants a positive number, got 0"),
        (
            lambda: L.Decoder(2, 2, name="words").output_shape((7,)),
            r"Decoder 'words': wants samples of shape",
        ),
        (
            lambda: L.RMSNormalization().output_shape((3, None)),
            "RMSNormalization: axis -1 of its input must have",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(make, says, unchecked):
    with pytest.raises(ValueError, match=says):
        make()


def test_the_specification_survives_json():
    for layer in CONFIGS["experts"].layers():
        assert L.layer_from_json(json.loads(json.dumps(layer.to_json()))) == layer
