"""What `deploy` returns: a running server's address, and a way to ask it and to stop it."""

import collections
import contextlib
import http.client
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import orjson

from llmasos_xla.deployment import control, protocol
from llmasos_xla.deployment.child import Child
from llmasos_xla.deployment.raw_input import to_tensors
from llmasos_xla.errors import unknown

# `predict` runs batches of this size; a request of whole batches gets the same programs, so the same bits.
_BATCH = 256
# A server that ends so often within so many seconds stays ended.
_MOST_RESTARTS, _RESTART_SECONDS, _WATCHED_EVERY = 5, 60.0, 0.05
# Values up to here are written out in the curl line.
_MOST_VALUES = 32

Start = Callable[[int, int | None], Child]
"""Starts a server that listens on a port, and on another over gRPC unless that is None."""


@final
class Handle:
    """A server in a process of its own, until `stop`; a context manager that stops it.

    Threads may share it. Copies in forked processes may ask but not stop it.
    """

    def __init__(
        self,
        start: Start,
        names: Sequence[str],
        host: str,
        port: int,
        grpc_port: int | None,
        max_body: int,
        timeout: float,
        restart: bool,
        certificate: str | os.PathLike | None = None,
        key: str | None = None,
    ):
        self._start, self._timeout = start, timeout
        self._child = start(port, grpc_port)
        self._said = self._child.wait_ready(timeout)
        self._max_body = max_body
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._prepared: dict[str, tuple[Any, Any]] = {}
        self._stopped, self._owner, self._changed = False, os.getpid(), threading.Lock()
        self.name: str = names[0]
        """Of the model; of the first, where there are several."""
        self.names: tuple[str, ...] = tuple(names)
        self.port: int = self._said["port"]
        self._certificate = None if certificate is None else os.path.abspath(certificate)
        self.restarts: int = 0
        """How often the server was started again."""
        self._watched = restart
        if restart:
            threading.Thread(target=self._watch, name="restart", daemon=True).start()
        # An address to listen on everywhere is none to go to.
        self._host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end: "http://127.0.0.1:8000", or https with a certificate."""
        return f"{'http' if self._certificate is None else 'https'}://{self._address(self.port)}"

    @property
    def grpc_url(self) -> str | None:
        """Where it answers over gRPC, as clients of gRPC want it: "127.0.0.1:8001". None if it does not."""
        port = self._said["grpc_port"]
        return None if port is None else self._address(port)

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process lives and is this process's own."""
        mine = not self._stopped and self._owner == os.getpid()
        return mine and (self._watched or self._child.status() is None)

    @property
    def curl(self) -> str:
        """A command line that asks the server about one made-up row; where keys are wanted, the shell's KEY is one."""
        inputs = ",".join(map(_curl_tensor, self._said["models"][self.name]["example"]))
        address = shlex.quote(f"{self.url}/v2/models/{self.name}/infer")
        trust = "" if self._certificate is None else f"--cacert {shlex.quote(self._certificate)} "
        key = ' -H "Authorization: Bearer $KEY"' if self._headers else ""
        return f"curl -s {trust}{address} -H 'Content-Type: application/json'{key} -d '{{\"inputs\":[{inputs}]}}'"

    def predict(self, x: Any, *, model: str | None = None, timeout: float = 300.0) -> np.ndarray:
        """Outputs [rows, ...] in float32, as `model.predict(x)` gives them, asked over HTTP.

        `x` is what `model.predict` takes, or texts where the server makes ids of them. Many rows go in several
        requests; each may take `timeout` seconds.

        Raises ValueError with the server's reason if it refuses the input, RuntimeError if the model failed or the
        server is gone.
        """
        self._check_running()
        name = self._named(model)
        tensors = to_tensors(x, self._preprocessing(name), self._said["models"][name].get("text", False))
        return np.concatenate([self._infer(name, part, timeout) for part in _parts(tensors, self._max_body)])

    def update(self, source: Any, *, model: str | None = None, **trial: Any) -> dict[str, Any]:
        """Replaces the weights, or the model, while requests are answered; returns the new version and the seconds.

        The new version is opened, checked against its digests, compiled for all that the old one was compiled for, and
        tried on its example, all beside the requests; then one reference is set. Requests that are inside are answered
        by the version that they came to. If anything is wrong, nothing changes.

        Args:
            source: a bundle, a saved model, a folder of checkpoints or of published weights; or a model or its
                `Variables` from this process, whose weights go through shared memory, with no file between.
            model: which is replaced, where there are several; the first if None. So it is in the other methods.
            **trial: share=0.1 lets the new version answer a tenth of the requests, until requests=100 were good and it
                answers them all, or more than most_errors=0.01 of them failed, or its median latency was more than
                most_latency=2.0 times the other's, and it is taken back; shadow=True computes the same beside and sends
                nothing of it, until `end_trial`, or, with most_difference=0.01, until requests=100 outputs differed by
                no more from those that were sent, and it answers all, or one did. `stats()["last_trial"]` has the end.

        Raises ControlError with the reason if the version is refused, ConnectionError if the server is gone.
        """
        message: dict[str, Any] = {"do": "update"}
        if trial:
            message["trial"] = trial
        if isinstance(source, str | os.PathLike):
            return self._tell(model, {**message, "path": os.path.abspath(source)})
        from llmasos_xla.deployment.handing import handed_over

        try:
            with handed_over(source) as (more, files):
                return self._tell(model, {**message, **more}, files)
        except control.ControlError as error:
            if error.kind != "OtherModelError":
                raise
        # Another architecture: what rebuilds it has to come along.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.safetensors")
            source.save(path)
            return self._tell(model, {**message, "path": path, "passing": True})

    def rollback(self, *, model: str | None = None) -> str:
        """Lets the version before answer again, at once; returns which. Raises ControlError if there is none."""
        return self._tell(model, {"do": "rollback"})["version"]

    def end_trial(self, good: bool, *, model: str | None = None) -> str:
        """Ends a trial: lets the version on trial answer, or takes it back; returns which answers."""
        return self._tell(model, {"do": "end_trial", "verdict": "good" if good else "bad"})["version"]

    def stats(self, *, model: str | None = None) -> dict[str, Any]:
        """Versions, requests, latencies of the last minute, queue and programs."""
        self._check_running()
        found = control.ask(self.port, {"do": "stats"}, path=self._said["control"])
        name = self._named(model)
        return next(each for each in found["models"] if each["name"] == name)

    def ready(self) -> bool:
        """Whether the server answers and its model can be asked."""
        if self._stopped:
            return False
        try:
            return self._ask("GET", f"/v2/models/{self.name}/ready", timeout=10.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        """Ends the server after the requests in flight; the second time does nothing."""
        if self._stopped or self._owner != os.getpid():
            return
        self._stopped = True
        with self._changed:
            self._child.stop()

    def last_words(self) -> str:
        """The end of what the server wrote to standard error."""
        return self._child.last_words()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Handle({self.name!r} at {self.url}, {self._state()})"

    def _watch(self) -> None:
        """Starts the server again where it listened, if it ends by itself; not if it does so again and again."""
        starts: collections.deque[float] = collections.deque(maxlen=_MOST_RESTARTS)
        while not self._stopped:
            time.sleep(_WATCHED_EVERY)
            with self._changed:
                if self._stopped or self._child.status() is None:
                    continue
                now = time.monotonic()
                if len(starts) == _MOST_RESTARTS and now - starts[0] < _RESTART_SECONDS:
                    self._watched = False
                    return
                starts.append(now)
                print(
                    f"{self.name!r}: the server ended by itself, {self._child.how_it_ended()}; starting it again",
                    file=sys.stderr,
                )
                self._child.stop(0.0)
                try:
                    self._child = self._start(self.port, self._said["grpc_port"])
                    self._said = self._child.wait_ready(self._timeout)
                    self.restarts += 1
                except (OSError, RuntimeError, ValueError, ImportError) as error:
                    print(f"{self.name!r}: {error}", file=sys.stderr)

    def _named(self, model: str | None) -> str:
        if model is not None and model not in self.names:
            raise unknown("server", "model", model, self.names)
        return self.name if model is None else model

    def _preprocessing(self, name: str) -> Any:
        from llmasos_xla.data.preprocessing import Preprocessing

        said = self._said["models"][name]["preprocessing"]
        before, found = self._prepared.get(name, (None, None))
        if before is not said:
            found = None if said is None else Preprocessing.from_json(said)
            self._prepared[name] = said, found
        return found

    def _tell(self, model: str | None, message: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        """Has the server do something to a model, and learns how that one's input is prepared from then on."""
        name = self._named(model)
        self._check_running()
        path = self._said["control"]
        found = control.ask(self.port, {**message, "model": name}, files, path=path)
        self._said["models"][name] = control.ask(self.port, {"do": "about", "model": name}, path=path)
        return found

    def _address(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _state(self) -> str:
        if self._stopped:
            return "stopped"
        return f"pid {self.pid}" if self._child.status() is None else f"ended {self._child.how_it_ended()}"

    def _check_running(self) -> None:
        if self._stopped:
            raise RuntimeError(f"predict: the server {self.name!r} was stopped; deploy it again")
        if self._owner == os.getpid() and self._child.status() is not None and not self._watched:
            raise RuntimeError(
                f"predict: the server {self.name!r} ended by itself, {self._child.how_it_ended()}; deploy it again"
                f"{self._child.last_words()}"
            )

    def _infer(self, name: str, tensors: Mapping[str, np.ndarray], timeout: float) -> np.ndarray:
        body = protocol.write_request(tensors, ["output"])
        try:
            status, content, json_length = self._ask("POST", f"/v2/models/{name}/infer", body, timeout)
        except TimeoutError:
            raise TimeoutError(
                f"predict: no answer from {self.url} within {timeout:g} s; pass a larger timeout="
            ) from None
        except (OSError, http.client.HTTPException) as error:
            self._check_running()
            raise RuntimeError(f"predict: no answer from {self.url}: {error!r}") from error
        if status == 200:
            return protocol.read_answer(content, json_length)["output"]
        reason = orjson.loads(content).get("error", "no reason given")
        raise (ValueError if 400 <= status < 500 else RuntimeError)(f"predict: the server answered {status}: {reason}")

    def _ask(
        self, method: str, path: str, body: protocol.Body | None = None, timeout: float | None = None
    ) -> tuple[int, bytes, str | None]:
        # Not urllib: it would go through a proxy that the environment names.
        with contextlib.closing(self._connection(timeout)) as connection:
            headers = {**self._headers, **(body.headers if body else {})}
            connection.request(method, path, body.content if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get(protocol.JSON_LENGTH)

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        certificate = self._said["certificate"]
        if certificate is None:
            return http.client.HTTPConnection(self._host, self.port, timeout=timeout)
        from llmasos_xla.deployment.tls import trusting

        return http.client.HTTPSConnection(self._host, self.port, timeout=timeout, context=trusting(certificate))


def _parts(tensors: Mapping[str, np.ndarray], max_body: int) -> Iterator[dict[str, np.ndarray]]:
    """Pieces of whole batches that fit a request each."""
    sizes = {len(array) if array.ndim else 0 for array in tensors.values()}
    rows = max(sizes, default=0)
    # Twice the size where text is written as JSON; room for names and shapes.
    row_bytes = max(1, sum(_bytes(array) for array in tensors.values()) // max(rows, 1))
    fit = max(1, (max_body - min(max_body // 2, 1 << 16)) // row_bytes)
    size = fit - fit % _BATCH if fit >= _BATCH else 1 << (fit.bit_length() - 1)
    if len(sizes) != 1 or rows <= size:
        # Rows that differ in number are for the server to refuse.
        yield dict(tensors)
        return
    for start in range(0, rows, size):
        yield {name: array[start : start + size] for name, array in tensors.items()}


def _bytes(array: np.ndarray) -> int:
    return array.nbytes if array.dtype.kind != "O" else sum(6 * len(v) + 8 for v in array.flat if isinstance(v, str))


def _curl_tensor(example: Mapping[str, Any]) -> str:
    """The JSON of one tensor inside single quotes; many values come from printf."""
    shape: Sequence[int] = example["shape"]
    count = int(np.prod(shape))
    value = orjson.dumps(example["fill"]).decode()
    head = orjson.dumps({"name": example["name"], "shape": shape, "datatype": example["datatype"]}).decode()[:-1]
    if count <= _MOST_VALUES:
        data = ",".join([value] * count)
        return f'{head},"data":[{data}]}}'.replace("'", "'\\''")
    quoted = head.replace("'", "'\\''")
    return f"{quoted},\"data\":['$(printf '{value},%.0s' $(seq {count - 1}))'{value}]}}"
