"""Convolutions on GPUs have the forms that XLA hands to cuDNN as what they are, gradients included."""

import jax
import jax.numpy as jnp
import pytest
from kernels import cudnn

from llmasos_xla import kernels
from llmasos_xla.kernels._dispatch import forced, tracing_for
from llmasos_xla.kernels.conv.cases import BENCH, GPU_BENCH, GPU_TRANSPOSE_BENCH, TRANSPOSE_BENCH, Case

CASES = {c.name: c for c in (*BENCH, *GPU_BENCH)}
CASES["atrous-groups"] = Case("atrous-groups", (4, 28, 28, 64), (3, 3, 8, 64), rhs_dilation=2, groups=8)
CASES["groups-stride-1d"] = Case("groups-stride-1d", (4, 512, 64), (5, 16, 64), 4, ((2, 2),), groups=4)
CASES["input-dilated"] = Case("input-dilated", (4, 32, 32, 64), (3, 3, 64, 32), 1, ((1, 1),) * 2, lhs_dilation=2)
TRANSPOSED = {c.name: c for c in (*TRANSPOSE_BENCH, *GPU_TRANSPOSE_BENCH)}

DENSE = ["backward data", "backward filter", "forward"]
# A grouped or dilated convolution has no backward data: a forward call with a reversed kernel does as well.
FORWARD = ["backward filter", "forward", "forward"]
WANTED = {
    "resnet18-28": DENSE,
    "resnet18-28-down": DENSE,
    "resnet50-shortcut": DENSE,
    "whisper-second-layer": DENSE,
    "resnext-28": FORWARD,
    "resnext-28-down": FORWARD,
    "groups-stride-1d": FORWARD,
    "atrous-28": FORWARD,
    "wavenet-causal": FORWARD,
    "atrous-groups": FORWARD,
    "input-dilated": DENSE,
}


def gradients(f):
    def both(x, w):
        y, pull = jax.vjp(f, x, w)
        return y, *pull(jnp.cos(y))

    return both


def conv_of(name, formulation=None):
    def f(x, w):
        arguments = CASES[name].arguments | {"implementation": "xla"}
        if formulation is None:
            return kernels.conv(x, w, **arguments)
        with forced(formulation):
            return kernels.conv(x, w, **arguments)

    return CASES[name].lhs, CASES[name].rhs, gradients(f)


def transposed(name):
    case = TRANSPOSED[name]

    def f(x, w):
        return kernels.conv_transpose(x, w, case.strides, case.padding, transpose_kernel=case.transpose_kernel)

    return case.lhs, case.rhs, gradients(f)


def forms(lhs, rhs, f, how=cudnn.forms):
    with tracing_for("gpu"):
        return sorted(how(f, lhs, rhs))


@pytest.mark.parametrize(("name", "wanted"), WANTED.items())
def test_what_a_gpu_runs_has_the_forms_of_cudnn(name, wanted):
    assert forms(*conv_of(name)) == wanted


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_backward_data(name):
    assert forms(*transposed(name)) == DENSE


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("input-dilated", "forward with zeros written out"),
        ("resnext-28-down", "forward with zeros written out"),
        ("wavenet-causal", "forward with zeros written out"),
        ("wavenet-causal", "forward with a kernel as large as the picture"),
        ("groups-stride-1d", "forward with zeros written out"),
    ],
)
def test_what_lax_derives_has_not(name, lost):
    assert lost in forms(*conv_of(name, "lax"))


def test_the_choice_on_gpu_says_why():
    chosen = {name: explained(name).chosen.formulation for name in WANTED}
    assert chosen == dict.fromkeys(WANTED, "lax") | {
        "resnext-28-down": "phases", "groups-stride-1d": "phases", "atrous-groups": "phases",
        "atrous-28": "canonical", "wavenet-causal": "canonical", "input-dilated": "canonical",
    }  # fmt: skip
    assert "xla: canonical (lax's own gradients have the forms that cuDNN takes)" in str(explained("resnet18-28"))
    assert "xla: phases (neither the stride nor rhs_dilation is above 1)" in str(explained("resnext-28"))
    assert "xla: phases (made for cuDNN, this is cpu)" in str(explained("resnext-28-down", "cpu"))


def explained(name, platform="gpu"):
    case = CASES[name]
    shapes = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (case.lhs, case.rhs))
    with tracing_for(platform):
        return kernels.explain(kernels.conv, *shapes, **case.arguments, implementation="xla")


# And so says the compiler, where it is installed.


@pytest.mark.skipif(cudnn.missing() is not None, reason=str(cudnn.missing()))
@pytest.mark.parametrize(("name", "wanted"), WANTED.items())
def test_xla_makes_these_calls(name, wanted):
    assert forms(*conv_of(name), how=cudnn.calls) == wanted


@pytest.mark.skipif(cudnn.missing() is not None, reason=str(cudnn.missing()))
@pytest.mark.parametrize("name", TRANSPOSED)
def test_xla_makes_these_calls_of_transposed_convolutions(name):
    assert forms(*transposed(name), how=cudnn.calls) == DENSE
