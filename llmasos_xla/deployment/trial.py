"""A new version on trial: a share of the requests, or a copy of them, and a judgement in the end."""

import collections
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

import numpy as np

from llmasos_xla.deployment.served import Served

_LOG = logging.getLogger("llmasos_xla.deployment")
_RECENT = 2000


@final
class Trial:
    """Counts what a version does beside the one that answers, and judges it.

    Args:
        served: the version on trial.
        share: of the requests that it answers, 0 to 1; or, as a shadow, that it computes as well and nobody sees.
        shadow: whether its answers are thrown away.
        requests: how many it has to have had to be judged good.
        most_errors: share of failures above which it is judged bad.
        most_latency: its median latency over that of the version that answers, above which it is bad.
        most_difference: of a shadow's outputs to those that were sent, above which it is bad. A shadow without one is
            watched until it fails or somebody ends the trial: that it computes something says nothing of what.
        judged: called once with the verdict and its reason.

    Raises ValueError for figures that are none: found out later, they would be so by a request.
    """

    def __init__(
        self,
        served: Served,
        share: float = 0.1,
        *,
        shadow: bool = False,
        requests: int = 100,
        most_errors: float = 0.01,
        most_latency: float = 2.0,
        most_difference: float | None = None,
        judged: Callable[[Literal["good", "bad"], str], None],
    ):
        whole = type(requests) is int and requests >= 1
        for name, value, fits, wanted in (
            ("share", share, _is_number(share) and 0 < share <= 1, "above 0 and at most 1"),
            ("shadow", shadow, isinstance(shadow, bool), "True or False"),
            ("requests", requests, whole, "a whole number from 1"),
            ("most_errors", most_errors, _is_number(most_errors) and 0 <= most_errors <= 1, "a share, 0 to 1"),
            ("most_latency", most_latency, _is_number(most_latency) and most_latency > 0, "a number above 0"),
            (
                "most_difference",
                most_difference,
                most_difference is None or (_is_number(most_difference) and most_difference >= 0),
                "a number from 0",
            ),
        ):
            if not fits:
                raise ValueError(f"update: the {name} of a trial is {wanted}, {repr(value)[:40]} came")
        self.served, self.share, self.shadow = served, share, shadow
        self._wanted, self._most_errors, self._most_latency = requests, most_errors, most_latency
        if most_difference is not None and not shadow:
            raise ValueError("update: most_difference is for a shadow, whose outputs have others to be held against")
        self._most_difference = most_difference
        self._judged = judged
        self.answered = self.failed = 0
        self.largest_difference = 0.0
        """Between its outputs and those that were sent, as a shadow."""
        self.verdict: Literal["good", "bad"] | None = None
        self.reason = ""
        self._due = 0.0
        self._mine: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._theirs: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._busy = threading.Lock()

    def takes(self) -> bool:
        """Whether it answers the next request: one of so many, evenly spread."""
        if self.shadow or self.verdict is not None:
            return False
        return self._is_due()

    def told(self, seconds: float | None, error: Exception | None) -> None:
        """What became of a request that it answered; without seconds where they say nothing of the version."""
        if error is None:
            self.answered += 1
            if seconds is not None:
                self._mine.append(seconds)
        else:
            self.failed += 1
        self._judge()

    def beside(self, seconds: float, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """A request that the other version answered; a shadow computes its share of them too, one at a time."""
        self._theirs.append(seconds)
        if not self.shadow or self.verdict is not None or not self._is_due() or not self._busy.acquire(blocking=False):
            return
        threading.Thread(target=self._follow, args=(inputs, outputs), name="shadow", daemon=True).start()

    def stats(self) -> dict[str, Any]:
        """Figures of the moment."""
        return {
            "version": self.served.version,
            "share": self.share,
            "shadow": self.shadow,
            "answered": self.answered,
            "failed": self.failed,
            "largest_difference": self.largest_difference if self.shadow else None,
            "verdict": self.verdict,
            "reason": self.reason,
        }

    def _is_due(self) -> bool:
        self._due += self.share
        if self._due < 1 - 1e-9:
            return False
        self._due -= 1
        return True

    def _follow(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        try:
            mine = self.served.run(inputs)
            for name, theirs in outputs.items():
                if theirs.dtype.kind == "f":
                    difference = np.abs(mine[name].astype(np.float64) - theirs).max(initial=0.0)
                    # A difference that is no number is told as infinite: comparisons with NaN would hide it.
                    self.largest_difference = max(
                        self.largest_difference, float(difference) if np.isfinite(difference) else np.inf
                    )
            self.answered += 1
        except Exception as error:
            # The first alone: a shadow that fails, fails at every request, and nobody else would tell of it.
            if not self.failed:
                _LOG.error("version %s failed as a shadow", self.served.version, exc_info=error)
            self.failed += 1
        finally:
            self._busy.release()
        self._judge()

    def _judge(self) -> None:
        if self.verdict is not None:
            return
        count = self.answered + self.failed
        if self.failed and self.failed > self._most_errors * max(count, self._wanted):
            self._say("bad", f"{self.failed} of {count} requests failed")
        elif self.shadow:
            self._judge_outputs(count)
        elif count >= self._wanted:
            mine, theirs = (float(np.median(s)) if s else 0.0 for s in (self._mine, self._theirs))
            if theirs and mine > self._most_latency * theirs:
                self._say("bad", f"its median latency is {mine / theirs:.2f} times that of the version that answers")
            else:
                self._say("good", f"{self.answered} of {count} requests answered")

    def _judge_outputs(self, count: int) -> None:
        most = self._most_difference
        if most is None:
            return
        if self.largest_difference > most:
            self._say("bad", f"its outputs differ by {self.largest_difference:.3g}, {most:.3g} is allowed")
        elif count >= self._wanted:
            self._say("good", f"outputs of {self.answered} requests differ by at most {self.largest_difference:.3g}")

    def _say(self, verdict: Literal["good", "bad"], reason: str) -> None:
        self.verdict, self.reason = verdict, reason
        self._judged(verdict, reason)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
