"""A client that loads a server over HTTP/1.1: `python client.py` with a JSON plan on standard input.

So many connections stay open. In a closed loop each sends its next request when its answer is there; at a rate,
requests are sent when they are due, so that a server that stalls is not spared: a latency counts from when the request
was due. Answers are checked while they come.
"""

import asyncio
import json
import sys
import time

import orjson


class Connection(asyncio.Protocol):
    """One connection: one request at a time, the answer's body in a future."""

    def __init__(self):
        self.transport = self.future = None
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        self.transport = None
        if self.future is not None and not self.future.done():
            self.future.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data):
        self.data += data
        head, mark, body = self.data.partition(b"\r\n\r\n")
        if not mark:
            return
        lower = head.lower()
        start = lower.find(b"content-length:")
        if start < 0:
            # Chunked answers end with an empty chunk; their bodies are put together.
            if not body.endswith(b"0\r\n\r\n"):
                return
            parts, rest = [], body
            while rest and not rest.startswith(b"0\r\n"):
                size, _, rest = rest.partition(b"\r\n")
                parts.append(rest[: int(size, 16)])
                rest = rest[int(size, 16) + 2 :]
            body = b"".join(parts)
        else:
            length = int(lower[start + 15 :].split(b"\r\n", 1)[0])
            if len(body) < length:
                return
        self.data = b""
        future, self.future = self.future, None
        if future is not None and not future.done():
            future.set_result((int(head[9:12]), body))

    def ask(self, request):
        self.future = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.future


async def run(plan):
    """Latencies in seconds with the moments they ended, how answers ended, and what versions were seen."""
    loop = asyncio.get_running_loop()
    host, port = plan["host"], plan["port"]
    body = plan["body"].encode("latin-1")
    head = "".join(f"{name}: {value}\r\n" for name, value in plan["headers"].items())
    request = (
        f"POST {plan['path']} HTTP/1.1\r\nHost: {host}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )
    ended, latencies, statuses, versions, wrong = [], [], {}, {}, []
    stop = time.perf_counter() + plan["seconds"]
    interval = plan["clients"] / plan["rate"] if plan.get("rate") else None

    async def one(number):
        connection = None
        due = time.perf_counter() + (interval * number / plan["clients"] if interval else 0)
        while time.perf_counter() < stop:
            if interval:
                wait = due - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                began = due
                due += interval
            else:
                began = time.perf_counter()
            try:
                if connection is None or connection.transport is None:
                    _, connection = await loop.create_connection(Connection, host, port)
                status, answer = await connection.ask(request)
            except (ConnectionError, OSError) as error:
                statuses[type(error).__name__] = statuses.get(type(error).__name__, 0) + 1
                connection = None
                await asyncio.sleep(0.01)
                continue
            now = time.perf_counter()
            statuses[str(status)] = statuses.get(str(status), 0) + 1
            if status == 200:
                latencies.append(now - began)
                ended.append(now)
            elif plan.get("pause"):
                await asyncio.sleep(plan["pause"])
            if plan.get("versions") and status == 200:
                found = orjson.loads(answer)
                value = found["outputs"][0]["data"]
                versions[found["model_version"]] = versions.get(found["model_version"], 0) + 1
                if len(set(value)) != 1 or value[0] != float(found["model_version"]):
                    wrong.append([found["model_version"], value[:4]])

    await asyncio.gather(*(one(number) for number in range(plan["clients"])))
    return {"ended": ended, "latencies": latencies, "statuses": statuses, "versions": versions, "wrong": wrong}


def main():
    """Runs the plan and prints what was found as JSON."""
    plan = json.loads(sys.stdin.read())
    if plan.get("uvloop", True):
        import uvloop

        found = uvloop.run(run(plan))
    else:
        found = asyncio.run(run(plan))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
