"""`python -m llmasos_xla`: the command `llmasos`, where that is not on the path."""

import sys

from llmasos_xla.cli import main

if __name__ == "__main__":
    sys.exit(main())
