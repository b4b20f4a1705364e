"""Who goes when: in each round everyone once, whoever begins moves on by one, and nobody runs beside another."""

import contextlib
from collections.abc import Iterator, Sequence

from side_by_side.machine import Others
from side_by_side.process import Process


def turns(names: Sequence[str], number: int) -> list[str]:
    """The names in the order of round `number`: whoever comes first after a pause is not always the same.

    >>> turns(["a", "b", "c"], 4)
    ['b', 'c', 'a']
    """
    first = number % max(len(names), 1)
    return [*names[first:], *names[:first]]


@contextlib.contextmanager
def turn(process: Process) -> Iterator[Others]:
    """Lets the process run while `with` lasts, and tells how busy others kept the machine meanwhile."""
    process.go()
    try:
        with Others(process.pid) as others:
            yield others
    finally:
        process.stop()
