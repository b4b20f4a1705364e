"""What a convolution is for oneDNN: its static description and the plans of its three computations."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import descriptors as d
from llmasos_xla.kernels.conv.geometry import Geometry, Ints, Pads

# The dtypes of the operands and those that each may give.
RESULTS = {
    "float32": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "float16": ("float16", "float32"),
    "int8": ("int32", "float32"),
}
_DIRECT = 1


class Spec(NamedTuple):
    """A convolution of channels-last arrays, input never dilated."""

    kind: str
    """"forward", "input gradient" or "kernel gradient"."""
    batch: int
    size: Ints
    cin: int
    kernel: Ints
    cout: int
    stride: Ints
    pads: Pads
    dilation: Ints
    groups: int
    dtype: str
    out_dtype: str
    bias: bool = False
    activation: str = ""
    scaled: bool = False
    """Whether integer sums are multiplied by a float32 for each output channel."""

    @property
    def out_size(self) -> Ints:
        """The spatial size of the result."""
        return tuple(
            (n + low + high - (k - 1) * d - 1) // s + 1
            for n, (low, high), k, d, s in zip(self.size, self.pads, self.kernel, self.dilation, self.stride)
        )

    @property
    def geometry(self) -> Geometry:
        """The same for the XLA formulations."""
        one = (1,) * len(self.size)
        g = Geometry(
            self.batch, self.size, self.cin, self.kernel, self.cout, self.stride, self.pads, one, self.dilation,
            self.groups, 1, lax.ConvDimensionNumbers((), (), ()), None, None, jnp.dtype(self.dtype),
        )  # fmt: skip
        return g.with_channels_last()

    @property
    def shapes(self) -> dict[str, Ints]:
        """The shapes of x, w and y."""
        return {
            "x": (self.batch, *self.size, self.cin),
            "w": (*self.kernel, self.cin // self.groups, self.cout),
            "y": (self.batch, *self.out_size, self.cout),
        }


OPERANDS = {"forward": ("x", "w", "y"), "input gradient": ("w", "y", "x"), "kernel gradient": ("x", "y", "w")}


def build(b: _onednn.Builder, s: Spec) -> None:
    """The plan of the computation: the primitive, between reorders of the kernel into the layout that it wants."""
    s = _as_picture(s)
    _BUILDERS[s.kind](b, s)


def _build_forward(b: _onednn.Builder, s: Spec) -> None:
    bias = b.dense((s.cout,), "float32" if s.dtype == "int8" else s.out_dtype) if s.bias else None
    every_cout = 1 if s.groups == 1 else 3
    attributes = b.attributes(s.activation or None, {d.WEIGHTS: every_cout} if s.scaled else None)
    x, y = b.channels_last(s.shapes["x"], s.dtype), b.channels_last(s.shapes["y"], s.out_dtype)
    free = b.free(_kernel_shape(s), s.dtype)
    pd = b.describe(
        "convolution_forward", d.FORWARD_INFERENCE, _DIRECT, x, free, bias, y, *_window(s), attributes,
        prefer=_preferred(s),
    )  # fmt: skip
    source, kernel = b.argument(0, x), b.argument(1, _kernel(b, s, s.dtype))
    operands = {d.SRC: source, d.WEIGHTS: b.as_layout(kernel, b.query(pd, "weights")), d.DST: b.result(0, y)}
    if s.scaled:
        operands[d.SCALES | d.WEIGHTS] = b.argument(2, b.dense((s.cout,), "float32"))
    if bias is not None:
        operands[d.BIAS] = b.argument(2 + s.scaled, bias)
    b.run(pd, operands)


def _build_input_gradient(b: _onednn.Builder, s: Spec) -> None:
    dx, dy = b.channels_last(s.shapes["x"], s.out_dtype), b.channels_last(s.shapes["y"], s.dtype)
    free = b.free(_kernel_shape(s), s.dtype)
    pd = b.describe(
        "convolution_backward_data", _DIRECT, dx, free, dy, *_window(s), _hint(b, s), b.attributes(),
        prefer=_preferred(s),
    )  # fmt: skip
    kernel, gradient = b.argument(0, _kernel(b, s, s.dtype)), b.argument(1, dy)
    weights = b.as_layout(kernel, b.query(pd, "weights"))
    b.run(pd, {d.DIFF_DST: gradient, d.WEIGHTS: weights, d.DIFF_SRC: b.result(0, dx)})


def _build_kernel_gradient(b: _onednn.Builder, s: Spec) -> None:
    x, dy = b.channels_last(s.shapes["x"], s.dtype), b.channels_last(s.shapes["y"], s.dtype)
    free = b.free(_kernel_shape(s), s.out_dtype)
    pd = b.describe(
        "convolution_backward_weights", _DIRECT, x, free, None, dy, *_window(s), _hint(b, s), b.attributes(),
        prefer=_preferred(s),
    )  # fmt: skip
    source, gradient, dw = b.argument(0, x), b.argument(1, dy), b.result(0, _kernel(b, s, s.out_dtype))
    # Beyond 3x3 oneDNN has none for depthwise kernels: 14 ms for 7x7 at (8, 56, 56, 96), where this takes 1.8.
    if _is_depthwise(s) and "dw" not in b.implementation(pd):
        sums = b.scratch(b.dense((b.threads, *s.shapes["w"]), "float32"))
        low = [low for low, _ in s.pads]
        geometry = (s.batch, *s.size, s.cin, *s.out_size, *s.kernel, *s.stride, *s.dilation, *low)
        numbers = (s.dtype == "bfloat16", *geometry)
        b.own("depthwise kernel gradient", (source, gradient, dw, sums), numbers)
        return
    written = b.into(dw, b.query(pd, "weights gradient"))
    b.run(pd, {d.SRC: source, d.DIFF_DST: gradient, d.DIFF_WEIGHTS: written})
    b.finish(written, dw)


_BUILDERS = {
    "forward": _build_forward,
    "input gradient": _build_input_gradient,
    "kernel gradient": _build_kernel_gradient,
}


def _hint(b: _onednn.Builder, s: Spec) -> Any:
    """The forward pass, which oneDNN wants to see before it plans a gradient."""
    x, y = b.channels_last(s.shapes["x"], s.dtype), b.channels_last(s.shapes["y"], s.dtype)
    free = b.free(_kernel_shape(s), s.dtype)
    return b.describe(
        "convolution_forward", d.FORWARD_TRAINING, _DIRECT, x, free, None, y, *_window(s), b.attributes()
    )  # fmt: skip


def _window(s: Spec) -> tuple[Any, ...]:
    low, high = zip(*s.pads)
    return d.int64s(s.stride), d.int64s([x - 1 for x in s.dilation]), d.int64s(low), d.int64s(high)


# Where oneDNN's first choice is the slower one. Milliseconds on 4 cores with AVX-512, first choice against this one,
# medians of nine turns.
_JIT, _JIT_DEPTHWISE, _GEMM = "jit:avx512_core", "jit_dw:", "x64:gemm"


def _preferred(s: Spec) -> str:
    """How the name of the implementation begins that was measured fastest; empty for oneDNN's own choice."""
    wide, taps, stride = len(s.size) > 1, max(s.kernel), max(s.stride)
    if s.dtype not in ("float32", "bfloat16"):
        return ""
    if s.kind == "forward" and s.groups == 1 and len(s.size) == 2 and taps > 1 and s.out_size[-1] <= 7:
        return _JIT  # 3x3 at (64, 4, 4, 512): 18.0 and 11.5; in bfloat16 at (8, 7, 7, 512): 2.6 and 2.1
    if s.dtype != "float32":
        return ""
    if s.kind == "forward":
        return _JIT_DEPTHWISE if 1 < s.groups == s.cin else ""  # 3x3 at (8, 112, 112, 32): 0.54 and 0.43
    if s.groups > 1:
        return ""
    if s.kind == "kernel gradient":
        # Over time, without a batch to share out: (1, 3000, 384), 3 taps, stride 2: 7.7 and 4.3.
        return _GEMM if s.batch == 1 and not wide else ""
    if wide and s.cin <= 4 and s.cout >= 64:
        return _GEMM  # the input gradient of a first layer; 7x7 at (4, 224, 224, 3 -> 64), stride 2: 11.0 and 7.1
    if wide and 8 < s.cin <= 32 and stride > 1 and taps > 1:
        return _JIT  # 3x3 at (64, 32, 32, 16 -> 32), stride 2: 0.79 and 0.46
    if len(s.size) == 2 and taps > 1 and s.out_size[-1] <= (8 if stride > 1 else 7):
        return _JIT  # 3x3 at (64, 4, 4, 512): 15.5 and 10.8; (64, 8, 8, 256 -> 512), stride 2: 10.2 and 8.1
    return ""


