"""The one list of shapes that the tests, the benchmarks and tuning read."""

from typing import NamedTuple

from jax import lax

Ints = tuple[int, ...]


class Case(NamedTuple):
    """One convolution of channels-last arrays; single integers stand for every spatial axis."""

    name: str
    lhs: Ints
    """`[batch, *spatial, cin]`"""
    rhs: Ints
    """`[*kernel, cin / groups, cout]`"""
    stride: int | Ints = 1
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    rhs_dilation: int | Ints = 1
    lhs_dilation: int | Ints = 1
    groups: int = 1

    @property
    def numbers(self) -> tuple[str, str, str]:
        """The dimension numbers, as lax spells them."""
        space = "DHW"[5 - len(self.lhs) :]
        return f"N{space}C", f"{space}IO", f"N{space}C"

    @property
    def arguments(self) -> dict:
        """The keyword arguments of `kernels.conv`."""
        return {
            "window_strides": self.stride,
            "padding": self.padding,
            "lhs_dilation": self.lhs_dilation,
            "rhs_dilation": self.rhs_dilation,
            "dimension_numbers": self.numbers,
            "feature_group_count": self.groups,
        }

    def arguments_of_lax(self) -> dict:
        """The keyword arguments of `lax.conv_general_dilated`, which takes no single integers."""
        rank = len(self.lhs) - 2
        spread = {
            name: (value,) * rank if isinstance(value, int) and name != "feature_group_count" else value
            for name, value in self.arguments.items()
        }
        return spread | {"dimension_numbers": lax.conv_dimension_numbers(self.lhs, self.rhs, self.numbers)}


class TransposeCase(NamedTuple):
    """One transposed convolution of channels-last arrays."""

    name: str
    lhs: Ints
    rhs: Ints
    strides: int | Ints
    padding: str | tuple[tuple[int, int], ...]
    rhs_dilation: int | Ints = 1
    transpose_kernel: bool = False


# Correctness: odd sizes, sizes of one, every argument, one to three spatial axes.
TESTS = (
    Case("3x3", (2, 5, 7, 3), (3, 3, 3, 4)),
    Case("3x3-valid", (2, 6, 5, 2), (3, 3, 2, 3), padding="VALID"),
    Case("first-layer", (2, 6, 6, 1), (3, 3, 1, 4), padding="VALID"),
    Case("one", (1, 1, 1, 1), (1, 1, 1, 1)),
    Case("one-pixel", (2, 1, 1, 3), (3, 3, 3, 2)),
    Case("stride", (2, 7, 6, 3), (3, 3, 3, 4), stride=2),
    Case("stride-over-kernel", (1, 8, 9, 2), (2, 2, 2, 3), stride=(3, 4), padding="VALID"),
    Case("dilated", (1, 9, 8, 2), (3, 2, 2, 3), rhs_dilation=(2, 3)),
    Case("dilated-stride", (1, 9, 8, 2), (3, 3, 2, 3), stride=2, rhs_dilation=2),
    Case("input-dilated", (1, 4, 3, 2), (3, 3, 2, 3), lhs_dilation=(2, 3)),
    Case("asymmetric", (1, 5, 6, 2), (3, 4, 2, 3), stride=(1, 2), padding=((0, 2), (3, 1))),
    Case("cropping", (1, 7, 6, 2), (3, 3, 2, 3), padding=((-1, 1), (1, -2))),
    Case("same-lower", (1, 5, 6, 2), (2, 4, 2, 3), padding="SAME_LOWER"),
    Case("1x1", (2, 3, 5, 4), (1, 1, 4, 3)),
    Case("1x1-stride", (2, 5, 4, 3), (1, 1, 3, 2), stride=(2, 3)),
    Case("1x1-stride-pad", (1, 5, 4, 3), (1, 1, 3, 2), stride=2, padding=((1, 0), (0, 2))),
    Case("groups", (2, 5, 4, 6), (3, 3, 2, 9), groups=3),
    Case("groups-stride", (1, 5, 6, 4), (2, 3, 2, 4), stride=2, groups=2),
    Case("groups-stride-apart", (2, 7, 9, 4), (3, 5, 2, 6), (1, 3), ((1, 0), (3, 2)), groups=2),
    Case("groups-stride-over-kernel", (1, 7, 8, 4), (2, 1, 2, 4), (3, 4), "VALID", groups=2),
    Case("groups-stride-cropping", (1, 9, 8, 4), (3, 3, 2, 4), 2, ((-1, 2), (1, -2)), groups=2),
    Case("groups-dilated", (1, 8, 7, 4), (3, 2, 2, 6), (1, 1), rhs_dilation=(2, 3), groups=2),
    Case("dilated-stride-apart", (2, 9, 8, 2), (3, 2, 2, 3), (2, 1), ((1, 0), (3, -1)), rhs_dilation=(1, 3)),
    Case("many-groups", (1, 3, 3, 68), (2, 2, 2, 68), groups=34),
    Case("depthwise", (2, 5, 6, 3), (3, 3, 1, 3), groups=3),
    Case("depthwise-multiplier", (1, 6, 5, 3), (3, 2, 1, 6), stride=2, rhs_dilation=(1, 2), groups=3),
    Case("1d", (2, 9, 3), (3, 3, 4)),
    Case("1d-causal", (2, 8, 3), (3, 3, 4), padding=((4, 0),), rhs_dilation=2),
    Case("3d", (1, 3, 4, 5, 2), (2, 3, 2, 2, 3), stride=(1, 2, 1)),
)

