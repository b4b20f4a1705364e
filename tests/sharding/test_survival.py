"""A run of two processes that is killed, told to end or stopped goes on to the undisturbed run's weights."""

import pathlib
import random

import numpy as np
import pytest
from api.test_resume import result
from sharding.ranks import HEARTBEAT, ROOT, launch

import llmasos_xla as lm
from llmasos_xla.training.checkpoint_folder import entries

SURVIVOR = pathlib.Path(__file__).with_name("survivor.py")


def run(folder, *how, shard="fsdp", processes=2, devices=2):
    """One start of the fit; what `launch` gives."""
    options = ("-n", str(processes), "--devices-per-process", str(devices))
    path = f"{ROOT}:{ROOT / 'tests'}"
    return launch([str(SURVIVOR), str(folder), shard, *map(str, how)], *options, more={"PYTHONPATH": path})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    out = run(folder)
    assert out.code == 0, out.text
    return result(folder)


def finish(folder, wanted):
    out = run(folder)
    assert out.code == 0, out.text
    assert result(folder) == wanted
    assert not [p.name for p in (folder / "run").iterdir() if "tmp" in p.name or "deleted" in p.name]


def test_a_killed_rank_ends_the_run_which_goes_on_bit_for_bit(tmp_path, undisturbed):
    out = run(tmp_path, 1, "step", 9, "SIGKILL")
    assert out.code == 128 + 9, out.text
    assert "rank 1" in out.text
    assert entries(tmp_path / "run"), "it was saved before"
    finish(tmp_path, undisturbed)


def test_sigterm_to_one_rank_saves_the_same_step_on_all(tmp_path, undisturbed):
    out = run(tmp_path, 1, "step", 5, "SIGTERM")
    assert out.code == 75, out.text
    # All of the ranks ended with 75, or the launcher would tell of one that did not.
    assert "the fit is saved" not in out.of(1)
    opened = lm.load(tmp_path / "run")
    assert opened.learner.unfinished is not None
    assert {a.shape for n, a in opened.variables.params.items() if n == "dense/kernel"} == {(4, 256)}
    finish(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_another_strategy(tmp_path, undisturbed):
    out = run(tmp_path, 0, "step", 9, "SIGTERM")
    assert out.code == 75, out.text
    out = run(tmp_path, shard="tensor", processes=1, devices=4)
    assert out.code == 0, out.text
    with np.load(tmp_path / "end.npz") as file:
        for name, (dtype, shape, data) in undisturbed.items():
            wanted = np.frombuffer(data, dtype).reshape(shape)
            np.testing.assert_allclose(file[name], wanted, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, undisturbed):
    """In the step, in the data loader, in the save and just before it gets its name, on either rank."""
    rng, kills = random.Random(0), 0
    most = {"step": 15, "load": 16, "write": 6, "commit": 6}
    for number in range(5):
        (folder := tmp_path / str(number)).mkdir()
        moments = [(where, rng.randint(2, last)) for where, last in rng.sample(sorted(most.items()), 3)]
        moments.append(("seconds", number * 0.1 + rng.random() * 0.3))
        for where, at in moments:
            # Only the first process writes the manifest.
            rank = 0 if where == "commit" else rng.randint(0, 1)
            out = run(folder, rank, where, at, "SIGKILL")
            # A kill may come too late, when the fit is done.
            assert out.code in (128 + 9, 0), out.text
            kills += out.code != 0
        finish(folder, undisturbed)
    assert kills >= 15


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_within_the_heartbeat_and_the_run_goes_on(tmp_path, undisturbed, rank):
    out = run(tmp_path, rank, "step", 9, "SIGSTOP")
    assert out.code != 0, out.text
    assert f"rank {rank}" in out.text
    assert f"no sign of life for {HEARTBEAT:g} s" in out.text
    finish(tmp_path, undisturbed)
