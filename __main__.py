"""`python -m mull` is the `mull` command."""

import sys

from mull.cli import main

if __name__ == "__main__":
    sys.exit(main())
