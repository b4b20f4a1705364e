"""Who trains: a table from a contestant's name to the module that trains it and the environment it starts in.

Every module has `run(row, gate, variant)`: it trains until `gate.epoch(loss)` says that it was enough. Frameworks are
imported inside these modules and nowhere else.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One column of the comparison.

    Attributes:
        label: its name in the table.
        module: the module of this package with its `run`.
        variant: what `run` is told.
        peer: whether it runs under the peers' Python rather than this project's.
        packages: distributions whose versions are recorded.
        environment: variables that must stand before the framework is imported.
    """

    label: str
    module: str
    variant: str = ""
    peer: bool = True
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
