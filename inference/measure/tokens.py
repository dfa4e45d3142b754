"""Which tokens think longest: iterations by token, by class of token, and over a piece of text as a picture.

What a position used is its iterations under an exit rule, or, with routed passes, 1 + the passes it took, on average
over the thinking layers. Its loss is that of the token it predicts.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mull.checkpoints.quantities import MEAN, NATS, PERCENT, number
from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.measure.plots import write_png
from mull.inference.measure.routers import router_table, router_uses
from mull.inference.measure.table import standard_output
from mull.inference.mode import evaluating
from mull.models import LanguageModel
from mull.models.labels import scored, token_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from tokenizers import Tokenizer

COLUMNS, ROWS = 64, 16  # of the picture: positions of an item, and items


class Use(NamedTuple):
    """What one position used: its token, iterations, and loss in nats of the next token (NaN where none is scored);
    `item` is the number of its row over all batches, from 0."""

    token: int
    iterations: float
    loss: float
    item: int = 0


@dataclass(frozen=True)
class Group:
    """Positions of one token, or one class of tokens."""

    name: str
    count: int
    iterations: float
    loss: float


@evaluating
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
    uses: list[Use] = []
    seen = 0
    for given, wanted in batches:
        input_ids, labels = given.to(model.device), wanted.to(model.device)
        out = (
            model(input_ids, iterations, **options) if rule is None else think_until(model, input_ids, iterations, rule)
        )
        used = out.iterations.float()
        if out.selected is not None:  # (B, T, layers, passes)
            used = 1 + out.selected.sum(dim=-1).float().mean(dim=-1)
        nats = token_losses(out.logits, labels).masked_fill(~scored(labels), float("nan"))
        items = torch.arange(seen, seen + len(input_ids))[:, None].expand(input_ids.shape)
        seen += len(input_ids)
        uses += [Use(*use) for use in zip(*(x.flatten().tolist() for x in (input_ids, used, nats, items)), strict=True)]
    return uses


def class_of(text: str) -> str:
    """letter, digit, space, punctuation or other: by the first character of a token's text that is no blank."""
    first = text.strip()[:1]
    if not first:
        return "space" if text else "other"
    if first.isalpha():
        return "letter"
    return "digit" if first.isdigit() else "punctuation" if first.isascii() and first.isprintable() else "other"


class Names:
    """What tokens are called: their text, or for special ones, such as <start>, their name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def text(self, token: int) -> str:
        return self.special.get(token) or self.tokenizer.decode([token], skip_special_tokens=False)

    def kind(self, token: int) -> str:
        """The class of a token: that of its text, or special."""
        return "special" if token in self.special else class_of(self.text(token))

    def shown(self, token: int) -> str:
        """The token in a table."""
        return self.special.get(token) or repr(self.text(token))

    def drawn(self, token: int) -> str:
        """The token in a cell of the picture, where blanks have to be seen."""
        text = self.text(token)
        if not text.strip():
            return "".join({" ": "\u00b7", "\n": "\u21b5", "\t": "\u2192"}.get(each, "\u00b7") for each in text)
        return text.strip().replace("\ufffd", "\u25a1").replace("$", r"\$")  # a dollar would begin a formula


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
    """By class; and the tokens that think longest and shortest among those that occur `least` times or more. The loss
    is that of what is predicted at the token, and a dash where nothing is scored there."""
    from rich.markup import escape
    from rich.table import Table

    names = Names(tokenizer)
    by_class = grouped(uses, [names.kind(use.token) for use in uses])
    by_token = [g for g in grouped(uses, [names.shown(use.token) for use in uses]) if g.count >= least]
    shown = by_token if len(by_token) <= 2 * most else [*by_token[:most], *by_token[-most:]]
    tables = []
    for title, groups in (("by class of token", by_class), ("tokens that think longest, and shortest", shown)):
        table = Table("token", "count", "mean iterations", "loss", title=title)
        for group in groups:
            loss = "-" if math.isnan(group.loss) else number(group.loss, NATS)
            table.add_row(escape(group.name), f"{group.count:,}", number(group.iterations, MEAN), loss)
        tables.append(table)
    once = sum(use.iterations <= 1 for use in uses) / len(uses)
    tables[0].caption = f"{number(once, PERCENT)} % of the positions stop after one iteration"
    return tables


def write_heat_map(uses: Sequence[Use], tokenizer: Tokenizer, path: str | Path, title: str | None = None) -> None:
    """A PNG with a row for each of the first items, each token on the colour of what its position used."""
    write_png(heat_map(uses, tokenizer, title), path)


def heat_map(uses: Sequence[Use], tokenizer: Tokenizer, title: str | None = None) -> Figure:
    """The picture of `write_heat_map`: the first 64 positions of the first 16 items."""
    from matplotlib.figure import Figure

    rows: dict[int, list[Use]] = defaultdict(list)
    for use in uses:
        rows[use.item].append(use)
    items = {item: row[:COLUMNS] for item, row in list(rows.items())[:ROWS]}
    width, used = max(map(len, items.values())), [use.iterations for row in items.values() for use in row]
    grid = torch.full((len(items), width), float("nan"))
    names, middle = Names(tokenizer), (min(used) + max(used)) / 2
    figure = Figure(figsize=(max(7.0, 2 + 0.2 * width), 1.7 + 0.38 * len(items)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(items.values()):
        for column, use in enumerate(row):
            grid[place, column] = use.iterations
            text = names.drawn(use.token)
            upright = use.token in names.special  # a name is longer than a cell is wide
            axes.text(
                column, place, text[:9], ha="center", va="center", family="monospace", rotation=90 if upright else 0,
                fontsize=6.0 if upright else min(8.0, 20 / max(1, len(text[:9]))),
                color="w" if use.iterations > middle else "k",
            )  # fmt: skip
    image = axes.imshow(grid.numpy(), cmap="viridis_r", aspect="auto")
    axes.set_yticks(range(len(items)), [str(item + 1) for item in items])
    axes.set_ylabel("item")
    axes.set_xlabel("position" if max(map(len, rows.values())) <= COLUMNS else f"position (the first {COLUMNS})")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title or "iterations of every position", fontsize=10)
    figure.colorbar(image, ax=axes, label="iterations of the position", fraction=0.03, pad=0.01)
    return figure


def show(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Tensor, Tensor]],
    iterations: int | None,
    output: Path | None,
    *,
    exit: str | Exit | None = None,
    **routing: Any,
) -> None:
    """Print what tokens use at one count, and of a model with routers who takes which pass; draw it into a folder.

    Args:
        model: any family whose positions can differ; see `token_uses`.
        tokenizer: tells the tokens.
        pairs: the batches.
        iterations: the count; None is the config's.
        output: the folder of tokens.png; None draws nothing.
        exit: a rule that ends thinking early.
        routing: capacity and selection, of a model with routed passes.
    """
    uses = token_uses(model, pairs, iterations, exit=exit, **routing)
    tables = token_tables(uses, tokenizer)
    if model.config.routed_layers and iterations != 1:
        tables += [router_table(router_uses(model, pairs, iterations, **routing))]
    if output is not None:  # before anything is printed, which ends where nobody reads any more
        count = model.config.default_iterations if iterations is None else iterations
        how = f"at most {count}, exit {exit}" if exit is not None else f"{count} passes, routed"
        write_heat_map(uses, tokenizer, output / "tokens.png", f"iterations of every position: {how}")
    for table in tables:
        standard_output().print(table)
    if output is not None:
        print(f"wrote {output / 'tokens.png'}")
