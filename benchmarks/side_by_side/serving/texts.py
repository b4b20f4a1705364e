"""A client that has texts written over OpenAI's protocol: `python texts.py` with a JSON plan on standard input.

Each of the plan's clients asks for its next text when the one before has ended. Answers are streamed: when the first
piece of each came, when the others, and how many ids were written.
"""

import asyncio
import json
import sys
import time


async def ask(plan, number, found, until):
    """One client, until its time is over; texts that had begun by then are read to their end and count."""
    turn = 0
    while time.perf_counter() < until:
        body = {**plan["body"], "seed": 1000 * number + turn, "stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(plan["host"], plan["port"])
        head = f"POST {plan['path']} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        status, times, ids = (await reader.readline()).split()[1].decode(), [], 0
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("usage"):
                    ids = event["usage"]["completion_tokens"]
                elif event.get("choices"):
                    times.append(time.perf_counter() - began)
        writer.close()
        found.append({"status": status, "times": times, "ids": ids, "ended": time.perf_counter()})
        turn += 1


async def main():
    """Runs the plan and prints what was seen."""
    plan, found, began = json.load(sys.stdin), [], time.perf_counter()
    await asyncio.gather(*(ask(plan, i, found, began + plan["seconds"]) for i in range(plan["clients"])))
    json.dump({"texts": found, "seconds": max(each["ended"] for each in found) - began}, sys.stdout)


asyncio.run(main())
