"""`python -m llmasos_xla.runtime.launchers.ray_node see LOCK SLOTS | sweep TOKEN`: what the engine asks of a node.

A process of its own, as keepers are: where this runs, they do.
"""

import json
import sys

from llmasos_xla.runtime.launchers.local import end_marked
from llmasos_xla.runtime.locks import is_free
from llmasos_xla.sharding.processes.cores import shares


def main(arguments: list[str]) -> int:
    """`see` prints whether the engine's lock is seen to be held, and the CPUs of each slot; `sweep` ends an attempt."""
    what, *rest = arguments
    if what == "sweep":
        end_marked(rest[0])
    else:
        lock, slots = rest
        print(json.dumps({"held": not is_free(lock), "cpus": [sorted(share) for share in shares(int(slots))]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
