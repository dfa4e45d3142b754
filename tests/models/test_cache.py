"""The cache: what it holds, and when it takes memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.models import (
    InnerThinkingConfig,
    LanguageModel,
    ModelConfig,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    TransformerConfig,
)
from mull.models import cache as cache_module
from mull.models.cache import Cache, Policy

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]


def nbytes(cache: Cache) -> int:
    """Bytes of all keys and values allocated so far."""
    return sum(stored.nbytes for stored in cache.layers.values())


def source(policy: Policy, iteration: int, depth: int, ring: int = 1) -> int:
    """The iteration whose keys stand in at `iteration` for a position iterated `depth` times, as cache.py has it."""
    if policy == "full":
        return iteration
    if policy == "deepest" or iteration % ring >= depth:
        return min(iteration, depth - 1)
    return depth - 1 - (depth - 1 - iteration) % ring


@pytest.fixture
def model(build: Build, small: Small) -> LanguageModel:
    return build(small())


def test_memory_is_taken_when_first_used_and_grows_by_need(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """Both ways: more columns than were taken at first, and no copy of a column in between."""
    cache = model.new_cache(2, 64)
    assert nbytes(cache) == 0
    ids = tokens(model.config, 2, 9)
    model(ids[:, :4], 3, cache=cache)
    held = {layer: stored.data_ptr() for layer, stored in cache.layers.items()}
    taken = nbytes(cache)
    assert taken > 0
    for column in range(4, 9):
        model(ids[:, column : column + 1], 3, cache=cache)
    assert nbytes(cache) == taken
    assert held == {layer: stored.data_ptr() for layer, stored in cache.layers.items()}


def test_rows_of_their_own_counts_are_copied_no_more_often_than_rows_of_one_count(
    model: RecurrentDepthTransformer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for all iterations is taken once, that of the deepest row: iteration by iteration, everything that is held
    would be copied in each, which took as long again as the prefill."""
    taken: list[int] = []
    grow = Cache.grow

    def counted(cache: Cache, layer: int, *needed: Any) -> Tensor:
        before, after = cache.layers.get(layer), grow(cache, layer, *needed)
        taken.append(layer) if after is not before else None
        return after

    monkeypatch.setattr(Cache, "grow", counted)
    ids, found = tokens(model.config, 3, 6), {}
    for depth in (9, torch.tensor([9, 9, 9]), torch.tensor([2, 9, 5])):
        taken.clear()
        cache = model.new_cache(3, 16)
        logits = [model(part, depth, cache=cache).logits for part in (ids[:, :5], ids[:, 5:])]
        found[str(depth)] = sorted(taken), torch.cat(logits, dim=1)
    once, *others = (times for times, _ in found.values())
    assert others == [once, once] and once.count(0) == 1
    (_, one_count), (_, equal_counts), (_, own_counts) = found.values()
    assert torch.equal(one_count, equal_counts) and torch.equal(own_counts[1], one_count[1])


@pytest.mark.parametrize("first_columns", [1, 2, 5])
def test_growing_columns_changes_nothing(
    model: RecurrentDepthTransformer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, first_columns: int
) -> None:
    """Rows that outgrow what was taken at first keep what they hold."""
    monkeypatch.setattr(cache_module, "FIRST_COLUMNS", first_columns)
    ids, cache = tokens(model.config, 2, 11), model.new_cache(2, 64)
    parts = [model(ids[:, at : at + 1], 3, cache=cache).logits for at in range(11)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, 3).logits, rtol=1e-10, atol=1e-10)
    assert cache.layers[0].shape[4] < 64


