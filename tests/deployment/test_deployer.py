"""A real server process: answers, start-up failures, and what the handle says."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import llmasos_xla as lm


@pytest.fixture(scope="module")
def server(image_file):
    with lm.Deployer(image_file).deploy(wait=False, max_body=100_000, warm=(1, 4)) as server:
        yield server


def test_the_handle_says_where_it_is(server):
    assert server.name == "insects"
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert repr(server) == f"Handle('insects' at {server.url}, pid {server.pid})"
    assert server.ready()
    assert server.running


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_predict_over_http_is_predict_bit_for_bit(server, image_model, images, rows):
    answer = server.predict(images[:rows])
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, image_model.predict(images[:rows]))


def test_many_rows_go_in_several_requests(server, image_model, images):
    many = np.concatenate([images] * 100).astype(np.float32)
    assert many.nbytes > 100_000
    np.testing.assert_array_equal(server.predict(many), image_model.predict(many))


def test_all_that_predict_takes(server, image_model, images):
    from PIL import Image

    expected = image_model.predict(images[:2])
    pictures = [Image.fromarray(image) for image in images[:2]]
    dataset = lm.Dataset(images[:2], mode="test")
    for x in (images[:2].tolist(), images[:2, ..., None].astype(np.int64), pictures, dataset):
        np.testing.assert_array_equal(server.predict(x), expected)


def test_what_it_refuses_reaches_the_caller(server, images, unchecked):
    with pytest.raises(ValueError, match=r"server answered 400: infer: 'input': x has shape \(1, 5\), the model wants"):
        server.predict(images[:1, :1, :5].reshape(1, 5))
    with pytest.raises(ValueError, match="server answered 400: infer: 'input': 1 NaN of 36 values"):
        server.predict(np.where(np.arange(36).reshape(1, 6, 6) == 3, np.nan, 1.0))
    with pytest.raises(TypeError, match="numbers or text are wanted"):
        server.predict([object()])


def test_sixteen_clients_at_once(server, image_model, images):
    expected = [image_model.predict(images[k : k + 2]) for k in range(16)]
    answers = {}

    def ask(k):
        answers[k] = [server.predict(images[k : k + 2]) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(16):
        for answer in answers[k]:
            # As one batch they run another program, whose last bits may differ; other rows differ by far more.
            np.testing.assert_allclose(answer, expected[k], rtol=1e-5)


def test_the_curl_line_runs(server, image_model):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    done = subprocess.run(["sh", "-c", server.curl], capture_output=True, text=True, check=True)
    outputs = json.loads(done.stdout)["outputs"]
    expected = image_model.predict(np.zeros((1, 6, 6), np.uint8))
    np.testing.assert_array_equal(np.array(outputs[0]["data"], np.float32)[None], expected)


def test_a_body_too_large_gets_its_answer(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v2/models/insects/infer", b"x" * 300_000, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"larger than 100000 bytes" in answer.read()
    connection.close()


def test_half_a_request_harms_nobody(server, image_model, images):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v2/models/insects/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert b"400" in connection.recv(100)
    np.testing.assert_array_equal(server.predict(images[:1]), image_model.predict(images[:1]))


def test_a_port_in_use(server, image_file):
    with pytest.raises(OSError) as caught:
        lm.Deployer(image_file).deploy(port=server.port)
    assert str(caught.value) == f"deploy: port {server.port} on 127.0.0.1 is in use; port=0 takes a free one"


def test_an_address_of_another_machine(image_file):
    with pytest.raises(OSError, match=r"deploy: port 0 on 192\.0\.2\.1 cannot be bound"):
        lm.Deployer(image_file).deploy(host="192.0.2.1")


def test_stop_twice_and_ask_afterwards(image_file, images):
    server = lm.Deployer(image_file).deploy(wait=False)
    assert server.predict(images[:1]).shape == (1, 3)
    server.stop()
    server.stop()
    assert not server.ready()
    assert not server.running
    assert repr(server) == f"Handle('insects' at {server.url}, stopped)"
    with pytest.raises(RuntimeError, match="predict: the server 'insects' was stopped; deploy it again"):
        server.predict(images[:1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_stop_lets_requests_in_flight_end(image_file, image_model, images):
    many = np.concatenate([images] * 2000)
    found = []
    with lm.Deployer(image_file).deploy(wait=False, warm=(1, 256)) as server:
        thread = threading.Thread(target=lambda: found.append(server.predict(many)))
        thread.start()
        time.sleep(0.15)
    thread.join()
    np.testing.assert_array_equal(found[0], image_model.predict(many))


def test_a_server_that_was_killed(image_file, images):
    with lm.Deployer(image_file).deploy(wait=False) as server:
        os.kill(server.pid, signal.SIGKILL)
        while server.running:
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="the server 'insects' ended by itself, killed by signal 9"):
            server.predict(images[:1])
        assert not server.ready()
        assert "ended killed by signal 9" in repr(server)


def test_files_that_are_no_model_are_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.h5"):
        lm.Deployer(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match=r"'text\.h5' is no HDF5 file"):
        lm.Deployer(tmp_path / "text.h5")
    model = lm.Sequential([lm.layers.Dense(2, input_shape=(3,))])
    model.save(tmp_path / "fresh.h5")
    with pytest.raises(ValueError, match=r"Deployer: the model in 'fresh\.h5' has never seen data.*fit it"):
        lm.Deployer(tmp_path / "fresh.h5")


def test_what_the_server_finds_wrong_reaches_the_caller(image_file, tmp_path):
    import h5py

    path = tmp_path / "half.h5"
    shutil.copy(image_file, path)
    with h5py.File(path, "a") as file:
        del file["params/conv2d/kernel"]
    with pytest.raises(ValueError, match="load: 1 arrays of params do not fit the model: conv2d/kernel: wanted"):
        lm.Deployer(path).deploy()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('no good here')", "no good here"),
        ("raise RuntimeError('broken install')", "RuntimeError: broken install"),
        ("import os; os._exit(3)", "ended before it was ready, with exit status 3"),
    ],
)
def test_a_broken_installation_reaches_the_caller(image_file, tmp_path, monkeypatch, text, reason, capsys):
    (tmp_path / "starlette").mkdir()
    (tmp_path / "starlette" / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises((ImportError, RuntimeError), match=reason):
        lm.Deployer(image_file).deploy()


def test_a_crash_in_the_server_shows_its_last_output(image_file, tmp_path, monkeypatch, capsys):
    crash = "import os, sys; print('out of luck', file=sys.stderr, flush=True); os.abort()"
    (tmp_path / "uvicorn.py").write_text(crash)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"killed by signal 6\nIts last output:\nout of luck"):
        lm.Deployer(image_file).deploy()
    assert "out of luck" in capsys.readouterr().err


def test_a_server_that_does_not_get_ready_in_time(image_file):
    with pytest.raises(TimeoutError, match=r"deploy: the server was not ready within 0\.01 s; pass a larger timeout="):
        lm.Deployer(image_file).deploy(timeout=0.01)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"port": 65536}, "deploy: port is a whole number from 0 to 65535, 65536 came"),
        ({"port": True}, "deploy: port is a whole number from 0 to 65535, True came"),
        ({"warm": (0,)}, "deploy: warm is a whole number from 1 to 1048576, 0 came"),
        ({"delay": -1}, "deploy: delay is a number of seconds from 0 to 86400, -1 came"),
        ({"request_timeout": 0}, "deploy: request_timeout is a number of seconds from 1e-06 to 86400, 0 came"),
        ({"name": "a/b"}, "deploy: name is part of an address: letters, digits, . _ and -; 'a/b' came"),
        ({"name": ""}, "deploy: name is part of an address: letters, digits, . _ and -; '' came"),
    ],
)
def test_options_are_checked(image_file, options, reason, unchecked):
    with pytest.raises(ValueError) as caught:
        lm.Deployer(image_file).deploy(**options)
    assert str(caught.value) == reason


def test_text_and_tables_over_http(text_model, table_model, texts, table, tmp_path):
    text_model.save(tmp_path / "so so film.safetensors")
    table_model.save(tmp_path / "houses.h5")
    with lm.Deployer(tmp_path / "so so film.safetensors").deploy(wait=False) as server:
        assert server.name == "so_so_film"
        np.testing.assert_array_equal(server.predict(texts), text_model.predict(texts))
        np.testing.assert_array_equal(server.predict(np.array(texts)), text_model.predict(texts))
        with pytest.raises(TypeError, match="a list of texts is wanted"):
            server.predict("a film")
    with lm.Deployer(tmp_path / "houses.h5").deploy(wait=False) as server:
        expected = table_model.predict(table)
        records = table.drop(columns="y").replace({np.nan: None}).to_dict("records")
        rows = table[["size", "year", "kind"]].to_numpy(object)
        for x in (table, table.drop(columns="y").to_dict("list"), records, rows):
            np.testing.assert_array_equal(server.predict(x), expected)


def test_importing_the_deployer_loads_neither_jax_nor_a_server():
    code = "import sys, llmasos_xla.deployment; print({'jax', 'uvicorn', 'starlette', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_handle_asks_with_the_first_of_the_keys(image_file, images, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("")
    with pytest.raises(ValueError, match="the file of keys .* holds none, and would let everybody in"):
        lm.Deployer(image_file).deploy(keys=keys)
    keys.write_text("one\ntwo\n")
    with lm.Deployer(image_file).deploy(wait=False, keys=keys) as server:
        assert server.ready()
        assert server.predict(images[:1]).shape == (1, 3)
        for key, wanted in (("two", b'"outputs"'), ("three", b"a key is wanted")):
            if shutil.which("curl") is not None:
                done = subprocess.run(["sh", "-c", server.curl], capture_output=True, env={**os.environ, "KEY": key})
                assert wanted in done.stdout
