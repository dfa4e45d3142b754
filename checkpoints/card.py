"""The model card: README.md of a checkpoint folder, written from what is known and nothing else.

What it is for, an example, a picture, the licences, accuracy or loss by iteration count, and the shape. What stands
below the line KEPT is somebody's own words, and so is the licence of the weights: a card that is written again has them
as they were. A page without that line is not mull's, so all of it is somebody's own words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mull.checkpoints.files import printable
from mull.checkpoints.quantities import (
    ABOUT_SETTLING,
    Row,
    cells,
    examples_of,
    is_text,
    reference_of,
    settling_cells,
)
from mull.models import ModelConfig

KEPT = "<!-- Below this line stand your own words: they stay when this page is written again. -->"
LONGEST = 1000  # characters that are told of a card
UNSTATED = "not stated by whoever trained them"


@dataclass(frozen=True)
class About:
    """What data says of a model that was trained on it.

    Attributes:
        purpose: what the model is for, in a sentence or two.
        data: what it was trained on, and the licence of that.
        prompt: an example of what it continues; None where there is none.
        right: the answer that is right; None where none is.
        answer: what the model writes; None where nobody has asked it.
        iterations: the count at which it was asked; None for a model without a loop, or the default.
        measured_on: what `mull evaluate` has to be given beside the folder, such as --paths and a text.
    """

    purpose: str
    data: str
    prompt: str | None = None
    right: str | None = None
    answer: str | None = None
    iterations: int | None = None
    measured_on: str = ""


@dataclass(frozen=True)
class Told:
    """What a card says of its model, for those who show it: `About`, read back.

    Attributes:
        purpose: what the model is for; None where the card does not say.
        prompt: an example of what it continues; None where there is none.
    """

    purpose: str | None = None
    prompt: str | None = None


def model_card(
    name: str,
    config: ModelConfig,
    depth: Mapping[str, Any] | None,
    about: About | None = None,
    picture: str | None = None,
    before: str = "",
) -> str:
    """Markdown.

    Args:
        name: of the folder.
        config: of the model.
        depth: what depth.json holds; None for a model that has not been measured.
        about: what its data says of it; None if there is nobody to ask.
        picture: the file of a picture of `depth`, in the same folder.
        before: the page that this one replaces; empty where there is none.
    """
    article = "An" if config.model_type[0] in "aeio" else "A"
    made = f"{article} `{config.model_type}` model of {config.parameters:,} parameters, made with mull."
    lines = [f"# {name}", "", made if about is None else f"{about.purpose} {made}"]
    lines += ["", *example(about)]
    if picture is not None and depth is not None:
        lines += [f"![{described(depth['rows'])} by iteration count]({picture})", ""]
    weights = re.search(r"^- weights: (.+)$", before, re.M)
    lines += ["## Licence", "", f"- weights: {weights[1] if weights else UNSTATED}"]
    lines += [f"- data: {'unknown' if about is None else about.data}"]
    if depth is not None:
        lines += ["", "## By iteration count", "", code(depth["command"]), "", *depth_table(depth["rows"])]
        lines += settling_table(depth["rows"])
    lines += ["", "## Shape", "", "| field | value |", "|---|---|"]
    lines += [f"| {field} | {value} |" for field, value in asdict(config).items()]
    lines += ["", KEPT]
    return "\n".join(lines) + "\n" + own_words(before)


def own_words(card: str) -> str:
    """What somebody has written: below the line KEPT, or all of a page that has none and so is not mull's."""
    if KEPT in card:
        return card.partition(KEPT)[2].removeprefix("\n")
    return f"\n{card}" if card.strip() else ""


def example(about: About | None) -> list[str]:
    """How to run it, in its folder; with what it writes, if that is known."""
    lines = ["In this folder:", "", "```"]
    if about is not None and about.prompt is not None:
        depth = "" if about.iterations is None else f" --iterations {about.iterations}"
        lines += [f"mull generate . --prompt {shlex.quote(about.prompt)}{depth}"]
        if about.answer is not None:
            lines += [f"    {line}" for line in about.answer.strip().splitlines()]
    evaluation = f"mull evaluate . {'' if about is None else about.measured_on}".rstrip()
    lines += ["mull inspect .", evaluation, "```", ""]
    if about is not None and about.right is not None:
        lines += [f"The indented line is its answer; `{about.right}` is right.", ""]
    elif about is not None and about.answer is not None:
        lines += ["What is indented is its continuation.", ""]
    return lines


def told_in(card: str) -> Told:
    """What a card says that `model_card` has written; of somebody's own page nothing."""
    ours = card.partition(KEPT)[0] if KEPT in card else ""
    purpose = re.match(r"# [^\n]*\n\n(.+) An? `\w+` model of [\d,]+ parameters, made with mull\.\n", ours)
    prompt = re.search(r"^mull generate \. --prompt ('(?:[^']|'\"'\"')*'|[^\s']+)", ours, re.M)
    return Told(purpose and purpose[1][:LONGEST], shlex.split(prompt[1])[0][:LONGEST] if prompt else None)


def described(rows: Sequence[Row]) -> str:
    """What the pictures and tables of an evaluation show: bits per byte of text, accuracy of a task."""
    return "bits per byte" if is_text(rows) else "accuracy"


def depth_table(rows: Sequence[Row]) -> list[str]:
    """Markdown rows of an evaluation, written as quantities.py says; columns that are empty throughout are left out."""
    text, reference = is_text(rows), reference_of(rows)
    shown = [{"difficulty": cell(row.get("difficulty")), **cells(row, text, reference)} for row in rows]
    used = [column for column in shown[0] if any(row[column] for row in shown)] if shown else []
    body = ["| " + " | ".join(row[column] for column in used) + " |" for row in shown]
    notes = ["", "Numbers behind a value are its 95 % interval."]
    if examples_of(rows):
        each = " of each difficulty, in their order" if shown[0]["difficulty"] else ""
        notes[-1] = f"{examples_of(rows)}{each}. {notes[-1]}"
    if reference is not None:
        unit = "bits per byte" if text else "points of accuracy"
        notes[-1] += f" vs {reference}: {unit} more than at {reference} iterations, on the same examples."
    if "asked %" in used:
        notes[-1] += " asked and met: share of the tokens that took a routed pass, by pass."
    return ["| " + " | ".join(used) + " |", "|" + "---|" * len(used), *body, *notes]


def settling_table(rows: Sequence[Row]) -> list[str]:
    """Markdown of whether the model had finished thinking, and whether that tells right from wrong; nothing where the
    rows do not say."""
    shown, seen = [], set[Any]()
    for row in rows:
        at = row.get("difficulty")
        told = settling_cells(row, at not in seen)
        if told:
            seen.add(at)
            shown.append({"difficulty": cell(at), "iterations": cell(row.get("iterations")), **told})
    if not shown:
        return []
    used = [column for column in shown[0] if any(row[column] for row in shown)]
    body = ["| " + " | ".join(row[column] for column in used) + " |" for row in shown]
    head = ["| " + " | ".join(used) + " |", "|" + "---|" * len(used)]
    return ["", "## Had it finished thinking?", "", *head, *body, "", f"{ABOUT_SETTLING}."]


def code(text: str) -> str:
    """Somebody's text as code in one line of Markdown, which it cannot leave: no run of its own ends it."""
    said = printable(" ".join(text.split()))
    marks = "`" * (1 + max(map(len, re.findall("`+", said)), default=0))
    return f"{marks}{said}{marks}" if len(marks) == 1 else f"{marks} {said} {marks}"


def cell(value: Any) -> str:
    """A count or a word as text; empty for None."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
