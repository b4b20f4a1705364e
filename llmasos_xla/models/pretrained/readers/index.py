"""Weights in many files beside an index, model.safetensors.index.json, of which array is in which."""

import json
import os
import pathlib
from collections.abc import Callable

from llmasos_xla.storage.views import Arrays

_MOST_BYTES = 100_000_000


def read(path: str | os.PathLike, read_file: Callable[[pathlib.Path], Arrays]) -> Arrays:
    """The arrays of all files that the index names, each opened by `read_file`.

    Raises ValueError for an index that is damaged, leads out of its folder, or names what its files lack.
    """
    path = pathlib.Path(path)
    files = _weight_map(path)
    parts = {file: read_file(path.parent / file) for file in sorted(set(files.values()))}
    lacking = sorted(name for name, file in files.items() if name not in parts[file])
    if lacking:
        raise ValueError(
            f"pretrained: {path.name!r} names {len(lacking)} arrays that its files lack, {lacking[0]!r} in "
            f"{files[lacking[0]]!r} for one"
        )
    format = next(iter(parts.values())).format
    return Arrays(format, {name: parts[file][name] for name, file in files.items()})


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"pretrained: {path.name!r} is too large for an index")
    try:
        files = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"pretrained: {path.name!r} is no index of weights: {error!r}") from error
    if not isinstance(files, dict) or not files:
        raise ValueError(f"pretrained: {path.name!r} has no weight_map")
    for file in files.values():
        # A name that leads out of the folder is in nobody's honest index.
        if not isinstance(file, str) or file != pathlib.PurePath(file).name or "\0" in file:
            raise ValueError(f"pretrained: {path.name!r} names {str(file)[:80]!r}, which is no file of its folder")
        if file.endswith(".index.json") or not (path.parent / file).is_file():
            raise ValueError(f"pretrained: {path.name!r} names {file!r}, which is no file of weights beside it")
    return files
