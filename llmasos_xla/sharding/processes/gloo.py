"""Where JAX's collectives on CPU say that this process is to be found.

By default gloo advertises whatever the host's own name resolves to. On many hosts that is a loopback address (Debian
writes 127.0.1.1 into /etc/hosts), and neighbors on other hosts then hang.
"""

import os
from typing import Any

import jax
from jax._src import distributed, xla_bridge
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]


def advertise(address: str) -> None:
    """From now on, this process's CPU collectives are found at that address; GLOO_SOCKET_IFNAME, if set, decides.

    To be called before JAX starts its devices. Collectives other than gloo, chosen by
    `jax_cpu_collectives_implementation`, are left alone.
    """
    if jax.config.jax_cpu_collectives_implementation is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    where = {"interface": interface} if interface else {"hostname": address}

    def client() -> Any:
        chosen = jax.config.jax_cpu_collectives_implementation  # pyright: ignore[reportAttributeAccessIssue]
        if chosen != "gloo" or distributed.global_state.client is None:
            return xla_bridge.make_cpu_client()
        collectives = _jax.make_gloo_tcp_collectives(distributed_client=distributed.global_state.client, **where)
        return xla_bridge.make_cpu_client(collectives=collectives)

    xla_bridge.register_backend_factory("cpu", client, priority=0, fail_quietly=False)
