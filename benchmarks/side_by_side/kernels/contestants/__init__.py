"""Who computes: a table from a contestant's name to the module that does it.

Every module has `programs(problem, arrays, cotangent)`, the ways in which its users would compute the problem's parts;
the reference has `write(problem, folder)` instead.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from side_by_side.channel import Channel, told
from side_by_side.contestant import Contestant
from side_by_side.kernels.bench import Bench

REFERENCE = "reference"

CONTESTANTS = {
    "ours": Contestant("llmasos_xla", "ours", peer=False, packages=("llmasos_xla", "jax", "jaxlib", "onednn-cpu-gomp")),
    "lax": Contestant("plain lax", "plain_lax", peer=False, packages=("jax", "jaxlib")),
    "torch": Contestant("PyTorch", "torch_eager", packages=("torch",)),
    "tensorflow": Contestant(
        "TensorFlow",
        "tensorflow_function",
        packages=("tensorflow-cpu", "tensorflow"),
        environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
    ),
    REFERENCE: Contestant("reference", "reference", peer=False, packages=("jax", "jaxlib")),
}
"""Name on the command line -> contestant, in the table's order; the reference is nobody's choice."""

TIMED = tuple(name for name in CONTESTANTS if name != REFERENCE)


def serve(module: ModuleType, contestant: Contestant, channel: Channel) -> None:
    """Answers requests, in the contestant's own process, until the arena is gone."""
    handlers: dict[str, Callable[..., dict[str, Any]]]
    if contestant is CONTESTANTS[REFERENCE]:
        handlers = {"write": module.write}
    else:
        bench = Bench(module.programs)
        handlers = {"prepare": bench.prepare, "time": bench.time}
    while (request := channel.request()) is not None:
        do = request.pop("do")
        try:
            channel.answer(**handlers[do](**request))
        except Exception as error:  # one problem's failure is its answer; the next may work
            channel.answer(failed=told(error))
