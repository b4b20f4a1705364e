"""What a contestant runs against: it may run an epoch when the gate lets it, and the gate holds the clock."""

import time

import numpy as np

from side_by_side.channel import Channel


class Gate:
    """The contestant's end of the pipe.

    The contestant calls `start()` when its model and data are ready and `epoch(result)` after every epoch. An epoch's
    time is from leaving one of these calls to entering the next: all that the front end does for an epoch counts, and
    what it compiles on the way falls into the first one.
    """

    def __init__(self, channel: Channel, warm_up: int):
        self._channel = channel
        self._left = warm_up
        self._seconds: list[float] = []
        self._results: list[float | list[float]] = []
        self._since = 0.0

    def start(self) -> None:
        """Starts the clock of the first epoch."""
        self._since = time.perf_counter()

    def epoch(self, result: float | np.ndarray) -> bool:
        """Notes an epoch's end and waits for its turn; False: no more epochs.

        `result` is what the arena checks: the epoch's mean loss, or the prediction for the first row of the data.
        """
        self._seconds.append(time.perf_counter() - self._since)
        self._results.append(np.asarray(result, np.float64).tolist())
        self._left -= 1
        if not self._left:
            self._channel.answer(seconds=self._seconds, results=self._results)
            self._seconds, self._results = [], []
            self._left = int((self._channel.request() or {"epochs": 0})["epochs"])
        self._since = time.perf_counter()
        return self._left > 0
