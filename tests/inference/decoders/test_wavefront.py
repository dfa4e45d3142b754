"""The wavefront is lossy, but not at its narrowest: there it is plain decoding. For the rest there is a slow twin of
one row, which says the algorithm again with a list of positions; a batch equals its rows, and limits are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference.decoders.wavefront import Wavefront, Window
from mull.inference.generate import generate, stream
from mull.inference.sampling import Draw
from mull.models import LanguageModel, RecurrentDepthTransformer
from mull.models.cache import Cache
from mull.models.positions import Context

MakeModel = Callable[..., LanguageModel]
LIVELY = (2, 11, 53, 56)  # seeds of models that go on changing their mind: elsewhere the first guess is the last


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


@dataclass
class Position:
    token: int
    used: int = 0
    injected: Tensor | None = None
    state: Tensor | None = None


def twin(
    model: RecurrentDepthTransformer, prompt: Tensor, limit: int, n_new: int, how: Wavefront
) -> tuple[list[int], list[int]]:
    """One row (1, P), greedy: tokens and iterations. Positions are objects in a list, asked in turn."""
    with torch.no_grad():
        cache = model.new_cache(1, prompt.shape[1] + n_new, "shared")
        tokens, used = [int(model(prompt, limit, cache=cache).logits[0, -1].argmax())], [limit]
        window = [Position(tokens[0])]
        while len(tokens) < n_new:
            held = list(cache.lengths)
            context = model.context(torch.tensor([[p.token for p in window]]), None, cache, limit)
            entered = model.enter(torch.tensor([[p.token for p in window]]), context)
            befores, dues = [], []
            for j, p in enumerate(window):
                new = entered[0, j]
                p.injected = new if p.injected is None else (1 - how.momentum) * new + how.momentum * p.injected
                p.state = torch.zeros_like(new) if p.state is None else p.state
                befores.append(p.state)
                dues.append(min(how.iterations, limit - p.used))
            think = model.thinker(torch.stack([p.injected for p in window])[None], context)  # type: ignore[misc]
            for index in range(max(dues)):
                after = think(torch.stack([p.state for p in window])[None], 0)[0]  # type: ignore[misc]
                for j, p in enumerate(window):
                    if index >= max(dues) - dues[j]:
                        p.state, p.used = after[j], p.used + 1
            states = torch.stack([p.state for p in window])[None]  # type: ignore[misc]
            guesses = model.read(states, context).logits[0].argmax(-1).tolist()
            context.commit(None)
            frozen = 0
            for j, p in enumerate(window):
                assert p.state is not None
                small = (p.state - befores[j]).norm() / p.state.norm() < how.threshold
                if not (small or p.used == limit) or (j and p.token != guesses[j - 1]):
                    break
                frozen += 1
            tokens += guesses[:frozen]
            used += [p.used for p in window[:frozen]]
            cache.rollback([held[0] + frozen])
            for p, token in zip(window[1:], guesses[:-1], strict=True):
                if p.token != token and p.used == limit:
                    p.used, p.injected, p.state = 0, None, None
                p.token = token
            window = window[frozen:]
            for _ in range(how.headway):
                if len(window) < how.width and len(window) < n_new - len(tokens):
                    window.append(Position(guesses[-1]))
    return tokens, used


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 6),
    n_new=st.integers(1, 10),
    limit=st.integers(1, 6),
    per_round=st.integers(1, 7),
    seed=st.integers(0, 99),
    stops=st.booleans(),
    padded=st.booleans(),
)
def test_one_position_that_never_settles_early_is_plain_decoding(
    make_model: MakeModel, rows: int, length: int, n_new: int, limit: int, per_round: int, seed: int, stops: bool,
    padded: bool,
) -> None:  # fmt: skip
    """Width 1, threshold 0: the plain tokens of a shared cache, however the iterations are cut into rounds."""
    model, ids = make_model("recurrent", LIVELY[seed % 4]), prompts(rows, length, seed)
    mask = torch.ones_like(ids)
    if padded and length > 2:
        mask[0, 0] = mask[-1, -1] = 0
    options = {"attention_mask": mask, "stop_tokens": [1, 4] if stops else [], "max_new_tokens": n_new}
    plain = generate(model, ids, limit, policy="shared", **options)  # type: ignore[arg-type]
    front = generate(model, ids, limit, decode=f"wavefront:{per_round}:1,threshold=0", **options)  # type: ignore[arg-type]
    assert torch.equal(front.tokens, plain.tokens)
    assert torch.equal(front.iterations, plain.iterations)


HOWS = st.builds(
    Wavefront,
    iterations=st.integers(1, 4),
    width=st.integers(1, 9),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 0.7, 5.0]),
    headway=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.1, 0.6]),
)


@settings(max_examples=18, deadline=None)
@given(length=st.integers(1, 6), n_new=st.integers(1, 14), limit=st.integers(1, 8), seed=st.integers(0, 99), how=HOWS)
def test_a_row_is_what_its_slow_twin_writes(
    make_model: MakeModel, length: int, n_new: int, limit: int, seed: int, how: Wavefront
) -> None:
    model, ids = make_model("recurrent", LIVELY[seed % 4]), prompts(1, length, seed)
    result = generate(model, ids, limit, max_new_tokens=n_new, stop_tokens=(), decode=how)
    assert isinstance(model, RecurrentDepthTransformer)
    tokens, used = twin(model, ids, limit, n_new, how)
    assert result.new_tokens[0].tolist() == tokens
    assert result.iterations[0].tolist() == used
    assert max(used) <= limit
    if how.threshold == 0:
        assert set(used) == {limit}


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(2, 4),
    length=st.integers(1, 7),
    n_new=st.integers(1, 12),
    limit=st.integers(1, 8),
    seed=st.integers(0, 99),
    how=HOWS,
    stops=st.booleans(),
    data=st.data(),
)
def test_a_batch_is_its_rows(
    make_model: MakeModel, rows: int, length: int, n_new: int, limit: int, seed: int, how: Wavefront, stops: bool,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Rows of any length, padded on both sides, that freeze and stop at different places."""
    model, ids, mask = make_model("recurrent", LIVELY[seed % 4]), prompts(rows, length, seed), torch.zeros(rows, length)
    for row in range(rows):
        start = data.draw(st.integers(0, length - 1))
        mask[row, start : data.draw(st.integers(start + 1, length))] = 1
    options = {"max_new_tokens": n_new, "stop_tokens": [2, 4] if stops else [], "decode": how}
    together = generate(model, ids, limit, attention_mask=mask, **options)  # type: ignore[arg-type]
    for row in range(rows):
        alone = generate(model, ids[row, mask[row].bool()][None], limit, **options)  # type: ignore[arg-type]
        n = int((together.iterations[row] > 0).sum())
        assert torch.equal(alone.new_tokens[0], together.new_tokens[row, :n])
        assert torch.equal(alone.iterations[0], together.iterations[row, :n])


