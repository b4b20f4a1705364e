"""A pipeline computes what one device computes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sharding.pipelines import (
    KEY,
    batch_of,
    mesh_of,
    objective_of,
    one_device,
    place,
    spec_of,
    specs_of,
    variables_of,
)

from llmasos_xla.models.stages import split
from llmasos_xla.sharding.pipeline import bubble, default_microbatches, one_f_one_b, waits_for_all
from llmasos_xla.training.pipelined import pipelined


@functools.cache
def prepared(name, rows, microbatches):
    """Objective, variables, batch and what one device makes of them."""
    spec = spec_of(name)
    objective, variables, batch = objective_of(spec), variables_of(spec), batch_of(spec, rows)
    return spec, objective, variables, batch, one_device(objective, variables, batch, KEY, microbatches)


def run(name, microbatches, rows=16, times=1, **mesh):
    spec, objective, variables, batch, expected = prepared(name, rows, microbatches)
    mesh = mesh_of(**mesh)
    stages = split(spec, mesh.shape["pipe"])
    specs = specs_of(variables.params, mesh, stages[0].stacked)
    fn = pipelined(objective, stages, mesh, microbatches, specs=specs)
    batch, params = place(mesh, batch, variables.params, specs)
    program = jax.jit(fn).lower(params, variables.state, batch, KEY).compile()
    assert waits_for_all(program.as_text()) == []
    for _ in range(times):
        found = program(params, variables.state, batch, KEY)
        chex.assert_trees_all_close(jax.device_get(found), jax.device_get(expected), rtol=1e-5, atol=1e-5)
    return program


@pytest.mark.parametrize("microbatches", [1, 2, 5, 8])
@pytest.mark.parametrize("pipe", [2, 4])
@pytest.mark.parametrize("name", ["mlp", "lstm", "blocks", "tower"])
def test_loss_and_gradients_are_those_of_one_device(name, pipe, microbatches):
    run(name, microbatches, rows=40, pipe=pipe)
