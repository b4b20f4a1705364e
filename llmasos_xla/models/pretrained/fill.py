"""Published arrays put where a model has them: every array accounted for, on both sides."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llmasos_xla.core import Variables
from llmasos_xla.models.config import Config
from llmasos_xla.models.pretrained.names import Name

_SHOWN = 12


def fill(
    config: Config,
    arrays: Mapping[str, Any],
    source: str,
    *,
    ignored: Sequence[str] = (),
    initial: Variables | None = None,
) -> Variables:
    """The model's variables from the arrays of a source, as NumPy arrays (views of the source's where that can be).

    Args:
        config: the model.
        arrays: the source's arrays by the source's names; only those that are wanted are looked at.
        source: which table of names holds, "huggingface" for instance (`Config.names`).
        ignored: regular expressions, searched for in the source's names, of arrays that may be left over: buffers that
            are no weights.
        initial: variables whose values stand where the source may lack an array (`Name.optional`).

    Raises ValueError that lists the arrays that are missing, those left over, and those of another shape.
    """
    wanted = jax.eval_shape(config.net().init, jax.random.key(0))
    shapes = {**wanted.params, **wanted.state}
    first = f"{config.name or config.base_name}/"
    table = [name._replace(ours=first + name.ours) for name in config.names(source)]
    _check_table(config, table, shapes)
    missing, wrong, filled, used = [], [], {}, set()
    for name in table:
        sources = (name.theirs,) if isinstance(name.theirs, str) else tuple(name.theirs)
        used.update(sources)
        if lacking := [s for s in sources if s not in arrays]:
            if name.optional and initial is not None:
                filled[name.ours] = {**initial.params, **initial.state}[name.ours]
            else:
                missing += lacking
            continue
        try:
            parts = [name.layout.ours(np.asarray(arrays[s])) for s in sources]
            array = parts[0] if isinstance(name.theirs, str) else np.stack(parts)
        except ValueError as error:
            wrong.append(f"{sources[0]}: {error}")
            continue
        if array.shape != shapes[name.ours].shape:
            wrong.append(
                f"{sources[0]} {np.shape(arrays[sources[0]])} lies as {array.shape} here, {name.ours} is "
                f"{shapes[name.ours].shape}"
            )
            continue
        filled[name.ours] = array.astype(shapes[name.ours].dtype, copy=False)
    left = [s for s in arrays if s not in used and not any(re.search(pattern, s) for pattern in ignored)]
    if missing or left or wrong:
        raise ValueError(
            f"{config.who}: the weights ({source}) do not fit the model"
            + _listed("missing", missing)
            + _listed("left over", left)
            + _listed("of another shape", wrong)
        )
    return Variables({n: filled[n] for n in wanted.params}, {n: filled[n] for n in wanted.state})


def _check_table(config: Config, table: Iterable[Name], shapes: Mapping[str, Any]) -> None:
    ours = [name.ours for name in table]
    if sorted(ours) != sorted(shapes):
        raise AssertionError(
            f"{type(config).__name__}.names: missing {sorted(shapes.keys() - set(ours))[:_SHOWN]}, unknown "
            f"{sorted(set(ours) - shapes.keys())[:_SHOWN]}, twice {sorted({n for n in ours if ours.count(n) > 1})}"
        )


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; {len(names)} {what}: {', '.join(sorted(names)[:_SHOWN])}{more}"
