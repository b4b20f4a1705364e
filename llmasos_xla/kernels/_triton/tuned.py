"""Block sizes that were measured fastest on a device: `kernels/tuned/<device>.json`."""

import functools
import json
import pathlib
from typing import Any

_FOLDER = pathlib.Path(__file__).parent.parent / "tuned"


def lookup(device: str, op: str, key: str) -> dict[str, Any] | None:
    """What was measured best for that class of shapes on that device, by name, or None where nothing was.

    >>> lookup("a GPU that nobody has", "depthwise forward", "bfloat16 7x7") is None
    True
    """
    return _table(device).get(op, {}).get(key)


@functools.cache
def _table(device: str) -> dict[str, dict[str, dict[str, Any]]]:
    path = _FOLDER / f"{device.replace(' ', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else {}
