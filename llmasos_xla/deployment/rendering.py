"""Runs chat templates in a process of its own: `python rendering.py`, started by `deployment.chat`.

A template comes with somebody's weights. jinja2's sandbox keeps it from the interpreter's insides, but not from loops
without end or texts without bounds: this process has limits on its memory and processor time, and may be killed.

On standard input come lines of JSON, {"text", "tokens", "messages", "seconds"}; for each a line goes out, {"prompt"} or
{"error"}. Nothing of the package is imported, so that it is up at once.
"""

import contextlib
import datetime
import functools
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

MOST_CHARACTERS = 8 << 20
"""Of a prompt."""
_MOST_BYTES = 1 << 30


def render(text: str, tokens: Mapping[str, str], messages: list[dict[str, Any]]) -> str:
    """The prompt that a template makes of messages, with what tells the model that it is its turn.

    It is run as Hugging Face runs it: blocks are trimmed, `raise_exception`, `strftime_now` and the special ids by name
    are there. Raises what jinja2 raises, and ValueError for a prompt without bounds.
    """
    given = {**tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    pieces, size = [], 0
    for piece in _template(text).generate(given):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_CHARACTERS:
            raise ValueError(f"its prompt is longer than {MOST_CHARACTERS} characters")
    return "".join(pieces)


@functools.lru_cache(maxsize=16)
def _template(text: str) -> Any:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` tells a training which text is the model's own; to a prompt it makes no difference."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(text)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Not jinja2's own, which writes < and > for HTML.
    known = {k: options[k] for k in ("separators", "sort_keys") if k in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)


def _raise(reason: Any) -> NoReturn:
    raise ValueError(str(reason))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _answer(line: str) -> dict[str, str]:
    asked = json.loads(line)
    _limit(asked["seconds"])
    try:
        return {"prompt": render(asked["text"], asked["tokens"], asked["messages"])}
    except MemoryError:
        return {"error": "it wants more memory than it may have"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:
        # Whatever it is, it is the template's or the messages'; this process goes on.
        return {"error": f"{str(error) or type(error).__name__}"[:1000]}


def _limit(seconds: float) -> None:
    """Lets the system end this process, if whoever started it is gone when it should."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, most))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = _MOST_BYTES if most == resource.RLIM_INFINITY else min(_MOST_BYTES, most)
    # macOS knows no such limit; that on time holds there, too.
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (allowed, most))


def main() -> None:
    """Answers lines until there are no more."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
