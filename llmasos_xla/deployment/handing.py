"""The sending side of an update from memory: a model or its weights, on their way to a server of this machine."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from llmasos_xla.api.door import Door
from llmasos_xla.api.exporting import arrays_of
from llmasos_xla.api.files import arrays_by_name
from llmasos_xla.core import Variables
from llmasos_xla.deployment import shared
from llmasos_xla.deployment.engine import fingerprint_of
from llmasos_xla.sharding.transfer import fetch


@contextlib.contextmanager
def handed_over(source: Any) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """What a message of the control socket says of a model or `Variables`, and the shared memory that goes with it.

    Raises TypeError for anything else.
    """
    if isinstance(source, Door):
        arrays, more = arrays_of(source), {"fingerprint": fingerprint_of(source)}
    elif isinstance(source, Variables):
        arrays, more = arrays_by_name(source, None), {}
    else:
        raise TypeError(
            f"update: wants a path, a model or its variables, got {type(source).__name__}; a path is a str or a Path"
        )
    handle = shared.filled(fetch(arrays))
    try:
        yield more, [handle]
    finally:
        os.close(handle)
