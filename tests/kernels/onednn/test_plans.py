"""Plans: bounded, made again when they are gone, freed when they fail, and errors that say what and where."""

import ctypes
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels.onednn import toy
from kernels.onednn.toy import Spec, needs_onednn, product, run_python
from tolerances import assert_close

from llmasos_xla.kernels import _onednn
from llmasos_xla.kernels._onednn import library

pytestmark = needs_onednn

CAPACITY = 1024


@pytest.fixture
def native():
    yield library.loaded().native
    library.loaded().native.llm_capacity(CAPACITY)


def resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def foreign(spec: str, scratch: int, *arrays: jax.Array) -> jax.Array:
    """Calls the handler with any text."""
    shapes = (jax.ShapeDtypeStruct((2, 2), jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.uint8))
    return jax.jit(lambda *a: jax.ffi.ffi_call(library.TARGET, shapes)(*a, spec=spec)[0])(*arrays)


def put(native, spec: str, scratch: int, arguments: int, results: int) -> None:
    """A plan by hand, which does nothing."""
    assert native.llm_put(spec.encode(), (ctypes.c_int64 * 5)(scratch, arguments, results, 0, 0)) == 0


def test_the_plans_are_bounded_and_made_again(native, rng):
    native.llm_capacity(3)
    specs = [Spec(n, 5, 2, salt=(1,)) for n in range(1, 9)]
    programs = [jax.jit(lambda x, w: product(x, w, salt=(1,))).lower(*s.arrays(rng)).compile() for s in specs]
    assert native.llm_count() <= 3
    for _ in range(2):
        for s, program in zip(specs, programs):
            x, w = s.arrays(rng)
            assert_close(program(x, w), np.float64(x) @ np.float64(w))
            assert native.llm_count() <= 3


def test_a_plan_that_does_not_fit_beside_itself_still_runs(native, rng):
    native.llm_capacity(1)
    a, b = Spec(2, 3, 4, salt=(2,)), Spec(3, 4, 2, salt=(2,))
    (x, v), (_, w) = a.arrays(rng), b.arrays(rng)
    both = jax.jit(lambda x, v, w: product(product(x, v, salt=(2,)), w, salt=(2,)))
    assert_close(both(x, v, w), np.float64(x) @ np.float64(v) @ np.float64(w))
    assert native.llm_count() == 1


def test_what_python_keeps_of_plans_is_bounded():
    assert _onednn.prepare.cache_info().maxsize == 4096


def test_no_memory_for_scratch_names_the_call_and_its_shapes(native):
    put(native, '["absurd", 7]', 1 << 60, 1, 1)
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED.*") as caught:
        jax.block_until_ready(foreign('["absurd", 7]', 0, jnp.ones((2, 3))))
    assert '["absurd", 7]: no memory for 1152921504606846976 bytes of scratch' in str(caught.value)
    assert "(arguments [2,3]; results [2,2] [0])" in str(caught.value)


def test_a_program_compiled_with_less_scratch_gets_its_own(native):
    put(native, '["roomy"]', 1 << 16, 0, 1)
    jax.block_until_ready(foreign('["roomy"]', 0))
    jax.block_until_ready(foreign('["roomy"]', 100))


@pytest.mark.parametrize(("arguments", "results"), [(2, 1), (1, 2), (1, 0)])
def test_a_call_with_other_arrays_than_the_plan_s_is_refused(native, arguments, results):
    text = f'["other", {arguments}, {results}]'
    put(native, text, 0, arguments, results)
    with pytest.raises(Exception, match="INVALID_ARGUMENT.*its plan takes"):
        jax.block_until_ready(foreign(text, 0, jnp.ones((2, 3))))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('["nothing known", 1]', "there is no operation 'nothing known' in this process"),
        ("no json", "JSONDecodeError"),
        ('["toy product", 1]', "TypeError"),
        ('["toy product", 2, -3, 2, []]', "oneDNN says invalid_arguments to a memory of shape (2, -3)"),
    ],
)
def test_a_text_that_makes_no_plan_is_an_error_with_its_reason(text, why):
    with pytest.raises(Exception, match="INTERNAL") as caught:
        jax.block_until_ready(foreign(text, 0, jnp.ones((2, 3))))
    assert f"oneDNN: {text}: " in str(caught.value)
    assert why in str(caught.value)


def test_an_operation_and_its_call_must_agree_on_sizes(rng):
    x, w = Spec(4, 3, 2).arrays(rng)
    with pytest.raises(ValueError, match=r"toy product: argument 0 is .*\[2,3\].*24 bytes; the plan for .* takes 48"):
        jax.jit(lambda x, w: _onednn.call(toy.OPERATION, Spec(4, 3, 2), x, w)[0])(x[:2], w)