# Depthwise kernels on GPUs: strips of rows and blocks of columns and channels that end within the image.
DEPTHWISE_TESTS = (
    Case("odd", (2, 5, 6, 3), (3, 3, 1, 3), groups=3),
    Case("one-pixel", (1, 1, 1, 2), (1, 2, 1, 2), groups=2),
    Case("small-image", (2, 2, 3, 9), (7, 7, 1, 9), groups=9),
    Case("strips", (2, 9, 5, 5), (7, 7, 1, 5), groups=5),
    Case("stride", (2, 9, 8, 5), (3, 3, 1, 5), 2, ((1, 1), (0, 1)), groups=5),
    Case("stride-apart", (1, 9, 11, 4), (5, 3, 1, 4), (3, 2), ((2, 1), (0, 2)), groups=4),
    Case("stride-over-kernel", (1, 8, 9, 2), (2, 2, 1, 2), (3, 4), "VALID", groups=2),
    Case("unread-tail", (1, 8, 8, 4), (3, 3, 1, 4), 2, "VALID", groups=4),
    Case("dilated", (1, 9, 8, 3), (3, 2, 1, 3), rhs_dilation=(2, 3), groups=3),
    Case("dilated-and-stride-apart", (1, 9, 8, 3), (3, 3, 1, 3), (1, 2), rhs_dilation=(2, 1), groups=3),
    Case("cropping", (2, 9, 8, 3), (3, 3, 1, 3), 1, ((-1, 1), (1, -2)), groups=3),
    Case("one-row", (2, 1, 13, 4), (1, 5, 1, 4), groups=4),
    Case("one-column", (2, 13, 1, 4), (5, 1, 1, 4), groups=4),
    Case("1d-causal", (2, 19, 6), (4, 1, 6), padding=((3, 0),), groups=6),
    Case("1d-short", (3, 2, 5), (4, 1, 5), padding=((3, 0),), groups=5),
    Case("1d-valid", (2, 18, 3), (3, 1, 3), padding="VALID", groups=3),
    Case("1d-ahead", (1, 17, 3), (3, 1, 3), padding=((0, 2),), rhs_dilation=2, groups=3),
    Case("1d-wide-padding", (1, 9, 3), (3, 1, 3), padding=((4, 3),), groups=3),
    Case("1d-stride", (2, 17, 3), (4, 1, 3), 2, ((1, 2),), groups=3),
    Case("1d-long", (1, 40, 4), (31, 1, 4), padding=((30, 0),), groups=4),
    Case("1d-long-stride", (1, 41, 2), (19, 1, 2), 3, ((9, 9),), groups=2),
    Case("many-channels", (1, 3, 2, 130), (3, 2, 1, 130), groups=130),
)

