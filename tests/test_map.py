"""Imports go downwards only, and importing the package is light."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "llmasos_xla"

# Each room may import from the rooms before it and from itself; rooms of one row do not know each other.
ROWS = [
    {"_version", "errors", "lazy", "progress"},
    {"core", "compiling", "energy", "exposition", "storage", "web"},
    {"kernels", "data", "sharding"},
    {"models"},
    {"training"},
    {"api"},
    {"compression", "robustness", "interop"},
    {"deployment"},
    {"runtime"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ".".join(["llmasos_xla", *path.relative_to(PACKAGE).with_suffix("").parts])


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("llmasos_xla")}


def test_imports_flow_down():
    wrong = []
    for path, module in modules():
        here = room(module)
        if here == "__init__":
            continue
        assert here in LEVEL, f"{here} has no place on the map"
        for target in imports(path):
            there = room(target)
            if there != here and LEVEL.get(there, 99) >= LEVEL[here]:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_files_are_small():
    long = {str(p.relative_to(PACKAGE)): n for p, _ in modules() if (n := len(p.read_text().splitlines())) > 600}
    assert not long


@pytest.mark.parametrize(
    "heavy",
    [
        *("flax", "optax", "grain", "h5py", "pyarrow", "sklearn", "starlette", "PIL", "rich", "matplotlib", "orbax"),
        *("grpc", "optuna"),
    ],
)
def test_import_loads_nothing_heavy(loaded_by_import, heavy):
    assert heavy not in loaded_by_import


@pytest.fixture(scope="module")
def loaded_by_import():
    code = "import sys, llmasos_xla; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_every_public_name_resolves():
    import llmasos_xla as lm

    for name in lm.__all__:
        assert getattr(lm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Sequentail'; it has"):
        lm.Sequentail  # noqa: B018