@pytest.mark.parametrize("headway", [1, 3])
def test_what_is_frozen_has_read_what_was_written(make_model: MakeModel, headway: int) -> None:
    """Keys of the first layer depend on a position's token alone: those in the cache at the end are those of the text,
    though positions thought about other guesses on the way."""
    model, ids = make_model("recurrent", LIVELY[0], n_core=3, n_coda=2), prompts(1, 4)  # it often changes its mind
    guessed: list[tuple[int, int]] = []
    caches: list[Cache] = []
    context = model.context

    def watched(tokens: Tensor, mask: Tensor | None, cache: Cache, iterations: int) -> Context:
        caches.append(cache)
        guessed.extend((cache.length + place, token) for place, token in enumerate(tokens[0].tolist()))
        return context(tokens, mask, cache, iterations)

    model.context = watched  # type: ignore[method-assign, assignment]
    how = Wavefront(2, 6, threshold=0.2, headway=headway)
    text = generate(model, ids, 8, max_new_tokens=16, stop_tokens=(), decode=how).tokens[:, :-1]
    del model.context
    assert sum(text[0, column] != token for column, token in guessed) > 9, "the test needs guesses that were wrong"
    front, fresh, end = caches[-1], model.new_cache(1, 32, "shared"), text.shape[1]
    assert front.lengths == [end]
    with torch.no_grad():
        model(text, 1, cache=fresh)
    torch.testing.assert_close(front.layers[0][..., :end, :], fresh.layers[0][..., :end, :], rtol=0, atol=1e-12)


