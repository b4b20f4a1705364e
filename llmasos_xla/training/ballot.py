"""What the processes of a fit decide together: whether to save now, and whether to end here.

Clocks and signals differ between processes, and a save or an end is a joint act. Each process hands the train step
what it wishes, the step finds what anyone wishes, and all of them read that answer the same number of dispatches later,
so that nobody waits for it.
"""

import collections
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_xla.training.checkpoint import STOPS, Decision

DELAY = 3
"""How many dispatches later an answer is read."""


@final
class Ballot:
    """Votes of several processes, cast with each dispatch of a program over `mesh`."""

    def __init__(self, mesh: Mesh):
        self.shape = (mesh.devices.size, 2)
        self.sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._answers: collections.deque[jax.Array] = collections.deque()

    def cast(self, wish: Decision) -> jax.Array:
        """The votes as the program takes them: a row for each device, in it what its process wishes."""
        row = np.array([[wish.save, STOPS.index(wish.stop)]], np.int32)
        return jax.make_array_from_callback(self.shape, self.sharding, lambda index: row)

    @staticmethod
    def counted(votes: jax.Array) -> jax.Array:
        """Inside of the program: what anyone wishes, an end by SIGTERM ahead of one by Ctrl-C."""
        return jnp.max(votes, axis=0)

    def heard(self, answer: jax.Array) -> Decision:
        """Takes the newest answer, and gives the one that is due."""
        self._answers.append(answer)
        if len(self._answers) <= DELAY:
            return Decision()
        save, stop = np.asarray(self._answers.popleft())
        return Decision(bool(save), STOPS[int(stop)])

    @property
    def slip(self) -> jax.ShapeDtypeStruct:
        """The votes' shape, for compiling."""
        return jax.ShapeDtypeStruct(self.shape, jnp.int32)

    def last(self) -> Decision:
        """What the answers that are not yet read say together, where the dispatches end: all processes do the same."""
        answers = [np.asarray(answer) for answer in self._answers]
        self._answers.clear()
        save, stop = np.max(answers, axis=0) if answers else (0, 0)
        return Decision(bool(save), STOPS[int(stop)])
