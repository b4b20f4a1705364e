"""`python -m llmasos_xla.runtime.call FILE`: runs a function that was submitted, and keeps what it returns."""

import os
import pathlib
import pickle
import sys

from llmasos_xla.progress import VARIABLE


def main(path: str) -> None:
    """Calls the function of the file; its result goes to the job's folder.

    The file is as large as its arguments. The one process of a job removes it when it is through.
    """
    folder = pathlib.Path(os.environ[VARIABLE]).parent
    if not os.path.exists(path) and (folder / "result").exists():
        # A run before this one was killed when it was through.
        return
    # Written by `submit`, in a folder of this user alone.
    function, arguments = pickle.loads(pathlib.Path(path).read_bytes())
    result = function(*arguments)
    if is_first():
        import cloudpickle

        beside = folder / "result.new"
        beside.write_bytes(cloudpickle.dumps(result))
        beside.replace(folder / "result")
        if os.environ["LLMASOS_JOB_LAYOUT"] == "devices":
            os.unlink(path)


def is_first() -> bool:
    """Whether this is the one process of the job, or the first of those that were launched."""
    if os.environ["LLMASOS_JOB_LAYOUT"] == "devices":
        return True
    import jax

    return jax.process_index() == 0


if __name__ == "__main__":
    main(sys.argv[1])
