"""Injections: the built-in ones against their equations, and one of a user's own that prepares what it likes."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models import LanguageModel, ModelConfig, RecurrentDepthConfig, RecurrentDepthTransformer
from mull.models.cost import matrix, vector
from mull.models.injection import INJECTIONS, DiagonalInjection, Injection, InjectionCost
from mull.models.loop import last_state

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]
OddPrepared = tuple[Tensor, tuple[Tensor, None, tuple[Tensor]]]

LOOSE = {"rtol": 1e-10, "atol": 1e-10}


class OddInjection(Injection):
    """sigmoid(rate) * s + B (A e) + <A e> e: what it prepares is nested, of widths 3, D and 1, by token and for all."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.narrow = nn.Linear(config.d_model, 3, bias=False)
        self.widen = nn.Linear(3, config.d_model, bias=False)
        self.rate = nn.Parameter(torch.zeros(config.d_model))

    def prepare(self, injected: Tensor) -> OddPrepared:
        narrow = self.narrow(injected)  # (B, T, 3), and below (1, 1, D), None, (B, T)
        return narrow, (torch.sigmoid(self.rate)[None, None], None, (narrow.mean(dim=-1),))

    def forward(self, state: Tensor, prepared: OddPrepared) -> Tensor:
        narrow, (decay, nothing, (mean,)) = prepared
        assert nothing is None and narrow.shape[:2] == state.shape[:2] == mean.shape
        return decay * state + self.widen(narrow) + mean[..., None]

    @staticmethod
    def cost(config: ModelConfig) -> InjectionCost:
        return InjectionCost(matrix(config.d_model, 3) + vector(config.d_model), matrix(3, config.d_model))


@pytest.fixture
def odd(build: Build, small: Small, monkeypatch: pytest.MonkeyPatch) -> Iterator[LanguageModel]:
    """A model with the odd injection, which is registered for this test only."""
    monkeypatch.setitem(INJECTIONS, "odd", OddInjection)
    yield build(small(injection="odd"))


def by_hand(model: RecurrentDepthTransformer, ids: Tensor, iterations: int) -> Tensor:
    """The equations, with the injection written out."""
    context, injection = model.context(ids), model.injection
    e = model.prelude[0](model.embed(ids), context, (0, 0))
    narrow = e @ injection.narrow.weight.T
    state = torch.zeros_like(e)
    for _ in range(iterations):
        state = torch.sigmoid(injection.rate) * state + narrow @ injection.widen.weight.T + narrow.mean(-1, True)
        for layer in model.core:
            state = layer(state, context, (0, 0))
    return model.read(state, context).logits


