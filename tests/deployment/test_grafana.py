"""The Grafana board: of the form that Grafana reads, and of the figures that a server has, all of them."""

import importlib.resources
import itertools
import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

KINDS = {"stat", "timeseries", "heatmap"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@pytest.fixture(scope="module")
def board():
    return json.loads(importlib.resources.files("llmasos_xla.deployment").joinpath("grafana.json").read_text())


@pytest.fixture(scope="module")
def series(client):
    """name -> labels, as Prometheus would store what a server shows after a request."""
    data = [[[0] * 6] * 6]
    client.infer({"inputs": [{"name": "input", "shape": [1, 6, 6], "datatype": "UINT8", "data": data}]})
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            # Prometheus adds which server it was.
            found.setdefault(sample.name, {"instance"}).update(sample.labels)
    # When a counter was created is no figure; Prometheus drops it, too.
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


def expressions(board):
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["expr"]
    for variable in board["templating"]["list"][1:]:
        yield re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1]


def test_its_panels_are_of_the_form_that_grafana_reads(board):
    assert board["schemaVersion"] >= 36
    assert board["title"]
    assert re.fullmatch(r"[\w-]{1,40}", board["uid"])
    assert board["time"].keys() == {"from", "to"}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in KINDS
        assert panel["datasource"] == SOURCE
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == SOURCE for target in panel["targets"])
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()


def test_panels_lie_on_the_grid_and_not_on_each_other(board):
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_who_imports_it_chooses_the_source(board):
    first, *others = board["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert all(variable["datasource"] == SOURCE for variable in others)
    known = {"$" + variable["name"] for variable in board["templating"]["list"]} | {"$__rate_interval"}
    assert {name for text in expressions(board) for name in re.findall(r"\$\w+", text)} <= known


def test_it_shows_every_figure_of_a_server_and_no_other(board, series):
    named = {name for text in expressions(board) for name in re.findall(r"llmasos_\w+", text)}
    assert named == set(series)


def test_its_labels_are_those_of_the_figures(board, series):
    for text in expressions(board):
        assert text.count("(") == text.count(")")
        for name, inside in re.findall(r"(llmasos_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)=~", inside)) <= series[name], text
        names = re.findall(r"llmasos_\w+", text)
        for by in re.findall(r"by \(([^)]*)\)", text):
            assert set(by.split(", ")) <= set.union(*(series[name] for name in names)), text
    for panel in board["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {label for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in by.split(", ")}
            assert shown <= kept, target


def test_counters_are_rates_and_gauges_are_not(board, series):
    for text in expressions(board):
        for before, name in re.findall(r"(\w*\(?)(llmasos_\w+)", text):
            counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
            if "[" in text:
                assert (before in ("rate(", "increase(")) == counts, text
