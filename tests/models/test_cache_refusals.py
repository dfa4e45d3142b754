"""What a cache refuses: wrong policies, depths, sizes and cuts, by name; and what a refused call leaves behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mull.models import LanguageModel, RecurrentDepthConfig, RecurrentDepthTransformer

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]


@pytest.fixture
def model(build: Build, small: Small) -> LanguageModel:
    return build(small())


def test_wrong_uses_are_named(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    with pytest.raises(ValueError, match="policy must be one of full, deepest, shared, not 'latest'"):
        model.new_cache(1, 8, "latest")
    with pytest.raises(ValueError, match="ring must be at least 1, not 0"):
        model.new_cache(1, 8, "shared", 0)
    cache = model.new_cache(2, 8, "deepest")
    ids = tokens(model.config, 2, 3)
    with pytest.raises(ValueError, match="one count per row needs a cache of policy full, not deepest"):
        model(ids, torch.tensor([1, 2]), cache=cache)
    model(ids, 2, cache=cache)
    with pytest.raises(ValueError, match="row 1 holds 3 positions and cannot be cut to 4"):
        cache.rollback([3, 4])


def test_too_many_tokens_are_refused_with_the_remedy_and_nothing_is_stored(
    model: RecurrentDepthTransformer, tokens: Tokens
) -> None:
    ids = tokens(model.config, 1, 6)
    cache = model.new_cache(1, 5)
    first = model(ids[:, :4], 2, cache=cache)
    with pytest.raises(ValueError, match="holds 5 positions and 6 are needed; ask new_cache for max_length=6 or more"):
        model(ids[:, 4:], 2, cache=cache)
    assert cache.length == 4
    last = model(ids[:, 4:5], 2, cache=cache)
    torch.testing.assert_close(torch.cat([first.logits, last.logits], 1), model(ids[:, :5], 2).logits)


def test_a_cache_beyond_the_models_limit_is_refused(model: RecurrentDepthTransformer) -> None:
    with pytest.raises(ValueError, match="max_length 65 is more than the model's limit of 64 positions"):
        model.new_cache(1, 65)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2", None, torch.tensor(2)], ids=str)
def test_sizes_that_are_none_are_refused(model: LanguageModel, size: Any) -> None:
    """A cache of no rows, or of half a position, came back as if it were one."""
    for name, sizes in (("batch_size", (size, 4)), ("max_length", (2, size))):
        with pytest.raises(ValueError, match=f"{name} must be (an integer of )?at least 1, not ") as caught:
            model.new_cache(*sizes)
        assert "\n" not in str(caught.value)
    assert model.new_cache(np.int64(2), np.int32(4)).max_length == 4


@pytest.mark.parametrize(("first", "second"), [
    (2, 3), (2, torch.tensor([2, 2])), (torch.tensor([1, 2]), 2), (torch.tensor([1, 2]), torch.tensor([2, 1])),
], ids=str)  # fmt: skip
def test_another_depth_is_refused(model: RecurrentDepthTransformer, tokens: Tokens, first: Any, second: Any) -> None:
    """Keys of one depth cannot stand in for those of another: a deeper call would see tokens without keys."""
    ids = tokens(model.config, 2, 4)
    cache = model.new_cache(2, 8)
    model(ids, first, cache=cache)
    with pytest.raises(ValueError, match=r"the cache was filled at iterations=.* and cannot continue at"):
        model(ids, second, cache=cache)
    model(ids, first, cache=cache)


def test_another_batch_size_is_refused(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """One row would otherwise be copied over all rows of the cache, silently."""
    cache = model.new_cache(2, 8)
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"the cache holds 2 sequences, input_ids has {rows}"):
            model(tokens(model.config, rows, 4), 2, cache=cache)


def test_readings_are_refused_beside_a_cache(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """The coda's keys of older tokens belong to the last iteration; a reading at an earlier one would mix the two."""
    with pytest.raises(ValueError, match="read_at cannot be used with a cache"):
        model(tokens(model.config, 1, 4), 4, cache=model.new_cache(1, 8), read_at=[1])


def test_a_refused_call_leaves_the_cache_usable(model: RecurrentDepthTransformer, tokens: Tokens) -> None:
    ids = tokens(model.config, 1, 5)
    cache = model.new_cache(1, 8)
    first = model(ids[:, :3], 2, cache=cache)
    with pytest.raises(ValueError, match="state must have shape"):
        model(ids[:, 3:], 2, cache=cache, state=torch.zeros(1, 1, 24))
    rest = model(ids[:, 3:], 2, cache=cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), model(ids, 2).logits)


def test_what_is_no_tensor_is_read_or_named(model: LanguageModel, tokens: Tokens) -> None:
    """Masks may be lists and arrays; a text, a number and a list in place of a state are refused in words."""
    ids = tokens(model.config, 1, 3)
    masked = model(ids, attention_mask=torch.tensor([[0, 1, 1]])).logits
    for mask in ([[0, 1, 1]], np.array([[0, 1, 1]])):
        assert torch.equal(model(ids, attention_mask=mask).logits, masked)
    for given, says in (
        ({"attention_mask": "x"}, "attention_mask must be ones and zeros, not str"),
        ({"state": [1]}, r"state must have shape \(1, 3, 24\), a tensor of floats, not list"),
    ):
        with pytest.raises(ValueError, match=says):
            model(ids, **given)
    for number in (5, torch.tensor(1)):
        with pytest.raises(ValueError, match="not a single number"):
            model(number)
    with pytest.raises(ValueError, match=r", as torch.bfloat16, not bfloat16"):
        model.new_cache(1, 4, dtype="bfloat16")