def _is_depthwise(s: Spec) -> bool:
    return 1 < s.groups == s.cin == s.cout and len(s.size) == 2 and s.dtype == s.out_dtype != "float16"


def _as_picture(s: Spec) -> Spec:
    """A convolution over time as one over a picture of one row: the same memory, and kernels that are better kept.

    Measured at (4, 1024, 512), 4 taps, depthwise: 0.46 ms against 4.8. A kernel gradient over more than one input
    channel is the exception: (1, 3000, 80 -> 384), 3 taps, 1.8 ms against 3.8.
    """
    if len(s.size) > 1 or (s.kind == "kernel gradient" and s.groups < s.cin):
        return s
    return s._replace(
        size=(1, *s.size),
        kernel=(1, *s.kernel),
        stride=(1, *s.stride),
        pads=((0, 0), *s.pads),
        dilation=(1, *s.dilation),
    )


def _kernel_shape(s: Spec) -> Ints:
    if s.groups == 1:
        return (s.cout, s.cin, *s.kernel)
    return (s.groups, s.cout // s.groups, s.cin // s.groups, *s.kernel)


def _kernel(b: _onednn.Builder, s: Spec, dtype: str) -> Any:
    """`[*kernel, cin / groups, cout]` in oneDNN's order of axes, groups cout cin kernel."""
    strides, step = [], s.cin // s.groups * s.cout
    for n in reversed(s.kernel):
        strides.insert(0, step)
        step *= n
    group = () if s.groups == 1 else (s.cout // s.groups,)
    return b.strided(_kernel_shape(s), (*group, 1, s.cout, *strides), dtype)
