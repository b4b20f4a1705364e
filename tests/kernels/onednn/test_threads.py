"""Many threads, one team: the same bits, no dead locks, nothing burnt between calls, and forks that are told."""

import pathlib
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.onednn.toy import Spec, needs_onednn, product, run_python

from llmasos_xla import kernels
from llmasos_xla.kernels._onednn import compiler, library

pytestmark = needs_onednn

THREADS = 16


def in_threads(work) -> None:
    """Runs work(i) in 16 threads at once and raises what one of them raises."""
    failed = []
    start = threading.Barrier(THREADS)

    def run(i: int) -> None:
        try:
            start.wait()
            work(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]


@pytest.fixture(scope="module")
def network():
    """A convolution, compiled: alone and with its gradients; and arrays for each thread."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((3, 3, 16, 24)), "float32")

    def forward(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return kernels.conv(x, w, 1, "SAME", dimension_numbers=numbers, activation="relu", implementation="onednn")

    gradients = jax.grad(lambda x, w: jnp.sum(forward(x, w) ** 2), (0, 1))
    x = [jnp.asarray(rng.standard_normal((2, 10, 10, 16)), "float32") for _ in range(THREADS)]
    programs = [jax.jit(f).lower(x[0], w).compile() for f in (forward, gradients)]
    assert all("llmasos_onednn" in p.as_text() for p in programs)
    return programs, x, w


@pytest.mark.thorough
@pytest.mark.parametrize(("which", "calls"), [(0, 1000), (1, 63)], ids=["forward", "gradients"])
def test_sixteen_threads_get_the_answers_of_one_bit_for_bit(network, which, calls):
    programs, x, w = network
    program = programs[which]
    wanted = [jax.tree.map(np.asarray, program(a, w)) for a in x]

    def work(i: int) -> None:
        for n in range(calls):
            j = (i + n) % THREADS
            jax.tree.map(np.testing.assert_array_equal, program(x[j], w), wanted[j])

    in_threads(work)


@pytest.mark.thorough
def test_kernels_of_our_own_give_sixteen_threads_the_answers_of_one(rng):
    """Their regions have barriers inside (the LSTM), and parts enough for the whole team."""

    def drawn(*shape):
        return jnp.asarray(rng.standard_normal(shape), "float32")

    w, u, b, scale = drawn(16, 512) / 4, drawn(128, 512) / 11, drawn(512), drawn(128)

    def loss(x):
        y, _ = kernels.lstm(x, w, u, b, implementation="onednn")
        z, _, _ = kernels.batch_norm(y, scale, scale, residual=y, activation="relu", implementation="onednn")
        return jnp.sum(z**2)

    x = [drawn(8, 40, 16) for _ in range(THREADS)]
    program = jax.jit(jax.value_and_grad(loss)).lower(x[0]).compile()
    assert program.as_text().count('custom_call_target="llmasos_onednn"') == 4
    wanted = [jax.tree.map(np.asarray, program(a)) for a in x]

    def work(i: int) -> None:
        for n in range(THREADS):
            j = (i + n) % THREADS
            jax.tree.map(np.testing.assert_array_equal, program(x[j]), wanted[j])

    in_threads(work)


def test_plans_that_are_crowded_out_while_others_run(rng):
    native = library.loaded().native
    specs = [Spec(3, 4 + i, 5, salt=(8,)) for i in range(4)]
    arrays = [s.arrays(rng) for s in specs]
    programs = [jax.jit(lambda x, w: product(x, w, salt=(8,))).lower(*a).compile() for a in arrays]
    wanted = [np.asarray(p(*a)) for p, a in zip(programs, arrays)]
    native.llm_capacity(1)
    try:

        def work(i: int) -> None:
            for n in range(25):
                j = (i + n) % len(programs)
                np.testing.assert_array_equal(programs[j](*arrays[j]), wanted[j])

        in_threads(work)
    finally:
        native.llm_capacity(1024)


def test_tracing_and_running_at_once(network):
    (program, _), x, w = network
    wanted = [np.asarray(program(a, w)) for a in x]

    def work(i: int) -> None:
        if i % 2:
            for _ in range(100):
                np.testing.assert_array_equal(program(x[i], w), wanted[i])
        else:
            a, b = Spec(4, 3 + i, 2, salt=(9,)).arrays(np.random.default_rng(i))
            y = jax.jit(lambda a, b: product(a, b, salt=(9,)))(a, b)
            np.testing.assert_allclose(y, np.asarray(a) @ np.asarray(b), rtol=1e-4, atol=1e-5)

    in_threads(work)


def test_the_first_load_from_many_threads_is_one():
    code = """