# First layers on GPUs: windows whose elements end within a block, as places and output channels do.
FIRST_LAYER_TESTS = (
    Case("mnist", (2, 7, 6, 1), (3, 3, 1, 4), padding="VALID"),
    Case("stem", (2, 13, 11, 3), (7, 7, 3, 20), 2, ((3, 3), (3, 3))),
    Case("one", (1, 1, 1, 1), (2, 2, 1, 1)),
    Case("patches", (2, 8, 8, 3), (4, 4, 3, 17), 4, "VALID"),
    Case("unread-tail", (1, 9, 9, 4), (2, 3, 4, 6), (3, 4), "VALID"),
    Case("dilated", (1, 9, 8, 2), (3, 2, 2, 3), (1, 2), rhs_dilation=(2, 1)),
    Case("cropping", (2, 7, 6, 2), (3, 3, 2, 3), 1, ((-1, 1), (1, -2))),
    Case("tall", (1, 30, 12, 1), (20, 5, 1, 3), 2),
    Case("1d", (2, 30, 2), (7, 2, 40), 3, ((3, 3),)),
    Case("1d-causal", (2, 70, 1), (4, 1, 16), 1, ((3, 0),)),
    Case("many-outputs", (1, 5, 4, 3), (3, 3, 3, 130)),
)

TRANSPOSE_TESTS = (
    TransposeCase("same", (2, 3, 4, 3), (3, 3, 3, 2), 2, "SAME"),
    TransposeCase("valid", (1, 3, 4, 2), (3, 2, 2, 3), (2, 3), "VALID"),
    TransposeCase("stride-one", (1, 4, 5, 2), (3, 3, 2, 3), 1, "SAME"),
    TransposeCase("explicit", (1, 3, 4, 2), (4, 3, 2, 3), 2, ((2, 3), (1, 2))),
    TransposeCase("keras", (2, 4, 3, 3), (3, 4, 2, 3), 2, "SAME", transpose_kernel=True),
    TransposeCase("keras-explicit", (1, 4, 3, 3), (3, 3, 2, 3), (2, 1), ((2, 1), (0, 1)), transpose_kernel=True),
    TransposeCase("dilated", (1, 4, 3, 2), (2, 3, 2, 3), 2, "SAME", rhs_dilation=2),
    TransposeCase("one", (1, 1, 1, 1), (1, 1, 1, 1), 1, "VALID"),
    TransposeCase("1d", (2, 5, 3), (4, 3, 2), 3, "SAME"),
    TransposeCase("3d", (1, 2, 3, 2, 2), (2, 2, 3, 2, 3), 2, "SAME"),
)

# Speed: layers that people train. Padding at stride 2 is that of the models' own papers and of PyTorch, alike at both
# ends, but for the small residual network, which pads as Keras and TensorFlow do.
_BOTH_ENDS = {n: ((n, n), (n, n)) for n in (1, 3)}

