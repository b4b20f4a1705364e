"""What keeps ranks from starting together is an error on all of them, which says who differs and what to do."""

import contextlib
import re
import socket
import threading
import time

import jax
import pytest
from sharding.ranks import TOTAL, ended, start

from llmasos_xla.sharding import distributed
from llmasos_xla.sharding.processes import preflight
from llmasos_xla.sharding.processes.hub import Hub
from llmasos_xla.sharding.processes.join import join, split
from llmasos_xla.sharding.processes.judge import Judge
from llmasos_xla.sharding.processes.preflight import PreflightError, faults
from llmasos_xla.sharding.processes.wire import Wire


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]


def row(rank, **more):
    """The facts of a rank that fits to its neighbors."""
    return {
        "rank": rank,
        "size": 3,
        "host": "abc"[rank % 3],
        "pid": 100 + rank,
        "run": "",
        "versions": {"llmasos_xla": "1.0", "jax": "0.10.2", "jaxlib": "0.10.2", "Python": "3.11"},
        "script": {"train.py": "11"},
        "package": {"core.py": "22", "errors.py": "33"},
        "devices": {"cpu": 1},
        "own_name": ["10.0.0.1"],
        "address": f"10.0.0.{rank + 1}",
        "ahead": 0.0,
        "apart": rank > 0,
        **more,
    }


def test_equal_ranks_have_no_faults():
    assert faults([row(0), row(1), row(2)]) == []


@pytest.mark.parametrize(
    ("change", "text", "skip"),
    [
        (
            {"versions": row(0)["versions"] | {"jax": "0.11.2"}},
            "jax differs: 0.10.2 on ranks 0 (host a), 2 (host c); 0.11.2 on rank 1 (host b). Install the same version",
            "versions",
        ),
        (
            {"script": {"train.py": "99"}},
            "script: train.py differs: 11 on ranks 0 (host a), 2 (host c); 99 on rank 1 (host b). Start the same scri",
            "code",
        ),
        (
            {"package": {"core.py": "22", "new.py": "1"}},
            "package: errors.py and 1 other files differs: 33 on ranks 0 (host a), 2 (host c); absent on rank 1 (host",
            "code",
        ),
        (
            {"ahead": 61.2},
            "clocks are apart: against rank 0's, rank 1 (host b) 61 s ahead. Set them (chronyd",
            "clocks",
        ),
        ({"ahead": -61.2}, "clocks are apart: against rank 0's, rank 1 (host b) 61 s behind.", "clocks"),
        (
            {"devices": {"NVIDIA H100": 8}},
            "devices differ: 1 x cpu on ranks 0 (host a), 2 (host c); 8 x NVIDIA H100 on rank 1 (host b). Give each",
            "devices",
        ),
        (
            {"devices": {"cpu": 4}},
            "devices differ: 1 x cpu on ranks 0 (host a), 2 (host c); 4 x cpu on rank",
            "devices",
        ),
        (
            {"address": "127.0.1.1", "own_name": ["127.0.1.1"]},
            "rank 1 (host b) would tell the others to find it at 127.0.1.1, which on every host is that host itself: "
            "they would wait for ever. Its own name resolves to 127.0.1.1. In its /etc/hosts give b its address",
            "names",
        ),
    ],
)
def test_a_rank_that_differs(change, text, skip):
    rows = [row(0), row(1, **change), row(2)]
    (found,) = faults(rows)
    assert found.startswith(text)
    assert found.endswith(f"(to start all the same: LLMASOS_PREFLIGHT_SKIP={skip})")
    assert faults(rows, skip=skip) == []


def test_loopback_addresses_are_right_on_one_host():
    assert faults([row(rank, address="127.0.0.1", apart=False) for rank in range(3)]) == []


def test_all_faults_are_told_at_once():
    found = faults([row(0), row(1, ahead=9.0, devices={"cpu": 2}), row(2)])
    assert [text.split()[0] for text in found] == ["clocks", "devices"]


def test_unknown_check():
    with pytest.raises(ValueError, match="LLMASOS_PREFLIGHT_SKIP: unknown check 'clock'; did you mean 'clocks'"):
        preflight.skipped("code,clock")


