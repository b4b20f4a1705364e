"""ONNX: through jax2onnx, for ONNX Runtime and whatever else reads the format."""

import json
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from llmasos_xla.deployment.targets import quantized
from llmasos_xla.deployment.targets.checking import Export, as_file, compare, described_tensors, quiet, tolerance_of
from llmasos_xla.deployment.targets.formulas import (
    in_formulas,
    maximum_of_windows,
    padding_of_any_size,
    quotient_of_integers,
    remainder_of_integers,
    select_of_booleans,
    spectrum_of_rows,
    sum_of_windows,
)
from llmasos_xla.deployment.targets.subject import Arrays, Subject
from llmasos_xla.errors import unknown

INSTALL = 'pip install "llmasos_xla[onnx]" && pip install --no-deps "jax2onnx>=0.17.1,<0.18"'
# What jax2onnx 0.17 or ONNX Runtime does not have, or has wrongly.
RULES = {
    "div": quotient_of_integers,
    "fft": spectrum_of_rows,
    "pad": padding_of_any_size,
    "reduce_window_max": maximum_of_windows,
    "reduce_window_sum": sum_of_windows,
    "rem": remainder_of_integers,
    "select_n": select_of_booleans,
}
# One file of the format holds no more; ONNX's tools then want a second one beside it.
_MOST_BYTES = 2 << 30


def export(
    subject: Subject,
    path: pathlib.Path,
    *,
    precision: str = "float32",
    calibration: Any = None,
    opset: int = 21,
    tolerance: float | None = None,
) -> Export:
    """Writes an .onnx file.

    Args:
        precision: "float32", or "int8" for 8-bit products and convolutions with the scales of `calibration`.
        calibration: raw input, some hundred rows that are like those to come; "int8" wants it.
        opset: the version of ONNX's operators.
        tolerance: the largest difference from our own outputs, in parts of the largest of them (or of 1, if more).
    """
    if precision not in ("float32", "int8"):
        raise unknown("export: onnx", "precision", precision, ("float32", "int8"))
    rows = quantized.rows_of(subject, calibration, precision)

    def fill(temporary: str) -> float:
        content = converted(subject, opset)
        if rows is not None:
            content = quantized.of(content, subject, rows)
        pathlib.Path(temporary).write_bytes(content)
        return compare(subject, Session(content), f"onnx in {precision}", tolerance_of(precision, tolerance))

    return Export(path, "onnx", as_file(path, fill), precision)


def converted(subject: Subject, opset: int = 21) -> bytes:
    """The subject as an ONNX file's content, in float32, checked by ONNX's own checker alone."""
    try:
        with quiet("jax2onnx", "onnx_ir"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jax2onnx
            import onnx
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export: onnx needs jax2onnx, onnx and onnxruntime ({error}): {INSTALL}  (jax2onnx 0.17.1 asks for an "
            "older orbax-checkpoint than this package has, and works with it: pip is told to leave its requirements)"
        ) from error
    traced = subject.traced()
    with quiet("jax2onnx", "onnx_ir"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = jax2onnx.to_onnx(
                in_formulas(traced.program, RULES),
                traced.shapes,
                model_name="model",
                opset=opset,
                input_names=subject.names,
                output_names=subject.outputs,
            )
        except Exception as error:
            raise ValueError(
                f"export: jax2onnx cannot convert this model: {str(error)[:600]}{subject.way_out()}"
            ) from error
    if model.ByteSize() >= _MOST_BYTES:
        raise ValueError(
            f"export: onnx: the model is {model.ByteSize() / 1e9:.1f} GB, one file holds 2; export a bundle (.lmx)"
        )
    _without_zero_biases(model.graph)
    model.producer_name = "llmasos_xla"
    for key, value in described_tensors(subject).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"export: what jax2onnx made is no ONNX of opset {opset}: {str(error)[:300]}") from error
    return model.SerializeToString()


def _without_zero_biases(graph: Any) -> None:
    """Products with nothing in the place of a bias that is one zero: what quantizes them takes it for a vector."""
    import onnx

    zeros = {i.name for i in graph.initializer if not i.dims and not onnx.numpy_helper.to_array(i).any()}
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in _nodes(graph) for name in node.input} | {output.name for output in graph.output}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


class Session:
    """A file's content in ONNX Runtime on the CPU: inputs by name -> outputs by name."""

    def __init__(self, content: bytes):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"export: ONNX Runtime cannot run this copy: {str(error)[:400]}") from error
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.inputs = {i.name: i.shape for i in self._session.get_inputs()}

    def __call__(self, request: Arrays) -> Arrays:
        """The outputs for these inputs; an input that the outputs do not depend on may be missing in the file."""
        given = {name: array for name, array in request.items() if name in self.inputs}
        return {name: np.asarray(a) for name, a in zip(self.outputs, self._session.run(None, given), strict=True)}
