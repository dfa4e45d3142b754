"""Rows of several caches in one: what was read apart goes on together, and each row is what it would be alone.

fp64, so that a batch and a row alone differ by nothing that these bounds would hide."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mull.models import InnerThinkingConfig, LanguageModel, ModelConfig, RecurrentDepthConfig, TransformerConfig
from mull.models.cache import Cache
from mull.models.iterated import IteratedModel

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]
SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 3, "n_kv_heads": 1, "d_ff": 20, "max_length": 48}
CONFIGS: dict[str, ModelConfig] = {
    "recurrent": RecurrentDepthConfig(**SHAPE, n_prelude=1, n_core=3, n_coda=2, mean_iterations=3),
    "window": RecurrentDepthConfig(**SHAPE, n_prelude=0, n_core=2, n_coda=0, window=3, convolution="mlp", kernel=3),
    "inner": InnerThinkingConfig(**SHAPE, n_layers=3, mean_iterations=3, capacity=0.5),
    "plain": TransformerConfig(**SHAPE, n_layers=3),
}


def read(model: LanguageModel, ids: Tensor, count: int | None, policy: str = "full") -> Cache:
    cache = model.new_cache(len(ids), 20, policy)
    model(ids, count, cache=cache)
    return cache


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("recurrent", (2, 5, 1)), ("recurrent", (1, 1, 1)), ("recurrent", (4, 4, 4)), ("window", (3, 1, 6)),
     ("inner", (3, 3, 3)), ("inner", (1, 1, 1)), ("plain", (None, None, None))],
)  # fmt: skip
def test_rows_go_on_together(build: Build, tokens: Tokens, kind: str, counts: Sequence[int | None]) -> None:
    """Of different lengths and, in the loop, of different counts; by call and by row, when some leave and others come,
    and when the deepest has gone."""
    model = build(CONFIGS[kind])
    texts = [tokens(model.config, 1, length, seed=length) for length in (4, 9, 6)]
    rows = [(text, count) for text, count in zip(texts, counts, strict=True)]
    apart = [read(model, text, count) for text, count in rows]

    def gathered(chosen: Sequence[tuple[Cache, int, tuple[Tensor, int | None]]]) -> None:
        nonlocal joined, rows
        joined = Cache.gathered([(cache, place) for cache, place, _ in chosen], max_length=30)
        rows = [row for _, _, row in chosen]
        assert joined.lengths == [text.shape[1] for text, _ in rows]

    def step(seed: int) -> None:
        """One more token of each row, which must answer as all of its text in one call does."""
        nonlocal rows
        new = tokens(model.config, len(rows), 1, seed=seed)
        together = model(new, joined.depth, cache=joined).logits[:, -1]
        rows = [(torch.cat([text, new[place][None]], dim=1), count) for place, (text, count) in enumerate(rows)]
        for answer, (text, count) in zip(together, rows, strict=True):
            assert close(answer, model(text, count).logits[0, -1])

    joined = apart[0]
    gathered([(apart[place], 0, rows[place]) for place in (1, 0, 2, 1)])
    step(1)
    step(2)
    gathered([(joined, place, rows[place]) for place in (3, 0, 2)])  # one leaves
    step(3)
    most = max(count or 0 for _, count in rows)
    left = [place for place, (_, count) in enumerate(rows) if (count or 0) < most] or [2]
    fresh = (apart[0], 0, (texts[0], counts[0]))
    gathered([fresh, *((joined, place, rows[place]) for place in left)])  # the deepest have gone, and one comes
    step(4)
    step(5)


def test_what_is_held_early_stays_so(build: Build, tokens: Tokens) -> None:
    """Under `deepest` rows of caches that took room for different iterations read, beyond their last, that again."""
    model = build(CONFIGS["recurrent"])
    texts = [tokens(model.config, 1, length, seed=length) for length in (5, 3)]
    apart = [read(model, ids, count, "deepest") for ids, count in zip(texts, (2, 5), strict=True)]
    new = tokens(model.config, 2, 1)
    joined = Cache.gathered([(apart[0], 0), (apart[1], 0)])
    together = model(new, 4, cache=joined)
    for row, cache in enumerate(apart):
        assert close(together.logits[row], model(new[row : row + 1], 4, cache=cache).logits[0])


@torch.no_grad()
def test_the_first_rows_share_their_memory(build: Build, tokens: Tokens) -> None:
    """What is written through the context of some rows is there for all, and reads as a call of these rows does."""
    model = build(CONFIGS["recurrent"])
    assert isinstance(model, IteratedModel)
    for lengths in ((4, 6, 5), (5, 5, 5)):  # rows that stand apart, and alike
        apart = [read(model, tokens(model.config, 1, n, seed=row), 3) for row, n in enumerate(lengths)]
        rows = [(cache, 0) for cache in apart]
        joined, some = Cache.gathered(rows, max_length=30), Cache.gathered(rows[:2], max_length=30)
        new = tokens(model.config, 3, 1)
        context, own = model.context(new, None, joined, 3), model.context(new[:2], None, some, 3)
        joined.reserve(context.end + 1)
        part, state = context.first(2), torch.randn(3, 1, 24, dtype=torch.float64)
        prepared = model.prepare(model.enter(new, context))
        model.enter(new[:2], own)
        found = model.think(state[:2], prepared[:2], part, 1)
        assert close(found, model.think(state[:2], prepared[:2], own, 1))
        for layer, held in joined.layers.items():
            assert close(held[:, :, :2, :, :7], some.layers[layer][:, :, :, :, :7])


def test_what_does_not_go_together_is_refused(build: Build, tokens: Tokens) -> None:
    """Caches of other policies or capacities; and a shared one keeps too little to be joined."""
    model, inner = build(CONFIGS["recurrent"]), build(CONFIGS["inner"])
    ids = tokens(model.config, 1, 4)
    full, deepest, shared = (read(model, ids, 2, policy) for policy in ("full", "deepest", "shared"))
    routed = [inner.new_cache(1, 20) for _ in range(2)]
    for cache, capacity in zip(routed, (0.3, 0.6), strict=True):
        inner(ids, 2, capacity=capacity, cache=cache)
    for rows in ([full, deepest], [shared], routed):
        with pytest.raises(ValueError, match="differ in policy, dtype or capacity, or are shared"):
            Cache.gathered([(cache, 0) for cache in rows])
