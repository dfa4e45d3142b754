"""What tokens use: against the model's own counts, and as tables and picture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mull
from mull.checkpoints import load_tokenizer
from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.inference.measure.tokens import Use, class_of, grouped, token_tables, token_uses, write_heat_map
from mull.models import InnerThinkingConfig, InnerThinkingTransformer, LanguageModel


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


def test_a_model_whose_positions_all_use_the_same_is_refused(make_model: Callable[..., LanguageModel]) -> None:
    ids = torch.randint(11, (2, 5))
    with pytest.raises(ValueError, match="all positions use the same iterations: give an exit rule"):
        token_uses(make_model("recurrent"), [(ids, ids)], 4)
