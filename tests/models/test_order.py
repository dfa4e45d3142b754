"""Models whose tokens see their whole row: nothing depends on order but positions, and nothing is cached or written.

fp64; 1e-10 where sums run in another order.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mull
from mull.inference.chat import Chat
from mull.models import (
    InnerThinkingConfig,
    LanguageModel,
    ModelConfig,
    RecurrentDepthConfig,
    TransformerConfig,
)

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]

LOOSE = {"rtol": 1e-10, "atol": 1e-10}
WINDOWS: list[dict[str, Any]] = [{}, {"window": 2}, {"window": 3, "window_heads": 3}]
CONVOLUTIONS: list[dict[str, Any]] = [{"convolution": "mlp", "kernel": 3}, {"convolution": "attention", "window": 2}]


def answers(model: LanguageModel, ids: Tensor, **given: Any) -> Tensor:
    depth = {} if model.config.default_iterations is None else {"iterations": 3}
    return model(ids, **depth, **given).logits


@pytest.fixture(params=["recurrent_depth", "transformer"])
def both_ways(request: pytest.FixtureRequest, small: Small, build: Build) -> Callable[..., LanguageModel]:
    """A model of each family that may be so; keyword arguments change fields."""

    def make(**changes: Any) -> LanguageModel:
        config: ModelConfig = small(causal=False, **changes)
        if request.param == "transformer":
            shape = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 64}
            config = TransformerConfig(**shape, n_layers=3, causal=False, **changes)
        return build(config)

    return make


def test_permuting_a_row_permutes_its_answers(both_ways: Callable[..., LanguageModel], tokens: Tokens) -> None:
    """Without positions nothing tells one place from another; a causal model tells them apart."""
    model = both_ways(positions="none")
    ids, order = tokens(model.config, 2, 9), torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(answers(model, ids[:, order]), answers(model, ids)[:, order], **LOOSE)
    for part in model.modules():
        if hasattr(part, "causal"):
            part.causal = True
    assert not torch.allclose(answers(model, ids[:, order]), answers(model, ids)[:, order])


@pytest.mark.parametrize("window", WINDOWS)
def test_a_row_read_backwards_is_answered_backwards(
    both_ways: Callable[..., LanguageModel], tokens: Tokens, window: dict[str, Any]
) -> None:
    """A window reaches as far to the right as to the left: a mirrored row is seen in the mirror."""
    model = both_ways(positions="none", **window)
    ids = tokens(model.config, 2, 9)
    torch.testing.assert_close(answers(model, ids.flip(1)), answers(model, ids).flip(1), **LOOSE)


@pytest.mark.parametrize("window", WINDOWS)
def test_each_answer_depends_on_what_it_sees_and_on_nothing_else(
    build: Build, tokens: Tokens, window: dict[str, Any]
) -> None:
    """One layer, one pass: the derivative of an answer is zero exactly outside the window, on both sides."""
    model = build(TransformerConfig(vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, n_layers=1, causal=False,
                                    **window))  # fmt: skip
    ids = tokens(model.config, 1, 7)
    whole = answers(model, ids)
    seen = torch.zeros(7, 7, dtype=torch.bool)
    for place in range(7):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 11
        seen[:, place] = (answers(model, other) != whole).any(-1)[0]
    distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    everything = "window" not in window or "window_heads" in window
    assert torch.equal(seen, torch.ones_like(seen) if everything else distance < window["window"])


@pytest.mark.parametrize("kind", [*WINDOWS, *CONVOLUTIONS])
def test_padding_is_not_seen(both_ways: Callable[..., LanguageModel], tokens: Tokens, kind: dict[str, Any]) -> None:
    """Rows with padding before, after and in the middle are answered as they are alone."""
    model = both_ways(**kind)
    lengths = (5, 3, 8, 1)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1, 0, 0], [1] * 8, [0, 0, 0, 0, 0, 0, 0, 1]])
    rows, ids = [tokens(model.config, 1, n, seed=n)[0] for n in lengths], torch.zeros(4, 8, dtype=torch.int64)
    for row, own, where in zip(rows, ids, mask.bool(), strict=True):
        own[where] = row
    together = answers(model, ids, attention_mask=mask)
    assert together.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(together[i, mask[i].bool()], answers(model, row[None])[0], **LOOSE)


def test_a_convolution_looks_back_where_attention_looks_both_ways(build: Build, tokens: Tokens) -> None:
    """One layer, one pass, a window of one token: an answer depends on its own token and on the two before it."""
    model = build(TransformerConfig(vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, n_layers=1, causal=False,
                                    window=1, convolution="mlp", kernel=3))  # fmt: skip
    ids = tokens(model.config, 1, 7)
    whole = answers(model, ids)
    for place in range(7):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 11
        changed = (answers(model, other) != whole).any(-1)[0].nonzero().flatten().tolist()
        assert changed == list(range(place, min(7, place + 3)))


def test_it_costs_what_a_causal_model_costs(small: Small) -> None:
    """Causal order hides scores that are computed all the same, and counted."""
    one, other = small(causal=True), small(causal=False)
    assert one.flops_per_token(4, 17) == other.flops_per_token(4, 17) and one.parameters == other.parameters


def test_a_cache_is_refused_and_so_is_all_that_writes(
    both_ways: Callable[..., LanguageModel], tokens: Tokens, build: Build, small: Small
) -> None:
    """Later tokens would change the keys of earlier ones: one line, from whatever asks for a cache."""
    model = both_ways()
    ids = tokens(model.config, 1, 4)
    call = {"iterations": None, "exit": None, "max_new_tokens": 3, "generator": None, "temperature": 0.0, "top_k": None,
            "top_p": None, "min_p": None, "warm_start": False, "cache_dtype": None, "capacity": None}  # fmt: skip
    foreign = build(small()).new_cache(1, 8)
    asked: list[Callable[[], Any]] = [
        lambda: model.new_cache(1, 8),
        lambda: answers(model, ids, cache=foreign),
        lambda: mull.generate(model, ids, max_new_tokens=3),
        lambda: Chat(model, call),
    ]
    if isinstance(model.config, RecurrentDepthConfig):
        asked += [
            lambda: mull.generate(model, ids, max_new_tokens=3, iterations=4, exit="latent:0.03"),
            lambda: mull.generate(model, ids, max_new_tokens=3, iterations=4, decode="speculate:2:3"),
            lambda: mull.generate(model, ids, max_new_tokens=3, iterations=4, decode="wavefront:2:8"),
        ]
    for ask in asked:
        with pytest.raises(ValueError, match="has causal: false, so it keeps no cache and writes no text: give it"):
            ask()


def test_what_does_not_go_with_it_is_refused(small: Small) -> None:
    """A convolution joins a cell with those before it in reading order, and a router decides by earlier tokens."""
    with pytest.raises(ValueError, match=r"board true does not go with convolution 'mlp'.*: use none"):
        small(causal=False, board=True, convolution="mlp")
    with pytest.raises(ValueError, match="causal must be one of True, not False"):
        InnerThinkingConfig(vocab_size=5, causal=False)  # type: ignore[arg-type]


def on_board(side: int, ids: Tensor, turned: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows of ids, or answers, with their boards turned."""
    return turned(ids.unflatten(1, (side, side))).flatten(1, 2)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "turned", [lambda b: b.flip(1), lambda b: b.flip(2), lambda b: b.transpose(1, 2)], ids=["up", "left", "diagonal"]
)
def test_a_mirrored_board_is_answered_in_the_mirror(
    both_ways: Callable[..., LanguageModel],
    tokens: Tokens,
    window: dict[str, Any],
    turned: Callable[[Tensor], Tensor],
) -> None:
    """Without rotation a board has no direction, and its window is a square: along rows alone it would be a strip."""
    model = both_ways(positions="none", board=True, **window)
    ids = tokens(model.config, 2, 25)
    torch.testing.assert_close(
        answers(model, on_board(5, ids, turned)), on_board(5, answers(model, ids), turned), **LOOSE
    )


