"""Finding a file, and saying so well when it is not there."""

import difflib
import pathlib


def existing(path: str | pathlib.Path, who: str = "Dataset") -> pathlib.Path:
    """The path, if it exists.

    Raises FileNotFoundError with the path, the folder it was looked for in, and the nearest names there.
    """
    path = pathlib.Path(path).expanduser()
    if path.exists():
        return path
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir())[:10_000]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if folder != path.parent:
        where = f"the folder {path.parent} does not exist"
    elif close:
        where = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        where = f"{folder.resolve()} holds {shown}" if names else f"{folder.resolve()} is empty"
    raise FileNotFoundError(f"{who}: no file {str(path)!r} (working directory {pathlib.Path.cwd()}); {where}")