import threading
from llmasos_xla.kernels._onednn import library
found, start = [], threading.Barrier(16)
def load():
    start.wait()
    found.append(library.load())
threads = [threading.Thread(target=load) for _ in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(found), len({id(f) for f in found}), type(found[0]).__name__)
"""
    assert run_python(code).split() == ["16", "1", "Library"]


def test_nothing_is_burnt_between_calls(network):
    (_, program), x, w = network
    jax.block_until_ready(program(x[0], w))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.05


TEAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), "float32")
numbers = ("NHWC", "HWIO", "NHWC")
x, w = draw(3, 12, 12, 8), draw(3, 3, 8, 16)
def loss(implementation):
    def value(x, w):
        return jnp.sum(kernels.conv(
            x, w, 1, "SAME", dimension_numbers=numbers, activation="tanh", implementation=implementation) ** 2)
    return jax.jit(jax.value_and_grad(value, (0, 1)))
program = loss("onednn")
for _ in range(20):
    ours = program(x, w)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, loss("xla")(x, w))
s, u, r, b = draw(3, 9, 8), draw(8, 48), draw(12, 48), draw(48)
ours, plain = (jax.jit(lambda s, n=n: kernels.lstm(s, u, r, b, implementation=n))(s) for n in (None, "xla"))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)
print(_onednn.loaded().threads)
"""


@pytest.mark.parametrize(("threads", "policy"), [("1", ""), ("2", "passive"), ("13", "active")])
def test_any_team_computes_the_same_however_it_waits(threads, policy):
    assert run_python(TEAM, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY=policy).strip() == threads


CROWDED = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp
from llmasos_xla import kernels
from llmasos_xla.kernels import _onednn
x, w = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
numbers = ("NHWC", "HWIO", "NHWC")
f = jax.jit(lambda x, w: kernels.conv(x, w, 1, "SAME", dimension_numbers=numbers, implementation="onednn"))
times = []
for _ in range(400):
    since = time.perf_counter()
    f(x, w).block_until_ready()
    times.append(time.perf_counter() - since)
print(_onednn.loaded().threads, sorted(times)[100])
"""


def test_more_threads_than_cores_do_not_crawl():
    alone, crowded = (run_python(CROWDED, OMP_NUM_THREADS=n).split() for n in ("1", "8"))
    assert (alone[0], crowded[0]) == ("1", "8")
    # Threads that spin without yielding are 50 to 100 times slower here, for want of the core that they hold.
    assert float(crowded[1]) < 20 * float(alone[1])


FORKED = """
import os, sys, warnings
import jax, numpy as np
from kernels.onednn.toy import Spec, product
x, w = Spec(4, 3, 2).arrays(np.random.default_rng(0))
program = jax.jit(product).lower(x, w).compile()
program(x, w).block_until_ready()
warnings.simplefilter("ignore")  # jax warns of the fork itself
child = os.fork()
if child == 0:
    try:
        program(x, w).block_until_ready()
    except Exception as error:
        os.write(1, str(error).encode())
    os._exit(0)
os.waitpid(child, 0)
program(x, w).block_until_ready()
"""


def test_a_forked_process_gets_an_error_and_its_parent_goes_on():
    assert "threads do not survive a fork" in run_python(FORKED, timeout=60)


NO_THREADS = """
import ctypes, resource, sys
native = ctypes.CDLL(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (96 << 20),) * 2)
print(native.llm_start(500, 50), native.llm_start(7, 50))
"""


def test_a_system_out_of_threads_gives_a_smaller_team():
    first, again = map(int, run_python(NO_THREADS, str(compiler.LIBRARY)).split())
    assert 1 <= first < 100
    assert again == first


def test_signals_are_left_to_the_program():
    masks = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        if status["Name"].strip().startswith("llmasos"):
            masks.append(int(status["SigBlk"], 16))
    assert len(masks) == library.loaded().threads - 1
    assert all(mask & 1 << (signal.SIGINT - 1) for mask in masks)
