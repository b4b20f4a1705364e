"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable


def atomically(path: pathlib.Path, fill: Callable[[str], None]) -> None:
    """Puts what `fill(temporary path)` writes in the place of the file, which stays whole until then."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        fill(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        else:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
