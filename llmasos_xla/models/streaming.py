"""Networks on sound that comes piece by piece: state of fixed shape carried from chunk to chunk, one compiled program.

A configuration streams if it has `stride`, samples that one step of its output takes, and `stream_state(batch)`, the
arrays carried before the first sample, and if its module has `stream(x, state, *, train, rngs) -> (output, state)` for
whole strides. What streams gives what the whole sound would have given.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.layers._checks import whole


@runtime_checkable
class Streams(Protocol):
    """What a configuration has that streams."""

    @property
    def stride(self) -> int:
        """Samples that one step of the output takes."""
        ...

    def stream_state(self, batch: int) -> dict[str, jax.Array]:
        """What is carried before the first sample."""
        ...


@functools.lru_cache(maxsize=64)
def streaming(config: Config) -> Callable[[Variables, jax.Array, Any], tuple[jax.Array, Any]]:
    """The pure function `step(variables, x, state) -> (output of the chunk, state after it)`.

    x is [batch, time], time a multiple of `config.stride`; the first state is `config.stream_state(batch)`.

    Raises ValueError for a configuration that does not stream.
    """
    if not isinstance(config, Streams):
        raise ValueError(f"{config.who}: it does not stream; it reads its input as a whole")
    config.stream_state(1)  # refuses sizes that do not stream
    apply = config.spec().net(f"{config.name or config.base_name}.stream").apply

    def step(variables: Variables, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        return apply(variables, x, state, train=False)[0]

    return step


class Stream:
    """A network's output, step by step, on sound as it comes: `stream(samples)`, at the end `stream.finish()`.

    The outputs, one after the other, are those of the whole sound. One program is compiled, for chunks of one length:
    what a chunk costs does not grow with the sound so far.

    Args:
        config: a configuration that streams.
        variables: its arrays.
        batch: number of sounds side by side.
        chunk: samples that are computed at once, in whole strides; some 0.3 s (`config.chunk`) if None. The smaller,
            the sooner an output is there, and the more calls of the program.

    Raises ValueError for a configuration that does not stream, and a chunk of no whole strides.
    """

    def __init__(self, config: Config, variables: Variables, *, batch: int = 1, chunk: int | None = None):
        self._step = jax.jit(streaming(config))
        assert isinstance(config, Streams)
        self.config, self.batch, self.stride = config, whole("Stream", "batch", batch), config.stride
        self.chunk: int = getattr(config, "chunk", self.stride) if chunk is None else whole("Stream", "chunk", chunk)
        if self.chunk % self.stride:
            raise ValueError(f"Stream: a chunk of whole strides of {self.stride} samples is wanted, got {self.chunk}")
        self._variables = jax.tree.map(jnp.asarray, variables)
        self.reset()

    def reset(self) -> None:
        """Forgets all that came: the next sample is the first of another sound."""
        self._state = self.config.stream_state(self.batch)  # pyright: ignore[reportAttributeAccessIssue]
        self._rest = np.zeros((self.batch, 0), np.float32)

    def __call__(self, samples: Any) -> np.ndarray:
        """The outputs that the next samples make ready, [batch, steps, ...], of no steps until a chunk is full.

        Args:
            samples: [batch, time], any time; [time] where the batch is 1.

        Raises ValueError for another number of rows.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim == 1:
            samples = samples[None]
        if samples.ndim != 2 or len(samples) != self.batch:
            raise ValueError(f"Stream: samples [{self.batch}, time] are wanted, got {samples.shape}")
        rest = np.concatenate([self._rest, samples], axis=1)
        outputs = []
        for start in range(0, rest.shape[1] - self.chunk + 1, self.chunk):
            outputs.append(self._computed(rest[:, start : start + self.chunk]))
        self._rest = rest[:, len(outputs) * self.chunk :]
        return np.concatenate(outputs, axis=1) if outputs else self._nothing

    def finish(self) -> np.ndarray:
        """The outputs of the whole strides that are left, and a fresh start."""
        steps = self._rest.shape[1] // self.stride
        outputs = self._nothing
        if steps:
            # The program's one shape; causal steps do not see the zeros behind them.
            missing = self.chunk - self._rest.shape[1]
            outputs = self._computed(np.pad(self._rest, ((0, 0), (0, missing))))[:, :steps]
        self.reset()
        return outputs

    def _computed(self, samples: np.ndarray) -> np.ndarray:
        output, self._state = self._step(self._variables, jnp.asarray(samples), self._state)
        return np.asarray(output)

    @functools.cached_property
    def _nothing(self) -> np.ndarray:
        x = jax.ShapeDtypeStruct((self.batch, self.chunk), jnp.float32)
        output, _ = jax.eval_shape(self._step, self._variables, x, self._state)
        return np.zeros((self.batch, 0, *output.shape[2:]), output.dtype)
