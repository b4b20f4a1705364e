"""What the logits of a CTC model say: the best path, or the most probable labels by beam search over prefixes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def greedy(logits: jax.Array) -> jax.Array:
    """The labels of the best path: [batch, steps, vocab] -> [batch, steps], padded with 0, the blank's id.

    Of each step the most probable id, repetitions taken once, blanks left out (Graves et al. 2006).

    >>> path = jnp.array([[1, 1, 0, 1, 2, 2]])
    >>> greedy(jax.nn.one_hot(path, 3)).tolist()
    [[1, 1, 2, 0, 0, 0]]
    """
    path = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(path[:, :-1], ((0, 0), (1, 0)))
    kept = (path != before) & (path != 0)
    # Kept ones to the front, in their order.
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.where(jnp.take_along_axis(kept, order, axis=1), jnp.take_along_axis(path, order, axis=1), 0)


def ctc_text(logits: Any, alphabet: Sequence[str]) -> list[str]:
    """The best path of each row in words; alphabet[i] is what id i says, alphabet[0] that of the blank, unused.

    >>> ctc_text(jax.nn.one_hot(jnp.array([[1, 1, 0, 2]]), 3), ["", "a", "b"])
    ['ab']
    """
    rows = np.asarray(greedy(jnp.asarray(logits)))
    return ["".join(str(alphabet[i]) for i in row if i) for row in rows]


class Hypothesis(NamedTuple):
    """One reading of a row."""

    labels: tuple[int, ...]
    """Without blanks."""
    score: float
    """Its log probability over all paths that the beam kept, plus what was added to each label."""


def beam_search(logits: Any, *, width: int = 16, bonus: float = 0.0, least: float = -12.0) -> list[list[Hypothesis]]:
    """The most probable labels of each row: a search over prefixes that sums over their paths (Hannun et al. 2014).

    Args:
        logits: [batch, steps, vocab], id 0 being the blank.
        width: how many prefixes go on from step to step.
        bonus: what is added to the score for each label, against readings that are too short.
        least: ids of a lower log probability do not extend a prefix.

    Returns hypotheses of each row, the best first, at most `width`.

    >>> path = jnp.array([[1, 0, 1]])
    >>> beam_search(10 * jax.nn.one_hot(path, 3))[0][0].labels
    (1, 1)
    """
    if width < 1:
        raise ValueError(f"beam_search: width wants a number above 0, got {width}")
    rows = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1), np.float64)
    if rows.ndim != 3:
        raise ValueError(f"beam_search: logits [batch, steps, vocab] are wanted, got {rows.shape}")
    return [_search(row, width, bonus, least) for row in rows]


def _search(steps: np.ndarray, width: int, bonus: float, least: float) -> list[Hypothesis]:
    # Log probability of each prefix by paths that end in a blank, and by those that end in its last label.
    beam = {(): (0.0, -math.inf)}
    for step in steps:
        ids = [int(i) for i in np.flatnonzero(step >= least) if i]
        found: dict[tuple[int, ...], list[float]] = {}
        for prefix, (blank, label) in beam.items():
            both = _sum(blank, label)
            stays = found.setdefault(prefix, [-math.inf, -math.inf])
            stays[0] = _sum(stays[0], both + step[0])
            if prefix:
                stays[1] = _sum(stays[1], label + step[prefix[-1]])
            for i in ids:
                # The same label again is another one only behind a blank.
                start = blank if prefix and prefix[-1] == i else both
                grown = found.setdefault((*prefix, i), [-math.inf, -math.inf])
                grown[1] = _sum(grown[1], start + step[i] + bonus)
        found = {prefix: scores for prefix, scores in found.items() if max(scores) > -math.inf}
        best = sorted(found.items(), key=lambda entry: -_sum(*entry[1]))[:width]
        beam = {prefix: (blank, label) for prefix, (blank, label) in best}
    readings = [Hypothesis(prefix, _sum(*scores)) for prefix, scores in beam.items()]
    return sorted(readings, key=lambda reading: -reading.score)


def _sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
