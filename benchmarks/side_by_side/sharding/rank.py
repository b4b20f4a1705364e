"""`python -m side_by_side.sharding.rank KIND STRATEGY PORT TINY`: fits a model, an epoch each time it is told to.

It connects to the benchmark on that port, writes a line of JSON before the first epoch and after each, and waits for a
line in return: "go" for an epoch, anything else for the end.
"""

import json
import os
import socket
import sys
import time

from side_by_side.sharding.models import compiled

_MANY = 100_000


def main(kind: str, strategy: str, port: str, tiny: str) -> None:
    model, x, y, batch = compiled(kind, bool(int(tiny)))
    with socket.create_connection(("127.0.0.1", int(port))) as wire, wire.makefile("rw") as benchmark:
        started, worked = 0.0, 0.0

        def turn(event) -> str | None:
            nonlocal started, worked
            if event.kind == "end":
                return None
            now, work = time.perf_counter(), time.process_time()
            answer = {
                "pid": os.getpid(),
                "seconds": now - started,
                "work": work - worked,
                "loss": event.logs.get("loss"),
            }
            benchmark.write(json.dumps(answer) + "\n")
            benchmark.flush()
            goes_on = benchmark.readline() == "go\n"
            started, worked = time.perf_counter(), time.process_time()
            return None if goes_on else "stop"

        model.fit(x, y, epochs=_MANY, batch_size=batch, callbacks=[turn], verbose=0, shard=strategy or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
