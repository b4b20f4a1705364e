"""Loading: what is missing is said once, in words that help, and everything still computes."""

import ctypes
import os
import subprocess

import pytest
from kernels.onednn.toy import needs_onednn, run_python

from llmasos_xla.kernels._onednn import compiler, cores, library

linux_only = pytest.mark.skipif(not compiler.supported(), reason="oneDNN is published for Linux on x86-64")


def attempt() -> str:
    """Loads anew, as a new process would, and fails before anything of this one is touched."""
    found = library._load_once.__wrapped__()
    assert isinstance(found, str)
    return found


@pytest.fixture
def lines(caplog):
    """The lines that the attempt logs."""
    return lambda: [r.getMessage() for r in caplog.records if r.name == "llmasos_xla.kernels"]


@needs_onednn
@pytest.mark.parametrize(
    ("value", "problem"),
    [("/nonexistent/libdnnl.so", "does not load"), ("libc.so.6", "is not oneDNN: it has no function dnnl_version")],
)
def test_a_wrong_library_is_named_in_one_line(monkeypatch, lines, value, problem):
    monkeypatch.setenv("LLMASOS_ONEDNN", value)
    assert problem in attempt()
    (line,) = lines()
    assert line.startswith("oneDNN is not used: ")
    assert problem in line
    assert "2 to 5 times slower" in line


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_switched_off_is_no_news(monkeypatch, lines, value):
    monkeypatch.setenv("LLMASOS_ONEDNN", value)
    assert attempt() == f"LLMASOS_ONEDNN={value}"
    assert lines() == []


def test_another_system_is_named(monkeypatch, lines):
    monkeypatch.setattr(compiler, "supported", lambda: False)
    assert "published for Linux on x86-64, this is" in attempt()
    assert len(lines()) == 1


@linux_only
def test_a_missing_native_part_says_what_to_do(monkeypatch, lines, tmp_path):
    monkeypatch.setattr(library, "NATIVE", tmp_path / "libllmasos_onednn.so")
    assert "is missing" in attempt()
    assert "pip install -v --force-reinstall" in lines()[0]


@needs_onednn
def test_a_stale_native_part_is_refused(monkeypatch, lines):
    monkeypatch.setattr(compiler, "digest", lambda: "another")
    assert "compiled from other sources than those installed; install the package again" in attempt()
    assert len(lines()) == 1


@needs_onednn
def test_a_native_part_of_another_kind_is_stale(monkeypatch):
    monkeypatch.setattr(library, "NATIVE", library._find())
    assert "compiled from other sources" in attempt()


@needs_onednn
def test_an_uninstalled_library_names_the_package(monkeypatch):
    monkeypatch.delenv("LLMASOS_ONEDNN", raising=False)
    monkeypatch.setattr(library, "DISTRIBUTIONS", ("a-package-that-is-not-there",))
    assert attempt() == "a-package-that-is-not-there is not installed: pip install a-package-that-is-not-there"


