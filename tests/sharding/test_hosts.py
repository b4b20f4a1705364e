"""Ranks on three hosts, which are network namespaces of this machine."""

import sys

import numpy as np
import pytest
from sharding.hosts import hosts
from sharding.ranks import TOTAL, ended, environment, start


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


def test_three_hosts_train_with_the_loss_of_one_process(tmp_path):
    """FSDP over three hosts: the weights lie in thirds, and the losses are those of one device."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nimport jax\nimport llmasos_xla as lm\n"
        "world = lm.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 1 else lm.world()\n"
        "import numpy as np\n"
        "rng = np.random.default_rng(0)\n"
        "x, y = rng.normal(size=(48, 6)).astype('float32'), rng.integers(0, 3, 48).astype('int32')\n"
        "layers = [lm.layers.Dense(96, activation='relu', input_shape=(6,)), lm.layers.Dropout(0.1),\n"
        "          lm.layers.Dense(96, activation='relu'), lm.layers.Dense(3, activation='softmax')]\n"
        "model = lm.Sequential(layers, seed=1)\n"
        "model.compile('adam')\n"
        "shard = 'fsdp' if world.size > 1 else None\n"
        "losses = model.fit(x, y, epochs=20, batch_size=48, verbose=0, shard=shard).history['loss']\n"
        "kernel = model.variables.params['dense_1/kernel']\n"
        "print('held', kernel.addressable_shards[0].data.shape)\n"
        "print('losses', *losses)\n"
    )
    with hosts(3) as made:
        command = [sys.executable, str(script), f"{made[0].name}:29400", "3"]
        ranks = ended([host.start([*command, str(rank)], environment()) for rank, host in enumerate(made)])
    (alone,) = ended([start(script)])
    wanted = losses_in(alone)
    assert len(wanted) == 20
    for out in ranks:
        assert out.code == 0, out.text
        assert "held (32, 96)" in out.text
        np.testing.assert_allclose(losses_in(out), wanted, atol=1e-5, rtol=0)


def losses_in(out):
    (line,) = [line for line in out.text.splitlines() if line.startswith("losses ")]
    return [float(loss) for loss in line.split()[1:]]


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
