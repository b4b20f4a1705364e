"""TensorFlow's SavedModel, and LiteRT (.tflite), through jax2tf."""

import os
import pathlib
import warnings
from typing import Any

from llmasos_xla.api.exporting import unlocated
from llmasos_xla.deployment.targets.checking import Export, as_file, as_folder, compare, quiet, tolerance_of
from llmasos_xla.deployment.targets.subject import Arrays, Subject
from llmasos_xla.errors import missing_package


def export_savedmodel(subject: Subject, path: pathlib.Path, *, tolerance: float | None = None) -> Export:
    """Writes a SavedModel: its signature "serving_default" has the inputs and outputs by name.

    The program in it is JAX's StableHLO, compiled by TensorFlow's XLA for CPU, CUDA and TPU.
    """
    tf = _tensorflow()

    def fill(folder: pathlib.Path) -> float:
        module = _module(tf, subject)
        with unlocated(), quiet("absl", "tensorflow"):
            tf.saved_model.save(module, os.fspath(folder), signatures={"serving_default": module.f})
            loaded = tf.saved_model.load(os.fspath(folder))
        served = loaded.signatures["serving_default"]

        def run(request: Arrays) -> dict[str, Any]:
            return {name: a.numpy() for name, a in served(**{n: tf.constant(x) for n, x in request.items()}).items()}

        return compare(subject, run, "savedmodel", tolerance_of("float32", tolerance))

    about = {"target": "savedmodel", "precision": "float32", "made_by": {"tensorflow": tf.__version__}}
    return Export(path, "savedmodel", as_folder(path, subject, about, fill))


def export_tflite(subject: Subject, path: pathlib.Path, *, tolerance: float | None = None) -> Export:
    """Writes a .tflite file of LiteRT's own operators alone, checked in its interpreter."""
    tf = _tensorflow()

    def fill(temporary: str) -> float:
        module = _module(tf, subject)
        with unlocated(), quiet("absl", "tensorflow"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converter = tf.lite.TFLiteConverter.from_concrete_functions([module.f.get_concrete_function()], module)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                content = converter.convert()
            except Exception as error:
                why = " ".join(str(error).split())[:400]
                raise ValueError(f"export: LiteRT cannot take this model: {why}{subject.way_out()}") from error
            run = Interpreter(tf, content)
        pathlib.Path(temporary).write_bytes(content)
        return compare(subject, run, "tflite", tolerance_of("float32", tolerance))

    return Export(path, "tflite", as_file(path, fill))


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow
            from jax.experimental import jax2tf  # noqa: F401
    except ImportError as error:
        raise missing_package("export: savedmodel and tflite", "tensorflow", "tensorflow") from error
    return tensorflow


def _module(tf: Any, subject: Subject) -> Any:
    """The subject as a `tf.Module` with one function, `f`, of inputs by name."""
    from jax.experimental import jax2tf

    sizes = [", ".join(map(str, t.shape)) for t in subject.inputs]

    def outputs(*inputs: Any) -> dict[str, Any]:
        return dict(zip(subject.outputs, subject.function(*inputs), strict=True))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = jax2tf.convert(
            outputs,
            polymorphic_shapes=sizes,
            polymorphic_constraints=subject.bounds(subject.traced().least),
            with_gradient=False,
            native_serialization_platforms=("cpu", "cuda", "tpu"),
        )
    specs = [
        tf.TensorSpec([n if isinstance(n, int) else None for n in t.shape], t.dtype, name=t.name)
        for t in subject.inputs
    ]
    module = tf.Module()
    module.f = tf.function(converted, autograph=False, input_signature=specs)
    return module


class Interpreter:
    """A .tflite file's content in LiteRT's interpreter: inputs by name -> outputs by name."""

    def __init__(self, tf: Any, content: bytes):
        self._runner = tf.lite.Interpreter(model_content=content).get_signature_runner()

    def __call__(self, request: Arrays) -> Arrays:
        """The outputs for these inputs."""
        return self._runner(**request)
