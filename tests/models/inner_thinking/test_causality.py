"""Nothing that comes later changes what stands before, in eval, not even in bits; and what the threshold is for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.models import InnerThinkingTransformer, positions, selection

Make = Callable[..., InnerThinkingTransformer]
Tokens = Callable[..., Tensor]
Capacities = Callable[[InnerThinkingTransformer], list[Any]]


def test_a_suffix_leaves_the_prefix_bit_equal(
    make: Make, tokens: Tokens, capacities: Capacities, variant: dict[str, Any]
) -> None:
    model = make(**variant)
    ids = tokens(model.config, 2, 24)
    for capacity in capacities(model):
        before = model(ids, capacity=capacity)
        for split in (4, 12, 23):
            other = torch.cat([ids[:, :split], tokens(model.config, 2, 24 - split, seed=90 + split)], dim=1)
            after = model(other, capacity=capacity)
            assert torch.equal(after.logits[:, :split], before.logits[:, :split])
            assert torch.equal(after.selected[:, :split], before.selected[:, :split])


def test_a_suffix_changes_the_prefix_where_top_k_is_forced(make: Make, tokens: Tokens) -> None:
    """What the threshold is for: the same test fails with the selection of training."""
    model = make()
    ids = tokens(model.config, 2, 24)
    before = model(ids, capacity=0.5, selection="top_k").logits
    others = [torch.cat([ids[:, :12], tokens(model.config, 2, 12, seed=s)], dim=1) for s in range(5)]
    after = [model(other, capacity=0.5, selection="top_k").logits for other in others]
    assert not all(torch.equal(logits[:, :12], before[:, :12]) for logits in after)


def test_a_suffix_leaves_the_prefix_bit_equal_in_the_shortest_rows(make: Make, tokens: Tokens) -> None:
    """Where all tokens may be selected, and are fewer than a block."""
    model = make()
    for length, seed in ((length, seed) for length in (2, 3) for seed in range(40)):
        ids = tokens(model.config, 1, length, seed=seed)
        other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1 + seed % 9) % 11], dim=1)
        before, after = (model(some, capacity=0.5).logits[:, :-1] for some in (ids, other))
        assert torch.equal(before, after)


def test_a_suffix_leaves_the_prefix_bit_equal_where_all_may_be_selected(
    make: Make, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens together must not go another way, in other segments, than all but one."""
    monkeypatch.setattr(positions, "SEGMENT", 7)
    model, everybody = make(), set()
    for seed in range(30):
        ids = tokens(model.config, 1, 16, seed=seed)
        split = 3 + seed % 12
        other = torch.cat([ids[:, :split], tokens(model.config, 1, 16 - split, seed=90 + seed)], dim=1)
        before, after = (model(some, capacity=0.97) for some in (ids, other))
        everybody |= {bool(out.selected[0, ..., t].all()) for out in (before, after) for t in range(3)}
        assert torch.equal(before.logits[:, :split], after.logits[:, :split])
    assert everybody == {True, False}  # both happened


@pytest.mark.parametrize("shape", [(8, 2), (8, 3), (1, 8), (4, 6)])
def test_the_last_token_that_skips_leaves_the_others_bit_equal(
    make: Make, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """All tokens of a batch may be whole blocks while the queries of a row are not."""
    model = make(rule="update")
    ids, answers = tokens(model.config, *shape), []
    for skips in (False, True):

        def select(logits: Tensor, *_: Any, skips: bool = skips) -> Tensor:
            selected = torch.ones_like(logits, dtype=torch.bool)
            selected[-1, -1] = not skips
            return selected

        monkeypatch.setitem(selection.SELECTIONS, "threshold", select)
        answers.append(model(ids, capacity=0.9).logits.flatten(0, 1)[:-1])
    assert torch.equal(*answers)


@pytest.mark.parametrize("segment", [256, 50])
def test_a_suffix_leaves_the_prefix_bit_equal_in_longer_rows(
    make: Make, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    """Where other rows and later tokens change how many are gathered by hundreds."""
    monkeypatch.setattr(positions, "SEGMENT", segment)
    model = make(rule="update")
    ids = tokens(model.config, 4, 190)
    before = model(ids, capacity=0.5)
    for seed, split in enumerate((30, 77, 150)):
        other = torch.cat([ids[:, :split], tokens(model.config, 4, 190 - split, seed=90 + seed)], dim=1)
        after = model(other, capacity=0.5)
        assert torch.equal(after.logits[:, :split], before.logits[:, :split])