def test_the_facts_of_this_process():
    found = preflight.facts(__file__)
    assert found["devices"] == {"cpu": 8}
    assert set(found["versions"]) == {"llmasos_xla", "jax", "jaxlib", "Python"}
    assert list(found["script"]) == ["test_preflight.py"]
    assert "sharding/processes/preflight.py" in found["package"]


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """The driver's folder on a host with three GPUs, as it is read."""
    for number, model in enumerate(["H100 80GB", "H100 80GB", "A10"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t NVIDIA {model}\nIRQ: 1\n")
    monkeypatch.setattr(preflight, "_NVIDIA", str(tmp_path))
    monkeypatch.setattr(preflight, "_cpu_devices", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
    with jax_platforms(None):
        yield monkeypatch


@contextlib.contextmanager
def jax_platforms(value):
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", value)
    yield
    jax.config.update("jax_platforms", before)


def test_devices_are_told_without_starting_jax(gpus):
    assert preflight.devices() == {"NVIDIA H100 80GB": 2, "NVIDIA A10": 1}
    assert preflight.devices([2]) == {"NVIDIA A10": 1}
    gpus.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert preflight.devices() == {"NVIDIA H100 80GB": 1}
    gpus.setenv("CUDA_VISIBLE_DEVICES", "")
    assert preflight.devices() == {"cpu": 1}
    gpus.delenv("CUDA_VISIBLE_DEVICES")
    with jax_platforms("cpu"):
        assert preflight.devices() == {"cpu": 1}


def test_the_gpus_of_a_host_are_divided_among_its_ranks(gpus):
    assert [distributed._local_devices(None, rank, 3) for rank in range(3)] == [[0], [1], [2]]
    assert distributed._local_devices(None, 0, 1) is None
    assert distributed._local_devices(None, None, None) is None
    assert distributed._local_devices(2, 0, 3) == [2]
    gpus.setenv("JAX_LOCAL_DEVICE_IDS", "0,2")
    assert distributed._local_devices(None, 0, 3) == [0, 2]
    with pytest.raises(ValueError, match=r"local_devices=\[5\], and this process sees 3 GPUs, 0 to 2"):
        distributed._local_devices([5], 0, 1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a:5", ("a", 5)), ("a", ("a", 7)), ("10.0.0.1:5", ("10.0.0.1", 5)), ("::1", ("::1", 7)), ("[::1]:5", ("::1", 5))],
)
def test_coordinator(text, parts):
    assert split(text, 7) == parts


def test_coordinator_with_a_bad_port():
    with pytest.raises(ValueError, match=r"coordinator='a:b' wants host:port with a port of 1 to 65535"):
        split("a:b", 7)


class Meeting:
    """Ranks as threads of this process, at a hub of their own."""

    def __init__(self, size, limit, run):
        self.port = free_port()
        self.hub = Hub(self.port, size, run, limit, 5.0, faults)
        self.results = []
        self.threads = []

    def enter(self, rank, limit=20.0, host="127.0.0.1", **more):
        def go():
            token = self.hub.token if rank == 0 else None
            try:
                self.results.append(join(host, self.port, row(rank, **more), limit, token))
            except PreflightError as error:
                self.results.append(str(error))

        self.threads.append(threading.Thread(target=go))
        self.threads[-1].start()

    def end(self):
        for thread in self.threads:
            thread.join(30)
        for joined in self.results:
            if not isinstance(joined, str):
                with contextlib.suppress(OSError):
                    joined.wire.send(bye=True)
        return self.results


@pytest.fixture
def meet():
    made = []

    def make(size=3, limit=20.0, run=""):
        made.append(Meeting(size, limit, run))
        return made[-1]

    yield make
    for meeting in made:
        meeting.hub.close()
        for joined in meeting.end():
            if not isinstance(joined, str):
                joined.wire.close()


def test_ranks_meet(meet):
    meeting = meet()
    for rank in (2, 0, 1):
        meeting.enter(rank)
    joined = meeting.end()
    assert {one.zero for one in joined} == {f"rank 0 (host {socket.gethostname()}, pid {preflight.os.getpid()})"}
    assert sorted(one.local_rank for one in joined) == [0, 1, 2]
    assert {(one.local_size, one.address, one.heartbeat) for one in joined} == {(3, "127.0.0.1", 5.0)}
    assert meeting.hub.farewell.wait(5)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (
            {"rank": 1, "pid": 999},
            "rank 1 came twice: from host b, pid 101, and from host b, pid 999. Each process nee",
        ),
        ({"rank": 3}, "rank 3 (host a, pid 103) is out of range: ranks go from 0 to 2"),
        (
            {"rank": 2, "size": 4},
            "world sizes differ: rank 2 (host c, pid 102) was told 4 processes, rank 0 3. Give al",
        ),
        ({"rank": 2, "devices": {"cpu": 5}}, "devices differ: 1 x cpu on ranks 0 (host a), 1 (host b); 5 x cpu on ran"),
    ],
)
def test_all_ranks_are_told_of_the_one_that_does_not_fit(meet, last, text):
    meeting = meet()
    meeting.enter(0)
    meeting.enter(1)
    time.sleep(0.5)
    meeting.enter(**last)
    results = meeting.end()
    assert len(results) == 3
    for result in results:
        assert result.startswith("the ranks cannot start together:\n  - ")
        assert text in result


def test_a_rank_that_does_not_come(meet):
    meeting = meet(limit=1.0)
    meeting.enter(0)
    meeting.enter(2)
    for result in meeting.end():
        assert "rank 1 of 3 did not come within 1 s; here are ranks 0 (host a), 2 (host c). Look at what" in result


def test_a_rank_that_leaves_before_the_start(meet):
    meeting = meet()
    meeting.enter(0)
    with socket.create_connection(("127.0.0.1", meeting.port)) as connection:
        Wire(connection).send(**row(1, clock=time.time(), chosen=False))
    (result,) = meeting.end()
    assert "rank 1 (host b, pid 101) left before the start" in result


def test_clocks_are_compared_where_they_are(meet):
    meeting = meet(size=2)
    meeting.enter(0, size=2)
    with socket.create_connection(("127.0.0.1", meeting.port)) as connection:
        Wire(connection).send(**row(1, size=2, clock=time.time() + 3600, chosen=False))
        (result,) = meeting.end()
    assert "rank 1 (host b) 3600 s ahead" in result


def test_a_latecomer_is_told_that_the_run_has_begun(meet):
    meeting = meet(size=1)
    meeting.enter(0, size=1)
    meeting.threads[0].join(10)
    meeting.enter(1, size=1)
    assert "came to a run that has begun with all its 1 ranks" in next(r for r in meeting.end() if isinstance(r, str))


def test_another_runs_rank_is_sent_away_and_the_run_goes_on(meet):
    meeting = meet(size=1, run="mine")
    meeting.enter(1, run="theirs")
    meeting.threads[0].join(10)
    meeting.enter(0, size=1, run="mine")
    stranger, own = meeting.end()
    assert "belongs to another run; choose another port" in stranger
    assert not isinstance(own, str)


def test_strangers_do_no_harm(meet):
    meeting = meet(size=1)
    for line in (b"GET / HTTP/1.0\r\n\r\n", b'{"rank": 0}\n', b"[1]\n", b""):
        with socket.create_connection(("127.0.0.1", meeting.port)) as connection:
            connection.sendall(line)
    meeting.enter(0, size=1)
    assert not isinstance(meeting.end()[0], str)


def test_ranks_that_may_wait_for_one_that_has_ended_are_told(meet, capsys):
    hub, judge = meet(size=3).hub, Judge(3, 5.0, now=0.0)
    judge.ended(1, 1.0)
    hub._remind(judge, 60.0)
    assert capsys.readouterr().err == ""
    hub._remind(judge, 62.0)
    assert "rank 1 ended 61 s ago, ranks 0, 2 still run. Should" in capsys.readouterr().err
    judge.ended(2, 62.0)
    hub._remind(judge, 123.0)
    text = r"ranks 1, 2 ended 122 s ago, rank 0 still runs. Should they .* \(fit, evaluate, predict, save\) is made by"
    assert re.search(text, capsys.readouterr().err)


def test_port_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            PreflightError, match=rf"cannot listen on port {port}, .*Is another run on it, or was rank 0 s"
        ):
            Hub(port, 2, "", 1.0, 5.0, faults)


