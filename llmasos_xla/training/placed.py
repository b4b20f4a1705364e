"""A program on one device or on a mesh, in one process or in many: the same calls, with None or a Placement."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_xla.compiling import CompileRecord, compile
from llmasos_xla.core import Variables
from llmasos_xla.kernels import dividing_by_xla, dividing_rows
from llmasos_xla.sharding.placement import Placement, like, using
from llmasos_xla.sharding.transfer import put, put_rows, rows_here


@contextlib.contextmanager
def tracing(placement: Placement | None) -> Iterator[None]:
    """Traces what is inside for the placement: layers may ask for it, ops run by rows where devices hold whole ones.

    A stage of a pipeline whose other axes are 1 has its devices to itself.
    """
    with contextlib.ExitStack() as stack:
        if placement is not None:
            stack.enter_context(using(placement))
            if placement.divides_rows_only:
                stack.enter_context(dividing_rows(placement.mesh, placement.batch_axes))
            else:
                stack.enter_context(dividing_by_xla(placement.spec.devices > placement.spec.pipe))
        yield


def whole_batches(batch_size: int, placement: Placement | None) -> int:
    """The batch size, made larger until its rows divide over the devices; rows that only fill weigh nothing."""
    parts = 1 if placement is None else placement.spec.batch_parts
    return -(-batch_size // parts) * parts


class Programs:
    """Compiles for a placement and brings arguments to where its programs want them; with None, for one device.

    Args:
        placement: where arrays lie.
        batch_size: rows of a batch, over all processes.
    """

    def __init__(self, placement: Placement | None, batch_size: int):
        self.placement, self.batch_size = placement, batch_size
        self.share = None
        """Which rows of each batch this process reads; None for all of them."""
        if placement is not None and jax.process_count() > 1:
            self.share = rows_here(placement.rows((batch_size,)), batch_size)

    def compile(
        self,
        function: Callable,
        *arguments: Any,
        shardings: Callable[[Placement], tuple[tuple, Any]],
        log: list[CompileRecord] | None,
        **options: Any,
    ) -> Callable:
        """`compiling.compile`; `shardings(placement)` gives those of the arguments and of the results."""
        if self.placement is None:
            return compile(function, *arguments, log=log, **options)
        given, out = shardings(self.placement)
        with tracing(self.placement):
            return compile(function, *like(arguments, given), out=out, log=log, **options)

    def whole(self, arrays: Mapping[str, Any], axis: int) -> dict[str, Any]:
        """Shapes and dtypes of the whole batch, of which the arrays hold this process's rows along `axis`."""

        def one(a: Any) -> jax.ShapeDtypeStruct:
            shape = a.shape if a.ndim <= axis else (*a.shape[:axis], self.batch_size, *a.shape[axis + 1 :])
            return jax.ShapeDtypeStruct(shape, jnp.result_type(a))

        return jax.tree.map(one, dict(arrays))

    def batch(self, arrays: Mapping[str, Any], axis: int) -> Any:
        """This process's rows as its part of arrays that lie over all devices."""
        if self.placement is None or self.share is None:
            return arrays
        shardings = self.placement.batch(self.whole(arrays, axis), axis)
        return put_rows(arrays, shardings, self.share, self.batch_size, axis)

    def everywhere(self, tree: Any) -> Any:
        """What is the same in every process, whole on every device."""
        if self.placement is None:
            return tree
        replicated = self.placement.replicated
        return put(tree, jax.tree.map(lambda _: replicated, tree))


def shardings_of(placement: Placement, state: Any, variables: Variables) -> Any:
    """Where a train state, or variables, lie."""
    return placement.shardings(state, {**variables.params, **variables.state})
