"""How long an effort thinks: `reasoning_effort`, and names of models such as `text(high)` or `text(32)`.

The table is that of the checkpoint folder (checkpoints/efforts.py). Where it has none, with r the count that the model
was trained at:

    none 1, minimal 2, low r/2, medium r, high 2r, xhigh 4r, max 8r          at least 1

A server's limit cuts counts that come from a table; a count that a request names itself is refused above it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mull.checkpoints.efforts import EFFORTS
from mull.inference.serve.refusals import Refused

NAMED = re.compile(r"(?P<name>.*)\((?P<depth>[^()]*)\)", re.DOTALL)


def efforts_of(mean: int, stored: Mapping[str, int] | None, limit: int) -> dict[str, int]:
    """Iterations by effort, for a model that was trained at `mean`. An effort that a stored table lacks thinks as long
    as the next smaller one there, or else as the smallest."""
    table = dict(zip(EFFORTS, (1, 2, mean // 2, mean, 2 * mean, 4 * mean, 8 * mean), strict=True))
    if stored:
        count = next(iter(stored.values()))
        for word in EFFORTS:
            table[word] = count = stored.get(word, count)
    return {word: min(limit, max(1, count)) for word, count in table.items()}


def split_name(model: str, names: Mapping[str, object]) -> tuple[str, str | None]:
    """The model that a name means, and what stands in brackets behind it.

    Raises:
        Refused: there is no such model here.
    """
    if model in names:
        return model, None
    found = NAMED.fullmatch(model)
    if found and found["name"] in names:
        return found["name"], found["depth"]
    raise Refused(
        f"there is no model {model[:80]!r} here; there are {', '.join(names)}, and a depth may follow as in "
        f"{next(iter(names))}(32) or {next(iter(names))}(high)",
        status=404, param="model", code="model_not_found",
    )  # fmt: skip


def depth_of(word: str, table: Mapping[str, int], limit: int) -> int:
    """The iterations that the brackets of a name ask for."""
    if word in table:
        return table[word]
    if not re.fullmatch("[0-9]{1,9}", word) or not 1 <= int(word) <= limit:
        raise Refused(
            f"model names the depth {word[:40]!r}; write iterations from 1 to {limit}, or one of {', '.join(table)}",
            param="model",
        )
    return int(word)