def test_a_layer_of_the_loop_keeps_every_iteration(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    cache = model.new_cache(1, 4)
    model(tokens(model.config, 1, 4), 2, cache=cache)  # 1 prelude, 3 core, 2 coda layers
    assert {layer: stored.shape[1] for layer, stored in cache.layers.items()} == {0: 1, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1}
    assert all(stored.shape[2:] == (1, 2, 5, 4) for stored in cache.layers.values())  # B, K, columns, W


# ------------------------------------------------------------------------------------------------ policies


@pytest.mark.parametrize(("policy", "ring"), [("deepest", 1), ("shared", 1), ("shared", 2), ("shared", 3)])
def test_policies_read_what_their_index_function_says(policy: str, ring: int) -> None:
    """Keys marked with the iteration that made them, positions of every depth, against `source`."""
    cache = Cache(1, 1, 8, 1, torch.device("cpu"), torch.float64, policy, ring)
    depths = [1, 4, 2, 3, 5]
    for column, depth in enumerate(depths):
        cache.admit([1], depth)
        place = torch.tensor([0]), torch.tensor([column])
        for iteration in range(depth):
            mark = torch.full((1, 1, 1), 10.0 * column + iteration, dtype=torch.float64)
            cache.write((0, iteration), *place, column + 1, mark, -mark)
            keys, values = cache.read((0, iteration), column + 1)
            wanted = [10.0 * c + source(policy, iteration, d, ring) for c, d in enumerate(depths[:column])]
            assert keys.flatten().tolist() == [*wanted, 10.0 * column + iteration]
            assert torch.equal(values, -keys)
        cache.hold(*place, depth)
        cache.advance([1])


def test_index_functions() -> None:
    assert [source("full", i, 9) for i in range(4)] == [0, 1, 2, 3]
    assert [source("deepest", i, 2) for i in range(4)] == [0, 1, 1, 1]
    assert [source("shared", i, 5, 2) for i in range(5)] == [4, 3, 4, 3, 4]
    assert [source("shared", i, 5, 1) for i in range(5)] == [4, 4, 4, 4, 4]
    assert [source("shared", i, 1, 3) for i in range(3)] == [0, 0, 0]


def test_full_and_deepest_are_one_at_one_depth(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    ids = tokens(model.config, 2, 7)
    answers = []
    for policy in ("full", "deepest"):
        cache = model.new_cache(2, 7, policy)
        answers.append(torch.cat([model(part, 3, cache=cache).logits for part in ids.split((4, 1, 2), 1)], 1))
    assert torch.equal(*answers)
    torch.testing.assert_close(answers[0], model(ids, 3).logits, rtol=1e-10, atol=1e-10)


def test_a_shared_ring_as_wide_as_the_depth_is_full(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """And a narrower one is not: it is lossy, and takes that much less memory."""
    ids, sizes = tokens(model.config, 2, 7), {}
    for ring in (1, 2, 3, 9):
        cache = model.new_cache(2, 7, "shared", ring)
        logits = torch.cat([model(part, 3, cache=cache).logits for part in ids.split((4, 1, 2), 1)], 1)
        sizes[ring] = nbytes(cache) // (2 * cache.layers[0].shape[4])  # of one position of one row
        assert torch.allclose(logits, model(ids, 3).logits, rtol=1e-10, atol=1e-10) == (ring >= 3)
    assert sizes == {r: 2 * 2 * 4 * 8 * (3 + 3 * min(r, 3)) for r in sizes}  # keys and values, K, W, fp64, layers


@pytest.mark.parametrize(("policy", "ring"), [("full", 1), ("deepest", 1), ("shared", 1), ("shared", 2)])
@settings(max_examples=8)
@given(data=st.data())
def test_rolled_back_and_replayed_equals_never_written(
    build: Build, small: Small, tokens: Tokens, policy: str, ring: int, data: st.DataObject
) -> None:
    """Rows are cut at places of their own, and what follows is as if the rest had never been there."""
    model = build(small())
    ids, other = tokens(model.config, 2, 6), tokens(model.config, 2, 3, seed=4)
    kept = [data.draw(st.integers(1, 6)) for _ in range(2)]
    cache = model.new_cache(2, 32, policy, ring)
    model(ids, 3, cache=cache)
    cache.rollback(kept)
    again = torch.cat([model(other[:, i : i + 1], 3, cache=cache).logits for i in range(3)], 1)
    for row in range(2):
        fresh = model.new_cache(1, 32, policy, ring)
        model(ids[row : row + 1, : kept[row]], 3, cache=fresh)
        alone = torch.cat([model(other[row : row + 1, i : i + 1], 3, cache=fresh).logits for i in range(3)], 1)
        torch.testing.assert_close(again[row], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("policy", "ring"), [("deepest", 1), ("shared", 2)])
def test_batch_and_padding_change_nothing_under_any_policy(
    model: RecurrentDepthTransformer, tokens: Tokens, policy: str, ring: int
) -> None:
    ids, mask = tokens(model.config, 3, 6), torch.ones(3, 6, dtype=torch.int64)
    mask[0, :2] = mask[1, 4:] = 0
    answer = tokens(model.config, 3, 2, seed=3)
    cache = model.new_cache(3, 16, policy, ring)
    first = model(ids, 3, cache=cache, attention_mask=mask).logits
    rest = model(answer, 2, cache=cache).logits  # another depth, which these policies allow
    for row in range(3):
        alone = model.new_cache(1, 16, policy, ring)
        real = mask[row].bool()
        expected = model(ids[row, real][None], 3, cache=alone).logits
        torch.testing.assert_close(first[row, real], expected[0], rtol=1e-10, atol=1e-10)
        expected = model(answer[row : row + 1], 2, cache=alone).logits
        torch.testing.assert_close(rest[row], expected[0], rtol=1e-10, atol=1e-10)


def test_a_fork_is_a_copy_of_rows(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """Beams and finished rows: each copy goes on by itself."""
    ids, cache = tokens(model.config, 3, 5), model.new_cache(3, 16)
    model(ids, 2, cache=cache)
    fork = cache.fork([2, 0, 2])
    token = tokens(model.config, 3, 1, seed=5)
    forked = model(token, 2, cache=fork).logits
    assert cache.lengths == [5, 5, 5] and fork.lengths == [6, 6, 6]
    whole = model(torch.cat([ids[[2, 0, 2]], token], 1), 2).logits[:, -1:]
    torch.testing.assert_close(forked, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(  # the original is untouched
        model(token, 2, cache=cache).logits, model(torch.cat([ids, token], 1), 2).logits[:, -1:], rtol=1e-10, atol=1e-10
    )


def test_iterations_of_a_call_never_shrink_while_positions_are_held(model: RecurrentDepthTransformer) -> None:
    """Iteration j of a row with count R_b is stored at total - R_b + j: total is that of the deepest row ever held."""
    cache = model.new_cache(3, 8)
    assert cache.iterations_of(4) == 4 and cache.iterations_of(None) == 0
    assert cache.iterations_of(torch.tensor([2, 5, 3])) == 5
    cache.admit([1, 1, 1], torch.tensor([2, 5, 3]))
    cache.advance([1, 1, 1])
    assert cache.iterations_of(torch.tensor([2, 3, 3])) == cache.fork([0, 2]).iterations_of(torch.tensor([2, 3])) == 5
    cache.rollback([0, 0, 0])
    assert cache.iterations_of(torch.tensor([2, 3, 3])) == 3  # nothing is held that was stored deeper


# ------------------------------------------------------------------------------------------------ other uses


def test_a_cached_call_keeps_no_gradients_and_gives_them_back(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    out = model(tokens(model.config, 1, 4), 2, cache=model.new_cache(1, 4))
    assert not out.logits.requires_grad and not out.state.requires_grad
    assert torch.is_grad_enabled()


def test_a_transformers_cache(build: Build, tokens: Tokens) -> None:
    model = build(TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=3))
    cache = model.new_cache(1, 4)
    model(tokens(model.config, 1, 4), cache=cache)
    assert {layer: stored.shape[1] for layer, stored in cache.layers.items()} == {0: 1, 1: 1, 2: 1}
    with pytest.raises(ValueError, match="max_length=5 or more"):
        model(tokens(model.config, 1, 1), cache=cache)


def test_a_cache_serves_a_call_under_autocast(build: Build, small: Small, tokens: Tokens) -> None:
    model = build(small(), torch.float32)
    ids = tokens(model.config, 1, 5)
    cache = model.new_cache(1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        whole = model(ids, 3).logits
        parts = [model(ids[:, :4], 3, cache=cache).logits, model(ids[:, 4:], 3, cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("padded", [False, True])
def test_a_narrower_cache_halves_the_bytes_and_keeps_the_answer(
    build: Build, small: Small, tokens: Tokens, padded: bool
) -> None:
    """Keys and values rounded to bfloat16 under a model of fp32: prefill, a second chunk, positions one by one."""
    model = build(small(), torch.float32)
    ids, mask = tokens(model.config, 2, 9), torch.ones(2, 5, dtype=torch.int64)
    if padded:
        mask[0, :2] = 0
    wide, narrow = model.new_cache(2, 9), model.new_cache(2, 9, dtype=torch.bfloat16)
    with torch.no_grad():
        for part, attention_mask in ((ids[:, :5], mask), (ids[:, 5:7], None), (ids[:, 7:8], None), (ids[:, 8:], None)):
            exact = model(part, 3, cache=wide, attention_mask=attention_mask).logits
            rounded = model(part, 3, cache=narrow, attention_mask=attention_mask).logits
            assert rounded.dtype == torch.float32
            if attention_mask is not None:
                exact, rounded = exact[attention_mask.bool()], rounded[attention_mask.bool()]
            assert 0 < (rounded - exact).std() < 0.05 * exact.std()
    assert nbytes(narrow) * 2 == nbytes(wide) and narrow.fork([1]).dtype == torch.bfloat16


@pytest.mark.parametrize("family", [RecurrentDepthConfig, InnerThinkingConfig], ids=lambda family: family.model_type)
def test_rows_with_counts_of_their_own_outlive_the_deepest(
    build: Build, tokens: Tokens, family: type[ModelConfig]
) -> None:
    """When the row with most iterations leaves, the others find their keys where they were written."""
    shape = {"n_layers": 3} if family is InnerThinkingConfig else {"n_core": 2}
    model = build(family(vocab_size=11, d_model=24, n_heads=3, max_length=32, mean_iterations=5, **shape))
    ids, counts = tokens(model.config, 3, 8), torch.tensor([2, 5, 3])
    cache = model.new_cache(3, 8)
    model(ids[:, :5], counts, cache=cache)
    last = cache.fork([2])  # one row is decided by itself, and has a count of its own all the same
    for t in range(5, 8):
        out = model(ids[2:, t : t + 1], counts[2:], cache=last)
    torch.testing.assert_close(out.logits[0, 0], model(ids[2:], 3).logits[0, -1], rtol=1e-10, atol=1e-10)
    rest = cache.fork([0, 2])
    for t in range(5, 8):
        out = model(ids[[0, 2], t : t + 1], counts[[0, 2]], cache=rest)
    for row, count, place in ((0, 2, 0), (2, 3, 1)):
        alone = model(ids[row : row + 1], count).logits[0, -1]
        torch.testing.assert_close(out.logits[place, 0], alone, rtol=1e-10, atol=1e-10)
