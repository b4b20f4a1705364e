"""Where the operating layer keeps what it knows: one folder a user and machine, or wherever LLMASOS_HOME says."""

import os
import pathlib


class Home:
    """The folder: jobs.sqlite, engine.lock, engine.log, engine.options, and a folder for each job.

    Args:
        path: where; LLMASOS_HOME if None, else `llmasos` in XDG_STATE_HOME or ~/.local/state.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        # Empty counts as unset: it would be whatever folder somebody is in.
        path = path or os.environ.get("LLMASOS_HOME")
        if not path:
            state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state"
            path = pathlib.Path(state) / "llmasos"
        self.path = pathlib.Path(path).absolute()

    def make(self) -> "Home":
        """Makes the folder, the user's own; itself. In a folder that was there before, what is secret is."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / "jobs").mkdir(mode=0o700, exist_ok=True)
        return self

    @property
    def store(self) -> pathlib.Path:
        """The jobs."""
        return self.path / "jobs.sqlite"

    @property
    def lock(self) -> pathlib.Path:
        """Locked by the engine for as long as it lives."""
        return self.path / "engine.lock"

    @property
    def log(self) -> pathlib.Path:
        """What the engine has to tell."""
        return self.path / "engine.log"

    @property
    def token(self) -> pathlib.Path:
        """Who knows it may change jobs by the engine's page."""
        return self.path / "page.token"

    @property
    def options(self) -> pathlib.Path:
        """What the engine was last started with by somebody who said it."""
        return self.path / "engine.options"

    def job(self, number: int) -> pathlib.Path:
        """The folder of a job: its log, how it ended, what it returned; see `files`."""
        return self.path / "jobs" / str(number)


def files(job: pathlib.Path) -> pathlib.Path:
    """Where a job leaves what it likes, in its folder: by itself, for "log" or "result" may be a name there, too."""
    return job / "files"
