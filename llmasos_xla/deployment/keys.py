"""The file of keys, one of which comes with every request."""

import os
import pathlib


def read_keys(path: str | os.PathLike) -> list[str]:
    """The keys of a file; raises ValueError where it holds none, which would let everybody in."""
    keys = pathlib.Path(path).read_text().split()
    if not keys:
        raise ValueError(
            f"deploy: the file of keys {str(path)!r} holds none, and would let everybody in; write one a line"
        )
    return keys
