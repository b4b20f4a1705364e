"""What a monitor sees, that it costs next to nothing, and that it ends."""

import math
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmasos_xla.runtime import Monitor, figures
from llmasos_xla.runtime.figures import Machine, Rate
from llmasos_xla.runtime.log import ParquetLog

psutil = pytest.importorskip("psutil", reason="psutil is not installed")

BURN = "import time\nprint(flush=True)\nend = time.time() + 60\nwhile time.time() < end: pass"


@pytest.fixture
def busy():
    """A process that works, until it is ended."""
    process = subprocess.Popen([sys.executable, "-c", BURN], stdout=-1)
    assert process.stdout.readline() == b"\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_of_it_costs_less_than_a_hundredth_of_a_core():
    """The CPU time of half a minute's samples, in a process with threads and arrays."""
    monitor = Monitor()
    monitor.sample()
    began = time.process_time()
    for _ in range(30):
        monitor.sample()
    each = (time.process_time() - began) / 30
    monitor.stop()
    assert each < 0.01 * monitor.interval


def test_its_thread_costs_as_little(monkeypatch):
    """By the thread's own clock, waking and waiting included."""
    spent = []
    monitor = Monitor(interval=0.05)
    read = monitor._jax.read

    def timed():
        spent.append(time.thread_time())
        return read()

    monkeypatch.setattr(monitor._jax, "read", timed)
    with monitor:
        time.sleep(1.5)
    # The last one is of the thread that stops it.
    assert len(spent) > 5
    assert (spent[-2] - spent[0]) / (len(spent) - 2) < 0.01


def test_samples_are_of_this_machine_and_process():
    monitor = Monitor()
    monitor.sample()
    began, own = time.monotonic(), time.process_time()
    while time.monotonic() - began < 0.4:
        pass
    row = monitor.sample()
    busy = (time.process_time() - own) / (time.monotonic() - began)
    monitor.stop()
    assert set(row) == set(monitor.columns) == set(monitor.about())
    assert row["process_cpu"] == pytest.approx(busy, rel=0.3)
    assert 0 < row["cpu"] <= 1
    assert row["memory_total"] == psutil.virtual_memory().total
    # Of others that it has started, too.
    assert row["process_memory"] >= 0.8 * psutil.Process().memory_info().rss
    assert row["disk_free"] == pytest.approx(psutil.disk_usage(".").free, rel=0.2)
    assert abs(row["time"] - time.time()) < 60
    assert row["processes"] >= 1


def test_the_ring_forgets_and_the_log_does_not(tmp_path):
    with Monitor(size=3, log=tmp_path / "log", interval=60.0) as monitor:
        for _ in range(9):
            monitor.sample()
    times = monitor.samples["time"]
    assert len(times) == 3
    assert (np.diff(times) >= 0).all()
    table = pyarrow.parquet.read_table(tmp_path / "log")
    assert table.column_names == list(monitor.columns)
    # The thread took one at once, and stop another.
    assert table.num_rows == 11
    assert table["time"].to_pylist()[-3:] == times.tolist()
    assert table.schema.metadata[b"process_memory"].startswith(b"Resident memory")


def test_a_log_is_readable_while_it_is_written(tmp_path):
    log = ParquetLog(tmp_path, ["a", "b"], {}, rows=4)
    for i in range(10):
        log.add({"a": float(i)})
    assert pyarrow.parquet.read_table(tmp_path)["a"].to_pylist() == list(range(8))
    other = ParquetLog(tmp_path, ["a", "b"], {})
    other.add({"a": -1.0})
    for each in (other, other, log):
        each.flush()
    assert sorted(pyarrow.parquet.read_table(tmp_path)["a"].to_pylist()) == list(range(-1, 10))
    assert not list(tmp_path.glob(".*"))


def test_it_ends_with_its_block():
    before = threading.active_count()
    with Monitor(interval=0.01) as monitor:
        assert threading.active_count() == before + 1
        time.sleep(0.2)
    assert threading.active_count() == before
    count = len(monitor.samples["time"])
    assert count > 3
    monitor.stop()
    assert len(monitor.samples["time"]) == count
    for call in (monitor.sample, monitor.start):
        with pytest.raises(RuntimeError, match="it was stopped; make another one"):
            call()


def test_it_ends_at_once_however_long_its_interval():
    monitor = Monitor(interval=3600.0).start()
    began = time.monotonic()
    monitor.stop()
    assert time.monotonic() - began < 10


def test_a_process_whose_monitor_nobody_stops_ends():
    code = "from llmasos_xla.runtime import Monitor\nMonitor().start()\nprint('over')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_a_thread_that_fails_says_so_when_it_is_stopped(tmp_path, monkeypatch):
    """The folder of its log is gone, as a disk would be."""
    monitor = Monitor(interval=0.01, log=tmp_path / "log")
    monkeypatch.setattr(monitor._log, "_size", 1)
    (tmp_path / "log").rmdir()
    monitor.start()._thread.join(30)
    with pytest.raises(FileNotFoundError):
        monitor.stop()
    monitor.stop()