BENCH = (
    Case("mnist-first-layer", (128, 28, 28, 1), (3, 3, 1, 32), padding="VALID"),
    Case("mnist-second-layer", (128, 13, 13, 32), (3, 3, 32, 64), padding="VALID"),
    Case("small-residual-16", (64, 32, 32, 16), (3, 3, 16, 16)),
    Case("small-residual-32", (64, 16, 16, 32), (3, 3, 32, 32)),
    Case("small-residual-64", (64, 8, 8, 64), (3, 3, 64, 64)),
    Case("small-residual-down", (64, 32, 32, 16), (3, 3, 16, 32), stride=2),
    Case("resnet-stem", (4, 224, 224, 3), (7, 7, 3, 64), stride=2, padding=_BOTH_ENDS[3]),
    Case("resnet18-56", (8, 56, 56, 64), (3, 3, 64, 64)),
    Case("resnet18-28-down", (8, 56, 56, 64), (3, 3, 64, 128), stride=2, padding=_BOTH_ENDS[1]),
    Case("resnet18-28", (8, 28, 28, 128), (3, 3, 128, 128)),
    Case("resnet18-14", (8, 14, 14, 256), (3, 3, 256, 256)),
    Case("resnet18-7", (8, 7, 7, 512), (3, 3, 512, 512)),
    Case("resnet50-reduce", (8, 56, 56, 256), (1, 1, 256, 64)),
    Case("resnet50-reduce-7", (8, 7, 7, 2048), (1, 1, 2048, 512)),
    Case("resnet50-expand-56", (8, 56, 56, 64), (1, 1, 64, 256)),
    Case("resnet50-expand", (8, 14, 14, 256), (1, 1, 256, 1024)),
    Case("resnet50-shortcut", (8, 56, 56, 256), (1, 1, 256, 512), stride=2),
    Case("resnext-28", (8, 28, 28, 128), (3, 3, 4, 128), groups=32),
    Case("vgg16-first-layer", (2, 224, 224, 3), (3, 3, 3, 64)),
    Case("vgg16-224", (1, 224, 224, 64), (3, 3, 64, 64)),
    Case("vgg16-112", (2, 112, 112, 128), (3, 3, 128, 128)),
    Case("vgg16-56", (2, 56, 56, 256), (3, 3, 256, 256)),
    Case("vgg16-28", (2, 28, 28, 512), (3, 3, 512, 512)),
    Case("vgg16-14", (2, 14, 14, 512), (3, 3, 512, 512)),
    Case("mobilenet-first-layer", (8, 224, 224, 3), (3, 3, 3, 32), stride=2, padding=_BOTH_ENDS[1]),
    Case("mobilenet-depthwise-112", (8, 112, 112, 32), (3, 3, 1, 32), groups=32),
    Case("mobilenet-depthwise", (8, 56, 56, 128), (3, 3, 1, 128), groups=128),
    Case("mobilenet-depthwise-14", (8, 14, 14, 512), (3, 3, 1, 512), groups=512),
    Case(
        "mobilenet-depthwise-down",
        (8, 56, 56, 128),
        (3, 3, 1, 128),
        stride=2,
        padding=_BOTH_ENDS[1],
        groups=128,
    ),
    Case("mobilenet-pointwise", (8, 28, 28, 128), (1, 1, 128, 256)),
    Case("mobilenet-pointwise-14", (8, 14, 14, 512), (1, 1, 512, 512)),
    Case("convnext-patchify", (8, 224, 224, 3), (4, 4, 3, 96), stride=4, padding="VALID"),
    Case("convnext-depthwise-56", (8, 56, 56, 96), (7, 7, 1, 96), groups=96),
    Case("convnext-depthwise-14", (8, 14, 14, 384), (7, 7, 1, 384), groups=384),
    Case("convnext-pointwise", (8, 56, 56, 96), (1, 1, 96, 384)),
    Case("convnext-down", (8, 56, 56, 96), (2, 2, 96, 192), stride=2, padding="VALID"),
    Case("wavenet-causal", (32, 256, 64), (3, 64, 64), padding=((8, 0),), rhs_dilation=4),
    Case("text-1d", (32, 128, 128), (5, 128, 128)),
    Case("whisper-first-layer", (1, 3000, 80), (3, 80, 384)),
    Case("whisper-second-layer", (1, 3000, 384), (3, 384, 384), stride=2, padding=((1, 1),)),
    Case("mamba-causal-depthwise", (4, 1024, 512), (4, 1, 512), padding=((3, 0),), groups=512),
    Case("volume", (4, 16, 16, 16, 16), (3, 3, 3, 16, 16)),
    Case("volume-down", (4, 16, 16, 16, 32), (2, 2, 2, 32, 64), stride=2, padding="VALID"),
    Case("video-stem", (1, 8, 112, 112, 3), (3, 7, 7, 3, 64), stride=(1, 2, 2), padding=((1, 1), (3, 3), (3, 3))),
    Case("video-56", (1, 8, 56, 56, 64), (3, 3, 3, 64, 64)),
)

