"""IREE: one module for one kind of hardware, from the StableHLO that JAX writes."""

import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from llmasos_xla.api.exporting import unlocated
from llmasos_xla.deployment.targets.checking import Export, as_folder, compare, tolerance_of
from llmasos_xla.deployment.targets.subject import Arrays, Subject
from llmasos_xla.errors import missing_package, unknown

DRIVERS = {
    "llvm-cpu": "local-task",
    "vmvx": "local-task",
    "vulkan-spirv": "vulkan",
    "cuda": "cuda",
    "rocm": "hip",
    "metal-spirv": "metal",
}
"""IREE's backends, and the driver of its runtime that runs what each compiles."""


def export(
    subject: Subject,
    path: pathlib.Path,
    *,
    backend: str = "llvm-cpu",
    flags: Sequence[str] = (),
    tolerance: float | None = None,
) -> Export:
    """Writes a folder with module.vmfb, the program in module.mlir, and export.json.

    The module is checked where this machine has the backend's driver, and a device for it. Where it has none, the same
    program is compiled for the CPU and checked there, and export.json says so: "checked_on".

    Args:
        backend: "llvm-cpu", "vmvx" (an interpreter), "vulkan-spirv", "cuda", "rocm" or "metal-spirv".
        flags: more of iree-compile's, such as "--iree-llvmcpu-target-cpu=generic"; the CPU is this one if none says.
        tolerance: the largest difference from our own outputs, in parts of the largest of them (or of 1, if more).
    """
    if backend not in DRIVERS:
        raise unknown("export: iree", "backend", backend, DRIVERS)
    try:
        import iree.compiler
        import iree.runtime  # noqa: F401
    except ImportError as error:
        raise missing_package("export: iree", "iree-base-compiler and iree-base-runtime", "iree") from error
    if any(isinstance(n, str) for t in subject.inputs for n in t.shape):
        raise ValueError(
            "export: iree compiles for fixed sizes: pass rows=, and length= where a model reads any length"
        )
    about: dict[str, Any] = {"target": "iree", "precision": "float32", "backend": backend, "checked_on": backend}
    about["made_by"] = {"iree": importlib.metadata.version("iree-base-compiler"), "jax": jax.__version__}

    def fill(folder: pathlib.Path) -> float:
        program = _stablehlo(subject)
        (folder / "module.mlir").write_text(program)
        module = _compiled(program, backend, flags)
        (folder / "module.vmfb").write_bytes(module)
        if not _has_device(DRIVERS[backend]):
            about["checked_on"] = "llvm-cpu"
            module = _compiled(program, "llvm-cpu", ())
        run = Module(subject, module, DRIVERS[about["checked_on"]])
        return compare(subject, run, f"iree for {backend}", tolerance_of("float32", tolerance))

    difference = as_folder(path, subject, about, fill)
    return Export(path, "iree", difference, checked_on=about["checked_on"])


def _stablehlo(subject: Subject) -> str:
    # One platform: a program for several chooses among them when it runs, which is JAX's own matter.
    with unlocated():
        exported = jax.export.export(jax.jit(subject.function), platforms=["cpu"])(*subject.shapes())
    return exported.mlir_module()


def _compiled(program: str, backend: str, flags: Sequence[str]) -> bytes:
    import iree.compiler

    own = ["--iree-llvmcpu-target-cpu=host"] if backend == "llvm-cpu" and not any("-cpu=" in f for f in flags) else []
    try:
        module = iree.compiler.compile_str(
            program, target_backends=[backend], input_type="stablehlo", extra_args=[*own, *flags]
        )
    except iree.compiler.CompilerToolError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        raise ValueError(f"export: iree cannot compile this model for {backend}: {' '.join(lines)[:600]}") from error
    assert module is not None
    return module


def _has_device(driver: str) -> bool:
    import iree.runtime

    if driver not in iree.runtime.query_available_drivers():
        return False
    try:
        return bool(iree.runtime.get_driver(driver).query_available_devices())
    except (RuntimeError, ValueError):  # the driver's own library is not there
        return False


class Module:
    """A compiled module in IREE's runtime: inputs by name -> outputs by name."""

    def __init__(self, subject: Subject, module: bytes, driver: str):
        import iree.runtime

        self._names, self._outputs = subject.names, subject.outputs
        config = iree.runtime.Config(driver)
        loaded = iree.runtime.VmModule.copy_buffer(config.vm_instance, module)
        self._main: Any = iree.runtime.load_vm_module(loaded, config).main

    def __call__(self, request: Arrays) -> Arrays:
        """The outputs for these inputs."""
        found = self._main(*(request[name] for name in self._names))
        results = found if isinstance(found, tuple | list) else [found]
        return {name: np.asarray(a) for name, a in zip(self._outputs, results, strict=True)}
