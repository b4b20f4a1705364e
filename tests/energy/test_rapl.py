"""Counters of energy in trees of files like Linux' own."""

import os

import pytest

from llmasos_xla.energy import Meter
from llmasos_xla.energy.figures import UnavailableError
from llmasos_xla.energy.rapl import Rapl

RANGE = 262_143_328_850


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def zones(tmp_path):
    """Writes the counters: zone -> (name, microjoules)."""

    def write(counters, top=RANGE):
        for zone, (name, microjoules) in counters.items():
            folder = tmp_path / zone
            folder.mkdir(exist_ok=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "max_energy_range_uj").write_text(f"{top}\n")
            (folder / "energy_uj").write_text(f"{microjoules}\n")
        return tmp_path

    return write


def test_packages_and_their_memory_count_once(zones):
    """Cores lie within their package, psys holds both, and the zones of mmio are the same ones again."""
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    root = zones({zone: (name, 1000) for zone, name in names.items()})
    (root / "intel-rapl").mkdir()
    counter = Rapl(root)
    zones({zone: (name, 1000 + 10 ** (6 + i)) for i, (zone, name) in enumerate(names.items())})
    found = counter.read()
    assert (found.joules, found.quality) == (1 + 100 + 1000, "measured")
    assert found.source == "RAPL of dram, package-0, package-1, the whole machine"


def test_a_board_without_packages_counts_by_itself(zones):
    counter = Rapl(zones({"intel-rapl:0": ("psys", 0)}))
    zones({"intel-rapl:0": ("psys", 5_000_000)})
    assert counter.read().joules == 5


def test_a_counter_that_comes_round(zones):
    """The sum over many readings is what was used, however the counter stands."""
    clock, used = Clock(), 0
    counter = Rapl(zones({"intel-rapl:0": ("package-0", RANGE - 3_000_000)}), clock)
    for step in (1_000_000, 7_000_000, RANGE - 8_000_000, 250_000_000_000, 1):
        used += step
        clock.now += 200
        zones({"intel-rapl:0": ("package-0", (RANGE - 3_000_000 + used) % RANGE)})
        assert counter.read().joules == pytest.approx(used / 1e6, rel=1e-12)
    assert counter.read().quality == "measured"


def test_a_counter_that_was_left_alone_for_too_long_is_no_measurement(zones):
    """Its range over 1000 W is how long it cannot have come round twice."""
    clock = Clock()
    counter = Rapl(zones({"intel-rapl:0": ("package-0", 0)}), clock)
    clock.now = 262.0
    assert counter.read().quality == "measured"
    clock.now += 263.0
    found = counter.read()
    assert found.quality == "estimated"
    assert "read more than 262 s apart" in found.source


def test_without_counters(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UnavailableError, match="no counters of energy in .*: a virtual machine"):
            Rapl(root)


def test_who_may_not_read_them_is_told_how_to(zones, monkeypatch):
    root = zones({"intel-rapl:0": ("package-0", 0)})
    read = type(root).read_text

    def refuse(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    # Root may read what has no rights at all, so the refusal is made.
    monkeypatch.setattr(type(root), "read_text", refuse)
    with pytest.raises(
        UnavailableError, match=r"energy_uj may be read by root alone; `chmod a\+r .*/intel-rapl:\*/energy_uj`"
    ):
        Rapl(root)
    meter = Meter(rapl=root)
    assert meter.read().quality == "estimated"
    assert "by root alone" in meter.why_not_measured


def test_counters_that_vanish_are_absent(zones):
    root = zones({"intel-rapl:0": ("package-0", 0)})
    counter = Rapl(root)
    os.remove(root / "intel-rapl:0" / "energy_uj")
    found = counter.read()
    assert found.quality == "absent"
    assert "can no longer be read" in found.source
