"""Everything after weights exist: writing on, measuring, and pictures of what was measured.

The functions `generate` and `evaluate` live in the modules of the same names: `from mull.inference.generate import
generate` (also `mull.generate`), `from mull.inference.evaluate import evaluate`. Here they would hide their modules.
"""

from mull.inference.generate import Generation, stream
from mull.inference.lockstep import NewTokens
from mull.inference.rows import Row, from_json, to_csv, to_json
from mull.inference.sampling import sample
from mull.inference.table import print_table

__all__ = ["Generation", "NewTokens", "Row", "from_json", "print_table", "sample", "stream", "to_csv", "to_json"]
