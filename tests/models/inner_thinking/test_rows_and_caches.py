"""Batches, padding, counts by row and caches change nothing, and what a cache holds of tokens that skip."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.models import InnerThinkingTransformer
from mull.models.layers import Attention

Make = Callable[..., InnerThinkingTransformer]
Tokens = Callable[..., Tensor]
Capacities = Callable[[InnerThinkingTransformer], list[Any]]
Fields = dict[str, Any]

LOOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("rows", [3, 1])
def test_cached_equals_uncached_at_every_capacity(
    make: Make, tokens: Tokens, capacities: Capacities, variant: Fields, rows: int
) -> None:
    """Of several rows, and of one, whose positions are decided one by one; what the routers say is the same too."""
    model = make(**variant)
    ids = tokens(model.config, rows, 12)
    for capacity in capacities(model):
        cache, whole = model.new_cache(rows, 12), model(ids, capacity=capacity)
        bounds = [0, 5, 8, *range(9, 13)]  # prefill, a second chunk, then position by position
        parts = [model(ids[:, a:b], capacity=capacity, cache=cache) for a, b in pairwise(bounds)]
        torch.testing.assert_close(torch.cat([part.logits for part in parts], dim=1), whole.logits, **LOOSE)
        assert torch.equal(torch.cat([part.selected for part in parts], dim=1), whole.selected)
        assert all(part.selected.shape == (rows, 1, *whole.selected.shape[2:]) for part in parts[2:])
        if whole.router_logits is not None:  # of a pass that is never taken the general way need not ask
            asked = whole.router_logits.isfinite()
            said = torch.cat([part.router_logits for part in parts], dim=1)
            torch.testing.assert_close(said[asked], whole.router_logits[asked], **LOOSE)


def test_a_position_alone_costs_the_passes_it_takes(
    make: Make, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding one row: queries once for each pass that is taken; keys and values once for each state that meets a
    pass, and none of it where the capacity is 0."""
    model, calls = make(), list[str]()
    ids, cache = tokens(model.config, 1, 30), model.new_cache(1, 30)
    for name in ("queries", "keys_values"):
        real = getattr(Attention, name)

        def counting(self: Attention, *args: Any, real: Callable[..., Any] = real, name: str = name) -> Any:
            calls.append(name)
            return real(self, *args)

        monkeypatch.setattr(Attention, name, counting)
    for t in range(30):
        calls.clear()
        selected = model(ids[:, t : t + 1], capacity=(0.5, 0.0, 0.4), cache=cache).selected[0, 0, 0].tolist()
        assert calls.count("queries") == sum(selected)
        assert calls.count("keys_values") == 1 + selected[0]  # the state before the first pass, and the one it made


@pytest.mark.parametrize("capacity", [0.3, (0.9, 0.0, 0.4)])
@pytest.mark.parametrize("training", [False, True])
def test_batched_and_padded_equal_single(make: Make, tokens: Tokens, capacity: Any, training: bool) -> None:
    """Each row selects for itself: in eval by threshold, in training by its own number of tokens."""
    model = make().train(training)
    rows = [tokens(model.config, 1, n, seed=n)[0] for n in (20, 9, 1)]
    ids, mask = torch.zeros(3, 24, dtype=torch.int64), torch.zeros(3, 24, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, 2 : 2 + len(row)], mask[i, 2 : 2 + len(row)] = row, 1
    out = model(ids, capacity=capacity, attention_mask=mask)
    assert not out.selected[mask == 0].any()
    for i, row in enumerate(rows):
        alone = model(row[None], capacity=capacity)
        torch.testing.assert_close(out.logits[i, 2 : 2 + len(row)], alone.logits[0], **LOOSE)
        assert torch.equal(out.selected[i, 2 : 2 + len(row)], alone.selected[0])


@pytest.mark.parametrize("training", [False, True])
def test_rows_with_a_count_of_their_own(make: Make, tokens: Tokens, variant: Fields, training: bool) -> None:
    """A row takes its first passes, selects among its own tokens, and holds from then on."""
    model = make(**variant).train(training)
    ids, counts = tokens(model.config, 3, 12), torch.tensor([1, 4, 2])
    capacity = 0.6 if model.config.routing else None
    out = model(ids, counts, capacity=capacity)
    for row, count in enumerate(counts.tolist()):
        alone = model(ids[row : row + 1], count, capacity=capacity)
        torch.testing.assert_close(out.logits[row], alone.logits[0], **LOOSE)
        assert torch.equal(out.selected[row, ..., : count - 1], alone.selected[0])
        assert not out.selected[row, ..., count - 1 :].any()
    assert (out.iterations.amax(dim=1) <= counts).all() and (out.iterations >= 1).all()


@pytest.mark.parametrize("padded", [False, True])
def test_a_count_for_each_row_and_all_the_same_is_one_count(make: Make, tokens: Tokens, padded: bool) -> None:
    """What a router learns, too, is an average over tokens, however the counts are said."""
    model = make().train()
    ids, mask = tokens(model.config, 3, 12), torch.ones(3, 12, dtype=torch.int64)
    if padded:
        mask[0, :3] = mask[2, 7:] = 0
    one, each = (model(ids, n, capacity=0.6, attention_mask=mask if padded else None) for n in (3, torch.full((3,), 3)))
    torch.testing.assert_close(each.logits, one.logits, **LOOSE)
    assert torch.equal(each.selected, one.selected)
    torch.testing.assert_close(each.auxiliary_loss, one.auxiliary_loss)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity", [0.25, 0.75, (0.5, 0.25, 1.0)])