class Counting:
    """oneDNN with a count of what is made and not destroyed."""

    def __init__(self, dnnl: ctypes.CDLL) -> None:
        self.dnnl, self.alive = dnnl, 0

    def __getattr__(self, name: str):
        function = getattr(self.dnnl, name)

        def counted(*arguments):
            status = function(*arguments)
            # post_ops are copied into their attributes and destroyed on the spot, under the same names.
            if status == 0 and (name.endswith(("_create", "_clone")) or "_create_with_" in name):
                self.alive += 1
            if name.endswith("_destroy"):
                self.alive -= 1
            return status

        return counted


@pytest.mark.parametrize("wrong", ["raises", "refused"])
def test_a_build_that_fails_frees_what_it_made(monkeypatch, wrong):
    counting = Counting(library.loaded().dnnl)

    def build(b, s):
        b.dnnl = counting
        toy.build(b, s)
        assert counting.alive > 5
        if wrong == "raises":
            raise ZeroDivisionError
        b.dense((-1,), "float32")

    operation = dataclasses.replace(toy.OPERATION, build=build)
    if wrong == "raises":
        with pytest.raises(ZeroDivisionError):
            _onednn.prepare(operation, Spec(2, 2, 2, salt=(3,)))
    else:
        assert "invalid_arguments" in str(_onednn.prepare(operation, Spec(2, 2, 2, salt=(4,))))
    assert counting.alive == 0


def test_what_is_put_belongs_to_the_handler_alone(monkeypatch):
    counting = Counting(library.loaded().dnnl)
    handed = []

    def build(b, s):
        b.dnnl = counting
        toy.build(b, s)
        handed.append(len(b._regions) + len(b._primitives))

    operation = dataclasses.replace(toy.OPERATION, build=build)
    assert isinstance(_onednn.prepare(operation, Spec(2, 2, 2, salt=(5,))), _onednn.Prepared)
    assert counting.alive == handed[0]


def test_a_refusal_names_what_was_asked():
    def build(b, s):
        b.strided((2, 2), (0, -1), "float32")

    operation = dataclasses.replace(toy.OPERATION, build=build)
    assert "oneDNN says invalid_arguments to a memory of shape (2, 2)" in str(_onednn.refusal(operation, Spec(2, 2, 2)))


@pytest.mark.thorough
def test_a_hundred_thousand_calls_leave_memory_as_it_was(rng):
    x, w = Spec(4, 8, 8).arrays(rng)
    program = jax.jit(product)
    wanted = np.asarray(program(x, w))
    for _ in range(10_000):
        y = program(x, w)
    y.block_until_ready()
    before = resident_bytes()
    for _ in range(100_000):
        y = program(x, w)
    y.block_until_ready()
    assert resident_bytes() - before < 4 << 20
    np.testing.assert_array_equal(y, wanted)


def test_making_and_dropping_plans_leaves_memory_as_it_was(native):
    def make(n: int) -> None:
        for i in range(n):
            _onednn.prepare.__wrapped__(toy.OPERATION, Spec(16, 16, 16, salt=(6, i % 40)))

    native.llm_capacity(10)
    make(300)
    before = resident_bytes()
    make(2_000)
    assert resident_bytes() - before < 2 << 20


ELSEWHERE = """
import pickle, sys
import jax, numpy as np
from jax.experimental.serialize_executable import deserialize_and_load
from kernels.onednn import toy
from llmasos_xla.kernels import _onednn
native = _onednn.loaded().native
assert native.llm_count() == 0
program = deserialize_and_load(*pickle.load(open(sys.argv[1], "rb")), execution_devices=jax.devices()[:1])
x, w = toy.Spec(5, 4, 3, salt=(7,)).arrays(np.random.default_rng(0))
np.testing.assert_allclose(program(x, w), np.float64(x) @ np.float64(w), rtol=1e-5)
assert native.llm_count() == 1
print("computed")
"""


def test_a_program_of_another_process_makes_its_plan_from_its_text(tmp_path, rng):
    import pickle

    from jax.experimental.serialize_executable import serialize

    x, w = Spec(5, 4, 3, salt=(7,)).arrays(rng)
    compiled = jax.jit(lambda x, w: product(x, w, salt=(7,))).lower(x, w).compile()
    (tmp_path / "program").write_bytes(pickle.dumps(serialize(compiled)))
    assert run_python(ELSEWHERE, str(tmp_path / "program")).strip() == "computed"


CACHED = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
from llmasos_xla import kernels
x, w = (jnp.asarray(np.random.default_rng(0).standard_normal(s), "float32") for s in ((2, 9, 9, 8), (3, 3, 8, 8)))
numbers = ("NHWC", "HWIO", "NHWC")
f = jax.jit(lambda x, w: kernels.conv(x, w, 1, "SAME", dimension_numbers=numbers, implementation="onednn"))
plain = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
hits.clear()
np.testing.assert_allclose(f(x, w), plain, rtol=1e-4, atol=1e-4)
print("/jax/compilation_cache/cache_hits" in hits)
"""


def test_the_persistent_cache_serves_the_next_process(tmp_path):
    assert run_python(CACHED, str(tmp_path)).strip() == "False"
    assert run_python(CACHED, str(tmp_path)).strip() == "True"
