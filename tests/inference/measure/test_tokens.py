"""What tokens use: against the model's own counts, and as tables and picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import mull
from mull.checkpoints import load_tokenizer
from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.inference.measure.tokens import (
    Names,
    Use,
    class_of,
    grouped,
    heat_map,
    token_tables,
    token_uses,
    write_heat_map,
)
from mull.models import InnerThinkingConfig, InnerThinkingTransformer, LanguageModel
from mull.training.data.tokenizer import byte_tokenizer


def test_uses_are_those_of_the_model(make_model: Callable[..., LanguageModel]) -> None:
    model, ids = make_model("recurrent"), torch.randint(11, (2, 5))
    labels = ids.clone()
    labels[0, 0] = -100
    uses = token_uses(model, [(ids, labels)], 6, exit="latent:0.3")
    out = think_until(model, ids, 6, parse("latent:0.3"))
    assert [use.token for use in uses] == ids.flatten().tolist()
    assert [use.iterations for use in uses] == out.iterations.flatten().tolist()
    nats = -out.logits.float().log_softmax(-1).gather(-1, ids[..., None]).flatten()
    assert uses[0].loss != uses[0].loss
    assert [use.loss for use in uses[1:]] == pytest.approx(nats[1:].tolist(), rel=1e-5)


def test_routed_passes_are_counted_over_the_layers() -> None:
    torch.manual_seed(0)
    model = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=11, d_model=16, n_heads=2, n_layers=4)).eval()
    ids = torch.randint(11, (2, 9))
    uses = token_uses(model, [(ids, ids)], 3, capacity=0.5)
    with torch.no_grad():
        selected = model(ids, 3, capacity=0.5).selected
    assert selected is not None and 0 < selected.float().mean() < 1
    assert [use.iterations for use in uses] == pytest.approx((1 + selected.sum((2, 3)) / 2).flatten().tolist())


def test_groups_are_means_longest_first() -> None:
    uses = [Use(1, 2, 0.5), Use(2, 4, 1.0), Use(1, 3, float("nan"))]
    first, second = grouped(uses, ["a", "b", "a"])
    assert (first.name, first.iterations, first.count, first.loss) == ("b", 4, 1, 1.0)
    assert (second.name, second.iterations, second.count, second.loss) == ("a", 2.5, 2, 0.5)


def test_classes() -> None:
    texts = ["a", " the", "7", "12", " ", "\n", ",", "<<", "é", "\ufffd", ""]
    named = ["letter", "letter", "digit", "digit", "space", "space", "punctuation", "punctuation", "letter", "other"]
    assert [class_of(text) for text in texts] == [*named, "other"]


def test_tables_and_picture(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "checkpoints" / "text"
    model, tokenizer = mull.load(folder), load_tokenizer(folder)
    ids = torch.tensor([list(b"Tom paid $12 for 3 pens, and $4 for a book. How much did he pay in all? ")])
    uses = token_uses(model, [(ids[:, :-1], ids[:, 1:])], 16, exit="latent:0.1")
    by_class, by_token = token_tables(uses, tokenizer, least=1)
    assert {"letter", "digit", "space", "punctuation"} == set(by_class.columns[0]._cells)
    assert by_token.row_count == 16
    write_heat_map(uses, tokenizer, tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def start_and_words() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"a": 0, "7": 1, "<start>": 2}, unk_token="a"))
    tokenizer.add_special_tokens(["<start>"])
    return tokenizer


def test_special_tokens_have_a_name_and_no_loss_that_is_none() -> None:
    """Guards <start>, which was punctuation with loss nan."""
    uses = [Use(2, 1, float("nan")), Use(0, 3, 0.5), Use(2, 1, float("nan"), 1), Use(1, 2, 0.25, 1)]
    by_class, by_token = token_tables(uses, start_and_words(), least=1)
    rows = [list(zip(*(column.cells for column in table.columns), strict=True)) for table in (by_class, by_token)]
    assert rows[0][-1] == ("special", "2", "1.00", "-") and ("letter", "1", "3.00", "0.5000") in rows[0]
    assert rows[1][-1] == ("<start>", "2", "1.00", "-") and ("'7'", "1", "2.00", "0.2500") in rows[1]
    assert by_class.caption == "50.0 % of the positions stop after one iteration"


def test_every_item_has_a_row_of_the_picture() -> None:
    """Guards rows of 33, which were joined and wrapped at 64 columns: a column is a position, of every item."""
    lengths = [33, 33, 70, *[33] * 20]
    uses = [Use(2 if p == 0 else 1, item + p, 0.1, item) for item, n in enumerate(lengths) for p in range(n)]
    figure = heat_map(uses, start_and_words(), "a title")
    axes = figure.axes[0]
    (image,) = axes.images
    grid = np.ma.filled(image.get_array(), np.nan)
    assert grid.shape == (16, 64) and np.isnan(grid[0, 33:]).all()
    assert grid[2].tolist() == [2 + p for p in range(64)] and grid[1, :33].tolist() == [1 + p for p in range(33)]
    assert axes.get_title() == "a title" and axes.get_xlabel() == "position (the first 64)"
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(item) for item in range(1, 17)]
    first = [text for text in axes.texts if text.get_position() == (0, 3)]
    assert [text.get_text() for text in first] == ["<start>"] and axes.get_ylabel() == "item"


def test_items_are_counted_over_the_batches(make_model: Callable[..., LanguageModel]) -> None:
    ids = torch.randint(11, (5, 4))
    uses = token_uses(make_model("recurrent"), [(ids[:2], ids[:2]), (ids[2:], ids[2:])], 3, exit="latent:0.3")
    assert [use.item for use in uses] == [item for item in range(5) for _ in range(4)]


def test_blanks_are_seen() -> None:
    names = Names(byte_tokenizer())
    assert [names.drawn(byte) for byte in b" \n\t$a"] == ["·", "↵", "→", r"\$", "a"]
    assert names.drawn(0xE9) == "□" and names.kind(256) == "special" and names.shown(256) == names.special[256]


def test_a_model_whose_positions_all_use_the_same_is_refused(make_model: Callable[..., LanguageModel]) -> None:
    ids = torch.randint(11, (2, 5))
    with pytest.raises(ValueError, match="all positions use the same iterations: give an exit rule"):
        token_uses(make_model("recurrent"), [(ids, ids)], 4)