def test_a_share_of_each_row_is_selected_in_training_and_the_loss_is_a_mean(
    make: Make, tokens: Tokens, capacity: Any, padded: bool
) -> None:
    """Counts by row, as the trainer draws them: each row that goes on sends its share of its own tokens, and a router's
    loss is of the size that it has at one count, however many rows still go on."""
    model = make(mean_iterations=4).train()
    ids, counts = tokens(model.config, 4, 16), torch.tensor([4, 1, 3, 4])
    mask, lengths = torch.ones(4, 16, dtype=torch.int64), torch.tensor([16, 16, 16, 16])
    if padded:
        mask[0, 12:] = mask[3, :8] = 0
        lengths = mask.sum(dim=1)
    out = model(ids, counts, capacity=capacity, attention_mask=mask if padded else None)
    shares = capacity if isinstance(capacity, tuple) else (capacity,) * 3
    for t, share in enumerate(shares):  # the routed pass number t + 1, which rows of a larger count take
        expected = (share * lengths * (counts > t + 1)).round().to(torch.int64)
        assert torch.equal(out.selected[:, :, 0, t].sum(dim=1), expected)
    # the loss by its definition, from what the output says of the routers: a mean over tokens, then over passes
    losses = []
    for t in range(3):
        goes = mask.bool() & (counts > t + 1)[:, None]
        logits, selected = out.router_logits[:, :, 0, t][goes], out.selected[:, :, 0, t][goes].to(torch.float32)
        losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), selected))
    torch.testing.assert_close(out.auxiliary_loss.float(), torch.stack(losses).mean())


def test_held_tokens_keep_their_keys(make: Make, tokens: Tokens) -> None:
    """Reuse is exact: with hold, the cached keys of a token that skipped a pass are those of the pass before."""
    model = make()
    ids, cache = tokens(model.config, 1, 12), model.new_cache(1, 12)
    selected = model(ids, capacity=0.5, cache=cache).selected[0, :, 0]  # (T, passes)
    for t in (1, 2):
        before, after = (cache.read((1, pass_number), 12)[0] for pass_number in (t, t + 1))
        same = (before == after).all(dim=-1).all(dim=1)[0]
        assert torch.equal(same, ~selected[:, t - 1])


@pytest.mark.parametrize("training", [False, True])
def test_an_answer_at_the_last_count_is_not_computed_twice(
    make: Make, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """At R it is the call's own, at other counts that of a run of its own; the order is as asked."""
    model = make().train(training)
    ids, runs, run_layers = tokens(model.config, 2, 9), list[int](), InnerThinkingTransformer.run_layers
    alone = {count: model(ids, count) for count in (2, 4)}

    def counted(self: InnerThinkingTransformer, x: Tensor, context: Any, plan: Any) -> Any:
        runs.append(plan.total)
        return run_layers(self, x, context, plan)

    monkeypatch.setattr(InnerThinkingTransformer, "run_layers", counted)
    for read_at, wanted in (([4], [4]), ([4, 2, 4], [4, 2]), ([2], [4, 2])):
        runs.clear()
        out = model(ids, 4, read_at=read_at)
        assert runs == wanted and list(out.readings) == list(dict.fromkeys(read_at))
        for count, reading in out.readings.items():
            assert torch.equal(reading.logits, alone[count].logits)
            assert torch.equal(reading.selected, alone[count].selected) and not reading.readings
        assert torch.equal(out.logits, alone[4].logits)


def test_a_pass_of_capacity_zero_costs_and_keeps_nothing(make: Make, tokens: Tokens) -> None:
    model = make()
    cache = model.new_cache(1, 12)
    out = model(tokens(model.config, 1, 12), 4, capacity=(0.0, 0.5, 0.0), cache=cache)
    assert [bool(cache.layers[1][:, t].any()) for t in range(4)] == [True, False, True, False]  # what was written
    assert not out.selected[..., 0].any() and not out.selected[..., 2].any() and out.selected[..., 1].any()


def test_a_cache_refuses_another_capacity_depth_or_selection(make: Make, tokens: Tokens) -> None:
    model = make()
    ids, cache = tokens(model.config, 1, 5), model.new_cache(1, 9)
    with pytest.raises(ValueError, match="top_k looks at tokens that a cached call does not have yet"):
        model(ids, cache=cache, selection="top_k")
    with pytest.raises(ValueError, match="read_at cannot be used with a cache"):
        model(ids, cache=cache, read_at=[1])
    model(ids, capacity=0.5, cache=cache)
    with pytest.raises(ValueError, match=r"filled at capacity=\(0.5, 0.5, 0.5\) and cannot continue at \(0.7"):
        model(ids[:, :1], cache=cache)
    with pytest.raises(ValueError, match="filled at iterations=4 and cannot continue at 3"):
        model(ids[:, :1], 3, capacity=0.5, cache=cache)