@needs_onednn
@pytest.mark.parametrize("version", ["2,7,0", "3,1,9", "4,0,0"])
def test_another_version_is_refused(monkeypatch, tmp_path, version):
    command = compiler.command()
    if command is None:
        pytest.skip("no C++ compiler to make a library with")
    source, target = tmp_path / "other.cpp", tmp_path / "libother.so"
    source.write_text(f'static int version[3] = {{{version}}};\nextern "C" int* dnnl_version() {{ return version; }}\n')
    subprocess.run([*command, "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    monkeypatch.setenv("LLMASOS_ONEDNN", str(target))
    assert attempt() == f"oneDNN is {version.replace(',', '.')}, 3.2 or a later 3.x is needed"


COMPUTES = """
import logging, sys
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("llmasos_xla.kernels").addHandler(handler)
import jax, jax.numpy as jnp, numpy as np
{first}
from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
x, w = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 8))
numbers = ("NHWC", "HWIO", "NHWC")
for _ in range(3):
    f = jax.jit(jax.grad(lambda x, w: kernels.conv(x, w, 1, "SAME", dimension_numbers=numbers).sum(), (0, 1)))
    dx, dw = f(x, w)
plain = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
np.testing.assert_allclose(kernels.conv(x, w, 1, "SAME", dimension_numbers=numbers), plain, rtol=1e-5)
assert dx.shape == x.shape and dw.shape == w.shape
print(_onednn.problem())
print(*lines, sep="\\n")
"""


@linux_only
def test_everything_computes_without_it_and_says_so_once():
    problem, line, *more = run_python(COMPUTES.format(first=""), LLMASOS_ONEDNN="/nonexistent/lib.so").splitlines()
    assert "does not load" in problem
    assert line.startswith("oneDNN is not used: ")
    assert more == []


def test_everything_computes_with_it_off():
    problem, *more = run_python(COMPUTES.format(first=""), LLMASOS_ONEDNN="off").splitlines()
    assert problem == "LLMASOS_ONEDNN=off"
    assert [m for m in more if m] == []


# A handler that names version 9 of XLA's interface, as one compiled for a later XLA would.
LATER_XLA = """
import ctypes
from llmasos_xla.kernels._onednn import library
@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def later(frame):
    extensions = ctypes.c_void_p.from_address(frame + 8).value
    metadata = ctypes.c_void_p.from_address(extensions + 24).value
    ctypes.c_int.from_address(metadata + 24).value = 9
    return None
real = jax.ffi.pycapsule
jax.ffi.pycapsule = lambda handler: real(ctypes.cast(later, ctypes.c_void_p))
"""


@needs_onednn
def test_an_xla_that_refuses_the_handler_falls_back():
    problem, line, *more = run_python(COMPUTES.format(first=LATER_XLA)).splitlines()
    assert "does not take the handler" in problem
    assert line.startswith("oneDNN is not used: jaxlib ")
    assert more == []


def test_importing_the_kernels_loads_nothing():
    code = "from llmasos_xla import kernels; print('dnnl' in open('/proc/self/maps').read())"
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("no /proc")
    assert run_python(code).strip() == "False"


@pytest.mark.parametrize(("told", "threads"), [("3", 3), ("2,4", 2), (" 5 ", 5)])
def test_the_users_number_of_threads_counts(monkeypatch, told, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert cores.threads() == threads


@linux_only
@pytest.mark.parametrize("told", ["", "0", "many"])
def test_there_are_no_more_threads_than_cores(monkeypatch, told):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert 1 <= cores.threads() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("group", "limits", "quota"),
    [
        ("/", {"": "150000 100000"}, 1.5),
        ("/a/b", {"a": "200000 100000", "a/b": "max 100000"}, 2.0),
        ("/a/b", {"a": "200000 100000", "a/b": "50000 100000"}, 0.5),
        ("/a", {}, float("inf")),
    ],
)
def test_a_container_s_share_of_time_counts(tmp_path, group, limits, quota):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/\n0::{group}\n")
    for path, text in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{text}\n")
    assert cores.quota(tmp_path) == quota


@pytest.mark.thorough
@linux_only
def test_the_library_says_what_it_was_compiled_from(tmp_path):
    if compiler.command() is None:
        pytest.skip("no C++ compiler")
    target = tmp_path / "lib.so"
    compiler.build(target)
    native = ctypes.CDLL(str(target))
    native.llm_sources.restype = ctypes.c_char_p
    assert native.llm_sources().decode() == compiler.digest()
    assert [p.name for p in tmp_path.iterdir()] == ["lib.so"]


@linux_only
def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(compiler.CompileError, match="^false "):
        compiler.build(tmp_path / "lib.so")
    monkeypatch.setenv("CXX", "/nonexistent/c++ -m64")
    with pytest.raises(compiler.CompileError, match="/nonexistent/c"):
        compiler.build(tmp_path / "lib.so")
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_there_is_the_package_index_s(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert compiler.command() is None
    with pytest.raises(compiler.CompileError, match="no C\\+\\+ compiler"):
        compiler.build()
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name)
    assert compiler.command()[1:] == ["-m", "ziglang", "c++"]
    assert compiler.platform_tag() == "manylinux_2_17_x86_64"
