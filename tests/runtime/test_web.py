"""The engine's page: who may look and who may change things, what is told, and how it looks in a browser.

With LLMASOS_SCREENSHOTS=folder the pictures of `top` and of the page in the documentation are made.
"""

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest
from runtime_jobs import spec, wait_until

from llmasos_xla import progress
from llmasos_xla.runtime import service
from llmasos_xla.runtime.guard import own_token, why_not_change, why_not_look
from llmasos_xla.runtime.store import Store
from llmasos_xla.runtime.viewer import Viewer
from llmasos_xla.runtime.web import Page

pytest.importorskip("psutil", reason="psutil is not installed")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
TOKEN = "t" * 40


@pytest.fixture
def store(home):
    found = Store(home.store)
    yield found
    found.close()


@pytest.fixture
def page(home, store):
    found = Page(home)
    found.start()
    yield found
    found.stop()
    assert not found._thread.is_alive()


def ask(page, path, body=None, **headers):
    """Status, headers and content of one request."""
    found = urllib.parse.urlsplit(page.url)
    connection = http.client.HTTPConnection(found.hostname, found.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, body, named)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def bearer(home):
    return {"Authorization": f"Bearer {home.token.read_text()}"}


# Who may


@pytest.mark.parametrize("host", ["127.0.0.1:8787", "[::1]:8787", "localhost", "LOCALHOST:1", "10.0.0.7:80", "box:80"])
def test_addresses_may_be_looked_at(host):
    assert why_not_look({"host": host}, "box") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:8787"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example"},
        {"host": ""},
        {"host": "x[::1]"},
        {"host": "localhost", "sec-fetch-site": "cross-site"},
        {"host": "localhost", "sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_may_not_even_look(headers):
    assert why_not_look(headers, "127.0.0.1") is not None
    assert why_not_change({**headers, "authorization": f"Bearer {TOKEN}"}, "127.0.0.1", TOKEN) is not None


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "wants the token"),
        ({"authorization": "Bearer "}, "wants the token"),
        ({"authorization": f"Bearer {TOKEN}x"}, "wants the token"),
        ({"authorization": f"Bearer {TOKEN[1:]}é"}, "wants the token"),
        ({"authorization": f"Basic {TOKEN}"}, "wants the token"),
        ({"authorization": f"Bearer {TOKEN}", "origin": "https://evil.example"}, "another site"),
        ({"authorization": f"Bearer {TOKEN}", "origin": "null"}, "another site"),
        # Another server of this machine is another site.
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:9"}, "another site"),
    ],
)
def test_who_may_change_nothing(headers, reason):
    assert reason in why_not_change({"host": "127.0.0.1:8787", **headers}, "127.0.0.1", TOKEN)


@pytest.mark.parametrize("headers", [{}, {"origin": "http://127.0.0.1:8787", "sec-fetch-site": "same-origin"}])
def test_who_may_change_things(headers):
    headers = {"host": "127.0.0.1:8787", "authorization": f"bearer {TOKEN}", **headers}
    assert why_not_change(headers, "127.0.0.1", TOKEN) is None


def test_the_token_is_the_users_alone_and_stays(home):
    token = own_token(home)
    assert len(token) >= 32
    assert home.token.stat().st_mode & 0o777 == 0o600
    assert own_token(home) == token
    # What was cut off lets nobody in.
    home.token.write_text("")
    assert len(own_token(home)) >= 32
    assert own_token(home) != token


# What is told


def test_the_page_runs_its_own_script_alone(page):
    status, headers, content = ask(page, "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(rb"(src|href)=\"(?!data:)", content)
    assert not re.search(rb"https?://", content)
    assert ask(page, "/", Host="evil.example")[0] == 403
    # A link leads here, whoever has set it.
    assert ask(page, "/", Sec_Fetch_Site="cross-site")[0] == 200


