"""The command line as a shell sees it: what it prints, and its exit status."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.storage.signatures import new_key

pytestmark = [
    pytest.mark.usefixtures("unchecked"),  # numbers of rows are symbols where programs are exported
    pytest.mark.skipif(os.name != "posix", reason="the signals are POSIX's"),
]

ROOT = pathlib.Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
# A suite that runs in the background ignores Ctrl-C, and its children inherit that: the command listens again.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from llmasos_xla.cli import main; sys.exit(main())"
)


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments):
    """Exit status, standard output, standard error."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def serving(*arguments, names):
    """`llmasos serve` until the block ends; gives its process and its address."""
    command = [sys.executable, "-c", COMMAND, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(rf"Serving '{names[0]}' at (http://127\.0\.0\.1:\d+) until Ctrl-C\. Try:\n", line)
        assert found, line + process.stderr.read()
        assert f"curl -s {found[1]}/v2/models/{names[0]}/infer" in process.stdout.readline()
        yield process, found[1]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, "\nStopping.\n", "")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def port_of(address):
    return address.rpartition(":")[2]


def asked(address, name, key=None):
    tensor = {"name": "input", "shape": list(X.shape), "datatype": "FP32", "data": X.tolist()}
    request = urllib.request.Request(f"{address}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = json.load(answer)
    return np.array(found["outputs"][0]["data"], np.float32).reshape(3, -1), found["model_version"]


def made(seed):
    model = lm.Sequential([lm.layers.Dense(2, input_shape=(4,))], seed=seed)
    model.predict(X)
    return model


@pytest.fixture(scope="module")
def models():
    return [made(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [model.export(folder / f"v{i}.lmx") for i, model in enumerate(models)]


def test_a_model_is_served_updated_tried_and_taken_back(models, files):
    with serving(files[0], names=["v0"]) as (_, address):
        port = port_of(address)
        np.testing.assert_allclose(asked(address, "v0")[0], models[0].predict(X), rtol=1e-5)
        status, out, err = run("update", files[1], "--port", port)
        assert (status, err) == (0, "")
        assert re.fullmatch(r"version 2 answers, \d+\.\d{3} s\n", out)
        outputs, version = asked(address, "v0")
        np.testing.assert_allclose(outputs, models[1].predict(X), rtol=1e-5)
        assert version == "2"

        status, out, err = run("update", files[0], "--share", 0.5, "--requests", 50, "--port", port)
        assert (status, err) == (0, "")
        assert re.fullmatch(r"version 3 is on trial, \d+\.\d{3} s\n", out)
        assert [asked(address, "v0")[1] for _ in range(4)] == ["2", "3", "2", "3"]
        status, out, err = run("update", files[1], "--shadow", 0.5, "--port", port)
        assert (status, out) == (2, "")
        assert err == "llmasos update: version 3 is on trial; end that first\n"

        status, out, err = run("stats", "--port", port)
        assert (status, err) == (0, "")
        stats = json.loads(out)["models"][0]
        assert (stats["version"], stats["requests"], stats["trial"]["version"]) == ("2", 6, "3")
        # The version on trial first, then the one that answers.
        assert run("rollback", "--port", port) == (0, "version 2 answers\n", "")
        assert run("rollback", "--port", port) == (0, "version 1 answers\n", "")
        assert asked(address, "v0")[1] == "1"
        status, _, err = run("rollback", "--port", port)
        assert (status, err) == (2, "llmasos rollback: model 'v0' has no version before this one\n")


def test_what_an_update_refuses_is_told_with_a_status(files, tmp_path):
    damaged = tmp_path / "damaged.lmx"
    damaged.write_bytes(files[1].read_bytes()[:-40])
    with serving(files[0], names=["v0"]) as (_, address):
        port = port_of(address)
        for arguments, reason in (
            ([damaged], "bundle: 'damaged.lmx' is refused: "),
            ([tmp_path / "none.lmx"], "bundle: there is no file "),
            ([files[1], "--share", 2], "the share of a trial is above 0 and at most 1, 2.0 came"),
            ([files[1], "--share", 0.1, "--shadow", 0.1], "a trial answers a share of the requests, or computes them"),
            ([files[1], "--model", "other"], "unknown model 'other'; this server has 'v0'"),
        ):
            status, out, err = run("update", *arguments, "--port", port)
            assert (status, out) == (2, "")
            assert err.startswith(f"llmasos update: {reason}")
            assert err.count("\n") == 1
        assert asked(address, "v0")[1] == "1"


def test_several_models_behind_keys(models, files, tmp_path):
    (tmp_path / "keys").write_text("one\ntwo\n")
    models_of = [f"a={files[0]}", f"b={files[1]}"]
    with serving(*models_of, "--keys", tmp_path / "keys", names=["a"]) as (_, address):
        for name, model in zip("ab", models, strict=True):
            np.testing.assert_allclose(asked(address, name, "two")[0], model.predict(X), rtol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(address, "a")
        status, _, err = run("update", files[1], "--port", port_of(address))
        assert (status, err) == (2, "llmasos update: control: which model? This server has 'a', 'b'\n")
        assert run("update", files[1], "--model", "a", "--port", port_of(address))[0] == 0
        np.testing.assert_allclose(asked(address, "a", "one")[0], models[1].predict(X), rtol=1e-5)


def test_signed_bundles_alone_are_served_with_a_key(models, files, tmp_path):
    (tmp_path / "public.pem").write_text(new_key(tmp_path / "private.pem"))
    signed = models[0].export(tmp_path / "signed.lmx", key=tmp_path / "private.pem")
    with serving(signed, "--key", tmp_path / "public.pem", names=["signed"]) as (_, address):
        status, _, err = run("update", files[1], "--port", port_of(address))
        assert (status, err) == (2, "llmasos update: bundle: 'v1.lmx' is not signed, and a signature is asked for\n")
        assert asked(address, "signed")[1] == "1"
    status, out, err = run("serve", files[0], "--key", tmp_path / "public.pem")
    assert (status, out) == (2, "")
    assert err == "llmasos serve: bundle: 'v0.lmx' is not signed, and a signature is asked for\n"


def test_a_killed_server_of_the_command_line_is_there_again(files):
    with serving(files[0], names=["v0"]) as (process, address):
        assert run("update", files[1], "--port", port_of(address))[0] == 0
        server = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout)
        os.kill(server, signal.SIGKILL)
        line = process.stderr.readline()
        assert line == "'v0': the server ended by itself, killed by signal 9; starting it again\n"
        assert answered(lambda: asked(address, "v0")[1]) == "2"


def answered(ask):
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except OSError:
            # Still dying (connected, then reset), not there yet, or loading.
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_cannot_be_served_is_told(files, tmp_path):
    (tmp_path / "text.lmx").write_text("no bundle")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, reason in (
            ([tmp_path / "none.h5"], "load: there is no file "),
            ([tmp_path / "text.lmx"], "bundle: 'text.lmx' is refused: "),
            ([files[0], "--port", port], f"deploy: port {port} on 127.0.0.1 is in use; port=0 takes a free one"),
            ([files[0], "--host", "nowhere.invalid"], "deploy: host 'nowhere.invalid' is no address of this machine"),
            ([files[0], "--keys", tmp_path / "none"], "[Errno 2] No such file"),
            ([files[0], "--batch", 0], "deploy: batch is a whole number from 1 to 65536, 0 came"),
            ([files[0], files[0]], "two models have one name; write NAME=PATH"),
        ):
            status, out, err = run("serve", *arguments)
            assert (status, out) == (2, ""), err
            assert err.startswith(f"llmasos serve: {reason}")
            assert err.count("\n") == 1


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    for command in (["update", "x.lmx"], ["rollback"], ["stats"]):
        reason = f"control: no server of this user listens on port {port} of this machine\n"
        assert run(*command, "--port", port) == (2, "", f"llmasos {command[0]}: {reason}")


@pytest.mark.parametrize("arguments", [["serve"], ["update"], ["dance"], ["stats", "--port", "x"]])
def test_a_wrong_line_is_answered_with_how_it_goes(arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: llmasos")
