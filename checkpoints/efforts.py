"""How long each `reasoning_effort` thinks, where a folder says so: an optional file efforts.json.

    {"none": 1, "minimal": 2, "low": 8, "medium": 16, "high": 32, "xhigh": 64, "max": 128}

Iterations by effort, not falling; efforts may be left out. Nothing but a server asks for it: a folder loads with or
without one, and saving a model into a folder leaves it alone.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from mull.checkpoints.files import damaged, is_there, read_json, shown
from mull.models.config import MAX_CONFIGURED

FILE = "efforts.json"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # the words, from little to much
REMEDY = 'write it as {"low": 4, "medium": 8, "high": 16}, or remove it'


def read_efforts(folder: Path) -> dict[str, int] | None:
    """The table of a folder; None where it has none.

    Raises:
        ValueError: it holds something else than whole numbers by effort, or more thought for less effort.
    """
    file = folder / FILE
    if not is_there(file):
        return None
    found = read_json(file)
    for word, count in found.items():
        if word not in EFFORTS:
            raise damaged(file, f"names the effort {shown(word, 40)}; there are {', '.join(EFFORTS)}", REMEDY)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_CONFIGURED:
            raise damaged(file, f"gives {word} {shown(count, 40)} iterations, not 1 to {MAX_CONFIGURED:,}", REMEDY)
    table = {word: found[word] for word in EFFORTS if word in found}
    for (less, few), (more, many) in pairwise(table.items()):
        if few > many:
            raise damaged(file, f"gives {less} {few} iterations and {more} only {many}", REMEDY)
    return table
