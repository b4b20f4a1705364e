"""`Deployer`: a saved model behind an HTTP server in a process of its own."""

import atexit
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from llmasos_xla.deployment import lifecycle, protocol
from llmasos_xla.deployment.child import GRACE_SECONDS, Child, Hands
from llmasos_xla.deployment.handle import Handle
from llmasos_xla.deployment.keys import read_keys
from llmasos_xla.errors import unknown

# Ray takes its time to end.
_CLUSTER_SECONDS = 30.0
_WHY = {
    "grpc_port": "Ray Serve's gRPC does not speak the protocol",
    "state": "versions live as long as the server",
    "restart": "Ray starts replicas again by itself, with the versions that they had",
}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


@final
class Deployer:
    """Serves the model that `model.save(path)` or `model.export(path)` wrote, or several.

    Args:
        path: a `.h5`, `.safetensors` or `.lmx` file, or a folder with config.json and weights as `lm.load_pretrained`
            reads it; several as a dict from what they are called to their files.
        key: the public ed25519 key, PEM text or a file of it, of whoever must have signed this bundle and those that
            come in updates.

    Raises FileNotFoundError, or ValueError with the reason if the file is damaged, is no model, or holds a model that
    has never seen data.

    >>> import llmasos_xla as lm, numpy as np, pathlib, tempfile
    >>> model = lm.Sequential([lm.layers.Dense(2, activation="softmax", input_shape=(3,))])
    >>> x = np.ones((1, 3), np.float32)
    >>> answer = model.predict(x)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(pathlib.Path(folder, "tiny.h5"))
    ...     with lm.Deployer(pathlib.Path(folder, "tiny.h5")).deploy() as server:
    ...         server.name, bool((server.predict(x) == answer).all())
    ('tiny', True)
    """

    def __init__(
        self, path: str | os.PathLike | Mapping[str, str | os.PathLike], *, key: str | os.PathLike | None = None
    ):
        # Paths are made whole: a server may be started again when this process has gone to another folder.
        self.key = key if key is None or "-----BEGIN" in str(key) else os.path.abspath(key)
        named = path if isinstance(path, Mapping) else {None: path}
        if not named:
            raise ValueError("Deployer: a dict of no models came; one at least is wanted")
        self.paths = {name: pathlib.Path(each).absolute() for name, each in named.items()}
        self._check_files()

    def deploy(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        name: str | None = None,
        *,
        grpc_port: int | None = None,
        warm: Sequence[int] = (1,),
        max_body: int = protocol.MAX_BODY,
        batch: int = 64,
        delay: float = 0.0,
        request_timeout: float | None = None,
        keep: int = 3,
        keys: str | os.PathLike | None = None,
        certificate: str | os.PathLike | None = None,
        certificate_key: str | os.PathLike | None = None,
        state: str | os.PathLike | None = None,
        program: bool = False,
        engine: Literal["local", "ray"] = "local",
        replicas: int | None = None,
        restart: bool = False,
        access_log: bool = False,
        tracing: bool | str = False,
        wait: bool | None = None,
        timeout: float = 120.0,
    ) -> Handle:
        """Starts the server and returns when it is ready to answer.

        Args:
            port: where to listen; 0 takes a free one.
            host: the address to listen on; "0.0.0.0" lets other machines ask, and anyone on them unless there are keys.
            name: what the model is called in addresses; the file's name without its ending by default.
            grpc_port: where to answer over gRPC too; 0 takes a free port. Wants the extra "grpc".
            warm: numbers of rows to compile for before it is ready; others are compiled when first asked for. A model
                that writes is compiled for texts that are written at once, up to the largest of these numbers.
            max_body: bytes of a request; larger ones are refused.
            batch: rows of different requests that run together, at most; 1 runs each alone.
            delay: seconds that a batch which is not full waits for more rows.
            request_timeout: seconds that a request may take where it does not say.
            keep: versions that stay in memory for a rollback.
            keys: a file of API keys, one of which must come with every request; the handle asks with the first.
            certificate: a PEM file, the server's certificate and those that signed it; it answers over TLS alone then,
                over gRPC too. The handle trusts that certificate.
            certificate_key: a PEM file, its private key, unless that is in the same file.
            state: a file in which it is written down which version answers, so that a server that starts again with
                it goes on with the one that was handed over last. Weights from memory are kept beside it, `FILE.live`.
            program: run a bundle's program as it is, not the model that is rebuilt from it.
            engine: "ray" runs several replicas by Ray Serve, on this machine or on the cluster that `RAY_ADDRESS`
                names; updates roll over them. Wants the extra "ray".
            replicas: how many; 2 if None.
            restart: start the server again, with the version that was handed over last, if it ends by itself.
            access_log: prints a line for each request.
            tracing: the address of a collector of OpenTelemetry that gets a trace of each request, or True for the one
                that OpenTelemetry's environment variables name. Wants the extra "tracing".
            wait: whether a script that ends goes on serving until Ctrl-C; by default unless the interpreter is
                interactive.
            timeout: seconds until ready, at most.

        Raises OSError if a port is in use, ValueError for a file that is no model, TimeoutError, or RuntimeError with
        the server's last output if it ends early.
        """
        if name is not None and None not in self.paths:
            raise ValueError(
                f"deploy: the models have names already, {', '.join(map(str, self.paths))}; leave name away"
            )
        models = {_checked_name(name if each is None else each, path): path for each, path in self.paths.items()}
        _check_whole("port", port, 0, 65535)
        if grpc_port is not None:
            _check_whole("grpc_port", grpc_port, 0, 65535)
        _check_whole("max_body", max_body, 1, 1 << 40)
        for rows in warm:
            _check_whole("warm", rows, 1, 1 << 20)
        if certificate_key is not None and certificate is None:
            raise ValueError("deploy: certificate_key came without certificate; a key alone encrypts nothing")
        if engine != "local":
            _check_cluster(engine, grpc_port=grpc_port, state=state, restart=restart or None)
            replicas = 2 if replicas is None else replicas
            _check_whole("replicas", replicas, 1, 10_000)
            _check_whole("keep", keep, 1, 1000)
        elif replicas is not None:
            raise ValueError('deploy: replicas are Ray\'s; say engine="ray", too')
        _check_seconds("delay", delay, 0.0)
        if request_timeout is not None:
            _check_seconds("request_timeout", request_timeout, 1e-6)
        if state is not None and not os.path.isdir(folder := os.path.dirname(os.path.abspath(state))):
            raise FileNotFoundError(f"deploy: state: there is no folder {folder!r}; make it first")
        known = None if keys is None else read_keys(keys)[0]
        self._check_files()
        arguments = [*(f"--name={each}" for each in models), "--host", host, "--max-body", str(max_body)]
        _check_whole("batch", batch, 1, 1 << 16)
        _check_whole("keep", keep, 0, 1000)
        arguments += ["--batch", str(batch), "--delay", str(delay), "--keep", str(keep)]
        for option, value in (
            ("--timeout", request_timeout),
            ("--keys", keys and os.path.abspath(keys)),
            ("--key", self.key),
            ("--state", state and os.path.abspath(state)),
            ("--certificate", certificate and os.path.abspath(certificate)),
            ("--certificate-key", certificate_key and os.path.abspath(certificate_key)),
        ):
            arguments += [] if value is None else [option, str(value)]
        arguments += ["--program"] * program + ["--access-log"] * access_log
        if tracing is not False:
            arguments.append(f"--tracing={'' if tracing is True else tracing}")
        arguments += [] if replicas is None else ["--replicas", str(replicas)]
        if restart and state is None:
            # The server's own memory of what was handed over, for as long as this process lives.
            folder = tempfile.TemporaryDirectory(prefix="llmasos-")
            atexit.register(folder.cleanup)
            arguments += ["--state", os.path.join(folder.name, "state.json")]

        hands = Hands()

        def start(port: int, grpc_port: int | None) -> Child:
            ports = ["--port", str(port), *([] if grpc_port is None else ["--grpc-port", str(grpc_port)])]
            grace = GRACE_SECONDS if replicas is None else _CLUSTER_SECONDS
            return Child([*map(str, models.values()), *arguments, *ports, "--warm", *map(str, warm)], grace, hands)

        handle = Handle(start, list(models), host, port, grpc_port, max_body, timeout, restart, certificate, known)
        lifecycle.keep(handle, wait)
        return handle

    def __repr__(self) -> str:
        return f"Deployer({', '.join(repr(str(path)) for path in self.paths.values())})"

    def _check_files(self) -> None:
        for path in self.paths.values():
            _check_file(path, self.key)


