"""Where a process finds its place: each launcher's variables, and what is said when one of them is missing."""

import socket
import sys
import types

import pytest

from llmasos_xla.sharding.distributed import initialize
from llmasos_xla.sharding.processes import clusters
from llmasos_xla.sharding.processes.clusters import Place, detect, slurm_hosts
from llmasos_xla.sharding.processes.world import World, world

SLURM = {
    "SLURM_JOB_ID": "8123456",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04,09],login",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_nobody_says_anything():
    assert detect({"HOME": "/root"}) is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node001", ["node001"]),
        ("node001,host2", ["node001", "host2"]),
        ("node[001-003],host2", ["node001", "node002", "node003", "host2"]),
        ("node[1,7-8,099-100]-ib", ["node1-ib", "node7-ib", "node8-ib", "node099-ib", "node100-ib"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_slurm_node_lists(text, hosts):
    assert slurm_hosts(text) == hosts


def test_slurm():
    place = detect(SLURM)
    assert place is not None
    host, _, port = place.coordinator.rpartition(":")
    assert (place.rank, place.size, place.local_rank, place.source, host) == (5, 8, 1, "slurm", "gpu03")
    assert 61440 <= int(port) < 65536
    # Another step of the same job is another run.
    assert detect(SLURM | {"SLURM_STEP_ID": "3"}).coordinator != place.coordinator
    # Every rank computes the same.
    assert detect(SLURM | {"SLURM_PROCID": "0"}).coordinator == place.coordinator


def test_a_batch_scripts_own_shell_is_no_rank():
    batch = {name: value for name, value in SLURM.items() if not name.startswith("SLURM_STEP")}
    assert detect(batch) is None


def test_slurm_finds_what_jax_finds(monkeypatch):
    from jax._src.clusters import SlurmCluster

    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    place = detect()
    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_process_id() == place.rank
    assert SlurmCluster.get_process_count() == place.size
    assert SlurmCluster.get_coordinator_address(1, None).split(":")[0] == place.coordinator.split(":")[0]


def test_the_launcher_comes_ahead_of_slurm():
    place = detect(SLURM | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"})
    assert place == Place(0, 2, f"127.0.0.1:{clusters.PORT}", "environment", 0, None)


def test_torchrun_keeps_its_own_port():
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    assert detect(variables).coordinator == "a:29500"
    assert detect(variables | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).coordinator == "a:29501"


def test_kubernetes_indexed_job():
    pod = {"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "train-0.train", "HOSTNAME": "train-2"}
    assert detect(pod) == Place(2, 4, f"train-0.train:{clusters.PORT}", "kubernetes")
    with pytest.raises(ValueError, match=r"WORLD_SIZE and MASTER_ADDR.*spec\.completions.*train-0\.SERVICE"):
        detect({"JOB_COMPLETION_INDEX": "2", "HOSTNAME": "train-2"})


def test_open_mpi():
    uri = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"
    assert detect(OPENMPI | {"OMPI_MCA_orte_hnp_uri": uri}).coordinator.startswith("10.96.0.1:")
    assert detect(OPENMPI | {"MASTER_ADDR": "n1", "MASTER_PORT": "7000"}) == Place(3, 4, "n1:7000", "openmpi", 1, 2)
    one_host = detect(OPENMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-n1-77@1"})
    assert one_host.coordinator.startswith("127.0.0.1:")
    with pytest.raises(ValueError, match="mpirun -x MASTER_ADDR=HOST_OF_RANK_0"):
        detect(OPENMPI)


def test_tpu_pod_by_jaxs_own_detection(monkeypatch):
    from jax._src import cloud_tpu_init
    from jax._src import clusters as jax_clusters

    class Pod(jax_clusters.GkeTpuCluster):
        is_env_present = classmethod(lambda cls: True)
        get_process_count = classmethod(lambda cls: 4)
        get_process_id = classmethod(lambda cls: 3)
        get_coordinator_address = classmethod(lambda cls, seconds, port: f"t1k-w-0:{port or 8482}")

    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(jax_clusters, "GkeTpuCluster", Pod)
    assert detect({}) == Place(3, 4, "t1k-w-0:8482", "tpu", 0, 1)
    jax_clusters.ClusterEnv._cluster_types.remove(Pod)


def fake_ray(monkeypatch, train=None):
    worker = types.SimpleNamespace(mode=1)
    ray = types.SimpleNamespace(
        WORKER_MODE=1, is_initialized=lambda: True, get_runtime_context=lambda: types.SimpleNamespace(worker=worker)
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    if train:
        monkeypatch.setitem(sys.modules, "ray.train", train)
    return worker


def test_ray_worker(monkeypatch):
    worker = fake_ray(monkeypatch)
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    assert detect(told).source == "environment"
    with pytest.raises(ValueError, match=r"Ray worker, and nothing says which rank.*runtime_env.*processes=1"):
        detect({})
    worker.mode = 0
    assert detect({}) is None


def test_ray_trains_context(monkeypatch):
    numbers = {"get_world_rank": 2, "get_world_size": 4, "get_local_rank": 0, "get_local_world_size": 2}
    context = types.SimpleNamespace(**{name: (lambda n=n: n) for name, n in numbers.items()})
    fake_ray(monkeypatch, types.SimpleNamespace(get_context=lambda: context))
    assert detect({"MASTER_ADDR": "10.0.0.1"}) == Place(2, 4, f"10.0.0.1:{clusters.PORT}", "ray", 0, 2)
    with pytest.raises(ValueError, match="rank 2 of 4, and MASTER_ADDR is not set"):
        detect({})


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "1"}, "RANK is set, WORLD_SIZE is not; set both, or neither for one process"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 are set, MASTER_ADDR is not; set it to rank 0's host"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK wants a whole number, got 'one'"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK wants a whole number, got '-1'"),
    ],
)
def test_what_is_missing_is_named(variables, text):
    with pytest.raises(ValueError, match=text):
        detect(variables)


@pytest.fixture
def alone(monkeypatch):
    """No variables of a launcher, and nothing initialized."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JAX_COORDINATOR_ADDRESS", *SLURM, *OPENMPI):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("llmasos_xla.sharding.processes.world._current", None)


@pytest.mark.usefixtures("alone")
def test_one_process_is_a_world_too():
    assert world() == World(0, 1, 0, socket.gethostname(), None, "none")
    assert initialize() == world()
    assert initialize() is world()


@pytest.mark.usefixtures("alone")
def test_arguments_go_ahead_and_a_second_call_must_agree(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    assert initialize(processes=1).source == "arguments"
    with pytest.raises(
        RuntimeError, match=r"already is rank 0 of 1 \(by arguments\), and was now asked to be rank 3 of"
    ):
        initialize("a:1", 4, 3)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"processes": 4}, "neither given nor found: coordinator, rank .*start with llmasos launch"),
        ({"processes": 4, "rank": 1}, "neither given nor found: coordinator "),
        ({"processes": 0}, "processes wants a whole number >= 1, got 0"),
        ({"coordinator": "a:1", "processes": 2, "rank": -1}, "rank wants a whole number >= 0, got -1"),
    ],
)
def test_arguments_that_do_not_say_enough(arguments, text):
    with pytest.raises(ValueError, match=text):
        initialize(**arguments)


@pytest.mark.usefixtures("alone")
def test_too_late():
    import jax

    jax.devices()
    with pytest.raises(RuntimeError, match=r"rank 1 of 2: JAX has already started its devices; call .* ahead of"):
        initialize("127.0.0.1:1", 2, 1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("heartbeat", [0.5, -1])
def test_heartbeat_of_less_than_a_second(heartbeat, monkeypatch):
    from jax._src import xla_bridge

    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(ValueError, match="heartbeat wants at least 1 s, got"):
        initialize("127.0.0.1:1", 2, 1, heartbeat=heartbeat)
