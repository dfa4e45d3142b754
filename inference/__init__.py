"""Everything after weights exist: writing on, measuring, and pictures of what was measured.

The functions `generate` and `evaluate` live in the modules of the same names, which they would hide here: `from
mull.inference.generate import generate` (also `mull.generate`), `from mull.inference.measure.evaluate import evaluate`.
"""

from mull.inference.generate import Generation, stream
from mull.inference.measure.results import Result, from_json, to_csv, to_json
from mull.inference.measure.table import print_table
from mull.inference.rounds import NewTokens
from mull.inference.sampling import Draw

__all__ = ["Draw", "Generation", "NewTokens", "Result", "from_json", "print_table", "stream", "to_csv", "to_json"]
