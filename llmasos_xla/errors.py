"""How errors are worded: who, what came, what was wanted, what to do."""

import difflib
from collections.abc import Iterable


def unknown(who: str, kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a list of known ones.

    >>> print(unknown("compile", "loss", "mean_sqared_error", ["mean_squared_error", "huber"]))
    compile: unknown loss 'mean_sqared_error'; did you mean 'mean_squared_error'? Known: huber, mean_squared_error
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1)
    hint = f" did you mean {next(n for n in names if n.lower() == close[0])!r}?" if close else ""
    return ValueError(f"{who}: unknown {kind} {name!r};{hint} Known: {', '.join(names)}")


def missing_package(who: str, package: str, extra: str | None = None, instead: str = "") -> ImportError:
    """The error for an optional package that is not installed.

    >>> print(missing_package("kernels", "Triton", "gpu", 'implementation="xla"'))
    kernels need Triton: pip install "llmasos_xla[gpu]"  (or implementation="xla")
    """
    what = f'"llmasos_xla[{extra}]"' if extra else package
    other = f"  (or {instead})" if instead else ""
    verb = "need" if who.endswith("s") else "needs"
    return ImportError(f"{who} {verb} {package}: pip install {what}{other}")
