"""Continuous depth batching against its slow twins: the same rows in lockstep, and each row alone."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference import generate as generation
from mull.inference.exits import RULES, parse
from mull.inference.generate import Thinking, positions, uneven_positions
from mull.inference.lockstep import NewTokens
from mull.inference.sampling import sample
from mull.models import LanguageModel
from mull.models.cache import Policy

MakeModel = Callable[..., LanguageModel]
LIMIT = 6
RULES_AT_WORK = [
    "latent:0.3",
    "latent:0.3,minimum=2,every=3",
    "acceleration:0.4",
    "gate:0.2",
    "fixed:4",
    "kl:0.05",
    "kl:0.05,minimum=2,every=2",
    "entropy:0.02",
    "argmax:-1",
    "confidence:0.87",
]
CACHES: list[tuple[Policy, int]] = [("deepest", 1), ("shared", 1), ("shared", 2)]


def padded(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths, padded on both sides."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.randint(11, (rows, length), generator=generator), torch.ones(rows, length, dtype=torch.int64)
    for row in range(rows):
        left, right = torch.randint((length + 1) // 2, (2,), generator=generator).tolist()
        mask[row, :left] = mask[row, length - right :] = 0
    return ids, mask


def write(
    way: Callable[..., Iterator[NewTokens]],
    model: LanguageModel,
    ids: Tensor,
    mask: Tensor | None,
    rule: str,
    new: int = 7,
    stop: tuple[int, ...] = (),
    cache: tuple[Policy, int] = ("deepest", 1),
    warm: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tokens and iterations, (B, N) each, written one way or the other."""
    thinking = Thinking(LIMIT, parse(rule), warm)
    held = model.new_cache(len(ids), ids.shape[1] + new - 1, *cache)
    written = list(way(model, ids, mask, thinking, new, held, sample, torch.tensor(stop, dtype=torch.int64)))
    return torch.stack([w.tokens for w in written], 1), torch.stack([w.iterations for w in written], 1)


def check(model: LanguageModel, ids: Tensor, mask: Tensor, patience: float, **how: Any) -> tuple[Tensor, Tensor]:
    """Written continuously, in lockstep and row by row: the same."""
    tokens, used = write(partial(uneven_positions, patience=patience), model, ids, mask, **how)
    for other, same in zip(write(positions, model, ids, mask, **how), (tokens, used), strict=True):
        assert torch.equal(other, same)
    for row in range(len(ids)):
        alone, alone_used = write(positions, model, ids[row, mask[row].bool()][None], None, **how)
        n = alone.shape[1]
        assert torch.equal(tokens[row, :n], alone[0]) and torch.equal(used[row, :n], alone_used[0])
        assert used[row, n:].eq(0).all() and tokens[row, n:].eq(alone[0, -1]).all()
    return tokens, used


@pytest.mark.parametrize(
    ("rule", "cache"), [(rule, CACHES[0]) for rule in RULES_AT_WORK] + [("acceleration:0.4", c) for c in CACHES[1:]]
)
def test_rows_write_what_they_write_alone_and_in_lockstep(
    make_model: MakeModel, rule: str, cache: tuple[Policy, int]
) -> None:
    """Guards the keys each row reads, and what a rule remembers: of this token alone, from its start."""
    model = make_model("recurrent", 4, exit_gate=True)
    ids, mask = padded(4, 7)
    tokens, used = check(model, ids, mask, 0.0, rule=rule, stop=(3, 5), cache=cache)
    assert len(tokens.unique()) > 3, "the model repeats itself, and would hide an error"
    assert len(used[:, 1:].unique()) > 1 or rule.startswith("fixed"), "everything left at once, which shows nothing"


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 5), length=st.integers(1, 7), new=st.integers(1, 9), rule=st.sampled_from(RULES_AT_WORK),
    cache=st.sampled_from(CACHES), seed=st.integers(0, 99), stops=st.booleans(), warm=st.booleans(),
    patience=st.sampled_from([0.0, 0.2, 0.5, 1.0]), kv_heads=st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_shape_start_and_patience(
    make_model: MakeModel, rows: int, length: int, new: int, rule: str, cache: tuple[Policy, int], seed: int,
    stops: bool, warm: bool, patience: float, kv_heads: int,
) -> None:  # fmt: skip
    model = make_model("recurrent", seed % 5, exit_gate=True, n_kv_heads=kv_heads, injection="diagonal")
    ids, mask = padded(rows, length, seed)
    check(model, ids, mask, patience, rule=rule, new=new, stop=(1, 4) if stops else (), cache=cache, warm=warm)