def gradients(model: LanguageModel) -> list[Tensor]:
    """Collect and clear."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def test_an_injection_of_ones_own_is_a_word_of_the_configuration(odd: RecurrentDepthTransformer) -> None:
    assert isinstance(odd.injection, OddInjection) and odd.config.injection == "odd"
    assert odd.config.parameters == sum(p.numel() for p in odd.parameters())
    with pytest.raises(ValueError, match=r"injection must be one of .*'odd', not 'even'"):
        RecurrentDepthConfig(vocab_size=5, injection="even")


def test_an_injection_of_ones_own_computes_what_it_says(odd: RecurrentDepthTransformer, tokens: Tokens) -> None:
    """Forward, readings and gradients against the equations by hand."""
    ids = tokens(odd.config, 3, 7)
    out = odd(ids, 5, read_at=[2])
    torch.testing.assert_close(out.logits, by_hand(odd, ids, 5), **LOOSE)
    torch.testing.assert_close(out.readings[2].logits, by_hand(odd, ids, 2), **LOOSE)
    out.logits.square().sum().backward()
    fast = gradients(odd)
    by_hand(odd, ids, 5).square().sum().backward()
    torch.testing.assert_close(fast, gradients(odd), **LOOSE)
    assert all(gradient.abs().max() > 0 for gradient in fast)


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("policy", ["full", "deepest", "shared"])
def test_an_injection_of_ones_own_is_cached(
    odd: RecurrentDepthTransformer, tokens: Tokens, rows: int, policy: Any
) -> None:
    ids, cache = tokens(odd.config, rows, 9), odd.new_cache(rows, 9, policy, ring=4 if policy == "shared" else 1)
    parts = [odd(ids[:, a:b], 4, cache=cache).logits for a, b in pairwise([0, 4, 6, 7, 8, 9])]
    torch.testing.assert_close(torch.cat(parts, dim=1), odd(ids, 4).logits, **LOOSE)


@pytest.mark.parametrize("window", [None, 2])
def test_rows_with_counts_of_their_own_share_what_an_injection_prepared(
    odd: RecurrentDepthTransformer, tokens: Tokens, window: int | None
) -> None:
    """Also padded, also cached: each row as if alone, forward and backward."""
    ids, counts, mask = tokens(odd.config, 3, 7), torch.tensor([3, 1, 6]), torch.ones(3, 7, dtype=torch.int64)
    mask[0, :2] = mask[2, 5:] = 0
    out = odd(ids, counts, attention_mask=mask, backprop_iterations=window)
    (out.logits.square() * mask[..., None]).sum().backward()
    together, cached = gradients(odd), odd(ids, counts, attention_mask=mask, cache=odd.new_cache(3, 7)).logits
    for row, count in enumerate(counts.tolist()):
        real = mask[row].bool()
        alone = odd(ids[row, real][None], count, backprop_iterations=window).logits[0]
        torch.testing.assert_close(out.logits[row, real], alone, **LOOSE)
        torch.testing.assert_close(cached[row, real], alone, **LOOSE)
        alone.square().sum().backward()
    torch.testing.assert_close(together, gradients(odd), **LOOSE)


def test_positions_that_leave_take_their_part_of_what_was_prepared_along(
    odd: RecurrentDepthTransformer, tokens: Tokens
) -> None:
    """Tokens that go on alone (`Context.narrow`) against each position as a call of its own."""
    ids, depths = tokens(odd.config, 2, 5), torch.tensor([[2, 1, 2, 1, 1], [1, 1, 2, 2, 1]])
    cache = odd.new_cache(2, 5, "deepest")
    with torch.no_grad():
        context = odd.context(ids, None, cache, 2)
        injected = odd.enter(ids, context)
        prepared = odd.prepare(injected)
        state = odd.think(odd.start(injected), prepared, context, 0)
        cache.hold(*context.cells(), 1)
        some = context.narrow((depths == 2).flatten().nonzero().flatten())
        assert some.gather(prepared)[0].shape == (1, 4, 3)
        state = some.scatter(state, odd.think(some.gather(state), some.gather(prepared), some, 1))
    for row in range(2):
        alone = odd.new_cache(1, 5, "deepest")
        calls = [odd(ids[row : row + 1, t : t + 1], int(depths[row, t]), cache=alone).state for t in range(5)]
        torch.testing.assert_close(state[row], torch.cat(calls, dim=1)[0], **LOOSE)


def test_the_model_prepares_once_whatever_the_count(odd: RecurrentDepthTransformer, tokens: Tokens) -> None:
    calls = []
    odd.injection.narrow.register_forward_hook(lambda *_: calls.append(1))
    last_state(odd.unroll(tokens(odd.config, 2, 5), 6, odd.context(tokens(odd.config, 2, 5))))
    assert len(calls) == 1


# ------------------------------------------------------------------------------------------------ the built-in ones


def test_concat_puts_the_state_first_and_add_adds(build: Build, small: Small) -> None:
    state, injected = torch.randn(2, 1, 2, 24, dtype=torch.float64)
    concat = build(small()).injection
    a, b = concat.adapter.weight.split(24, dim=1)
    torch.testing.assert_close(concat(state, concat.prepare(injected)), state @ a.T + injected @ b.T)
    add = build(small(injection="add")).injection
    assert torch.equal(add(state, add.prepare(injected)), state + injected)


def test_diagonal_decays_the_state_and_writes_the_normed_input() -> None:
    torch.manual_seed(0)
    injection = DiagonalInjection(RecurrentDepthConfig(vocab_size=5, d_model=8)).double()
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.copy_(torch.randn_like(parameter))
    state, injected = torch.randn(2, 1, 2, 8, dtype=torch.float64)
    dt = torch.log1p(torch.exp(injection.raw_dt))
    written = F.rms_norm(injected, (8,), injection.norm.weight, 1e-6) @ injection.write.T
    expected = torch.exp(-dt * torch.exp(injection.log_rate)) * state + dt * written
    torch.testing.assert_close(injection(state, injection.prepare(injected)), expected)
    carried = injection(state, injection.prepare(torch.zeros_like(injected)))
    assert (carried.abs() < state.abs()).all()  # whatever the parameters are
