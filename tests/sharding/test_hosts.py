"""Ranks on three hosts, which are network namespaces of this machine."""

import sys

import pytest
from sharding.hosts import hosts
from sharding.ranks import TOTAL, ended, environment


def run(made, folder, coordinator=None, **more):
    path = folder / "train.py"
    path.write_text(
        "import sys\nimport llmasos_xla as lm\n"
        + f"world = lm.initialize(sys.argv[1], {len(made)}, int(sys.argv[2]))\n"
        + TOTAL
        + "print(world.host, world.local_rank, total())\n"
    )
    address = coordinator or f"{made[0].name}:29400"
    return ended(
        [
            host.start([sys.executable, str(path), address, str(rank)], environment(LLMASOS_START_SECONDS="5", **more))
            for rank, host in enumerate(made)
        ]
    )


@pytest.mark.parametrize("own_name", [None, "127.0.1.1"])
def test_three_hosts_add_up(tmp_path, own_name):
    """Also where each host's own name is a loopback address, as Debian has it: another is advertised then."""
    with hosts(3, own_name) as made:
        for host, out in zip(made, run(made, tmp_path), strict=True):
            assert out.code == 0, out.text
            assert f"{host.name} 0 3" in out.text


def test_a_name_that_is_a_loopback_address_is_told_if_it_was_asked_for(tmp_path):
    with hosts(2, "127.0.1.1") as made:
        for out in run(made, tmp_path, LLMASOS_ADDRESS="127.0.1.1"):
            assert out.code == 1
            for rank, host in enumerate(made):
                assert f"rank {rank} (host {host.name}) would tell the others to find it at 127.0.1.1" in out.text
            assert f"In its /etc/hosts give {made[1].name} its address in the network" in out.text


def test_a_coordinator_that_is_each_hosts_own(tmp_path):
    with hosts(2) as made:
        zero, one = run(made, tmp_path, coordinator="localhost:29400")
    assert "rank 1 of 2 did not come within 5 s; here is rank 0" in zero.text
    assert "is a loopback address here: if rank 0 is on another host, give that host's address" in one.text


def test_rank_zero_on_the_wrong_host(tmp_path):
    with hosts(2) as made:
        zero, _ = run(made, tmp_path, coordinator=f"{made[1].address}:29400")
    assert "does not reach itself by the coordinator's name" in zero.text
