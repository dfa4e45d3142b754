"""Which tokens think longest: iterations by token, by class of token, and over a piece of text as a picture.

What a position used is its iterations under an exit rule, or, with routed passes, 1 + the passes it took, on average
over the thinking layers. Its loss is that of the token it predicts.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.measure.evaluate import IGNORE, Batches, losses
from mull.inference.measure.plots import write_png
from mull.inference.measure.routers import router_table, router_uses
from mull.models import LanguageModel
from mull.models.config import Capacity
from mull.models.selection import Selection

if TYPE_CHECKING:
    from rich.table import Table
    from tokenizers import Tokenizer

COLUMNS, ROWS = 64, 16  # characters of the picture


class Use(NamedTuple):
    """What one position used: its token, iterations, and loss in nats of the next token (NaN where none is scored)."""

    token: int
    iterations: float
    loss: float


@dataclass(frozen=True)
class Group:
    """Positions of one token, or one class of tokens."""

    name: str
    count: int
    iterations: float
    loss: float


@torch.inference_mode()
def token_uses(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    iterations: int | None = None,
    *,
    exit: str | Exit | None = None,
    **routing: Any,
) -> list[Use]:
    """What every position of the batches (input_ids, labels), (B, T) each, used. Raises ValueError for a model whose
    positions all use the same: it needs an exit rule, or routed passes."""
    rule, options = choose_exit(model, exit), routing_options(model, **routing)
    if rule is None and model.config.default_capacity is None:
        raise ValueError(
            "all positions use the same iterations: give an exit rule (latent:0.03), or a model that routes"
        )
    uses = []
    for input_ids, labels in batches:
        out = (
            model(input_ids, iterations, **options) if rule is None else think_until(model, input_ids, iterations, rule)
        )
        used = out.iterations.float()
        if out.selected is not None:  # (B, T, layers, passes)
            used = 1 + out.selected.sum(dim=-1).float().mean(dim=-1)
        nats = losses(out.logits, labels).masked_fill(labels == IGNORE, float("nan"))
        uses += [Use(*use) for use in zip(*(x.flatten().tolist() for x in (input_ids, used, nats)), strict=True)]
    return uses


def class_of(text: str) -> str:
    """letter, digit, space, punctuation or other: by the first character of a token's text that is no blank."""
    first = text.strip()[:1]
    if not first:
        return "space" if text else "other"
    if first.isalpha():
        return "letter"
    return "digit" if first.isdigit() else "punctuation" if first.isascii() and first.isprintable() else "other"


def grouped(uses: Sequence[Use], names: Sequence[str]) -> list[Group]:
    """Means over uses that share a name, longest thinkers first. names: one for each use."""
    found: dict[str, list[Use]] = defaultdict(list)
    for use, name in zip(uses, names, strict=True):
        found[name].append(use)
    groups = []
    for name, members in found.items():
        losses = [use.loss for use in members if use.loss == use.loss]
        mean_loss = sum(losses) / len(losses) if losses else float("nan")
        groups.append(Group(name, len(members), sum(use.iterations for use in members) / len(members), mean_loss))
    return sorted(groups, key=lambda group: -group.iterations)


def token_tables(uses: Sequence[Use], tokenizer: Tokenizer, least: int = 20, most: int = 8) -> list[Table]:
    """By class; and the tokens that think longest and shortest among those that occur `least` times or more."""
    from rich.markup import escape
    from rich.table import Table

    texts = {token: tokenizer.decode([token], skip_special_tokens=False) for token in {use.token for use in uses}}
    by_class = grouped(uses, [class_of(texts[use.token]) for use in uses])
    by_token = [g for g in grouped(uses, [texts[use.token] for use in uses]) if g.count >= least]
    shown = by_token if len(by_token) <= 2 * most else [*by_token[:most], *by_token[-most:]]
    tables = []
    for title, groups in (("by class of token", by_class), ("tokens that think longest, and shortest", shown)):
        table = Table("token", "count", "mean iterations", "loss", title=title)
        for group in groups:
            name = group.name if title.startswith("by") else escape(repr(group.name))
            table.add_row(name, f"{group.count:,}", f"{group.iterations:.2f}", f"{group.loss:.4f}")
        tables.append(table)
    once = sum(use.iterations <= 1 for use in uses) / len(uses)
    tables[0].caption = f"{once:.1%} of the positions stop after one iteration"
    return tables


def write_heat_map(uses: Sequence[Use], tokenizer: Tokenizer, path: str | Path) -> None:
    """A PNG of the first characters of the text, each on the colour of what its position used."""
    from matplotlib.figure import Figure

    part = uses[: COLUMNS * ROWS]
    lowest, highest = min(use.iterations for use in part), max(use.iterations for use in part)
    figure = Figure(figsize=(12, 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    grid = torch.full((ROWS, COLUMNS), float("nan"))
    for place, use in enumerate(part):
        row, column = divmod(place, COLUMNS)
        grid[row, column] = use.iterations
        text = tokenizer.decode([use.token], skip_special_tokens=False).strip()[:4].replace("$", r"\$")
        dark = use.iterations > (lowest + highest) / 2
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7, family="monospace", color="w" if dark else "k"
        )
    image = axes.imshow(grid.numpy(), cmap="viridis_r", aspect="auto")
    axes.set_axis_off()
    figure.colorbar(image, ax=axes, label="iterations of the position", fraction=0.03)
    write_png(figure, path)


def show_tokens(
    model: LanguageModel,
    batches: Batches,
    tokenizer: Tokenizer,
    count: int | None,
    output: Path | None,
    *,
    exit: str | Exit | None = None,
    capacity: Capacity | None = None,
    selection: Selection | None = None,
) -> None:
    """Print what tokens use, and who takes each routed pass; draw it into a folder.

    Args:
        model, exit, capacity, selection: see `token_uses`.
        batches: the batches of each difficulty, of which all are taken together.
        tokenizer: makes text of tokens.
        count: the iteration count; None for the one that `token_uses` takes.
        output: folder of the picture, tokens.png; None for none.
    """
    from rich.console import Console

    pairs = [pair for difficulty in batches.values() for pair in difficulty]
    uses = token_uses(model, pairs, count, exit=exit, capacity=capacity, selection=selection)
    tables = token_tables(uses, tokenizer)
    if model.config.routed_layers and count != 1:
        tables += [router_table(router_uses(model, pairs, count, capacity=capacity, selection=selection))]
    if output is not None:  # before anything is printed, which ends where nobody reads any more
        write_heat_map(uses, tokenizer, output / "tokens.png")
    for table in tables:
        Console().print(table)
    if output is not None:
        print(f"wrote {output / 'tokens.png'}")