def test_what_fails_within_the_block_is_the_better_error(tmp_path):
    def fails(error=None):
        with Monitor(interval=60.0, log=tmp_path / "log"):
            (tmp_path / "log").rmdir()
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    with pytest.raises(FileNotFoundError):
        fails()


def test_processes_are_followed_until_they_end(busy):
    with Monitor(interval=60.0) as monitor:
        monitor.follow("worker", busy.pid)
        time.sleep(0.5)
        monitor.sample()
        table = monitor.followed("worker")
        assert 0.05 < table["cpu"][-1] < 1.5
        assert table["memory"][-1] > 10**6
        assert table["processes"][-1] == 1
        assert b'llmasos_followed_memory_bytes{of="worker"}' in monitor.exposition()
        busy.kill()
        busy.wait()
        monitor.sample()
        assert monitor.followed("worker")["processes"][-1] == monitor.followed("worker")["memory"][-1] == 0
        for _ in range(2):
            monitor.unfollow("worker")
        with pytest.raises(ValueError, match="'worker' is not followed; nobody is"):
            monitor.followed("worker")
        with pytest.raises(ValueError, match=f"'worker' cannot be followed: there is no process {busy.pid}"):
            monitor.follow("worker", busy.pid)


def test_the_process_that_is_told_apart_may_be_another(busy):
    monitor = Monitor(pid=busy.pid)
    time.sleep(0.4)
    assert monitor.sample()["process_cpu"] > 0.05
    busy.kill()
    busy.wait()
    row = monitor.sample()
    monitor.stop()
    assert row["processes"] == row["process_memory"] == 0
    with pytest.raises(ValueError, match=f"monitor: there is no process {busy.pid}"):
        Monitor(pid=busy.pid)


def test_every_figure_reaches_prometheus():
    with Monitor(interval=60.0) as monitor:
        monitor.note(step=7.0, loss=0.5, epoch=1.0, step_seconds=0.1)
        time.sleep(2 * figures.SHORTEST)
        row = monitor.sample()
        families = text_string_to_metric_families(monitor.exposition().decode())
        samples = [sample for family in families for sample in family.samples]
        found = {sample.name: sample.value for sample in samples}
    assert found["llmasos_step"] == 7
    assert found["llmasos_step_seconds"] == 0.1
    assert found["llmasos_process_memory_bytes"] == row["process_memory"]
    assert found["llmasos_energy_joules_total"] == row["joules"]
    known = {name for name, value in row.items() if not math.isnan(value)}
    (info,) = [sample.labels for sample in samples if sample.name == "llmasos_energy_info"]
    assert info == {"quality": monitor.energy.quality, "source": monitor.energy.source}
    del found["llmasos_energy_info"]
    assert len(found) == len(known - {"time"})


def test_what_a_machine_does_not_tell_leaves_the_rest(monkeypatch):
    def hidden(**_):
        raise FileNotFoundError("/proc/net/dev")

    monkeypatch.setattr(psutil, "net_io_counters", hidden)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda: None)
    with Monitor(interval=60.0) as monitor:
        row = monitor.sample()
    assert math.isnan(row["network_sent"])
    assert math.isnan(row["disk_read"])
    assert row["disk_free"] > 0
    assert monitor.why_not["network"] == "not told by this machine: /proc/net/dev"


def test_rates():
    rate = Rate()
    assert math.isnan(rate.of(0.0, 100.0))
    assert math.isnan(rate.of(0.01, 200.0))
    assert rate.of(2.0, 300.0) == 100
    # Too near: the rate stands.
    assert rate.of(2.01, 400.0) == 100
    assert rate.of(4.0, 300.0) == 0
    assert math.isnan(rate.of(5.0, 10.0))
    assert rate.of(6.0, 20.0) == 10


@pytest.mark.usefixtures("unchecked")
def test_errors(monkeypatch, tmp_path):
    for wrong in (0, -1, math.inf, math.nan, True, "1"):
        with pytest.raises(ValueError, match="monitor: interval wants seconds > 0, got"):
            Monitor(interval=wrong)
    with pytest.raises(ValueError, match='monitor: energy wants "process" or "machine", got \'rapl\''):
        Monitor(energy="rapl")
    monitor = Monitor()
    with pytest.raises(ValueError, match="there is no figure lost; there are epoch, step, step_seconds, loss"):
        monitor.note(lost=1.0)
    monitor.stop()
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError, match=r'a monitor needs psutil: pip install "llmasos_xla\[runtime\]"'):
        Machine()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="a log of the monitor needs pyarrow: pip install pyarrow"):
        ParquetLog(tmp_path / "log", ["a"], {})
    assert not (tmp_path / "log").exists()
