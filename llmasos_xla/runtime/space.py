"""What a search may try: ranges and choices, a name each, as optuna's distributions."""

import ast
import importlib
import inspect
import json
import math
import numbers
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_xla.errors import missing_package

_KINDS = "uniform(), loguniform(), integers(), a list of choices, or a distribution of optuna's"


def optuna(who: str = "tune") -> Any:
    """The package; raises ImportError with what to install."""
    try:
        with warnings.catch_warnings():
            # In a notebook without ipywidgets, of progress bars that are not shown here.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return importlib.import_module("optuna")
    except ImportError:
        raise missing_package(who, "optuna", "tune") from None


def uniform(low: float | int, high: float | int, *, step: float | int | None = None) -> Any:
    """Numbers from `low` to `high`, each as likely as any other; with `step` only low, low + step, ...

    >>> uniform(0.0, 0.5).high
    0.5
    """
    low, high = _ends("uniform", low, high)
    if step is not None and not (_is_number(step) and 0 < step <= high - low):
        raise ValueError(f"uniform: a step is above 0 and at most high - low, {step!r} came for {low:g} to {high:g}")
    return optuna("uniform").distributions.FloatDistribution(low, high, step=step and float(step))


def loguniform(low: float | int, high: float | int) -> Any:
    """Numbers from `low` to `high` whose logarithms are uniform: for rates and strengths, over orders of magnitude.

    >>> loguniform(1e-4, 1e-1).log
    True
    """
    low, high = _ends("loguniform", low, high)
    if low <= 0:
        raise ValueError(f"loguniform: low is above 0, {low:g} came; 0 has no logarithm")
    return optuna("loguniform").distributions.FloatDistribution(low, high, log=True)


def integers(low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
    """Whole numbers from `low` to `high`, both among them; with `log` as `loguniform` has them.

    >>> integers(8, 64, log=True).high
    64
    """
    for name, value in (("low", low), ("high", high), ("step", step)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"integers: {name} is a whole number, {value!r} came")
    low, high, step = operator.index(low), operator.index(high), operator.index(step)
    if low >= high:
        raise ValueError(f"integers: low is below high, {low} and {high} came")
    if step < 1 or (log and (step > 1 or low < 1)):
        wanted = "low is 1 or more and step is 1 with log=True" if log else "step is 1 or more"
        raise ValueError(f"integers: {wanted}, low {low} and step {step} came")
    return optuna("integers").distributions.IntDistribution(low, high, step=step, log=log)


def choice(values: Sequence[Any]) -> Any:
    """One of several values: None, bool, int, float or str, which the study's file can hold.

    >>> choice(["relu", "gelu"]).choices
    ('relu', 'gelu')
    """
    kept = tuple(values)
    if not kept:
        raise ValueError("choice: there is nothing to choose from")
    for value in kept:
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise TypeError(
                f"choice: a value is None, a bool, an int, a float or a str, {value!r} came; "
                "give names, and look up in the function what they stand for"
            )
    return optuna("choice").distributions.CategoricalDistribution(kept)


def checked(space: Mapping[str, Any]) -> dict[str, Any]:
    """The distributions of a space; lists in it are choices. Raises ValueError and TypeError for what is none."""
    if not isinstance(space, Mapping):
        raise TypeError(f"tune: the space is a dict of names and ranges, {type(space).__name__} came")
    if not space:
        raise ValueError(
            'tune: the space is empty; name what is to be found, as {"learning_rate": loguniform(1e-4, 1)}'
        )
    base = optuna().distributions.BaseDistribution
    found = {}
    for name, what in space.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"tune: a name in the space is that of an argument, {name!r} came")
        if isinstance(what, list):
            what = choice(what)
        if not isinstance(what, base):
            hint = f"; write uniform{what} or [{what[0]}, ...]" if isinstance(what, tuple) and len(what) == 2 else ""
            raise TypeError(f"tune: {name!r} in the space is {_KINDS}; {what!r} came{hint}")
        found[name] = what
    return found


def read(text: str) -> tuple[str, Any]:
    """A name and what it may be, as a shell says it. Raises ValueError for what cannot be read.

    >>> read("width=16,32,64"), read("rate=loguniform(1e-4, 1e-1)")[1].high
    (('width', [16, 32, 64]), 0.1)
    """
    name, equals, what = (part.strip() for part in text.partition("="))
    if not (name.isidentifier() and equals and what):
        raise ValueError(f"tune: --space is NAME=RANGE or NAME=A,B,C, {text!r} came")
    if "(" not in what:
        return name, [_read_value(each.strip()) for each in what.split(",")]
    ranges = {"uniform": uniform, "loguniform": loguniform, "integers": integers}
    try:
        call = ast.parse(what, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ranges):
            raise ValueError(what)
        given = [ast.literal_eval(argument) for argument in call.args]
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
        # What this refuses are the arguments, all of which are known.
        inspect.signature(ranges[call.func.id]).bind(*given, **named)
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(
            f"tune: a range is uniform(0, 1), loguniform(1e-4, 1e-1) or integers(1, 8), {what!r} came for {name!r}"
        ) from None
    return name, ranges[call.func.id](*given, **named)


def _read_value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def as_json(space: Mapping[str, Any]) -> dict[str, Any]:
    """Distributions as a study keeps them, to know the same space again."""
    to_json = optuna().distributions.distribution_to_json
    return {name: json.loads(to_json(distribution)) for name, distribution in sorted(space.items())}


def suggested(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial, those that it lacks chosen by the study's sampler."""
    found, kinds = {}, optuna().distributions
    for name, of in space.items():
        if isinstance(of, kinds.CategoricalDistribution):
            found[name] = trial.suggest_categorical(name, of.choices)
        elif isinstance(of, kinds.IntDistribution):
            found[name] = trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
        else:
            found[name] = trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
    return found


def _ends(who: str, low: Any, high: Any) -> tuple[float, float]:
    for name, value in (("low", low), ("high", high)):
        if not _is_number(value):
            raise TypeError(f"{who}: {name} is a finite number, {value!r} came")
    if not low < high:
        raise ValueError(f"{who}: low is below high, {low:g} and {high:g} came")
    return float(low), float(high)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
