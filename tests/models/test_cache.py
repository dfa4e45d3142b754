"""The cache: what it holds, when it takes memory, and what it refuses."""

import pytest
import torch

from mull.models import TransformerConfig


@pytest.fixture
def model(build, small):
    return build(small())


def test_memory_is_taken_when_first_used_and_only_then(model, tokens):
    cache = model.new_cache(2, 9)
    assert cache.nbytes == 0
    ids = tokens(model.config, 2, 9)
    model(ids[:, :4], 3, cache=cache)
    held = {slot: [tensor.data_ptr() for tensor in pair] for slot, pair in cache.slots.items()}
    nbytes = cache.nbytes
    assert nbytes == sum(tensor.nbytes for pair in cache.slots.values() for tensor in pair) > 0
    for column in range(4, 9):
        model(ids[:, column : column + 1], 3, cache=cache)
    assert cache.nbytes == nbytes
    assert held == {slot: [tensor.data_ptr() for tensor in pair] for slot, pair in cache.slots.items()}


def test_a_slot_for_every_layer_and_iteration(model, tokens):
    cache = model.new_cache(1, 4)
    model(tokens(model.config, 1, 4), 2, cache=cache)  # 1 prelude, 3 core, 2 coda layers
    assert sorted(cache.slots) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (5, 0)]
    assert all(keys.shape == values.shape == (1, 2, 4, 4) for keys, values in cache.slots.values())  # B, K, L, W


def test_too_many_tokens_are_refused_with_the_remedy_and_nothing_is_stored(model, tokens):
    ids = tokens(model.config, 1, 6)
    cache = model.new_cache(1, 5)
    first = model(ids[:, :4], 2, cache=cache)
    with pytest.raises(ValueError, match="holds 5 positions and 6 are needed; ask new_cache for max_length=6 or more"):
        model(ids[:, 4:], 2, cache=cache)
    assert cache.length == 4
    last = model(ids[:, 4:5], 2, cache=cache)
    torch.testing.assert_close(torch.cat([first.logits, last.logits], 1), model(ids[:, :5], 2).logits)


def test_a_cache_beyond_the_models_limit_is_refused(model):
    with pytest.raises(ValueError, match="max_length 65 is more than the model's limit of 64 positions"):
        model.new_cache(1, 65)


@pytest.mark.parametrize(("first", "second"), [
    (2, 3), (2, torch.tensor([2, 2])), (torch.tensor([1, 2]), 2), (torch.tensor([1, 2]), torch.tensor([2, 1])),
], ids=str)  # fmt: skip
def test_another_depth_is_refused(model, tokens, first, second):
    """Keys of one depth cannot stand in for those of another: a deeper call would see tokens without keys."""
    ids = tokens(model.config, 2, 4)
    cache = model.new_cache(2, 8)
    model(ids, first, cache=cache)
    with pytest.raises(ValueError, match=r"the cache was filled at iterations=.* and cannot continue at"):
        model(ids, second, cache=cache)
    model(ids, first, cache=cache)


def test_another_batch_size_is_refused(model, tokens):
    """One row would otherwise be copied over all rows of the cache, silently."""
    cache = model.new_cache(2, 8)
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"the cache holds 2 sequences, input_ids has {rows}"):
            model(tokens(model.config, rows, 4), 2, cache=cache)


def test_readings_are_refused_beside_a_cache(model, tokens):
    """The coda's keys of older tokens belong to the last iteration; a reading at an earlier one would mix the two."""
    with pytest.raises(ValueError, match="read_at cannot be used with a cache"):
        model(tokens(model.config, 1, 4), 4, cache=model.new_cache(1, 8), read_at=[1])


def test_a_refused_call_leaves_the_cache_usable(model, tokens):
    ids = tokens(model.config, 1, 5)
    cache = model.new_cache(1, 8)
    first = model(ids[:, :3], 2, cache=cache)
    with pytest.raises(ValueError, match="state must have shape"):
        model(ids[:, 3:], 2, cache=cache, state=torch.zeros(1, 1, 24))
    rest = model(ids[:, 3:], 2, cache=cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), model(ids, 2).logits)


def test_a_cached_call_keeps_no_gradients_and_gives_them_back(model, tokens):
    out = model(tokens(model.config, 1, 4), 2, cache=model.new_cache(1, 4))
    assert not out.logits.requires_grad and not out.state.requires_grad
    assert torch.is_grad_enabled()


def test_a_transformers_cache(build, tokens):
    model = build(TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=3))
    cache = model.new_cache(1, 4)
    model(tokens(model.config, 1, 4), cache=cache)
    assert sorted(cache.slots) == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ValueError, match="max_length=5 or more"):
        model(tokens(model.config, 1, 1), cache=cache)


def test_a_cache_serves_a_call_under_autocast(build, small, tokens):
    model = build(small(), torch.float32)
    ids = tokens(model.config, 1, 5)
    cache = model.new_cache(1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        whole = model(ids, 3).logits
        parts = [model(ids[:, :4], 3, cache=cache).logits, model(ids[:, 4:], 3, cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.02, atol=0.02)
