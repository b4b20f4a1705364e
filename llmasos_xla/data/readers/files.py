"""Finding a file, and saying so well when it is not there."""

import difflib
import pathlib

import numpy as np


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


def files_by_class(
    folder: pathlib.Path, suffixes: tuple[str, ...], what: str
) -> tuple[list[pathlib.Path], tuple[str, ...] | None, np.ndarray | None]:
    """The files, the class names and a class id for each file; no classes if the files lie in the folder itself.

    Raises ValueError if there are none, or some in the folder itself and others in folders in it.
    """
    if not folder.is_dir():
        raise ValueError(f"Dataset: {folder} is a file; a folder of {what} is wanted")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {name: [f for f in sorted((folder / name).rglob("*")) if f.suffix.lower() in suffixes] for name in names}
    found = {name: files for name, files in found.items() if files}
    loose = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes]
    if found and loose:
        raise ValueError(
            f"Dataset: {folder} holds folders of {what} ({', '.join(list(found)[:4])}) and {what} beside them "
            f"({loose[0].name}); put each into the folder of its class"
        )
    if not found and not loose:
        raise ValueError(f"Dataset: the folder {folder} holds no {what} ({', '.join(suffixes)})")
    if loose:
        return loose, None, None
    ids = np.repeat(np.arange(len(found), dtype=np.int32), [len(files) for files in found.values()])
    return [file for files in found.values() for file in files], tuple(found), ids