def test_looking_wants_no_token(home, store, page):
    store.submit(spec("true", name="digits", environment={"KEY": "s3cret"}))

    def found():
        status, headers, content = ask(page, "/view")
        assert status == 200
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
        return json.loads(content)

    view = wait_until(lambda: (v := found()).get("rows") and v)
    assert [row["name"] for row in view["rows"]] == ["digits"]
    assert view["counts"] == {"queued": 1}
    assert "s3cret" not in json.dumps(view)
    assert len(view["past"]["at"]) >= 1
    assert ask(page, "/view", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(page, "/view", Host="evil.example")[0] == 403


def test_a_stream_tells_what_comes(home, store, page):
    found = urllib.parse.urlsplit(page.url)
    connection = http.client.HTTPConnection(found.hostname, found.port, timeout=30)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")

    def event():
        while not (line := answer.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line[6:])

    assert "past" in event()
    store.submit(spec("true", name="comes"))
    wait_until(lambda: [row["name"] for row in event()["rows"]] == ["comes"])
    # It ends with the page, and holds its end not up.
    began = time.monotonic()
    page.stop()
    assert time.monotonic() - began < 2.0
    assert answer.read().count(b"data: ") <= 2
    connection.close()


def test_a_job_is_cancelled_and_gets_a_priority(home, store, page):
    job = store.submit(spec("true"))
    assert ask(page, "/jobs/1/priority", '{"priority": 7}')[0] == 403
    assert ask(page, "/jobs/1/cancel", "{}", Authorization="Bearer x")[0] == 403
    assert ask(page, "/jobs/1/cancel", "{}", **bearer(home), Origin="http://evil.example")[0] == 403
    assert ask(page, "/jobs/1/cancel", "{}", **bearer(home), Host="evil.example")[0] == 403
    assert store.job(1) == job
    assert ask(page, "/jobs/1/priority", '{"priority": 7}', **bearer(home))[0] == 200
    assert store.job(1).spec.priority == 7
    for wrong in (
        "",
        "7",
        "{}",
        '{"priority": true}',
        '{"priority": 1.5}',
        '{"priority": 1e99}',
        f'{{"priority": {2**70}}}',
    ):
        status, _, content = ask(page, "/jobs/1/priority", wrong, **bearer(home))
        assert status == 400
        assert b"a whole number" in content
    assert ask(page, "/jobs/1/cancel", **bearer(home))[0] == 405
    status, _, content = ask(page, "/jobs/1/cancel", "{}", **bearer(home))
    assert (status, json.loads(content)["state"]) == (200, "cancelled")
    assert store.job(1).state == "cancelled"
    assert ask(page, "/jobs/1/priority", '{"priority": 8}', **bearer(home))[0] == 409
    status, _, content = ask(page, "/jobs/9/cancel", "{}", **bearer(home))
    assert status == 404
    assert b"unknown job '9'" in content


def test_a_log_is_its_users(home, store, page):
    store.submit(spec("true"))
    assert ask(page, "/jobs/1/log")[0] == 403

    def found(after):
        return json.loads(ask(page, f"/jobs/1/log?after={after}", **bearer(home))[2])

    assert found(0) == {"begin": 0, "end": 0, "text": ""}
    home.job(1).mkdir(parents=True)
    log = home.job(1) / "log"
    log.write_bytes("größer\n".encode()[:4])
    # Half of a character waits for its other half.
    assert found(0) == {"begin": 0, "end": 4, "text": "grö"}
    log.write_bytes("größer\n".encode()[:5])
    assert found(4) == {"begin": 4, "end": 4, "text": ""}
    log.write_bytes("größer\n".encode())
    assert found(4) == {"begin": 4, "end": 9, "text": "ßer\n"}
    log.write_bytes(b"x" * 200_000)
    part = found(9)
    assert (part["begin"], part["end"], len(part["text"])) == (200_000 - 65536, 200_000, 65536)
    assert found(10**9)["text"] == ""
    assert ask(page, "/jobs/1/log?after=x", **bearer(home))[0] == 400
    assert ask(page, "/jobs/2/log", **bearer(home))[0] == 404
    assert ask(page, "/jobs/../../etc/passwd/log", **bearer(home))[0] == 404


def test_what_cannot_be_seen_is_told_once_and_tried_again(home, store, page, caplog):
    wait_until(lambda: ask(page, "/view")[2] != b'{"past": {}}')
    store.submit(spec("true"))
    home.job(1).mkdir(parents=True)
    broken = home.job(1) / "t1.progress-0"
    broken.write_text("{")
    store.change(store.job(1), "running", token="t1", places=(("local", 0),))
    wait_until(lambda: "cannot look" in caplog.text)
    time.sleep(2.2)
    assert caplog.text.count("cannot look") == 1
    progress.write(home.job(1) / "t1", 0, progress.Progress(3, 1, 0.5, True, time.time()))
    wait_until(lambda: [row["step"] for row in json.loads(ask(page, "/view")[2])["rows"]] == [3])


# With an engine


def test_who_comes_later_sees_the_losses_from_the_first_on(home, engine):
    engine()
    with contextlib.closing(Store(home.store)) as store:
        store.submit(spec("sleep 100", name="long"))
        wait_until(lambda: store.job(1).state == "running")
        beginning = home.job(1) / store.job(1).token
        for step in (10, 20, 30):
            progress.write(beginning, 0, progress.Progress(step, 1, 1 / step, False, time.time()))
            time.sleep(1.2)
        viewer = Viewer(home)
        assert viewer.look().rows[0].losses == ((30, 1 / 30),)
        viewer.close()
        viewer = Viewer(home)
        assert viewer.remember()
        assert viewer.look().rows[0].losses == ((10, 1 / 10), (20, 1 / 20), (30, 1 / 30))
        viewer.close()


def test_without_a_page_nothing_is_remembered(home, store, engine):
    viewer = Viewer(home)
    assert not viewer.remember()
    engine("--no-page")
    assert not viewer.remember()
    viewer.close()


def test_up_tells_where_it_is(home, engine):
    def shell(*arguments):
        command = [sys.executable, "-m", "llmasos_xla", *arguments, "--home", str(home.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = shell("up", "--devices", "2", "--port", str(port))
        assert done.returncode == 2
        assert f"port {port} on 127.0.0.1 is in use" in done.stderr
        assert service.running(home) is None
    assert "up: a port is within 0 and 65535, 99999 came" in shell("up", "--port", "99999").stderr
    done = shell("up", "--devices", "2", "--port", str(port))
    assert f"its page: http://127.0.0.1:{port}/#token={home.token.read_text()}\n" in done.stdout
    assert done.stdout.splitlines()[1] == shell("up").stdout.splitlines()[1]
    assert home.token.read_text() not in shell("queue").stdout
    assert service.down(home)
    assert "page" not in shell("up", "--devices", "2", "--no-page").stdout


def browser_tools():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    return playwright


@contextlib.contextmanager
def opened(url, expected="none"):
    """A page in a browser; what it says is wrong is raised, but for what is `expected`."""
    playwright = browser_tools()
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=[*FLAGS, "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page, playwright.expect
        browser.close()
        assert not [text for text in wrong if expected not in text]
        ours = url.partition("#")[0]
        assert not [each for each in asked if not each.startswith((ours, "data:"))]


FIT = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo step $i; sleep 0.1; done"


def test_in_a_browser(home, engine):
    url = engine()["page"]
    with contextlib.closing(Store(home.store)) as store:
        store.submit(spec(FIT, name="digits", devices=(1, 3)))
        wait_until(lambda: store.job("digits").state == "running")
        store.submit(spec("true", name="next", devices=(4, 4)))
        job = store.job("digits")
        for step in range(1, 4):
            progress.write(home.job(1) / job.token, 0, progress.Progress(step, 1, 1 / step, False, time.time()))
            time.sleep(1.1)
        with opened(url) as (page, expect):
            expect(page.locator("#state")).to_contain_text("engine ")
            expect(page.locator("#counts")).to_have_text("1 running, 1 waiting")
            assert page.locator(".slot").all_text_contents() == ["1", "1", "1", "·"]
            expect(page.locator("#job-1")).to_contain_text("0.3333")
            expect(page.locator("#job-2 .why")).to_contain_text("4 devices")
            # Whoever has no token looks on.
            assert page.locator("button, input").count() == 0
            page.click("#job-1")
            expect(page.locator("#detail h2")).to_contain_text("1 digits")
            assert page.locator("#detail pre").is_hidden()
            assert page.evaluate(
                "document.getElementById('cpu').getContext('2d').getImageData(0, 0, 999, 70).data.some(v => v)"
            )
        with opened(f"{url}#token={home.token.read_text()}") as (page, expect):
            expect(page.locator("#job-2 input")).to_have_value("0")
            assert "token" not in page.url
            page.click("#job-1")
            expect(page.locator("#detail pre")).to_contain_text("step 1\nstep 2\n")
            before = page.locator("#detail pre").text_content()
            expect(page.locator("#detail pre")).not_to_have_text(before)
            assert page.locator("#detail pre").text_content().startswith(before)
            page.locator("#job-2 input").fill("5")
            page.keyboard.press("Enter")
            expect(page.locator("#events")).to_contain_text("2 next has priority 5 instead of 0")
            page.click("#job-1 button")
            wait_until(lambda: store.job("next").state == "done")
            expect(page.locator("#job-1 .state")).to_have_text("cancelled")
            expect(page.locator("#job-1 button")).to_have_count(0)


def test_a_wrong_token_in_a_browser(home, engine):
    url = engine()["page"]
    with contextlib.closing(Store(home.store)) as store:
        store.submit(spec("sleep 100", name="long"))
        with opened(f"{url}#token=wrong", "403") as (page, expect):
            page.click("#job-1 button")
            expect(page.locator("#error")).to_contain_text("wants the token")
        assert store.job(1).asked is None


FITS = """
import os, sys, time
import numpy as np
import llmasos_xla as lm

epochs, width = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
x = rng.normal(size=(4800, 64)).astype("float32")
y = (x[:, :8].sum(1) > 0).astype("int32")
hidden = [lm.layers.Dense(width, activation="relu") for _ in range(2)]
model = lm.Sequential([*hidden, lm.layers.Dense(2, activation="softmax")])
model.compile(lm.Optimizer("sgd", 0.01), "sparse_categorical_crossentropy")
pause = lambda event: time.sleep(0.3) if event.kind == "epoch" else None
several = os.environ["LLMASOS_DEVICES"] != "1"
model.fit(x, y, epochs=epochs, batch_size=120, shard="data" if several else None, resume=True, callbacks=pause,
    checkpoint=os.environ["LLMASOS_JOB_FOLDER"] + "/fit")
"""


@pytest.mark.skipif("LLMASOS_SCREENSHOTS" not in os.environ, reason="LLMASOS_SCREENSHOTS names no folder for pictures")
def test_pictures(home, engine, tmp_path, monkeypatch):
    from PIL import Image
    from rich.console import Console

    import llmasos_xla as lm
    from llmasos_xla.runtime.top import render
    from llmasos_xla.runtime.viewer import Viewer

    pictures = os.environ["LLMASOS_SCREENSHOTS"]
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(FITS)
    url = engine("--least-run", "5")["page"]

    def submit(*what, **how):
        return lm.runtime.submit(*what, home=home.path, **how)

    digits = submit("train.py", 900, 256, name="digits", devices=(1, 3))
    submit(["sh", "-c", "echo ready"], name="prepare")
    submit(["sh", "-c", "echo FileNotFoundError: no data set digits-2.npz; exit 3"], name="broken", retries=0)
    submit(["true"], name="evaluate", after=[digits])
    viewer = Viewer(home)
    for second in range(100):
        if second == 25:
            submit("train.py", 600, 512, name="urgent", devices=2, priority=10)
            submit("train.py", 30, 32, name="sweep", devices=4, priority=-1)
        view = viewer.look()
        time.sleep(1)
    viewer.close()
    assert [row.state for row in view.rows][:2] == ["running", "running"]
    console = Console(record=True, width=136, file=io.StringIO())
    console.print(render(view, 136))
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="llmasos top"), flags=re.DOTALL)
    drawn = drawn.replace("Fira Code", "ui-monospace, Menlo, Consolas")
    with open(os.path.join(pictures, "top.svg"), "w") as file:
        file.write("\n".join(line.strip() for line in drawn.splitlines() if line.strip()) + "\n")
    with opened(f"{url}#token={home.token.read_text()}") as (page, expect):
        page.click("#job-1")
        expect(page.locator("#detail pre")).to_contain_text("Epoch")
        page.wait_for_timeout(2000)
        found = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        found.quantize(64).save(os.path.join(pictures, "jobs.png"), optimize=True)


@pytest.fixture
def other_site():
    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>evil</title>")

        def log_message(self, format, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_another_sites_page_changes_nothing(home, engine, other_site):
    """With the very token: its wish is refused before it is read, and what is answered it does not see."""
    playwright = browser_tools()
    url = engine()["page"]
    with contextlib.closing(Store(home.store)) as store, playwright.sync_playwright() as tools:
        store.submit(spec("sleep 100", name="long"))
        browser = tools.chromium.launch(executable_path=BROWSER, args=[*FLAGS, "--no-sandbox"])
        page = browser.new_page()
        page.goto(other_site)
        post = """([url, token, mode]) => fetch(url, {method: "POST", mode, body: "{}",
            headers: {Authorization: `Bearer ${token}`}}).then(found => found.type, () => "failed")"""
        found = [page.evaluate(post, [f"{url}jobs/1/cancel", home.token.read_text(), m]) for m in ("cors", "no-cors")]
        assert found == ["failed", "opaque"]
        assert page.evaluate("url => fetch(url).then(() => 'seen', () => 'failed')", f"{url}view") == "failed"
        browser.close()
        assert store.job(1).asked is None
