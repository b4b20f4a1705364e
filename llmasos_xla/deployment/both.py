"""The web server with the gRPC server beside it: one event loop, one start, one drain."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, final

import uvicorn

from llmasos_xla.deployment import rpc
from llmasos_xla.deployment.host import Host


@final
class Both(uvicorn.Server):
    """uvicorn's server, which starts and stops a gRPC server with itself; `told` gets the port that one has.
    `options` are those of `rpc.serve`.

    Both drain at the same time, since the process that waits for their end counts its seconds once.
    """

    def __init__(self, config: uvicorn.Config, host: Host, address: str, told: Callable[[int], None], **options: Any):
        super().__init__(config)
        self._host, self._address, self._told, self._options = host, address, told, options
        self._other: rpc.Server | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts both; raises what `rpc.serve` does."""
        self._other = await rpc.serve(self._host, self._address, **self._options)
        self._told(self._other.port)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops both."""
        assert self._other is not None
        self._host.draining = True
        grace = self.config.timeout_graceful_shutdown or 0
        await asyncio.gather(super().shutdown(sockets), self._other.stop(grace))
