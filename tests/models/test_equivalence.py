"""Every fast path has a slow obvious twin: padded and unpadded, cached and uncached, batched and single; and causality.

fp64; 1e-10 where shapes differ (sums run in another order), bit for bit where they do not.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mull.models import LanguageModel, ModelConfig, RecurrentDepthConfig, TransformerConfig

Build = Callable[..., LanguageModel]
Configurations = st.SearchStrategy[ModelConfig]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]
Counts = int | Tensor

LOOSE = {"rtol": 1e-10, "atol": 1e-10}


def depth(config: ModelConfig, iterations: Counts) -> dict[str, Any]:
    """The iterations argument, for families that have one."""
    return {} if config.default_iterations is None else {"iterations": iterations}


def place(rows: Sequence[Tensor], left: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths into one batch of that width, row i from column left[i] on: ids and mask.

    Padding holds token 0, which also occurs as a token: only the mask may matter."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, start, row_ids, row_mask in zip(rows, left, ids, mask, strict=True):
        row_ids[start : start + len(row)], row_mask[start : start + len(row)] = row, 1
    return ids, mask


@st.composite
def padded_batches(draw: st.DrawFn, config: ModelConfig, tokens: Tokens) -> tuple[list[Tensor], list[int], int, Counts]:
    """Rows, their left paddings and a width: left, right, both and none occur in one batch."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    left = [draw(st.integers(0, 4)) for _ in lengths]
    width = max(map(sum, zip(left, lengths, strict=True))) + draw(st.integers(0, 3))
    rows = [tokens(config, 1, n, seed=i)[0] for i, n in enumerate(lengths)]
    counts = draw(st.one_of(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=len(rows), max_size=len(rows))))
    return rows, left, width, counts if isinstance(counts, int) else torch.tensor(counts)


def count_of(counts: Counts, row: int) -> int:
    return counts if isinstance(counts, int) else int(counts[row])


def sums_alike(model: LanguageModel) -> bool:
    """Whether this machine multiplies a token by each matrix in one order, wherever it stands among eight or more. Sums
    over an odd number of entries are taken otherwise in some of the places."""
    for weight in (p for p in model.parameters() if p.dim() == 2):
        x = torch.randn(24, weight.shape[1], dtype=model.dtype)
        whole = F.linear(x, weight)
        for shift, n in product(range(8), (8, 16)):
            if not torch.equal(F.linear(x.roll(-shift, 0)[:n], weight), whole.roll(-shift, 0)[:n]):
                return False
    return True


@settings(max_examples=2)
@given(data=st.data())
def test_padding_on_any_side_changes_nothing(
    some_config: Configurations, build: Build, tokens: Tokens, data: st.DataObject
) -> None:
    config = data.draw(some_config)
    model = build(config)
    rows, left, width, counts = data.draw(padded_batches(config, tokens))
    ids, mask = place(rows, left, width)
    out = model(ids, attention_mask=mask, **depth(config, counts))
    assert out.logits.isfinite().all()  # padding too: NaN there would spread through a loss that is masked by a product
    for i, (row, start) in enumerate(zip(rows, left, strict=True)):
        alone = model(row[None], **depth(config, count_of(counts, i)))
        torch.testing.assert_close(out.logits[i, start : start + len(row)], alone.logits[0], **LOOSE)
        torch.testing.assert_close(out.state[i, start : start + len(row)], alone.state[0], **LOOSE)


def test_padding_changes_no_gradient(build: Build, small: Small, tokens: Tokens) -> None:
    model = build(small(injection="diagonal", qk_norm=True))
    rows = [tokens(model.config, 1, n, seed=n)[0] for n in (5, 3)]
    ids, mask = place(rows, [1, 4], 8)
    (model(ids, 3, attention_mask=mask).logits.square() * mask[..., None]).sum().backward()
    padded = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row in rows:
        model(row[None], 3).logits.square().sum().backward()
    torch.testing.assert_close(padded, [p.grad for p in model.parameters()], **LOOSE)


