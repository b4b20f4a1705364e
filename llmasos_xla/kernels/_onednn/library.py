"""Finds oneDNN and the handler that XLA calls, loads both once, and says in one line why not where it cannot.

oneDNN comes from the package index as a plain shared library (`onednn-cpu-gomp`); the handler is this package's own C++
(`native/`), compiled when the package is installed. Nothing is loaded before the first op that could use it.

Environment, read once at loading:
    LLMASOS_ONEDNN: "off" leaves oneDNN alone; a path names the library to load.
    OMP_NUM_THREADS: the number of threads; by default one for each physical core that the process may use.
    OMP_WAIT_POLICY: what a thread does inside of a call while there is nothing for it: "passive" sleeps, "active"
        spins, by default it spins for 0.5 ms and then sleeps. Between calls no thread of this library runs.
"""

import atexit
import ctypes
import functools
import importlib.metadata
import logging
import os
import pathlib
import platform as machine
import sys
import threading
from typing import NamedTuple

import jax

from llmasos_xla.kernels._onednn import compiler, cores, prototypes

TARGET = "llmasos_onednn"
NATIVE = compiler.LIBRARY
DISTRIBUTIONS = ("onednn-cpu-gomp",)

_SPIN_US = {"passive": 0, "active": 1_000_000}
_DEFAULT_SPIN_US = 500
_SLOWER = "convolutions, pooling and recurrent layers run on XLA alone, 2 to 5 times slower on this CPU"
_AVX2 = 0x7
# oneDNN's numbers of the instruction sets: AVX2; AVX-512 with VNNI; and with bfloat16; and with float16.
_ISA = {"float32": _AVX2, "int8": 0x67, "bfloat16": 0xE7, "float16": 0x1EF}
_AGAIN = "install the package again: pip install -v --force-reinstall --no-cache-dir llmasos_xla, in a checkout -e ."

_log = logging.getLogger("llmasos_xla.kernels")
_loading = threading.Lock()


class Library(NamedTuple):
    """oneDNN and the handler, loaded."""

    dnnl: ctypes.CDLL
    native: ctypes.CDLL
    engine: ctypes.c_void_p
    version: tuple[int, int, int]
    threads: int
    own_threads: bool
    """Whether oneDNN runs on the team of `native/pool.cpp`; False leaves it to GNU OpenMP."""


class UnavailableError(Exception):
    """oneDNN cannot be used here; the text says why."""


def load() -> Library | str:
    """The library, or why there is none. Says so once in the log where a user would expect it to be there."""
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> Library | str:
    try:
        return _load()
    except UnavailableError as why:
        if not _switched_off():
            _log.warning("oneDNN is not used: %s; %s", why, _SLOWER)
        return str(why)


def problem() -> str | None:
    """Why oneDNN cannot be used in this process, or None."""
    found = load()
    return found if isinstance(found, str) else None


def loaded() -> Library:
    """The library, which `problem` has found to be there.

    Raises:
        RuntimeError: if it is not.
    """
    found = load()
    if isinstance(found, str):
        raise RuntimeError(f"oneDNN is not there: {found}")
    return found


def multiplies(dtype: str) -> bool:
    """Whether this CPU has instructions for products in that dtype.

    Without them oneDNN computes bfloat16 by way of float32, refuses float16, and sums products of int8 in 16 bits,
    which overflow.
    """
    isa = _ISA[dtype]
    return loaded().dnnl.dnnl_get_effective_cpu_isa() & isa == isa


def _load() -> Library:
    if _switched_off():
        raise UnavailableError(f"LLMASOS_ONEDNN={os.environ['LLMASOS_ONEDNN']}")
    if not compiler.supported():
        raise UnavailableError(f"it is published for Linux on x86-64, this is {sys.platform} on {machine.machine()}")
    native = _native()
    told = os.environ.get("LLMASOS_ONEDNN", "")
    dnnl = _open(pathlib.Path(told) if told else _find())
    version = _version(dnnl)
    own_threads = bool(native.llm_redirect(dnnl._handle))
    wanted = cores.threads()
    spin_us = _SPIN_US.get(os.environ.get("OMP_WAIT_POLICY", "").lower(), _DEFAULT_SPIN_US)
    threads = native.llm_start(wanted, spin_us)
    if threads < wanted:
        _log.warning("oneDNN has %d threads instead of %d: the system gives no more", threads, wanted)
    why = ctypes.create_string_buffer(256)
    if native.llm_open(dnnl._handle, why, len(why)):
        raise UnavailableError(f"oneDNN {'.'.join(map(str, version))}: {why.value.decode()}")
    if dnnl.dnnl_get_effective_cpu_isa() & _AVX2 != _AVX2:
        raise UnavailableError("this CPU has no AVX2")
    from llmasos_xla.kernels._onednn.call import make  # which imports this file

    native.llm_maker(make)
    atexit.register(native.llm_maker, None)  # a thread that calls Python while it ends would hang
    try:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(native.llm_handler), platform="cpu")
    except Exception as error:  # what XLA raises for a handler that it cannot take is not part of JAX's interface
        raise UnavailableError(f"jaxlib {_jaxlib()} does not take the handler: {error}") from error
    return Library(dnnl, native, ctypes.c_void_p(native.llm_engine()), version, threads, own_threads)


def _switched_off() -> bool:
    return os.environ.get("LLMASOS_ONEDNN", "").lower() in ("off", "0")


def _native() -> ctypes.CDLL:
    if not NATIVE.exists():
        raise UnavailableError(f"{NATIVE.name} is missing, it could not be compiled here; {_AGAIN}")
    native = _open(NATIVE)
    try:
        prototypes.declare(native, prototypes.NATIVE)
        stale = compiler.SOURCES.is_dir() and native.llm_sources().decode() != compiler.digest()
    except AttributeError:
        stale = True
    if stale:
        raise UnavailableError(f"{NATIVE.name} was compiled from other sources than those installed; {_AGAIN}")
    return native


def _find() -> pathlib.Path:
    for name in DISTRIBUTIONS:
        try:
            files = importlib.metadata.distribution(name).files or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == "libdnnl.so.3":
                return pathlib.Path(str(file.locate())).resolve()
    raise UnavailableError(f"{DISTRIBUTIONS[0]} is not installed: pip install {DISTRIBUTIONS[0]}")


def _open(path: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        hint = "; install it, e.g. apt-get install libgomp1" if "libgomp" in str(error) else ""
        raise UnavailableError(f"{path.name} does not load: {error}{hint}") from error


def _version(dnnl: ctypes.CDLL) -> tuple[int, int, int]:
    try:
        dnnl.dnnl_version.restype = prototypes.ONEDNN["dnnl_version"][0]
        v = dnnl.dnnl_version().contents
    except AttributeError:
        raise UnavailableError("the library is not oneDNN: it has no function dnnl_version") from None
    if (v.major, v.minor) < (3, 2) or v.major > 3:
        raise UnavailableError(f"oneDNN is {v.major}.{v.minor}.{v.patch}, 3.2 or a later 3.x is needed")
    try:
        prototypes.declare(dnnl, prototypes.ONEDNN)
    except AttributeError as error:
        raise UnavailableError(f"oneDNN {v.major}.{v.minor}.{v.patch} lacks a function of 3.2: {error}") from None
    return v.major, v.minor, v.patch


def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")
