"""What was found on a device, written as it is found: a run may be cut short at any moment."""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

KIND = "gpu"


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """The results of all devices in the folder."""
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError):
            content = json.loads(path.read_text())
            if isinstance(content, dict) and content.get("kind") == KIND:
                yield content


class Records:
    """The results of one device, with those of earlier runs where this one has no newer ones.

    Args:
        path: the file.
        about: the device, and versions; each thing found keeps those under which it was found.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self._about = path, about
        before = json.loads(path.read_text()) if path.exists() else {}
        self.content: dict[str, Any] = {"kind": KIND, **before, "about": about}

    def section(self, name: str, found: dict[str, Any]) -> None:
        """Keeps what was found in the place of what was there."""
        self.content[name] = {"date": now(), "versions": self._about["versions"], **found}
        write(self.path, self.content)

    def entry(self, name: str, row: Sequence[str], found: dict[str, Any]) -> None:
        """Keeps what was found of one row."""
        rows = self.content.setdefault(name, [])
        rows[:] = [r for r in rows if r["row"] != list(row)]
        rows.append({"row": list(row), "date": now(), "versions": self._about["versions"], **found})
        write(self.path, self.content)

    @property
    def probed(self) -> dict[str, Any]:
        """What was probed of the device, now or before."""
        return self.content.get("probe", {}).get("found", {})
