"""Files and folders that are whole or not there."""

import contextlib
import os
import pathlib
import shutil
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


def folder_atomically(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Puts the folder that `fill(temporary folder)` fills in the place of the one there was, which stays until then."""
    new = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    old = None
    try:
        fill(new)
        umask = os.umask(0)
        os.umask(umask)
        new.chmod(0o777 & ~umask)
        if path.exists():
            old = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, old)
        os.replace(new, path)
    finally:
        # An old folder that is here without a new one is put back.
        if old is not None and not path.exists():
            os.replace(old, path)
        for folder in (new, old):
            if folder is not None and folder.exists():
                shutil.rmtree(folder)