@settings(max_examples=2)
@given(data=st.data())
def test_a_suffix_never_changes_the_prefix(
    some_causal_config: Configurations, build: Build, tokens: Tokens, data: st.DataObject
) -> None:
    config = data.draw(some_causal_config)
    model = build(config)
    length = data.draw(st.integers(2, 9))
    split = data.draw(st.integers(1, length - 1))
    one, other = tokens(config, 2, length), tokens(config, 2, length, seed=5)
    other[:, :split] = one[:, :split]
    other[:, split] = (one[:, split] + 1) % config.vocab_size
    a, b = (model(ids, **depth(config, 3)).logits for ids in (one, other))
    if config.routed_layers and not sums_alike(model):  # a token's sums depend on where it stands
        torch.testing.assert_close(a[:, :split], b[:, :split], **LOOSE)
    else:
        assert torch.equal(a[:, :split], b[:, :split])
    assert not torch.equal(a[:, split:], b[:, split:])  # and the change is seen where it may be


@settings(max_examples=2)
@given(data=st.data())
def test_cached_equals_uncached(
    some_causal_config: Configurations, build: Build, tokens: Tokens, data: st.DataObject
) -> None:
    """Prefill in chunks of any size, then token by token, with padding and per-row counts; against each row alone."""
    config = data.draw(some_causal_config)
    model = build(config)
    rows, left, width, counts = data.draw(padded_batches(config, tokens))
    ids, mask = place(rows, left, width)
    answer = tokens(config, len(rows), 3, seed=9)
    chunks = data.draw(st.lists(st.integers(1, width), max_size=2))
    bounds = [0, *sorted({bound for bound in chunks if bound < width}), width, width + 1, width + 2, width + 3]
    ids, mask = torch.cat([ids, answer], dim=1), torch.cat([mask, torch.ones_like(answer)], dim=1)

    cache = model.new_cache(len(rows), ids.shape[1])
    padded = not mask.all()
    logits = []
    for start, end in pairwise(bounds):
        given_mask = mask[:, start:end] if padded and (start < width or data.draw(st.booleans())) else None
        call = model(ids[:, start:end], cache=cache, attention_mask=given_mask, **depth(config, counts))
        assert not call.logits.requires_grad
        logits.append(call.logits)
    cached = torch.cat(logits, dim=1)
    assert cache.lengths == mask.sum(dim=1).tolist()  # padding is not stored

    for i, row in enumerate(rows):
        whole = model(torch.cat([row, answer[i]])[None], **depth(config, count_of(counts, i))).logits[0]
        torch.testing.assert_close(cached[i, mask[i].bool()], whole, **LOOSE)


def test_padding_between_tokens_takes_no_position(build: Build, small: Small, tokens: Tokens) -> None:
    """Rotation is relative, so padding at the ends could hide positions that count it; between tokens it cannot."""
    model = build(small())
    ids, mask = tokens(model.config, 1, 7), torch.tensor([[1, 1, 0, 0, 1, 0, 1]])
    out = model(ids, 3, attention_mask=mask).logits
    torch.testing.assert_close(out[mask.bool()], model(ids[mask.bool()][None], 3).logits[0], **LOOSE)


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_a_prefill_in_two_chunks_equals_one(build: Build, small: Small, tokens: Tokens, positions: str) -> None:
    model = build(small(positions=positions))
    ids, cache = tokens(model.config, 2, 7), model.new_cache(2, 7)
    chunks = [model(part, 3, cache=cache).logits for part in (ids[:, :3], ids[:, 3:])]
    torch.testing.assert_close(torch.cat(chunks, dim=1), model(ids, 3).logits, **LOOSE)


@settings(max_examples=15)
@given(data=st.data())
def test_a_batch_equals_its_rows(any_config: Configurations, build: Build, tokens: Tokens, data: st.DataObject) -> None:
    config = data.draw(any_config)
    model, ids = build(config), tokens(config, 3, 5)
    together = model(ids, **depth(config, 3)).logits
    for row in range(3):
        alone = model(ids[row : row + 1], **depth(config, 3)).logits[0]
        torch.testing.assert_close(together[row], alone, **LOOSE)


