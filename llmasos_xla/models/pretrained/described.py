"""What a folder of published weights says of its model: config.json."""

import json
import os
import pathlib
from typing import Any

_MOST_BYTES = 16 << 20


def described(path: str | os.PathLike) -> dict[str, Any] | None:
    """The config.json of a folder, or beside a file; None where there is none; ValueError for a damaged one."""
    return _table(config_file(path))


def ends_of_texts(path: str | os.PathLike) -> dict[str, Any]:
    """What a folder's generation_config.json says of the ids that end a text, which goes ahead of its config.json."""
    found = _table(config_file(path).with_name("generation_config.json")) or {}
    ends = found.get("eos_token_id")
    return {} if ends is None else {"eos_token_id": ends}


def _table(file: pathlib.Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"load_pretrained: {str(file)!r} is too large for a configuration")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load_pretrained: {str(file)!r} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"load_pretrained: {str(file)!r} is no table of sizes")
    return found


def config_file(path: str | os.PathLike) -> pathlib.Path:
    """Where config.json would be."""
    path = pathlib.Path(path)
    return (path if path.is_dir() else path.parent) / "config.json"


def names_of_classes(path: str | os.PathLike) -> tuple[str, ...] | None:
    """The classes' names in the order of the outputs, where config.json has them ("id2label")."""
    named = (described(path) or {}).get("id2label")
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        return None
    return tuple(str(named[key]) for key in sorted(named, key=int)) or None
