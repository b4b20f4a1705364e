"""A monitor's newest samples as families of figures for Prometheus."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmasos_xla.energy import Energy
from llmasos_xla.runtime.figures import COLUMNS, FOLLOWED_COLUMNS, GPU_COLUMNS, Column


def families(
    row: Mapping[str, float], gpus: Sequence[str], followed: Mapping[str, Mapping[str, float]], energy: Energy
) -> Iterator[Any]:
    """What is known, and nothing for what is not.

    Args:
        row: a sample by column.
        gpus: the GPUs' names.
        followed: the newest sample of each process that is followed.
        energy: how well the joules are known.
    """
    from prometheus_client.core import CounterMetricFamily, InfoMetricFamily

    for name, column in COLUMNS.items():
        if name == "joules":
            if not math.isnan(row.get(name, math.nan)):
                yield CounterMetricFamily("llmasos_energy_joules", column.about, row[name])
        elif name != "time":
            yield from _gauge(name, column, [], {(): row.get(name, math.nan)})
    labels = {"quality": energy.quality, "source": energy.source}
    yield InfoMetricFamily("llmasos_energy", "How well the joules are known, and where they are from", labels)
    for kind, column in GPU_COLUMNS.items():
        values = {(str(i), gpu): row.get(f"gpu{i}_{kind}", math.nan) for i, gpu in enumerate(gpus)}
        yield from _gauge(f"gpu_{kind}", column, ["gpu", "name"], values)
    for kind, column in FOLLOWED_COLUMNS.items():
        if kind != "time":
            values = {(name,): sample.get(kind, math.nan) for name, sample in followed.items()}
            yield from _gauge(f"followed_{kind}", column, ["of"], values)


def _gauge(name: str, column: Column, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    title = f"llmasos_{name}" if not column.unit or name.endswith(column.unit) else f"llmasos_{name}_{column.unit}"
    family = GaugeMetricFamily(title, column.about, labels=labels)
    for key, value in values.items():
        if not math.isnan(value):
            family.add_metric(key, float(value))
    if family.samples:
        yield family
