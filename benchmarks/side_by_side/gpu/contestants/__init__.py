"""The two processes on the device. JAX's holds this package's programs and those written with lax; the reference is its
too. PyTorch's own stands apart, so that neither framework's memory or libraries are in the other's way."""

import sys
import traceback
from pathlib import Path
from types import ModuleType

from side_by_side.channel import Channel
from side_by_side.contestant import Contestant

LOST = "the device is lost"
"""How the answer of a process begins for which the device does nothing more."""
# Characters of one error's text: a compiler's may be a whole program.
_MOST = 2000

CONTESTANTS = {
    "jax": Contestant(
        label="JAX",
        module="jax_side",
        peer=False,
        packages=("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
                  "triton", "numpy"),
        # The rest of the memory is PyTorch's.
        environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"},
    ),
    "torch": Contestant(label="PyTorch", module="torch_side", packages=("torch",)),
}  # fmt: skip


def serve(module: ModuleType, contestant: Contestant, channel: Channel, *arguments: str) -> None:
    """Answers requests `{"do": name of a method of the module's `Side`, ...}`; a failure is an answer too."""
    side = module.Side(*arguments)
    while (request := channel.request()) is not None:
        try:
            channel.answer(**getattr(side, request.pop("do"))(**request))
        except Exception as error:
            text = whole(error)
            print(text, file=sys.stderr, flush=True)
            channel.answer(failed=text if side.alive() else f"{LOST}: {text}")


def whole(error: BaseException | None) -> str:
    """The error, where it was raised, and what caused it, a line or more each."""
    lines = []
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        lines.append(f"{type(error).__name__}: {str(error).strip()[:_MOST]}{where}")
        error = error.__cause__
    return "\ncaused by ".join(lines)