@pytest.mark.parametrize(("rule", "seed"), [("latent:0.3", 22), ("kl:0.05", 5), ("argmax:-1", 5)])
def test_the_core_is_called_as_seldom_as_can_be(make_model: MakeModel, rule: str, seed: int) -> None:
    """Without patience: the largest sum of a row's iterations, and every call holds all rows that still write. In
    lockstep, and with the patience of it, there are more calls: the largest count of every position."""
    model, rows = make_model("recurrent", seed, exit_gate=True), []
    (ids, mask), stop = padded(4, 7), (3,)
    model.core[0].register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].shape[:-1].numel()))  # type: ignore[index, union-attr]

    def calls(way: Callable[..., Iterator[NewTokens]]) -> tuple[list[int], Tensor]:
        write(way, model, ids, mask, rule, new=1)
        of_prompt = len(rows)
        rows.clear()
        used = write(way, model, ids, mask, rule, stop=stop)[1][:, 1:]
        seen = rows[of_prompt:]
        rows.clear()
        return seen, used

    seen, used = calls(partial(uneven_positions, patience=0.0))
    sums, lockstep = used.sum(1), int(used.amax(0).sum())
    assert seen == [int((sums >= call).sum()) for call in range(1, int(sums.max()) + 1)]
    assert len(seen) < lockstep, "no row waits for another here, which shows nothing"
    for way in (positions, partial(uneven_positions, patience=1.0)):
        assert len(calls(way)[0]) == lockstep


@pytest.mark.parametrize("rule", ["kl:0.05,minimum=2,every=2", "latent:0.3"])
def test_answers_are_read_once(make_model: MakeModel, rule: str) -> None:
    """A rule that reads logits is charged for each row's checks, the last of which is its answer."""
    model, ids = make_model("recurrent"), padded(5, 6)[0]
    read: list[int] = []
    model.coda[0].register_forward_hook(lambda _m, inputs, _o: read.append(inputs[0].shape[:-1].numel()))  # type: ignore[index, union-attr]
    write(positions, model, ids, None, rule, new=1)
    of_prompt = sum(read)
    read.clear()
    _, used = write(partial(uneven_positions, patience=0.0), model, ids, None, rule)
    checks = used[:, 1:] // 2 if rule.startswith("kl") else torch.ones_like(used[:, 1:])
    assert sum(read) - of_prompt == int(checks.sum())


def test_generation_takes_this_way_when_asked(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, taken = padded(3, 5)[0], []
    way = generation.uneven_positions
    monkeypatch.setattr(generation, "uneven_positions", lambda *args: taken.append(args) or way(*args))
    model = make_model("recurrent")
    one = generation.generate(model, ids, LIMIT, "latent:0.3", 6, continuous=True)
    assert len(taken) == 1
    other = generation.generate(model, ids, LIMIT, "latent:0.3", 6)
    assert len(taken) == 1
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.iterations, other.iterations)
    with pytest.raises(ValueError, match=r"continuous is for rows that leave.*exit rule"):
        generation.generate(model, ids, LIMIT, continuous=True)


def test_sampled_rows_are_reproducible(make_model: MakeModel) -> None:
    model, ids = make_model("recurrent", n_core=5, n_coda=1), padded(4, 5)[0]

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generation.generate(model, ids, LIMIT, "latent:0.3", 8, 1.0, generator, continuous=True).new_tokens

    assert torch.equal(run(5), run(5)) and not torch.equal(run(5), run(6))


def test_every_rule_is_at_work_here() -> None:
    assert {text.partition(":")[0] for text in RULES_AT_WORK} == set(RULES)
