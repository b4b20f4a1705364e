"""Who runs the models: every module has `job(row, variant) -> call`, and a call gives what the arena compares."""

import time
from types import ModuleType

import numpy as np

from side_by_side.channel import Channel
from side_by_side.contestant import Contestant
from side_by_side.models.rows import ROWS

CONTESTANTS = {
    "torch": Contestant("PyTorch eager", "in_torch", "eager", packages=("torch", "transformers")),
    "torch-compile": Contestant("PyTorch compiled", "in_torch", "compiled", packages=("torch", "transformers")),
    "ours": Contestant("llmasos_xla", "ours", peer=False, packages=("llmasos_xla", "jax", "jaxlib", "flax")),
}
"""Name on the command line -> contestant; the first one's results are what the others' are compared with."""

_WARM_UP = 3
_KEPT = 512


def serve(module: ModuleType, contestant: Contestant, channel: Channel, row_name: str) -> None:
    """Runs the contestant on the row, in its own process."""
    started = time.perf_counter()
    call = module.job(ROWS[row_name], contestant.variant)
    results = [np.asarray(call(), np.float64).reshape(-1)[:_KEPT].tolist() for _ in range(_WARM_UP)]
    ready = time.perf_counter() - started
    begun = time.perf_counter()
    call()
    channel.answer(results=results, ready=ready, seconds=time.perf_counter() - begun)
    while request := channel.request():
        begun = time.perf_counter()
        for _ in range(request["calls"]):
            call()
        channel.answer(seconds=(time.perf_counter() - begun) / request["calls"])
