"""What was measured to be fastest on a GPU: `kernels/tuned/<device>.json`, op -> shape class -> sizes of the kernel."""

import functools
import json
import pathlib
import re
from typing import Any

FOLDER = pathlib.Path(__file__).parent.parent / "tuned"


def lookup(device_name: str, op: str, key: str) -> dict[str, Any] | None:
    """The sizes for that op and shape class on that GPU, or None where nothing was measured."""
    return _table(device_name).get(op, {}).get(key)


@functools.cache
def _table(device_name: str) -> dict[str, dict[str, dict[str, Any]]]:
    path = FOLDER / f"{re.sub('[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"
    return json.loads(path.read_text()) if path.exists() else {}
