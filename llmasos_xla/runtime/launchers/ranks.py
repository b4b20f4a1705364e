"""`python -m llmasos_xla.runtime.launchers.ranks srun ...`: the parent of srun, which hands SIGTERM on to the ranks.

srun itself takes SIGTERM for "kill the step": nobody would save anything.
"""

import os
import signal
import subprocess
import sys
from typing import Any


def main(command: list[str]) -> int:
    """Runs srun; returns its exit status, which is the largest of the ranks'."""

    def hand_on(*_: Any) -> None:
        # To the ranks, not to the batch script, which this comes from.
        subprocess.run(["scancel", "--quiet", "--signal=TERM", os.environ["SLURM_JOB_ID"]], check=False)

    signal.signal(signal.SIGTERM, hand_on)
    # A session of its own: what ends this one's group is not for it.
    with subprocess.Popen(command, start_new_session=True) as srun:
        status = srun.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
