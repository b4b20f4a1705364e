"""What a recurrence is for oneDNN: its static description."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmasos_xla.kernels import _onednn

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
INITIAL = {"lstm": ("h0", "c0"), "gru": ("h0",), "rnn": ("h0",)}
FINAL = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}


class Spec(NamedTuple):
    """A recurrence over `[batch, time, cin]` with oneDNN's order of gates: i f g o (LSTM) or z r n (GRU).

    A GRU's bias has a fourth part, the recurrent bias of n.
    """

    op: str
    """"lstm", "gru" or "rnn"."""
    batch: int
    time: int
    cin: int
    hidden: int
    dtype: str
    initial: bool
    """Whether it starts from given states; else from zeros."""
    reverse: bool
    workspace: int = 0
    """Bytes that training passes from forward to backward; see `workspace_bytes`."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arrays that the forward pass takes, and whose gradients the backward pass gives."""
        return "x", "w_input", "w_recurrent", "bias", *(INITIAL[self.op] if self.initial else ())

    @property
    def outputs(self) -> tuple[str, ...]:
        """The arrays that the forward pass gives, and whose gradients the backward pass takes."""
        return "y", *FINAL[self.op]

    def struct(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array in the program, and of its gradient."""
        columns = GATES[self.op] * self.hidden
        shape = {
            "x": (self.batch, self.time, self.cin),
            "y": (self.batch, self.time, self.hidden),
            "w_input": (self.cin, columns),
            "w_recurrent": (self.hidden, columns),
            "bias": (columns + (self.hidden if self.op == "gru" else 0),),
        }
        dtype = "float32" if name in ("bias", "c0", "c") else self.dtype
        return jax.ShapeDtypeStruct(shape.get(name, (self.batch, self.hidden)), jnp.dtype(dtype))


def check_workspace(s: Spec, needs: int) -> None:
    """Refuses a plan that would write past the workspace: what fills it depends on the CPU.

    Raises:
        Refused: if the workspace has fewer bytes than it needs.
    """
    if s.workspace < needs:
        raise _onednn.Refused(
            f"the program passes {s.workspace} bytes from forward to backward, the kernel of this CPU {needs}: "
            "compile it here"
        )