def _check_file(path: pathlib.Path, key: Any) -> None:
    from llmasos_xla.api import saving
    from llmasos_xla.storage.bundle import Bundle

    # Published weights are the server's to look at: whether the shelf has them takes JAX, which may not be up here.
    if (path / "config.json").is_file():
        return
    if path.suffix == ".lmx":
        Bundle.open(path, key=key)
    elif key is not None:
        raise PermissionError(
            f"Deployer: only bundles are signed, and a signature is asked for; {path.name!r} is no bundle"
        )
    elif saving.read(path).spec.get("preprocessing") is None:
        raise ValueError(
            f"Deployer: the model in {path.name!r} has never seen data, so it is not known how to prepare its "
            "input; fit it, or call predict once, and save it again"
        )


def _checked_name(name: str | None, path: pathlib.Path) -> str:
    if name is None:
        return re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:200] or "model"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"deploy: name is part of an address: letters, digits, . _ and -; {name!r} came")
    return name


def _check_cluster(engine: str, **options: Any) -> None:
    """Raises ValueError for an engine that there is not, and for what it cannot do."""
    if engine != "ray":
        raise unknown("deploy", "engine", engine, ("local", "ray"))
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f'deploy: {name} is of a server of one process; with engine="ray" leave it away: {_WHY[name]}'
            )


def _check_seconds(what: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 86400.0:
        raise ValueError(f"deploy: {what} is a number of seconds from {least:g} to 86400, {value!r} came")


def _check_whole(what: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"deploy: {what} is a whole number from {least} to {most}, {value!r} came")
