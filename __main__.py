"""`python -m mull` is the `mull` command."""

import sys

from mull.cli import main

sys.exit(main())