TRANSPOSE_BENCH = (
    TransposeCase("dcgan-8", (32, 8, 8, 256), (5, 5, 128, 256), 2, ((2, 3), (2, 3)), transpose_kernel=True),
    TransposeCase("gan-16", (16, 16, 16, 128), (4, 4, 64, 128), 2, "SAME", transpose_kernel=True),
    TransposeCase("unet-up", (8, 32, 32, 128), (2, 2, 64, 128), 2, "VALID", transpose_kernel=True),
    TransposeCase("vocoder-up", (4, 128, 256), (16, 128, 256), 8, "SAME", transpose_kernel=True),
    TransposeCase("volume-up", (2, 8, 8, 8, 64), (2, 2, 2, 32, 64), 2, "VALID", transpose_kernel=True),
)

# Speed on GPUs: what their libraries or XLA's lowering do badly, and rows of ResNet-50 and VGG-16 as the control.
_RESNET50 = ((56, 64), (28, 128), (14, 256), (7, 512))
_VGG16 = ((224, 64, 64), (112, 128, 128), (56, 256, 256), (28, 512, 512), (14, 512, 512))

GPU_BENCH = (
    Case("mnist-first-layer", (256, 28, 28, 1), (3, 3, 1, 32), padding="VALID"),
    Case("resnet-stem", (16, 224, 224, 3), (7, 7, 3, 64), 2, _BOTH_ENDS[3]),
    Case("spectrogram-stem", (16, 161, 700, 1), (20, 5, 1, 32), 2),
    *(
        Case(f"convnext-depthwise-{n}", (128, n, n, c), (7, 7, 1, c), groups=c)
        for n, c in ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    Case("mobilenet-depthwise-down", (128, 56, 56, 128), (3, 3, 1, 128), 2, _BOTH_ENDS[1], groups=128),
    Case("conv1d-depthwise", (3072, 202, 128), (3, 1, 128), groups=128),
    Case("mamba-causal-depthwise", (8, 2048, 1536), (4, 1, 1536), padding=((3, 0),), groups=1536),
    Case("conv1d", (3072, 202, 128), (3, 128, 384)),
    Case("whisper-first-layer", (16, 3000, 80), (3, 80, 512)),
    Case("whisper-second-layer", (16, 3000, 512), (3, 512, 512), 2, ((1, 1),)),
    Case("wavenet-causal", (32, 256, 64), (3, 64, 64), padding=((8, 0),), rhs_dilation=4),
    Case("atrous-28", (16, 28, 28, 512), (3, 3, 512, 512), rhs_dilation=2),
    Case("resnext-28-down", (64, 56, 56, 256), (3, 3, 8, 256), 2, _BOTH_ENDS[1], groups=32),
    *(Case(f"resnet50-{n}", (64, n, n, c), (3, 3, c, c)) for n, c in _RESNET50),
    *(Case(f"resnet50-expand-{n}", (64, n, n, c), (1, 1, c, 4 * c)) for n, c in _RESNET50),
    *(Case(f"vgg16-{n}", (16, n, n, c), (3, 3, c, k)) for n, c, k in _VGG16),
)

GPU_TRANSPOSE_BENCH = (
    TransposeCase("volume-up", (1, 64, 64, 32, 64), (3, 3, 3, 64, 1), 2, ((1, 2), (1, 2), (1, 2))),
    TransposeCase("gan-16", (128, 16, 16, 128), (4, 4, 64, 128), 2, "SAME", transpose_kernel=True),
    TransposeCase("unet-up", (16, 32, 32, 128), (2, 2, 64, 128), 2, "VALID", transpose_kernel=True),
    TransposeCase("vocoder-up", (16, 128, 256), (16, 128, 256), 8, "SAME", transpose_kernel=True),
)
