"""A conversation as a prompt of a model that goes on with text: by the template it came with, or as plain lines."""

import importlib.util
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from llmasos_xla import errors
from llmasos_xla.data.tokenizers.chat_template import ChatTemplate
from llmasos_xla.data.tokenizers.huggingface import HuggingFace
from llmasos_xla.data.tokenizers.protocol import Tokenizer
from llmasos_xla.deployment.batching import QueueFullError

SECONDS = 5.0
"""That a template may take."""
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
_TURN = "\nuser:"

Messages = Sequence[Mapping[str, Any]]


class TemplateError(ValueError):
    """A template that refuses a conversation, or is at fault itself."""


class Turn(NamedTuple):
    """What a model is given of a conversation."""

    ids: list[int]
    stops: tuple[str, ...]
    """Texts at which its turn is over."""
    ends: tuple[int, ...]
    """Ids at which its turn is over."""
    trimmed: bool
    """Whether the blank between its name and its words is of the form, not of what it says."""


@final
class Renderer:
    """Runs chat templates in a process beside this one (`rendering`), which is started when it is first needed.

    Threads may share it; they are served one after the other.

    Args:
        seconds: that a template may take; one that takes longer is ended with its process.
    """

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._finalize: weakref.finalize | None = None
        self._lock = threading.Lock()

    def __call__(self, template: ChatTemplate, messages: Messages) -> str:
        """The prompt; raises TemplateError with the reason, QueueFullError while others are served, ImportError."""
        if importlib.util.find_spec("jinja2") is None:
            raise errors.missing_package("chat templates", "jinja2", "chat")
        asked = {"text": template.text, "tokens": dict(template.tokens), "messages": list(messages)}
        line = json.dumps({**asked, "seconds": self._seconds}).encode() + b"\n"
        if not self._lock.acquire(timeout=self._seconds):
            raise QueueFullError("other conversations are being read; ask again later", self._seconds)
        try:
            answer = self._asked(line)
        finally:
            self._lock.release()
        if "error" in answer:
            raise TemplateError(f"the model's chat template refuses these messages: {answer['error']}")
        return answer["prompt"]

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _asked(self, line: bytes) -> dict[str, str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _started()
            # It goes with this object, whoever forgets to close it.
            self._finalize = weakref.finalize(self, _ended, self._process)
        process, until = self._process, time.monotonic() + self._seconds
        assert process.stdin is not None
        assert process.stdout is not None
        found = b""
        try:
            process.stdin.write(line)
            process.stdin.flush()
            while not found.endswith(b"\n"):
                if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                    self._end()
                    return {"error": f"it was not done within {self._seconds:g} s"}
                part = os.read(process.stdout.fileno(), 1 << 20)
                if not part:
                    raise BrokenPipeError
                found += part
        except BrokenPipeError:
            # Ended by the limits on its memory or time.
            self._end()
            return {"error": "it wants more memory or time than it may have"}
        except BaseException:
            # What it answers later is of no use to whoever comes next.
            self._end()
            raise
        return json.loads(found)

    def _end(self) -> None:
        self._process = None
        if self._finalize is not None:
            self._finalize()


def turn(tokenizer: Tokenizer, template: ChatTemplate | None, messages: Messages, render: Renderer) -> Turn:
    """The ids that a model goes on with to answer messages, [{"role", "content"}], and where its answer ends.

    Without a template the form is that of a play: a line for each message, "user: ...", and "assistant:" behind them;
    the next "user:" is where it ends.

    Raises as `render` does, and ValueError for characters that the tokenizer does not have.
    """
    if template is None:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return Turn([*tokenizer.prefix, *tokenizer.encode(f"{lines}assistant:", special=False)], (_TURN,), (), True)
    text = render(template, messages)
    end = tokenizer.special.end
    return Turn(_ids(tokenizer, template, text), (), () if end is None else (end,), False)


def _ids(tokenizer: Tokenizer, template: ChatTemplate, text: str) -> list[int]:
    """The ids of a prompt in which special ones stand by name: a template says itself what begins the text."""
    if isinstance(tokenizer, HuggingFace):
        return tokenizer.pieces(text)
    # The others take a name for text, unlike that package.
    special = tokenizer.special
    known = {"bos_token": special.start, "eos_token": special.end, "pad_token": special.pad}
    ids = {template.tokens[name]: i for name, i in known.items() if template.tokens.get(name) and i is not None}
    if not ids:
        return tokenizer.pieces(text)
    parts = re.split(f"({'|'.join(map(re.escape, ids))})", text)
    return [i for part in parts if part for i in ([ids[part]] if part in ids else tokenizer.pieces(part))]


def _started() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        # Not as a module, which would import the package; -P: nor may what lies beside it hide other packages.
        [sys.executable, "-P", str(pathlib.Path(__file__).parent / "rendering.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Nothing of this process's environment is a template's to know.
        env={name: os.environ[name] for name in _KEPT if name in os.environ},
    )


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            # What was not yet written is of no use to a process that is gone.
            continue
