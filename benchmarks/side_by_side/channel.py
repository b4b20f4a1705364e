"""The pipe to the arena, as the contestant sees it: requests come, answers go, both a line of JSON."""

import json
from typing import Any, BinaryIO


class Channel:
    """The contestant's end."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO):
        self._requests, self._answers = requests, answers

    def request(self) -> dict[str, Any] | None:
        """Waits for the next request; None when the arena is gone."""
        line = self._requests.readline()
        return json.loads(line) if line else None

    def answer(self, **values: Any) -> None:
        """Sends one answer."""
        self._answers.write(json.dumps(values).encode() + b"\n")
        self._answers.flush()


def told(error: Exception) -> str:
    """The error in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
