"""TLS: what is encrypted, who trusts it, and certificates with which no server starts."""

import http.client
import shutil
import socket
import ssl
import subprocess

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.deployment import tls


@pytest.fixture(scope="module")
def files(certificate, tmp_path_factory):
    """The paths of a certificate and its key."""
    folder = tmp_path_factory.mktemp("certificates")
    paths = folder / "server.pem", folder / "key.pem"
    for path, content in zip(paths, reversed(certificate), strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def server(image_file, files):
    with lm.Deployer(image_file).deploy(
        wait=False, certificate=files[0], certificate_key=files[1], grpc_port=0
    ) as server:
        yield server


def test_it_answers_over_tls_alone(server, image_model, images):
    assert server.url == f"https://127.0.0.1:{server.port}"
    assert server.ready()
    np.testing.assert_array_equal(server.predict(images[:3]), image_model.predict(images[:3]))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/v2/health/live")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()


def test_updates_go_on(server, image_file, image_model, images):
    assert server.update(image_file)["version"] == "2"
    np.testing.assert_array_equal(server.predict(images[:3]), image_model.predict(images[:3]))
    assert server.rollback() == "1"


def test_clients_that_check_the_name_believe_it(server, files):
    context = ssl.create_default_context(cafile=files[0])
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=context)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()


def test_clients_that_know_it_not_refuse_it(server, new_certificate):
    for context in (ssl.create_default_context(), tls.trusting(new_certificate()[1].decode())):
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=context)
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.request("GET", "/v2/health/ready")
        connection.close()


def test_the_curl_line_runs(server):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    done = subprocess.run(["sh", "-c", server.curl], capture_output=True, text=True, check=True)
    assert '"output"' in done.stdout


def test_over_grpc(server, files):
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    from llmasos_xla.deployment.rpc_messages import SERVICE, message

    with grpc.secure_channel(server.grpc_url, grpc.ssl_channel_credentials(files[0].read_bytes())) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/ModelReady")(
            message("ModelReadyRequest")(name="insects").SerializeToString(), timeout=20
        )
        assert message("ModelReadyResponse").FromString(answer).ready
    with (
        grpc.insecure_channel(server.grpc_url) as channel,
        pytest.raises(grpc.RpcError),
    ):
        channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=20)


def test_one_file_may_hold_both_and_bear_another_name(image_file, new_certificate, images, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(new_certificate("models.example.org")))
    with lm.Deployer(image_file).deploy(wait=False, certificate=both, grpc_port=0) as server:
        assert server.predict(images[:1]).shape == (1, 3)
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            strict = ssl.create_default_context(cafile=both)
            with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
                strict.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_certificate_whose_time_is_over_is_not_believed(image_file, new_certificate, images, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(new_certificate(hours=-1)))
    with lm.Deployer(image_file).deploy(wait=False, certificate=both) as server:
        assert not server.ready()
        with pytest.raises(RuntimeError, match="certificate has expired"):
            server.predict(images[:1])


def test_certificates_with_which_no_server_starts(image_file, certificate, new_certificate, tmp_path):
    key, own = certificate
    contents = {
        "own": own,
        "key": key,
        "other": new_certificate()[0],
        "hidden": new_certificate(password=b"secret")[0],
        "text": b"hello",
        "cut": own[:200] + b"\n-----END CERTIFICATE-----\n" + key,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    for names, kind, reason in (
        (("none", "key"), FileNotFoundError, r"deploy: certificate: there is no file '.*none\.pem'"),
        (("own", "none"), FileNotFoundError, r"deploy: certificate_key: there is no file '.*none\.pem'"),
        (("text", "key"), ValueError, r"deploy: certificate: '.*text\.pem' holds no certificate in PEM"),
        (("own", "text"), ValueError, r"deploy: certificate_key: '.*text\.pem' holds no private key in PEM$"),
        (("own",), ValueError, "holds no private key in PEM; if it is in a file of its own, pass that as"),
        (("own", "other"), ValueError, "the key in '.*' is not that of the first certificate in '.*'"),
        (("own", "hidden"), ValueError, r"the key in '.*hidden\.pem' is encrypted"),
        (("cut",), ValueError, r"'.*cut\.pem' cannot be used with the key in '.*cut\.pem'"),
    ):
        with pytest.raises(kind, match=reason):
            tls.read(*(tmp_path / f"{name}.pem" for name in names))
    with pytest.raises(ValueError, match="is a folder; a PEM file is wanted"):
        tls.read(tmp_path)
    with pytest.raises(ValueError, match="certificate_key came without certificate"):
        lm.Deployer(image_file).deploy(certificate_key=tmp_path / "key.pem")


def test_no_port_is_taken_for_a_certificate_that_is_refused(image_file, certificate, tmp_path, capsys):
    from llmasos_xla.cli import main

    (tmp_path / "own.pem").write_bytes(certificate[1])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # That the port is in use would be told, if it came to that.
        arguments = ["--port", str(taken.getsockname()[1]), "--certificate", str(tmp_path / "own.pem")]
        assert main(["serve", str(image_file), *arguments]) == 2
    assert "holds no private key in PEM" in capsys.readouterr().err
