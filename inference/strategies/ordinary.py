"""How writers of ordinary language structure an answer: instructions for the styles, and words where mull has marks.

They are what a model with no control words of its own is asked and watched by; each is an option (`--marks FILE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from mull.inference.strategies.solver import Marks

THEN = "Put a blank line behind each step. When you are done, write </think> and behind it the final result only.\n\n"

ORDINARY = Marks(
    direct="Answer with the final result only, and write nothing else.\nAnswer:",
    chain=f"Think step by step. {THEN}",
    draft=f"Think step by step, but keep of each step only a minimum draft, five words at most. {THEN}",
    correct=f"Think step by step. Where you doubt a step, write Wait, and do it anew. {THEN}",
    attempts=f"Think step by step. To try another way, begin it with the word Alternatively. {THEN}",
    search=f"Think step by step. Where a step leads nowhere, write Backtrack, and go on from before it. {THEN}",
    step="\n\n",
    end_of_thinking="</think>",
    wait="Wait",
    switch="Alternatively",
    backtrack="Backtrack",
    between="\n\n",
)


def marks_with(changes: Mapping[str, Any], usual: Marks = ORDINARY) -> Marks:
    """The usual marks with some of them changed. Raises ValueError for a name that is none, for what is no text,
    and for an empty one where `Marks` takes none."""
    known = [field.name for field in fields(Marks)]
    for name, text in changes.items():
        if name not in known:
            raise ValueError(f"there is no mark {name!r}; there are {', '.join(known)}")
        if not isinstance(text, str):
            raise ValueError(f"the mark {name} must be a text, not {text!r}")
    return replace(usual, **changes)
