"""What a contestant trains against: it may run an epoch when the gate lets it, and the gate holds the clock."""

import json
import time
from typing import Any, BinaryIO


class Gate:
    """The contestant's end of the pipe.

    The contestant calls `start()` when its model and data are ready and `epoch(loss)` after every epoch. An epoch's
    time is from leaving one of these calls to entering the next: all that the front end does for an epoch counts, and
    what it compiles on the way falls into the first one.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, warm_up: int):
        self._requests, self._answers = requests, answers
        self._left = warm_up
        self._seconds: list[float] = []
        self._losses: list[float] = []
        self._since = 0.0

    def start(self) -> None:
        """Starts the clock of the first epoch."""
        self._since = time.perf_counter()

    def epoch(self, loss: float) -> bool:
        """Notes an epoch's end with its mean loss; waits for its turn; False: no more epochs."""
        self._seconds.append(time.perf_counter() - self._since)
        self._losses.append(float(loss))
        self._left -= 1
        if not self._left:
            self.answer(seconds=self._seconds, losses=self._losses)
            self._seconds, self._losses = [], []
            self._left = int(json.loads(self._requests.readline() or b'{"epochs": 0}')["epochs"])
        self._since = time.perf_counter()
        return self._left > 0

    def answer(self, **values: Any) -> None:
        """Sends one line."""
        self._answers.write(json.dumps(values).encode() + b"\n")
        self._answers.flush()
