"""The build hook of the package: compiles oneDNN's handler for XLA and puts it into the wheel.

Where that is impossible the package is built without it, and runs on XLA alone; a line on stderr says so.
"""

import importlib.util
import pathlib
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = pathlib.PurePosixPath("llmasos_xla/kernels/_onednn")


class CustomBuildHook(BuildHookInterface):
    """Runs `_onednn/compiler.py`, loaded by its path: the package itself cannot be imported before it is installed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compiler = _load(pathlib.Path(self.root, FOLDER, "compiler.py"))
        self.folder = tempfile.TemporaryDirectory()

    def dependencies(self) -> list[str]:
        """Asks for a compiler from the package index where the machine has none."""
        wanted = self.compiler.supported() and self.compiler.command() is None
        return ["ziglang>=0.13"] if wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles: into the checkout for an editable install, else beside it."""
        compiler = self.compiler
        if not compiler.supported():
            return _say("oneDNN is published for Linux on x86-64 only: built without it, kernels run on XLA alone")
        editable = version == "editable"
        target = compiler.LIBRARY if editable else pathlib.Path(self.folder.name, compiler.LIBRARY.name)
        try:
            compiler.build(target)
        except compiler.CompileError as error:
            return _say(f"the native part was not compiled, kernels run on XLA alone, 2 to 5 times slower: {error}")
        if not editable:
            build_data["force_include"][str(target)] = str(FOLDER / target.name)
        # It depends on the platform, on Python's version it does not.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{compiler.platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Drops what is in the wheel by now."""
        self.folder.cleanup()


def _load(path: pathlib.Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _say(line: str) -> None:
    print(f"llmasos_xla: {line}", file=sys.stderr)
