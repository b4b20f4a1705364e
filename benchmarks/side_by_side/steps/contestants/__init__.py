"""Who trains and predicts: a table from a contestant's name to the module that does it and its environment.

Every module has `run(row, gate, variant)`: it goes on until `gate.epoch(result)` says that it was enough.
"""

from types import ModuleType

from side_by_side.channel import Channel
from side_by_side.contestant import Contestant
from side_by_side.steps.gate import Gate
from side_by_side.steps.rows import ROWS

CONTESTANTS = {
    "ours": Contestant("llmasos_xla", "ours", peer=False, packages=("llmasos_xla", "jax", "jaxlib", "flax", "optax")),
    "jax": Contestant("JAX by hand", "jax_step", peer=False, packages=("jax", "jaxlib", "optax")),
    "keras-tensorflow": Contestant(
        "Keras on TensorFlow",
        "keras_fit",
        packages=("keras", "tensorflow-cpu", "tensorflow"),
        environment={"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
    ),
    "keras-jax": Contestant(
        "Keras on JAX",
        "keras_fit",
        packages=("keras", "jax", "jaxlib"),
        environment={"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"},
    ),
    "torch": Contestant("PyTorch eager", "torch_loop", "eager", packages=("torch",)),
    "torch-compile": Contestant("PyTorch compiled", "torch_loop", "compiled", packages=("torch",)),
}
"""Name on the command line -> contestant, in the table's order."""

PADDING = {
    name: "symmetric" if contestant.module == "torch_loop" else "same" for name, contestant in CONTESTANTS.items()
}
"""Where a contestant's windows of stride 2 begin: where its framework's users let them."""


def serve(module: ModuleType, contestant: Contestant, channel: Channel, row_name: str) -> None:
    """Runs the contestant on the row, in its own process."""
    row = ROWS[row_name]
    module.run(row, Gate(channel, row.warm_up), contestant.variant)
