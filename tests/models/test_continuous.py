"""Rows that come and go write what each would write alone, whatever the ring and its length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_generation import MODELS, PROMPTS, every_model, left_padded, made, uncached, written

from llmasos_xla.models.generation import continuous
from llmasos_xla.models.generation.protocol import functions
from llmasos_xla.models.generation.sampling import Sampling, draw

MOST, ENDS = 4, 2


class Company:
    """Rows of a model, by compiled programs."""

    def __init__(self, config, rows, length):
        self.calls, (self.variables, _) = functions(config), made(config)
        of = functools.partial
        self._read = jax.jit(of(continuous.read, self.calls, dtype=jnp.float32))
        self._join = jax.jit(of(continuous.join, self.calls))
        self._advance = jax.jit(of(continuous.advance, self.calls, most=MOST))
        self._rearranged = jax.jit(of(continuous.rearranged, self.calls), static_argnames="length")
        self.rows = continuous.empty(self.calls, rows, length, jnp.float32, ENDS)
        self.ids = [[] for _ in range(rows)]

    def put(self, at, prompt, room, *, ends=(), drawn=(0.0, None, None), key=0, time=8):
        wanted = continuous.Wanted(
            jnp.asarray([room], jnp.int32),
            jnp.asarray([[*ends, *[-1] * (ENDS - len(ends))]], jnp.int32),
            jax.random.split(jax.random.key(5), 3)[key : key + 1],
            Sampling(*(a[None] for a in Sampling.of(*drawn))),
        )
        new = self._read(self.variables, *left_padded([prompt], time), wanted)
        self.ids[at] = [] if new.stopped[0] else [int(new.last[0])]
        self.rows = self._join(self.rows, new, jnp.asarray(at))

    def go(self, steps, keep=None):
        keep = jnp.ones(len(self.ids), bool) if keep is None else jnp.asarray(keep)
        self.rows, ids = self._advance(self.variables, self.rows, keep, jnp.asarray(steps))
        for row, new in zip(self.ids, np.asarray(ids).tolist(), strict=True):
            row += [i for i in new if i >= 0]

    def rearrange(self, of, length):
        self.rows = self._rearranged(self.rows, jnp.asarray(of), length=length)
        self.ids = [self.ids[i] if i >= 0 else [] for i in of]


@pytest.mark.thorough
@every_model
def test_rows_that_come_one_after_the_other_write_what_each_writes_alone(config):
    """The ring is turned more than once: 16 slots, 27 steps."""
    company = Company(config, 3, 16)
    company.put(1, PROMPTS[0], 9)
    company.go(3)
    company.put(0, PROMPTS[1], 9)
    company.go(2)
    company.put(2, PROMPTS[2], 9)
    for _ in range(4):
        company.go(4)
    assert not np.asarray(company.rows.live).any()
    assert [company.ids[i] for i in (1, 0, 2)] == [uncached(config, prompt, 9) for prompt in PROMPTS]
    # The places are taken again.
    company.put(0, PROMPTS[2], 9)
    company.go(1)
    company.put(2, PROMPTS[0], 9)
    for _ in range(3):
        company.go(4)
    assert [company.ids[i] for i in (0, 2)] == [uncached(config, PROMPTS[i], 9) for i in (2, 0)]


@pytest.mark.thorough
@every_model
def test_rings_grow_and_shrink_and_rows_change_places(config):
    company = Company(config, 2, 8)
    company.put(0, PROMPTS[1], 12, time=2)
    company.go(3)
    company.put(1, PROMPTS[2], 12, time=4)
    company.go(2)
    company.rearrange([1, -1, 0, -1], 16)
    company.go(3)
    company.put(3, PROMPTS[0], 7)
    company.go(2)
    company.rearrange([2, 0, 3], 32)
    company.go(4)
    wanted = [uncached(config, PROMPTS[i], n) for i, n in ((1, 12), (2, 12), (0, 7))]
    assert [len(row) for row in company.ids] == [12, 12, 7]
    assert company.ids == wanted
    company.put(1, PROMPTS[1], 6, time=2)
    company.go(2)
    company.rearrange([1], 8)
    company.go(4)
    assert company.ids == [uncached(config, PROMPTS[1], 6)]


def test_a_row_ends_at_its_ends_and_by_its_own_room():
    config = MODELS["llama"]
    whole = [uncached(config, prompt, 9) for prompt in PROMPTS]
    end = next(i for i in whole[0][1:] if i not in whole[0][:1])
    company = Company(config, 3, 16)
    company.put(0, PROMPTS[0], 9, ends=(end,))
    company.put(1, PROMPTS[1], 4)
    company.put(2, PROMPTS[2], 9, ends=(whole[2][0],))
    for _ in range(3):
        company.go(4)
    assert company.ids == [whole[0][: whole[0].index(end)], whole[1][:4], []]
    assert np.asarray(company.rows.stopped).tolist() == [True, False, True]


def test_what_is_drawn_depends_on_the_row_alone():
    """The loop over whole batches draws the same; rows that draw otherwise stand beside."""
    config, drawn = MODELS["gpt2"], (0.8, 6, 0.9)
    wanted = written(config, PROMPTS, 9, drawn=drawn)
    assert wanted != written(config, PROMPTS, 9)
    company = Company(config, 4, 32)
    company.put(3, PROMPTS[0], 9, drawn=drawn, key=0)
    company.go(3)
    company.put(2, PROMPTS[1], 9, drawn=drawn, key=1)
    company.put(0, PROMPTS[2], 9)
    company.go(2)
    company.put(1, PROMPTS[2], 9, drawn=drawn, key=2)
    for _ in range(3):
        company.go(4)
    assert [company.ids[i] for i in (3, 2, 1)] == wanted
    assert company.ids[0] == uncached(config, PROMPTS[2], 9)


def test_rows_that_are_not_kept_write_no_more():
    config = MODELS["gpt2"]
    company = Company(config, 2, 16)
    company.put(0, PROMPTS[0], 9)
    company.put(1, PROMPTS[1], 9)
    company.go(2)
    for _ in range(2):
        company.go(4, keep=[False, True])
    assert company.ids == [uncached(config, PROMPTS[0], 9)[:3], uncached(config, PROMPTS[1], 9)]
    before = company.ids[0][:]
    company.go(4)
    assert company.ids[0] == before


def test_bounds_of_each_row():
    """Drawn often enough, each row shows just the ids that its own bounds let through."""
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    rows = jnp.broadcast_to(logits, (5, 4))
    sampling = Sampling(jnp.array([0.0, 1.0, 1.0, 1.0, 5.0]), jnp.array([0, 2, 0, 0, 3]), jnp.array([1, 1, 0.75, 1, 1]))
    one = jax.jit(lambda n: draw(rows, jax.random.split(jax.random.key(1), 5), jnp.full((5,), n), sampling))
    found = np.stack([one(n) for n in range(300)])
    assert [sorted(set(column)) for column in found.T.tolist()] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2]]
