"""Strictness for every test: shapes and dtypes are not promoted silently, warnings are errors, eight CPU devices."""

import contextlib
import gc
import importlib.metadata
import os
import pathlib

# Before jax is imported: the number of virtual devices and the platform are read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# Most of a test's time is the compiler's, on programs that run once: no optimizations of LLVM, and XLA's plain emitter,
# which takes half the time and which JAX 0.12 has no more (an unknown flag ends the process; so it would in TensorFlow,
# which the exports run beside). XLA's own passes, fusion among them, stay as users have them. Not
# --xla_cpu_parallel_codegen_split_count=1 besides: together they compile a convolution on eight devices wrongly.
# XLA_FLAGS="" takes the optimized code that users run, and the second leg of .ci/run does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false"
    * (importlib.metadata.version("jaxlib").startswith("0.10.") and "LLMASOS_EXPORTS" not in os.environ),
)
# Threads enough for eight devices to wait in (llmasos_xla/sharding/threads.py).
os.environ.setdefault("NPROC", "32")

import jax
import jaxtyping
import numpy as np
import pytest

# What makes goldens wants packages that are not installed here, and is no test.
collect_ignore_glob = ["goldens/*"]

LARGE = 2_000_000_000
"""Bytes of a worker above which it lets go of what it has compiled."""
CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

# Tracing makes millions of small objects that reference counts take away again: a tenth of the suite went into looking
# for cycles among them.
gc.set_threshold(200_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# One cache of compiled programs for all workers of a session.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture
def unchecked():
    """Switches jaxtyping's checks off, so that a test meets the package's own errors as a user does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Forgets compiled programs between modules where a worker holds much: the cache on disk has them."""
    yield
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as file:
        held = 0 if file is None else int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if held > LARGE:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets, named by LLMASOS_DATA; tests that need it skip without."""
    folder = os.environ.get("LLMASOS_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("LLMASOS_DATA does not point at a folder of data sets")
    return pathlib.Path(folder)