@pytest.mark.parametrize("training", [False, True])
def test_without_a_generator_nothing_is_random(build: Build, small: Small, tokens: Tokens, training: bool) -> None:
    model = build(small()).train(training)
    ids = tokens(model.config, 2, 5)
    torch.manual_seed(0)
    one = model(ids, iterations=3).logits
    torch.manual_seed(1)
    assert torch.equal(one, model(ids, iterations=3).logits)
    zeros = torch.zeros(2, 5, model.config.d_model, dtype=torch.float64)
    assert torch.equal(one, model(ids, iterations=3, state=zeros).logits)  # the start is the mean of its distribution


def test_a_generator_repeats_itself_and_leaves_the_global_stream_alone(
    build: Build, small: Small, tokens: Tokens
) -> None:
    model = build(small())
    ids = tokens(model.config, 2, 5)
    before = torch.get_rng_state()
    one, same, other = (model(ids, 2, generator=torch.Generator().manual_seed(s)).logits for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    zero = build(small(initial_state="zero"))
    assert torch.equal(zero(ids, 2, generator=torch.Generator()).logits, zero(ids, 2).logits)


def test_the_random_state_has_the_documented_distribution(build: Build, small: Small) -> None:
    """Normal with std sqrt(2/5), cut at 3 sigma. Of n = 250,000 draws the sample std errs by less than
    1 / sqrt(2 n) = 0.14 % (one sigma) and the mean by std / sqrt(n): five of each are allowed."""
    model = build(small(), torch.float32)
    like = torch.empty(10, 1000, 25)
    state = model.start(like, torch.Generator().manual_seed(0))
    sigma, n = math.sqrt(2 / 5), like.numel()
    density, inside = math.exp(-4.5) / math.sqrt(2 * math.pi), math.erf(3 / math.sqrt(2))
    std = sigma * math.sqrt(1 - 6 * density / inside)  # of the cut distribution
    assert abs(state.std().item() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(state.mean().item()) < 5 * std / math.sqrt(n)
    assert 2.99 * sigma < state.abs().max().item() <= 3 * sigma * (1 + 1e-6)
    assert model.start(like.double(), torch.Generator()).dtype == torch.float64
    assert (state[:, 0] != state[:, 1]).all()  # every position has a state of its own


def test_input_of_the_wrong_shape_or_length_is_refused(build: Build, small: Small, tokens: Tokens) -> None:
    model = build(small(max_length=8))
    ids = tokens(model.config, 2, 5)
    for wrong in (ids[0], ids[:, :0]):
        with pytest.raises(ValueError, match=r"input_ids must have shape \(batch, positions >= 1\)"):
            model(wrong, iterations=1)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\), input_ids \(2, 5\)"):
        model(ids, 1, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="9 positions are more than the model's limit of 8"):
        model(tokens(model.config, 1, 9), 1)


def test_padding_takes_no_room(build: Build, small: Small, tokens: Tokens) -> None:
    """Guards the limit of positions against padding, which has none: as behind a cache, the longest row counts."""
    model = build(small(max_length=8))
    ids, mask = tokens(model.config, 2, 12), torch.zeros(2, 12, dtype=torch.int64)
    mask[0, 4:], mask[1, :3] = 1, 1
    whole = model(ids, 2, attention_mask=mask).logits
    torch.testing.assert_close(whole[:1, 4:], model(ids[:1, 4:], 2).logits, **LOOSE)
    torch.testing.assert_close(whole[1:, :3], model(ids[1:, :3], 2).logits, **LOOSE)
    mask[0, 3] = 1
    with pytest.raises(ValueError, match="9 positions are more than the model's limit of 8"):
        model(ids, 2, attention_mask=mask)


def test_a_transformer_refuses_iterations(build: Build, tokens: Tokens) -> None:
    model = build(TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1))
    with pytest.raises(ValueError, match="iterations=4 is refused"):
        model(tokens(model.config, 1, 3), iterations=4)
    assert model(tokens(model.config, 1, 3)).iterations.tolist() == [[1, 1, 1]]
