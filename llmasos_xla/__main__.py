"""`python -m llmasos_xla` is `llmasos`."""

import sys

from llmasos_xla.cli import main

if __name__ == "__main__":
    sys.exit(main())