def test_every_row_moves_by_what_it_froze() -> None:
    """Row 0 keeps its one position and gets three, all on its latest guess; row 1 loses two of three and has room for
    one more; row 2 had all its iterations on a token that has changed, and begins again."""
    place = torch.arange(3.0).expand(3, 3)[..., None]
    window = Window(
        tokens=torch.tensor([[7, 0, 0], [1, 2, 3], [4, 5, 0]]),
        injected=place,
        state=place,
        used=torch.tensor([[2, 0, 0], [4, 4, 2], [2, 4, 0]]),
        luck=torch.full((3, 3), 0.25),
        widths=torch.tensor([1, 3, 2]),
    )
    guesses, frozen = torch.tensor([[8, 0, 0], [2, 3, 9], [6, 10, 0]]), torch.tensor([0, 2, 0])
    how, left = Wavefront(width=4, headway=3), torch.tensor([9, 2, 2])
    moved = how.move(window, guesses, frozen, left, 4, Draw(None, 0.0))
    assert moved.widths.tolist() == [4, 2, 2]
    rows = zip(moved.tokens.tolist(), moved.widths.tolist(), strict=True)
    assert [row[:width] for row, width in rows] == [[7, 8, 8, 8], [3, 9], [4, 6]]
    assert (moved.used * moved.active).tolist() == [[2, 0, 0, 0], [2, 0, 0, 0], [2, 0, 0, 0]]
    assert moved.state[:, 0, 0].tolist() == [0, 2, 0]
    assert moved.luck[moved.active].tolist() == [0.25, 0.5, 0.5, 0.5, 0.25, 0.5, 0.25, 0.25]


def test_calls_are_saved_and_positions_stream_as_they_freeze(make_model: MakeModel) -> None:
    model, calls = make_model("recurrent"), []
    model.core[0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
    positions = stream(
        model, prompts(1, 4), 12, max_new_tokens=25, stop_tokens=(), decode="wavefront:2:9,threshold=0.3"
    )
    assert not calls
    next(positions)
    assert len(calls) == 12, "the first token needs the prefill and nothing more"
    assert len(list(positions)) == 24
    assert len(calls) < 12 * 25 / 2


def test_the_models_limit_is_kept(make_model: MakeModel) -> None:
    result = generate(
        make_model("recurrent"), prompts(2, 20), 4, max_new_tokens=99, stop_tokens=(), decode="wavefront:1:30"
    )
    assert result.tokens.shape == (2, 32)


def test_sampled_text_and_noise_follow_the_seed(make_model: MakeModel) -> None:
    model, ids = make_model("recurrent"), prompts(3, 4)

    def run(seed: int, temperature: float, how: str, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generate(
            model, ids, 6, None, 10, temperature, generator, stop_tokens=(), decode=f"wavefront:{how}", **options
        ).new_tokens

    for temperature, how in ((1.0, "2:5"), (0.0, "2:5,noise=1"), (1.0, "2:5,noise=0.5")):
        assert torch.equal(run(5, temperature, how), run(5, temperature, how))
        assert not torch.equal(run(5, temperature, how), run(6, temperature, how))
    assert torch.equal(run(5, 1.0, "2:5", top_k=1), run(5, 0.0, "2:5"))
    for how in ("1:1,threshold=0", "4:1,threshold=0"):  # one draw for each position, however many rounds ask for it
        assert torch.equal(run(5, 1.0, how), run(5, 1.0, "6:1"))
    assert not torch.equal(run(5, 0.0, "2:5,noise=1"), run(5, 0.0, "2:5")), "noise is not added"


def test_a_sampled_window_of_one_is_distributed_as_plain_sampling(make_model: MakeModel) -> None:
    """Pairs of tokens of 3,000 rows: a chi-square test of homogeneity."""
    model, ids, counts = make_model("recurrent").float(), prompts(1, 3).expand(3000, 3), []
    for seed, how in ((1, None), (2, "wavefront:2:1,threshold=0")):
        generator = torch.Generator().manual_seed(seed)
        drawn = generate(
            model, ids, 4, None, 2, 1.0, generator, top_k=4, stop_tokens=(), decode=how, policy="shared"
        ).new_tokens
        counts.append(torch.bincount(drawn[:, 0] * 11 + drawn[:, 1], minlength=121).double())
    both = counts[0] + counts[1]
    seen = both > 10
    chi2 = sum((((c - both / 2) ** 2) / (both / 2))[seen].sum().item() for c in counts)
    freedom = int(seen.sum()) - 1
    assert freedom > 5
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5, (chi2, freedom)


def test_a_draw_falls_into_a_tokens_part_of_the_line() -> None:
    """At the edges too: a token of no mass is never drawn, not even by the largest draw there is."""
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    luck = torch.tensor([0.0, 0.24, 0.25, 0.99, 1 - 2**-24])
    drawn = Draw(torch.Generator(), 1.0).token_at(p.expand(5, 5), luck)
    assert drawn.tolist() == [1, 1, 3, 3, 3]
