"""Senders that fall silent."""

import asyncio
import json

import pytest

from llmasos_xla.deployment import asking
from llmasos_xla.deployment.app import App
from llmasos_xla.deployment.host import Host, Limits
from llmasos_xla.deployment.served import Served
from llmasos_xla.deployment.slot import Slot


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v1/completions"])
def test_a_sender_that_falls_silent_gives_its_place_back(image_model, monkeypatch, path):
    monkeypatch.setattr(asking, "_PART_SECONDS", 0.05)
    app = App(Host([Slot("m", Served.of_model(image_model, "m"))], limits=Limits(requests=1)))

    async def ask(parts):
        sent = []

        async def receive():
            if not parts:
                await asyncio.Event().wait()
            return parts.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", b"9")]}
        await asyncio.wait_for(app(scope, receive, send), 10)
        return sent

    part = {"type": "http.request", "body": b"{", "more_body": True}
    start, body = asyncio.run(ask([part]))
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert "no more of the body came for 0.05 s" in json.dumps(json.loads(body["body"]))
    # With one place in all, the next would be told 429 if it were not free.
    start, _ = asyncio.run(ask([{**part, "more_body": False}]))
    assert start["status"] == 400
