"""What becomes of the server when the script that started it ends, in each of the ways it may end."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

ROOT = str(pathlib.Path(__file__).parents[2])
# A suite that runs in the background ignores Ctrl-C, and its children inherit that: the script listens again.
SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import llmasos_xla as lm
server = lm.Deployer({path!r}).deploy({options})
print("pid", server.pid, flush=True)
print("url", server.url, flush=True)
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the signals are POSIX's")


class Script:
    """A Python script that deploys and then runs `rest`."""

    def __init__(self, folder, path, rest="", arguments=(), deploy="", **options):
        file = folder / "script.py"
        file.write_text(SCRIPT.format(path=str(path), options=deploy) + rest)
        environment = {**os.environ, "PYTHONPATH": ROOT}
        self.process = subprocess.Popen(
            [sys.executable, *arguments, str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
            **options,
        )
        self.pid = int(self._said("pid"))
        self.url = self._said("url")

    def _said(self, what):
        line = self.process.stdout.readline()
        assert line.startswith(f"{what} "), line + self.process.stderr.read()
        return line.split()[1]

    def until_serving(self):
        line = self.process.stdout.readline()
        assert line == f"Serving 'insects' at {self.url} until Ctrl-C. Try:\n"
        assert f"curl -s {self.url}/v2/models/insects/infer" in self.process.stdout.readline()

    def answers(self):
        with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=10) as answer:
            return answer.status == 200

    def end(self):
        out, err = self.process.communicate(timeout=90)
        return self.process.returncode, out, err

    def server_is_gone(self):
        return gone(self.pid)


def gone(pid):
    """Whether the process ends within a while."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # Ended, but its parent has not looked yet: it still has its number. Linux shows that.
        status = pathlib.Path(f"/proc/{pid}/stat")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False


@pytest.fixture
def script(tmp_path, image_file):
    started = []

    def start(rest="", **options):
        started.append(Script(tmp_path, image_file, rest, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
        for stream in (one.process.stdout, one.process.stderr):
            stream.close()
        assert one.server_is_gone()


def test_a_script_that_ends_goes_on_serving_until_ctrl_c(script):
    running = script()
    running.until_serving()
    assert running.answers()
    running.process.send_signal(signal.SIGINT)
    assert running.end() == (0, "\nStopping.\n", "")
    assert running.server_is_gone()


def test_sys_exit_is_an_end_like_any_other(script):
    running = script("import sys; sys.exit()")
    running.until_serving()
    assert running.answers()


def test_sigterm_stops_both(script):
    running = script()
    running.until_serving()
    running.process.terminate()
    assert running.end()[0] == -signal.SIGTERM
    assert running.server_is_gone()


def test_a_script_that_is_killed_takes_the_server_along(script):
    running = script("import time; time.sleep(60)")
    assert running.answers()
    running.process.kill()
    assert running.server_is_gone()


def test_even_if_a_forked_process_holds_the_pipe_open(script):
    rest = "import os, time\nforked = os.fork()\nif forked: print('forked', forked, flush=True)\ntime.sleep(60)"
    running = script(rest, arguments=["-W", "ignore"])
    forked = int(running._said("forked"))
    try:
        running.process.kill()
        assert running.server_is_gone()
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_forked_process_that_ends_leaves_the_server_alone(script):
    rest = "import os, sys\nforked = os.fork()\nif not forked: sys.exit()\nos.waitpid(forked, 0)\nprint('ended', 0)"
    running = script(rest, arguments=["-W", "ignore"])
    assert running._said("ended") == "0"
    running.until_serving()
    assert running.answers()


def test_an_error_stops_the_server_and_is_shown(script):
    running = script("raise KeyError('my own mistake')")
    status, out, err = running.end()
    assert status == 1
    assert out == ""
    assert err.endswith("KeyError: 'my own mistake'\n")
    assert running.server_is_gone()


def test_ctrl_c_in_the_script_stops_the_server(script):
    running = script("import time; time.sleep(60)")
    running.process.send_signal(signal.SIGINT)
    status, _, err = running.end()
    assert status in (-signal.SIGINT, 130)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert running.server_is_gone()


def test_an_interactive_interpreter_ends_with_its_server(script):
    running = script(arguments=["-i", "-q"], stdin=subprocess.DEVNULL)
    status, out, _ = running.end()
    assert (status, out) == (0, "")
    assert running.server_is_gone()


def test_a_server_that_dies_ends_the_waiting_script_with_an_error(script):
    running = script()
    running.until_serving()
    os.kill(running.pid, signal.SIGKILL)
    status, _, err = running.end()
    assert status == 1
    assert err == f"Handle('insects' at {running.url}, ended killed by signal 9): the server ended by itself\n"


def test_a_stopped_server_lets_the_script_end(script):
    assert script("server.stop()").end() == (0, "", "")


def test_wait_false_lets_the_script_end_and_stops_the_server(script):
    running = script(deploy="wait=False")
    assert running.end() == (0, "", "")
    assert running.server_is_gone()


def test_sigterm_to_the_server_drains_and_ends_it(script):
    running = script("server._child._process.wait()\nserver.stop()\nprint('gone', server.running)")
    os.kill(running.pid, signal.SIGTERM)
    assert running._said("gone") == "False"
    assert running.end()[0] == 0


def test_jupyter_is_not_held_up_and_takes_the_server_along(image_file, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [SCRIPT.format(path=str(image_file), options=""), "server.ready()", "server"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": ROOT}}
    done = nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    told, ready, shown = (cell.outputs for cell in done.cells)
    assert ready[0].data["text/plain"] == "True"
    assert shown[0].data["text/plain"].startswith("Handle('insects' at http://127.0.0.1:")
    assert gone(int(told[0].text.split()[1]))
