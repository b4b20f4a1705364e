"""Figures of a server in Prometheus' text format, read off the host when they are asked for."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmasos_xla import exposition as prometheus
from llmasos_xla.deployment.host import Host

CONTENT_TYPE = prometheus.CONTENT_TYPE


def exposition(host: Host) -> bytes:
    """All figures of the moment."""
    return prometheus.exposition(lambda: _families(host))


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """The figures of several replicas, by the name of each, as one text: a label says which replica it was."""
    from prometheus_client import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    for replica, text in expositions.items():
        for found in text_string_to_metric_families(text.decode()):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return prometheus.exposition(families.values)


def _families(host: Host) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    def counter(name: str, text: str) -> Any:
        return CounterMetricFamily(f"llmasos_{name}", text, labels=["model"])

    def gauge(name: str, text: str) -> Any:
        return GaugeMetricFamily(f"llmasos_{name}", text, labels=["model"])

    counters = {
        "requests": counter("requests", "Requests that a model took"),
        "failures": counter("request_failures", "Requests that a model took and did not answer"),
        "refused": counter("requests_refused", "Requests that found no room in the queue"),
        "updates": counter("updates", "Versions that took the place of another"),
        "rollbacks": counter("rollbacks", "Versions that were taken back"),
        "batches": counter("batches", "Calls of the program"),
        "rows": counter("rows", "Rows of these calls, without padding"),
    }
    gauges = {
        "waiting": gauge("requests_waiting", "Requests in the queue"),
        "programs": gauge("programs", "Programs compiled for the version that answers"),
        "weight_bytes": gauge("weight_bytes", "Bytes of the weights of the version that answers"),
    }
    seconds = HistogramMetricFamily(
        "llmasos_request_seconds", "From the request's last byte to its outputs", labels=["model"]
    )
    version = GaugeMetricFamily("llmasos_version_info", "The version that answers", labels=["model", "version"])
    for slot in host.slots.values():
        stats = slot.stats()
        for name, family in (counters | gauges).items():
            family.add_metric([slot.name], stats[name])
        seconds.add_metric([slot.name], *slot.histogram.cumulated())
        if stats["version"] is not None:
            version.add_metric([slot.name, stats["version"]], 1)
    yield from counters.values()
    yield from gauges.values()
    yield seconds
    yield version
    yield GaugeMetricFamily("llmasos_requests_inside", "Requests that are read, wait or run", host.inside)
    yield GaugeMetricFamily("llmasos_ready", "1 if requests are answered", float(host.state == "ready"))