def test_what_a_cell_sees_of_a_board_is_a_square_around_it(build: Build, tokens: Tokens) -> None:
    """One layer, one pass, by change of one cell; the last row of a board may be short."""
    model = build(TransformerConfig(vocab_size=11, d_model=24, n_heads=3, n_layers=1, causal=False, board=True,
                                    window=2))  # fmt: skip
    ids = tokens(model.config, 1, 14)
    whole, seen = answers(model, ids), torch.zeros(14, 14, dtype=torch.bool)
    for place in range(14):
        other = ids.clone()
        other[0, place] = (ids[0, place] + 1) % 11
        seen[:, place] = (answers(model, other) != whole).any(-1)[0]
    row, column = torch.arange(14) // 4, torch.arange(14) % 4
    near = ((row[:, None] - row).abs() < 2) & ((column[:, None] - column).abs() < 2)
    assert torch.equal(seen, near)


def test_what_stands_around_a_cell_is_the_same_on_every_board(build: Build, tokens: Tokens) -> None:
    """Rotation counts rows and columns: a patch of 3 x 3 says the same of its middle on boards of 5 and of 9."""
    model = build(TransformerConfig(vocab_size=11, d_model=24, n_heads=3, n_layers=1, causal=False, board=True,
                                    window=2))  # fmt: skip
    patch, middles = tokens(model.config, 1, 9).view(3, 3), []
    for side, row, column in ((5, 1, 2), (9, 6, 3)):
        board = tokens(model.config, 1, side * side, seed=side).view(side, side).clone()
        board[row - 1 : row + 2, column - 1 : column + 2] = patch
        middles.append(answers(model, board.view(1, -1)).view(side, side, -1)[row, column])
    torch.testing.assert_close(*middles, **LOOSE)
    assert not torch.allclose(*(answers(model, p.reshape(1, 9))[0, 4] for p in (patch, patch.T)))


@pytest.mark.parametrize("window", WINDOWS)
def test_padding_is_no_cell(both_ways: Callable[..., LanguageModel], tokens: Tokens, window: dict[str, Any]) -> None:
    """Boards of different sides in one batch, with padding anywhere, are answered as they are alone."""
    model = both_ways(board=True, **window)
    mask = torch.zeros(5, 9, dtype=torch.int64)  # the last row is padding throughout
    mask[0, 1:5], mask[1], mask[2, 2], mask[3, [0, 2, 4, 6, 7]] = 1, 1, 1, 1
    rows, ids = [tokens(model.config, 1, n, seed=n)[0] for n in (4, 9, 1, 5)], torch.zeros(5, 9, dtype=torch.int64)
    for row, own, where in zip(rows, ids, mask.bool(), strict=False):
        own[where] = row
    together = answers(model, ids, attention_mask=mask)
    assert together.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(together[i, mask[i].bool()], answers(model, row[None])[0], **LOOSE)
