"""The choice of an implementation: what runs is what `explain` says, and what is asked by name runs or says why not."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from llmasos_xla import kernels
from llmasos_xla.kernels._dispatch import OPS, Candidate, choose, forced, op, platform, run, tracing_for

pytestmark = pytest.mark.usefixtures("unchecked")


def candidate(implementation, formulation="plain", objection=None, able=False, reason=""):
    return Candidate(implementation, formulation, lambda: (implementation, formulation), objection, reason, able)


def test_the_first_without_objection_runs():
    candidates = [candidate("triton", objection="no GPU"), candidate("onednn"), candidate("xla")]
    assert choose("op", candidates, None).run() == ("onednn", "plain")


def test_a_named_implementation_runs_even_where_it_is_slow():
    candidates = [candidate("xla"), candidate("onednn", objection="slow here", able=True)]
    assert choose("op", candidates, "onednn").run() == ("onednn", "plain")


def test_a_named_implementation_prefers_its_formulation_without_objection():
    candidates = [candidate("xla", "fast", "slow here", able=True), candidate("xla", "plain")]
    assert choose("op", candidates, "xla").run() == ("xla", "plain")


def test_a_named_implementation_that_cannot_run_raises_its_reason():
    candidates = [candidate("triton", objection="no GPU"), candidate("xla")]
    with pytest.raises(NotImplementedError, match=r"op: implementation='triton' cannot run: triton \(plain\): no GPU"):
        choose("op", candidates, "triton")


def test_slow_candidates_do_not_run_unasked():
    with pytest.raises(NotImplementedError, match=r"op: no implementation fits: xla \(plain\): slow here"):
        choose("op", [candidate("xla", objection="slow here", able=True)], None)


def test_an_unknown_implementation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"op: unknown implementation 'trition'; did you mean 'triton'\?"):
        choose("op", [candidate("xla"), candidate("triton")], "trition")


def test_a_forced_formulation_runs_or_raises():
    candidates = [candidate("xla", "fast"), candidate("xla", "plain"), candidate("xla", "odd", "even sizes only")]
    with forced("plain"):
        assert choose("op", candidates, None).formulation == "plain"
    with (
        forced("odd"),
        pytest.raises(NotImplementedError, match="no implementation fits: xla .odd.: even sizes only"),
    ):
        choose("op", candidates, None)
    with forced("plian"), pytest.raises(ValueError, match="op: unknown formulation 'plian'; did you mean 'plain'"):
        choose("op", candidates, None)
    assert choose("op", candidates, None).formulation == "fast"


def test_explain_walks_what_run_walks():
    def candidates(x, *, implementation=None):
        return [candidate("triton", objection="no GPU"), candidate("xla", reason="takes everything")]

    @op(candidates)
    def doubled_for_the_test(x, *, implementation=None):
        return run(doubled_for_the_test, candidates(x), implementation)

    try:
        found = kernels.explain(doubled_for_the_test, 1)
        assert found.chosen.run() == doubled_for_the_test(1) == ("xla", "plain")
        assert str(found).splitlines() == [
            f"doubled_for_the_test on {platform()}",
            "    triton: plain (no GPU)",
            " -> xla: plain (takes everything)",
        ]
        with pytest.raises(NotImplementedError, match="no GPU"):
            kernels.explain(doubled_for_the_test, 1, implementation="triton")
    finally:
        del OPS["doubled_for_the_test"]


def test_explain_refuses_what_is_no_op():
    with pytest.raises(ValueError, match="explain: unknown op 'relu'; Known: "):
        kernels.explain(jax.nn.relu, jnp.ones(3))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (jax.lax.conv, (jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3)), (1, 1), "SAME")),
        (nn.max_pool, (jnp.ones((1, 8, 8, 3)), (2, 2))),
        (functools.wraps(kernels.max_pool)(lambda x, window: x), (jnp.ones((1, 8, 8, 3)), (2, 2))),
    ],
)
def test_explain_refuses_another_function_of_the_same_name(function, arguments):
    name = function.__name__
    with pytest.raises(ValueError, match=rf"explain: {name} of .* is not kernels.{name}; pass that one"):
        kernels.explain(function, *arguments)


def test_explain_takes_a_jitted_op():
    x = jnp.ones((1, 8, 8, 3))
    found = kernels.explain(jax.jit(kernels.max_pool, static_argnums=1), x, 2)
    assert str(found) == str(kernels.explain(kernels.max_pool, x, 2))


def test_the_candidates_of_both_directions_say_what_each_runs():
    x = jax.ShapeDtypeStruct((32, 50, 64), jnp.float32)
    weights = {name: jax.ShapeDtypeStruct((64, 256), jnp.float32) for name in ("w_input", "w_recurrent")}
    alone = kernels.explain(kernels.lstm, x, *weights.values(), None).chosen
    both = kernels.explain(kernels.bidirectional, kernels.lstm, x, weights, weights).chosen
    assert both.implementation == alone.implementation
    assert both.reason == f"each direction as lstm has it: {alone.formulation}"
    for name in {alone.implementation, "xla"}:
        named = kernels.explain(kernels.bidirectional, kernels.lstm, x, weights, weights, implementation=name).chosen
        assert named.implementation == name


def test_explain_takes_shapes():
    shape = jax.ShapeDtypeStruct((1 << 20, 64, 64, 3), jnp.float32)
    with tracing_for("tpu"):
        assert kernels.explain(kernels.max_pool, shape, 2).chosen.formulation == "reduce window"


def test_the_platform_is_that_of_the_default_device_or_the_one_told():
    assert platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[1]):
        assert platform() == "cpu"
    with tracing_for("gpu"):
        assert platform() == "gpu"
    with pytest.raises(ValueError, match="tracing_for: unknown platform 'cuda'"), tracing_for("cuda"):
        pass
