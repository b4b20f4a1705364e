"""Recurrent layers, attention, embedding and the masks between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from llmasos_xla.core import pure
from llmasos_xla.models import layers as L  # noqa: N812
from llmasos_xla.models.layers.recurrent import reverse_rows, row_lengths
from llmasos_xla.models.stack import Stack


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def wide(variables) -> dict[str, np.ndarray]:
    return {name: np.asarray(a, np.float64) for name, a in variables.params.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)


def test_gru_resets_after_the_recurrent_product(x, apply_layer):
    layer = L.GRU(4, return_sequences=True, bias_initializer="random_normal")
    y, variables = apply_layer(layer, x)
    p = wide(variables)
    h = np.zeros((2, 4))
    for t in range(5):
        a = np.asarray(x[:, t], np.float64) @ p["kernel"] + p["bias"]
        b = h @ p["recurrent_kernel"] + p["recurrent_bias"]
        r, z = sigmoid(a[:, :4] + b[:, :4]), sigmoid(a[:, 4:8] + b[:, 4:8])
        h = (1 - z) * np.tanh(a[:, 8:] + r * b[:, 8:]) + z * h
        assert_close(y[:, t], h)


def test_lstm_gates_stand_in_the_order_i_f_g_o_and_forget_starts_at_one(x, apply_layer):
    y, variables = apply_layer(L.LSTM(4), x)
    p = wide(variables)
    np.testing.assert_array_equal(p["bias"], [0] * 4 + [1] * 4 + [0] * 8)
    h = c = np.zeros((2, 4))
    for t in range(5):
        i, f, g, o = np.split(
            np.asarray(x[:, t], np.float64) @ p["kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4, 1
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    assert_close(y, h)


def test_mingru_is_its_formula(x, apply_layer):
    layer = L.MinGRU(4, "tanh", return_sequences=True, bias_initializer="random_normal")
    y, variables = apply_layer(layer, x)
    p = wide(variables)
    h = np.zeros((2, 4))
    for t in range(5):
        z, n = np.split(np.asarray(x[:, t], np.float64) @ p["kernel"] + p["bias"], 2, 1)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * np.tanh(n)
        assert_close(y[:, t], h)


def test_mingru_remembers_in_bfloat16(apply_layer):
    """A gate of 1 - 1/1000 is not 1: after 3000 steps of its complement most of the candidate has come in."""
    layer = L.MinGRU(1)
    params = {"kernel": jnp.zeros((1, 2), jnp.bfloat16), "bias": jnp.array([-7.0, 1.0], jnp.bfloat16)}
    variables = apply_layer(layer, jnp.ones((1, 1, 1)))[1]._replace(params=params)
    y, _ = apply_layer(layer, jnp.ones((1, 3000, 1), jnp.bfloat16), variables=variables)
    assert float(y[0, 0]) == pytest.approx(1 - (1 - sigmoid(-7.0)) ** 3000, rel=2e-2)


def test_recurrent_kernels_start_orthogonal(x, apply_layer):
    u = wide(apply_layer(L.LSTM(4), x)[1])["recurrent_kernel"]
    assert_close(u @ u.T, np.eye(4), dtype="float32")


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.GRU, L.LSTM, L.MinGRU])
def test_backwards_is_forwards_on_the_turned_input(x, apply_layer, kind):
    y, variables = apply_layer(kind(4, return_sequences=True), x)
    turned, _ = apply_layer(kind(4, return_sequences=True, go_backwards=True), x[:, ::-1], variables=variables)
    assert_close(turned, y)


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", [L.SimpleRNN, L.GRU, L.LSTM, L.MinGRU])
def test_a_padded_row_gives_what_the_short_row_gives(x, apply_layer, kind, backwards, sequences):
    layer = kind(4, return_sequences=sequences, go_backwards=backwards)
    short, variables = apply_layer(layer, x[:, :3])
    mask = jnp.arange(5)[None] < jnp.array([3, 3])[:, None]
    y, _ = apply_layer(layer, x, variables=variables, mask=mask)
    assert_close(y[:, :3] if sequences else y, short)


def test_rows_end_with_their_last_unmasked_step():
    mask = jnp.array([[True, False, True, False], [False] * 4, [True] * 4])
    lengths = row_lengths(mask)
    assert lengths.tolist() == [3, 0, 4]
    rows = jnp.arange(12.0).reshape(3, 4, 1)
    assert reverse_rows(rows, lengths)[..., 0].tolist() == [[2, 1, 0, 3], [4, 5, 6, 7], [11, 10, 9, 8]]


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"])
def test_bidirectional_sequences_stand_in_the_order_of_time(x, apply_layer, merge_mode):
    inner = L.GRU(4, return_sequences=True)
    y, variables = apply_layer(L.Bidirectional(inner, merge_mode), x)
    parts = {
        side: {n.split("/")[1]: a for n, a in variables.params.items() if n.startswith(side)}
        for side in ("forward", "backward")
    }
    there, _ = apply_layer(inner, x, variables=variables._replace(params=parts["forward"]))
    back, _ = apply_layer(inner, x[:, ::-1], variables=variables._replace(params=parts["backward"]))
    back = back[:, ::-1]
    merged = {
        "concat": jnp.concatenate([there, back], -1),
        "sum": there + back,
        "mul": there * back,
        "ave": (there + back) / 2,
    }
    assert_close(y, merged[merge_mode])


def attention(p, x, heads, causal=False, mask=None):
    """Scaled dot-product attention in float64, head by head."""
    x = np.asarray(x, np.float64)
    project = {
        n: np.einsum("btc,chd->bhtd", x, p[f"{n}/kernel"]) + p[f"{n}/bias"][:, None] for n in ("query", "key", "value")
    }
    scores = np.einsum("bhqd,bhkd->bhqk", project["query"], project["key"]) / np.sqrt(p["query/kernel"].shape[-1])
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(np.asarray(mask)[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhqk,bhkd->bqhd", weights, project["value"])
    return np.einsum("bqhd,hdc->bqc", y, p["output/kernel"]) + p["output/bias"]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(x, apply_layer, causal, masked):
    layer = L.MultiHeadAttention(2, 3, value_dim=5, causal=causal, bias_initializer="random_normal")
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2]) if masked else None
    y, variables = apply_layer(layer, x, mask=mask)
    assert_close(y, attention(wide(variables), x, 2, causal, mask))


def test_attention_over_nothing_but_padding_is_finite(x, apply_layer):
    y, _ = apply_layer(L.MultiHeadAttention(2, 3), x, mask=jnp.zeros((2, 5), bool))
    assert np.isfinite(y).all()


def test_causal_attention_does_not_see_the_future(x, apply_layer):
    layer = L.MultiHeadAttention(2, 3, causal=True, dropout=0.3)
    y, variables = apply_layer(layer, x, train=True, key=jax.random.key(1))
    later, _ = apply_layer(layer, x.at[:, 3:].add(1.0), variables=variables, train=True, key=jax.random.key(1))
    assert_close(later[:, :3], y[:, :3])


@pytest.mark.parametrize(
    "reader",
    [
        [L.LSTM(4)],
        [L.MinGRU(4, return_sequences=True), L.Bidirectional(L.MinGRU(3))],
        [L.Bidirectional(L.GRU(4, return_sequences=True)), L.Dropout(0.1), L.SimpleRNN(3)],
        [L.Residual([L.LayerNormalization(), L.MultiHeadAttention(2, 3)]), L.GlobalAveragePooling1D()],
        [L.TimeDistributed(L.Dense(4)), L.GlobalMaxPooling1D()],
        [L.Concatenate([[], [L.LSTM(3, return_sequences=True)]]), L.LSTM(4, go_backwards=True)],
        [L.BatchNormalization(), L.GlobalAveragePooling1D(keepdims=True)],
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_padding_changes_no_answer(reader):
    """Three zeros more at the end of a row leave the answer what it was."""
    layers = [L.Embedding(10, 6, mask_zero=True), *reader]
    ids = jnp.array([[3, 1, 4, 1], [5, 9, 0, 0]])
    net = pure(lambda rngs: Stack(layers, (None,), rngs=rngs))
    variables = net.init(jax.random.key(0))
    y, _ = net.apply(variables, ids)
    padded, _ = net.apply(variables, jnp.pad(ids, ((0, 0), (0, 3))))
    assert_close(padded, y)
    changed, _ = net.apply(variables, ids.at[1, 1].set(8))
    assert float(jnp.abs(changed[1] - y[1]).max()) > 1e-5
    assert_close(changed[0], y[0])


def test_masking_finds_steps_of_the_mask_value(x, apply_layer):
    marked = x.at[1, 3:].set(-1.0)
    net = pure(lambda rngs: Stack([L.Masking(-1.0), L.LSTM(4)], (None, 3), rngs=rngs))
    variables = net.init(jax.random.key(0))
    y, _ = net.apply(variables, marked)
    short, _ = net.apply(variables, x[1:, :3])
    assert_close(y[1:], short)
    zeroed, _ = apply_layer(L.Masking(-1.0), marked)
    np.testing.assert_array_equal(zeroed[1, 3:], np.zeros((2, 3)))


def test_a_permuted_time_axis_takes_no_mask_along():
    layers = [L.Embedding(9, 4, mask_zero=True), L.Permute((2, 1)), L.GlobalAveragePooling1D()]
    net = pure(lambda rngs: Stack(layers, (4,), rngs=rngs))
    variables = net.init(jax.random.key(0))
    y, _ = net.apply(variables, jnp.array([[1, 2, 0, 0]]))
    assert_close(y[0], variables.params["embedding/embeddings"][jnp.array([1, 2, 0, 0])].mean(1))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_embedding_of_an_unknown_id_is_loud(apply_layer, dtype):
    layer = L.Embedding(5, 3)
    wrong = [5, 100] if jnp.issubdtype(dtype, jnp.unsignedinteger) else [-1, 5]
    y, variables = apply_layer(layer, jnp.asarray([[0, 4, *wrong]], dtype))
    assert_close(y[0, :2], variables.params["embeddings"][jnp.array([0, 4])])
    assert np.isnan(y[0, 2:]).all()


def test_embedding_wants_integers(apply_layer):
    with pytest.raises(ValueError, match=r"Embedding: wants integer ids, got float32 of shape \(1, 2\)"):
        apply_layer(L.Embedding(5, 3), jnp.ones((1, 2)))


def test_embedding_checks_the_data(unchecked):
    layer = L.Embedding(5, 3, name="words")
    layer.check_tokens(np.array([[0, 4]]))
    with pytest.raises(ValueError, match=r"Embedding 'words': ids must be 0 to 4 \(input_dim 5\), got -2 in row 1"):
        layer.check_tokens(np.array([[0, 4], [1, -2]]))
    with pytest.raises(ValueError, match="wants integer ids, got float64"):
        layer.check_tokens(np.ones((1, 2)))
