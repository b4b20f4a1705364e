"""A folder of checkpoints as files: names, JSON, and a manifest that shows what is cut off, missing or altered.

runs/a/step_1200/arrays/        the arrays, each process's shards in files of its own
                /record.json    what else is to be known, and the metrics
                /manifest.json  size and CRC-32 of each file above
"""

import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

MANIFEST, RECORD, ARRAYS = "manifest.json", "record.json", "arrays"
LEFTOVERS = ("step_*.orbax-checkpoint-tmp*", "step_*.deleted")
_ENTRY = re.compile(r"step_(\d+)(?:\.(\d+))?")
# Larger than any specification that fits a person's head, smaller than what would fill memory.
_MOST_JSON_BYTES = 64 << 20
_CHUNK = 8 << 20


class DamagedCheckpointError(ValueError):
    """A checkpoint's files are not what was written."""


class Entry(NamedTuple):
    """A checkpoint in a folder; of two at the same step the higher revision counts."""

    step: int
    revision: int
    path: pathlib.Path


def entries(folder: str | os.PathLike) -> list[Entry]:
    """The checkpoints of a folder, oldest first, whole or damaged; half-written ones are none."""
    folder = pathlib.Path(folder)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and (match := _ENTRY.fullmatch(path.name)):
            found.append(Entry(int(match[1]), int(match[2] or 0), path))
    return sorted(found)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A file that holds one JSON object; raises DamagedCheckpointError for any other."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"checkpoint: {str(path)!r} is damaged: {error}") from error
    return content


def digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, list[int]]:
    """`{name: [bytes, CRC-32]}` of files; each is also brought to the disk, which a rename does not promise.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (pathlib.Path(folder) / "a").write_bytes(b"123456789")
    ...     digests(pathlib.Path(folder), ["a"])
    {'a': [9, 3421780262]}
    """
    return {name: list(_digest(folder / name, to_disk=True)) for name in names}


def first_damage(folder: pathlib.Path, manifest: str) -> str:
    """What is wrong with the first file that is not as its manifest says; "" if all are."""
    try:
        files = json.loads((folder / manifest).read_bytes())["files"]
        wanted = {str(name): (int(size), int(crc)) for name, (size, crc) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{manifest} cannot be read ({error!r})"
    for name, (size, crc) in wanted.items():
        path = folder / name
        if pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts:
            return f"{manifest} names a file outside, {name!r}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _digest(path) != (size, crc):
            return f"{name} has other bytes than were written"
    return ""


def _digest(path: pathlib.Path, to_disk: bool = False) -> tuple[int, int]:
    size, crc = 0, 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        if to_disk:
            os.fsync(file.fileno())
    return size, crc


def files(folder: pathlib.Path, base: pathlib.Path) -> list[str]:
    """Names of all files in the folder, relative to `base`."""
    return sorted(p.relative_to(base).as_posix() for p in folder.rglob("*") if p.is_file())


def free_name(path: pathlib.Path, ending: str) -> pathlib.Path:
    """The path with the ending, and a number if that is taken."""
    for number in range(1, 1 << 20):
        free = path.with_name(f"{path.name}{f'.{number}' if number > 1 else ''}{ending}")
        if not free.exists():
            return free
    raise FileExistsError(f"checkpoint: there is no free name beside {str(path)!r}")
