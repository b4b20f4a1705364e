"""The one place where an implementation is chosen.

An op is a public function with a list of candidates: implementations ("xla", "onednn", "triton") and, inside one
implementation, formulations ("shifted matmul", "lax"). Candidates stand in order of preference; the first that has
no objection runs. `explain` shows the same list that `run` walks, so what it says is what happens.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from llmasos_xla.errors import unknown
from llmasos_xla.kernels._rows import Rows, by_rows, divided_by_xla
from llmasos_xla.kernels._triton.devices import compiling_for


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute an op.

    Attributes:
        implementation: the public name: "xla", "onednn", "triton".
        formulation: which of the implementation's formulations this is.
        run: computes the op from the request's arrays; never called when `objection` is set, unless `able` is True.
        objection: why this candidate cannot or should not run here; None when it may.
        reason: why it would be preferred, from measurement.
        able: True when the objection is only about speed, so that asking for the implementation by name still runs it.
    """

    implementation: str
    formulation: str
    run: Callable[[], Any]
    objection: str | None = None
    reason: str = ""
    able: bool = False


Candidates = Callable[..., Sequence[Candidate]]


class Op(NamedTuple):
    """A public function that chooses, and what it chooses from."""

    function: Callable
    candidates: Candidates


OPS: dict[str, Op] = {}

PLATFORMS = ("cpu", "gpu", "tpu")

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform traced for", default=None)
_FORCED: contextvars.ContextVar[str | None] = contextvars.ContextVar("forced formulation", default=None)


def op(candidates: Candidates, rows: Rows | None = None) -> Callable[[Callable], Callable]:
    """Makes the decorated public function an op, whose candidates come of its arguments: `candidates(*args, **kw)`.

    `rows` says which arguments hold a row for each sample, if samples have nothing to do with each other.
    """

    def register(function: Callable) -> Callable:
        def implementation(*args: Any, **kwargs: Any) -> str:
            return choose(function.__name__, candidates(*args, **kwargs), kwargs.get("implementation")).implementation

        public = function if rows is None else by_rows(function, rows, implementation)
        OPS[function.__name__] = Op(public, candidates)
        return public

    return register


def platform() -> str:
    """The platform that programs are traced for: "cpu", "gpu" or "tpu".

    That of `tracing_for` or of `jax.default_device`, where one is set, and of the default backend otherwise.
    """
    told = _PLATFORM.get()
    if told is not None:
        return told
    device = getattr(jax.config, "jax_default_device", None)
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def elsewhere(wanted: str) -> str | None:
    """Why an implementation for that platform cannot run in what is being traced, or None."""
    here = platform()
    return None if here == wanted else f"runs on {wanted}, this is {here}"


@contextlib.contextmanager
def tracing_for(name: str, device: str | None = None) -> Iterator[None]:
    """Chooses for that platform in the ops traced inside: for programs that are compiled here and run elsewhere.

    Args:
        name: "cpu", "gpu" or "tpu".
        device: which GPU, as JAX's `device_kind` names it ("NVIDIA B200"); None is the one that is here, else an H100.

    Raises:
        ValueError: if a name is unknown.

    >>> with tracing_for("tpu"):
    ...     platform()
    'tpu'
    """
    if name not in PLATFORMS:
        raise unknown("tracing_for", "platform", name, PLATFORMS)
    if device is not None and name != "gpu":
        raise ValueError(f"tracing_for: device {device!r} names a GPU, the platform is {name!r}")
    token = _PLATFORM.set(name)
    try:
        with contextlib.nullcontext() if device is None else compiling_for(device):
            yield
    finally:
        _PLATFORM.reset(token)


@contextlib.contextmanager
def forced(formulation: str) -> Iterator[None]:
    """Runs that formulation in the ops traced inside, or raises its objection: for tests and benchmarks.

    A function that jax has already traced keeps what it was traced with.
    """
    token = _FORCED.set(formulation)
    try:
        yield
    finally:
        _FORCED.reset(token)


def choose(name: str, candidates: Sequence[Candidate], implementation: str | None) -> Candidate:
    """The candidate that runs.

    With `implementation=None` it is the first without objection, of XLA's own where XLA is to divide the op over
    devices. A named implementation runs or raises its reason.
    """
    if implementation is not None:
        named = [c for c in candidates if c.implementation == implementation]
        if not named:
            raise unknown(name, "implementation", implementation, {c.implementation for c in candidates})
        candidates = named
    formulation = _FORCED.get()
    if formulation is not None:
        named = [c for c in candidates if c.formulation == formulation]
        if not named:
            raise unknown(name, "formulation", formulation, {c.formulation for c in candidates})
        candidates = named
    free = implementation is None and formulation is None
    for candidate in candidates:
        if candidate.objection is None and not (free and divided_by_xla() and candidate.implementation != "xla"):
            return candidate
    if not free:
        for candidate in candidates:
            if candidate.able:
                return candidate
    what = f"implementation={implementation!r} cannot run" if implementation else "no implementation fits"
    raise NotImplementedError(f"{name}: {what}: {_objections(candidates)}")


def run(function: Callable, candidates: Sequence[Candidate], implementation: str | None) -> Any:
    """Runs the chosen candidate of a public function."""
    return choose(function.__name__, candidates, implementation).run()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found: the candidates in order and the one that runs. Printing it shows a line for each."""

    op: str
    platform: str
    chosen: Candidate
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.platform}"]
        for c in self.candidates:
            mark = "->" if c is self.chosen else "  "
            why = c.objection or c.reason
            lines.append(f" {mark} {c.implementation}: {c.formulation}" + (f" ({why})" if why else ""))
        return "\n".join(lines)

    __repr__ = __str__


def explain(function: Callable, *args: Any, **kwargs: Any) -> Explanation:
    """Says which implementation `function(*args, **kwargs)` runs, and why the others do not.

    Arrays may be `jax.ShapeDtypeStruct`: nothing is computed. The function is one of this package's ops, or `jax.jit`
    of one.

    Raises:
        ValueError: if it is another, and whatever the op itself raises.

    >>> import jax.numpy as jnp
    >>> from llmasos_xla import kernels
    >>> kernels.explain(kernels.max_pool, jnp.ones((1, 4, 4, 1)), (2, 2)).chosen.implementation
    'xla'
    """
    inner = getattr(function, "__wrapped__", None) if isinstance(function, jax.stages.Wrapped) else function
    name = getattr(inner, "__name__", str(inner))
    if name not in OPS:
        raise unknown("explain", "op", name, OPS)
    if OPS[name].function is not inner:
        # Others have a conv or a max_pool too, which know nothing of these candidates.
        where = getattr(inner, "__module__", None) or "elsewhere"
        raise ValueError(f"explain: {name} of {where} is not kernels.{name}; pass that one, as it is or under jax.jit")
    candidates = tuple(OPS[name].candidates(*args, **kwargs))
    return Explanation(name, platform(), choose(name, candidates, kwargs.get("implementation")), candidates)


def _objections(candidates: Sequence[Candidate]) -> str:
    return "; ".join(f"{c.implementation} ({c.formulation}): {c.objection}" for c in candidates)