def test_nobody_listens():
    port = free_port()
    text = rf"rank 1 \(host b\): the coordinator localhost:{port} \(.*\) is not reached within 1 s: .* loopback address"
    with pytest.raises(PreflightError, match=text):
        join("localhost", port, row(1), 1.0)


def test_a_name_that_does_not_resolve():
    with pytest.raises(PreflightError, match=r"the coordinator's name 'absent\.invalid' cannot be resolved here"):
        join("absent.invalid", 1, row(1), 0.5)


def test_something_else_answers():
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve():
            connection, _ = door.accept()
            with contextlib.closing(connection):
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(PreflightError, match="something else than rank 0 answers at 127.0.0.1"):
            join("127.0.0.1", door.getsockname()[1], row(1), 2.0)
        thread.join()


def test_nobody_speaks(monkeypatch):
    monkeypatch.setattr("llmasos_xla.sharding.processes.join._GREETING_SECONDS", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        pytest.raises(PreflightError, match=r"says nothing for 0\.5 s: rank 0 is stopped or stuck, or another program"),
    ):
        join("127.0.0.1", door.getsockname()[1], row(1), 2.0)


def test_two_ranks_of_number_zero(meet):
    meeting = meet()
    with pytest.raises(PreflightError, match=r"leads to another rank 0, on host .*Each rank needs a number of its own"):
        join("127.0.0.1", meeting.port, row(0), 5.0, token="another")


def test_real_ranks_that_differ_say_so_and_end(tmp_path):
    text = "import sys\nimport llmasos_xla as lm\nlm.initialize(sys.argv[1], 2, int(sys.argv[2]))\n" + TOTAL
    paths = [tmp_path / name / "train.py" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(text + f"print(total(), {str(path)!r})\n")
    address = f"127.0.0.1:{free_port()}"
    runs = ended([start(p, address, str(r), JAX_NUM_CPU_DEVICES=str(r + 1)) for r, p in enumerate(paths)])
    for out in runs:
        assert out.code == 1
        assert "PreflightError: the ranks cannot start together" in out.text
        assert "script: train.py differs" in out.text
        assert "devices differ: 1 x cpu on rank 0" in out.text
    skip = {"LLMASOS_PREFLIGHT_SKIP": "code"}
    runs = ended([start(p, address, str(r), JAX_NUM_CPU_DEVICES="2", **skip) for r, p in enumerate(paths)])
    assert [(out.code, "4 /" in out.text) for out in runs] == [(0, True), (0, True)]
