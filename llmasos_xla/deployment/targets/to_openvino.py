"""OpenVINO's intermediate representation, from ONNX: Intel's CPUs, GPUs and NPUs; 8 bits through NNCF."""

import contextlib
import io
import os
import pathlib
import warnings
from typing import Any

from llmasos_xla.deployment.targets import quantized
from llmasos_xla.deployment.targets.checking import Export, as_folder, compare, quiet, tolerance_of
from llmasos_xla.deployment.targets.subject import Arrays, Subject
from llmasos_xla.deployment.targets.to_onnx import converted
from llmasos_xla.errors import missing_package, unknown

PRECISIONS = ("float32", "float16", "int8")


def export(
    subject: Subject,
    path: pathlib.Path,
    *,
    precision: str = "float32",
    calibration: Any = None,
    tolerance: float | None = None,
) -> Export:
    """Writes a folder with model.xml, model.bin and export.json; checked on OpenVINO's CPU device.

    Args:
        precision: of the weights: "float32"; "float16", half the size; "int8", products and convolutions in 8 bits with
            the scales of `calibration`.
        calibration: raw input, some hundred rows that are like those to come; "int8" wants it.
        tolerance: the largest difference from our own outputs, in parts of the largest of them (or of 1, if more).
    """
    if precision not in PRECISIONS:
        raise unknown("export: openvino", "precision", precision, PRECISIONS)
    openvino = _openvino()
    rows = quantized.rows_of(subject, calibration, precision)

    def fill(folder: pathlib.Path) -> float:
        source = folder / "model.onnx"
        source.write_bytes(converted(subject))
        # Not `convert_model`, which forks the process to send statistics.
        model = openvino.Core().read_model(source)
        if rows is not None:
            # NNCF takes a weight behind a Reshape for an activation.
            from openvino.passes import ConstantFolding, Manager

            manager = Manager()
            manager.register_pass(ConstantFolding())
            manager.run_passes(model)
            model = _in_int8(model, rows)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "float16")
        del model
        source.unlink()
        return compare(
            subject, Compiled(folder / "model.xml"), f"openvino in {precision}", tolerance_of(precision, tolerance)
        )

    about = {"target": "openvino", "precision": precision, "made_by": {"openvino": openvino.__version__}}
    return Export(path, "openvino", as_folder(path, subject, about, fill), precision)


def _openvino() -> Any:
    """The package, imported without sending statistics, for which it would fork this process.

    In a continuous integration it sends none, and that is what it is told until it is imported.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    except ImportError as error:
        raise missing_package("export: openvino", "openvino", "openvino") from error
    finally:
        del os.environ["CI"]
        if before is not None:
            os.environ["CI"] = before
    return openvino


def _in_int8(model: Any, batches: list[Arrays]) -> Any:
    # It sends statistics too, and is told not to in the same way.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet("nncf"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf
    except ImportError as error:
        raise missing_package("export: openvino in int8", "nncf", "openvino") from error
    names = {name for tensor in model.inputs for name in tensor.get_names()}
    given = [{n: a for n, a in batch.items() if n in names} for batch in batches]
    with quiet("nncf"), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = nncf.ModelType.TRANSFORMER if _attends(model) else None
            return nncf.quantize(model, nncf.Dataset(given), subset_size=len(given), model_type=kind)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:400]
            raise ValueError(f"export: NNCF cannot bring this model to 8 bits: {why}") from error


def _attends(model: Any) -> bool:
    """Whether activations are multiplied with each other, as attention does: NNCF scales such a model otherwise."""
    products = [op for op in model.get_ops() if op.get_type_name() in ("MatMul", "Einsum")]
    return any(
        all(v.get_source_output().get_node().get_type_name() != "Constant" for v in op.inputs()) for op in products
    )


class Compiled:
    """A file of OpenVINO's on its CPU device in float32: inputs by name -> outputs by name."""

    def __init__(self, path: pathlib.Path):
        # By itself it computes in bfloat16 where the CPU has AMX.
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        self._model = _openvino().Core().compile_model(path, "CPU", hint)
        self.inputs = {name for tensor in self._model.inputs for name in tensor.get_names()}

    def __call__(self, request: Arrays) -> Arrays:
        """The outputs for these inputs; an input that the outputs do not depend on may be missing in the file."""
        results = self._model({name: array for name, array in request.items() if name in self.inputs})
        return {name: results[tensor] for tensor in self._model.outputs for name in tensor.get_names()}
