"""Figures as text for Prometheus, gathered when they are asked for."""

from collections.abc import Callable, Iterable
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(families: Callable[[], Iterable[Any]]) -> bytes:
    """The families of figures, prometheus_client's `Metric`s, in Prometheus' text format.

    >>> from prometheus_client.core import GaugeMetricFamily
    >>> print(exposition(lambda: [GaugeMetricFamily("watts", "Power", 3.0)]).decode(), end="")
    # HELP watts Power
    # TYPE watts gauge
    watts 3.0
    """
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterable[Any]:
            return families()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)
