"""ONNX in 8 bits: quantize and dequantize nodes (QDQ) around products and convolutions, scales from calibration data.

Weights are signed with a scale for each output channel, activations signed with a scale and a zero point each, as ONNX
Runtime's static quantization finds them. What compilers for NPUs and FPGAs ask for stands in docs/export.md.
"""

import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np

from llmasos_xla.deployment.targets.checking import quiet
from llmasos_xla.deployment.targets.subject import Arrays, Subject

_BATCH = 32


def rows_of(subject: Subject, calibration: Any, precision: str) -> list[Arrays] | None:
    """Batches of encoded calibration data, or None where the precision wants none.

    Raises ValueError where there are none and "int8" wants them, where there are and another does not, and where they
    are fewer rows than one batch of a copy for a fixed number of rows.
    """
    if precision != "int8":
        if calibration is not None:
            raise ValueError(f'export: calibration goes with precision="int8"; {precision!r} came')
        return None
    if calibration is None:
        raise ValueError(
            'export: precision="int8" wants calibration=, raw input of some hundred rows that are like those to come: '
            "the scales of activations are found from them"
        )
    encoded = subject.encode(calibration, "calibration")
    if set(encoded) != set(subject.names):
        raise ValueError(
            f"export: calibration has the inputs {', '.join(sorted(encoded))}, the export takes "
            f"{', '.join(subject.names)}; pass an example= of the same inputs"
        )
    size = subject.rows or _BATCH
    count = len(next(iter(encoded.values())))
    starts = range(0, count, size) if subject.rows is None else range(0, count - size + 1, size)
    batches = [{n: a[start : start + size] for n, a in encoded.items()} for start in starts]
    if not batches:
        raise ValueError(
            f"export: calibration has {count} rows; the export is for rows={size}, and wants so many at least"
        )
    return batches


def of(content: bytes, subject: Subject, batches: list[Arrays]) -> bytes:
    """A float32 ONNX file's content in 8 bits."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._rest, None)

    with tempfile.TemporaryDirectory(prefix="llmasos-onnx-") as folder, quiet("root"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [pathlib.Path(folder) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx")]
        paths[0].write_bytes(content)
        # Symbolic inference of shapes fails on Loops of any number of rows, and is not needed for the types.
        quant_pre_process(str(paths[0]), str(paths[1]), skip_symbolic_shape=True)
        quantize_static(
            str(paths[1]),
            str(paths[2]),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = paths[2].read_bytes()
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(quantized).graph.node):
        raise ValueError("export: this model has no product or convolution that ONNX Runtime's quantization knows")
    return quantized
