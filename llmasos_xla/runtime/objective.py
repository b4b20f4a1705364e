"""What a trial's job runs: the function of a search with the trial's parameters."""

import dataclasses
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a function returned, told so that whoever reads it needs neither JAX nor the function's classes."""

    value: float | None
    """None if it returned None, or nothing that is a number."""
    kind: str = ""
    """The type of what is no number."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The function of a file, and what it is called with.

    Attributes:
        path: of the file, as `submit` writes one: once for all trials, since data may be in it.
        parameters: the trial's, by name.
    """

    path: str
    parameters: Mapping[str, Any]

    def __call__(self) -> Outcome:
        """Calls the function."""
        function, _ = pickle.loads(pathlib.Path(self.path).read_bytes())
        return outcome(function(**self.parameters))


def outcome(result: Any) -> Outcome:
    """What was returned, as a number if it is one: a Python number, or an array of one number.

    >>> outcome(3), outcome(None), outcome("3")
    (Outcome(value=3.0, kind=''), Outcome(value=None, kind=''), Outcome(value=None, kind='str'))
    """
    if result is None:
        return Outcome(None)
    if not isinstance(result, str | bytes):
        try:
            return Outcome(float(result))
        except (TypeError, ValueError):
            pass
    return Outcome(None, type(result).__name__)
