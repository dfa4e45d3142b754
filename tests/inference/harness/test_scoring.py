"""Log-likelihoods are plain sums of log-softmax, at every count, in any batch, and several counts cost one unroll."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.inference.harness.scoring import Pair, Scorer
from mull.models import IteratedModel, LanguageModel
from mull.models.families import FAMILIES

Make = Callable[..., LanguageModel]


def some_pairs(number: int = 9) -> list[Pair]:
    """Pairs of odd lengths; the last ones are choices of one token behind one context."""
    rng = random.Random(5)
    pairs = [
        Pair([rng.randrange(11) for _ in range(rng.randint(1, 12))], [rng.randrange(11) for _ in range(1 + n % 4)])
        for n in range(number)
    ]
    return [*pairs, *(Pair([3, 1, 4, 1, 5], [choice]) for choice in (2, 7, 1))]


def counts_of(model: LanguageModel) -> list[int | None]:
    return [None] if model.config.default_iterations is None else [1, 2, 5]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_score_is_the_sum_of_log_softmax(family: str, make_model: Make) -> None:
    """Guards the alignment of logits and labels, padding, and the reading of every count: each pair alone, through the
    model's own forward, gives the same number and the same word on greedy decoding."""
    model, pairs = make_model(family), some_pairs()
    found = Scorer(model, counts_of(model), batch_size=4).score(pairs)
    assert list(found) == counts_of(model)
    for count, scores in found.items():
        for (context, scored), score in zip(pairs, scores, strict=True):
            logits = model(torch.tensor([[*context, *scored]]), count).logits[0, len(context) - 1 : -1]
            each = logits.log_softmax(-1)[range(len(scored)), scored]
            assert score.loglikelihood == pytest.approx(float(each.sum()), abs=1e-10)
            assert score.greedy == (logits.argmax(-1).tolist() == list(scored))
    assert any(score.greedy for scores in found.values() for score in scores)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_batches_and_order_change_nothing(dtype: torch.dtype, tolerance: float, make_model: Make) -> None:
    """Guards a score against its neighbours: one row at a time, eight, and in another order."""
    model, pairs = make_model("recurrent").to(dtype), some_pairs(20)
    order = random.Random(1).sample(range(len(pairs)), len(pairs))
    alone, together = (Scorer(model, [1, 4], size).score(pairs) for size in (1, 8))
    shuffled = Scorer(model, [1, 4], 8).score([pairs[number] for number in order])
    for count in (1, 4):
        expected = torch.tensor([score.loglikelihood for score in alone[count]], dtype=torch.float64)
        for found in (together[count], [shuffled[count][order.index(number)] for number in range(len(pairs))]):
            got = torch.tensor([score.loglikelihood for score in found], dtype=torch.float64)
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
            assert [score.greedy for score in found] == [score.greedy for score in alone[count]]


def calls(model: IteratedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every iteration that the model is asked for from now on."""
    rows: list[int] = []
    think = model.think

    def counting(state: Any, *args: Any) -> Any:
        rows.append(len(state))
        return think(state, *args)

    monkeypatch.setattr(model, "think", counting)
    return rows


def test_three_depths_cost_the_deepest(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the one unroll: 1, 4 and 16 run as many iterations of as many rows as 16 alone, and choices of one token
    share the row of their context."""
    model, pairs = make_model("recurrent"), some_pairs()
    assert isinstance(model, IteratedModel)
    rows = calls(model, monkeypatch)
    together = Scorer(model, [1, 4, 16], batch_size=4).score(pairs)
    asked, rows[:] = list(rows), []
    alone = Scorer(model, [16], batch_size=4).score(pairs)
    assert rows == asked and len(asked) == 16 * 3
    assert together[16] == alone[16]
    assert sum(rows) == 16 * len({(*context, *scored[:-1]) for context, scored in pairs}) < 16 * len(pairs)


@torch.no_grad()
def test_under_an_exit_rule_each_count_is_a_limit(make_model: Make) -> None:
    """Guards exits in scores: the same as thinking until the rule says so, row by row; what positions used is told,
    padding not among them."""
    model, pairs, rule = make_model("recurrent"), some_pairs(), parse("latent:0.5")
    scorer = Scorer(model, [2, 6], batch_size=4, exit=rule)
    found = scorer.score(pairs)
    for count in (2, 6):
        used = {}
        for (context, scored), score in zip(pairs, found[count], strict=True):
            row = (*context, *scored[:-1])
            out = think_until(model, torch.tensor([row]), count, rule)
            each = out.logits[0, len(context) - 1 :].log_softmax(-1)[range(len(scored)), list(scored)]
            assert score.loglikelihood == pytest.approx(float(each.sum()), abs=1e-10)
            used[row] = out.iterations.double()
        mean = torch.cat([found.flatten() for found in used.values()]).mean()
        assert scorer.spent[count].mean == pytest.approx(float(mean))
    assert scorer.spent[2].mean != scorer.spent[6].mean


def test_a_routed_model_takes_the_share_it_is_given(make_model: Make) -> None:
    """Guards `capacity`: it changes scores as it changes forward, and a model that routes nothing refuses it."""
    model, pairs = make_model("inner_thinking"), some_pairs()[:3]
    found = Scorer(model, [1, 3], capacity=(0.0, 0.0)).score(pairs)
    assert found[1] == found[3] != Scorer(model, [1, 3]).score(pairs)[3]
    with pytest.raises(ValueError, match="no routed passes"):
        Scorer(make_model("recurrent"), [1], capacity=0.5)


def test_what_cannot_be_scored_is_named(make_model: Make) -> None:
    model = make_model("recurrent")
    with pytest.raises(ValueError, match="a context and a continuation"):
        Scorer(model, [1]).score([Pair([1], [])])
    with pytest.raises(ValueError, match="33 positions, and the model's max_length is 32"):
        Scorer(model, [1]).score([Pair([1] * 32, [2, 3])])
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Scorer(model, [1], 0)
