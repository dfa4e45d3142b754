"""Choosing a token: each filter on distributions worked out by hand, the draw against its own distribution."""

import re

import pytest
import torch

from mull.inference.sampling import Draw, probabilities

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_most_likely_token_of_each_row() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.9]])
    assert Draw().choose(logits).tolist() == [1, 0]
    generator = torch.Generator().manual_seed(0)
    assert Draw(generator, 1e-60, top_k=2).choose(logits).tolist() == [1, 0], "as cold as it gets is greedy"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),  # the token that crosses the threshold is kept
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 0.4}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        # in order: of the two that top_k leaves, 4/7 already reaches 0.5; on the whole distribution 0.4 would not
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
        ({"top_k": 3, "min_p": 0.7}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_filters_leave_exactly_these_probabilities(options: dict[str, float], expected: list[float]) -> None:
    found = probabilities(P.log(), temperature=1.0, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_of_equal_tokens_the_smaller_ids_are_kept() -> None:
    """300 tokens: torch sorts few equal values in order even when it is not asked to."""
    found = probabilities(torch.zeros(1, 300), temperature=1.0, top_k=2)
    assert found[0].nonzero().flatten().tolist() == [0, 1]
    assert found[0, :2].tolist() == [0.5, 0.5]


def test_top_p_of_1_keeps_the_whole_tail() -> None:
    """In fp32 the mass before a tail of 1e-9 rounds to 1, which is not less than top_p."""
    logits = torch.tensor([[0.0, -20.0, -21.0]])
    assert torch.equal(probabilities(logits, 1.0, top_p=1.0), probabilities(logits, 1.0))


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(probabilities(P.log(), temperature=0.5), P**2 / (P**2).sum())


def test_a_tiny_temperature_sharpens_and_does_not_overflow() -> None:
    found = probabilities(torch.tensor([[100.0, 99.0, -100.0]]), temperature=1e-38)
    assert found.tolist() == [[1, 0, 0]]


def test_half_precision_logits_are_widened() -> None:
    assert probabilities(torch.zeros(1, 3, dtype=torch.bfloat16), temperature=1.0).dtype == torch.float32


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-squared over 20,000 draws. With 3 degrees of freedom a right sampler exceeds 30 with probability
    1.4e-6 (the seed is fixed, so it passes always or never); a swap of two tokens or temperature 1.1 gives over 100."""
    n = 20_000
    drawn = Draw(seeded(), 1.0).choose(P.log().expand(n, 4))
    counts = torch.bincount(drawn, minlength=4)
    assert ((counts - n * P[0]) ** 2 / (n * P[0])).sum() < 30


def test_the_generator_alone_decides() -> None:
    logits = P.log().expand(50, 4)
    torch.manual_seed(1)
    one = Draw(seeded(7), 1.0).choose(logits)
    torch.manual_seed(2)
    assert torch.equal(one, Draw(seeded(7), 1.0).choose(logits))
    assert not torch.equal(one, Draw(seeded(8), 1.0).choose(logits))  # equal by chance with probability 0.3^50
    state = torch.get_rng_state()
    Draw(seeded(), 1.0).choose(logits)
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature -0.5 is not a number of at least 0"),
        ({"temperature": float("nan")}, "temperature nan is not"),
        ({"temperature": float("inf")}, "temperature inf is not"),
        ({"temperature": 0.8, "generator": None}, "temperature 0.8 draws at random, which needs a generator"),
        ({"top_k": 0}, "top_k 0 is not an integer of at least 1"),
        ({"top_k": 1.5}, "top_k 1.5 is not an integer"),
        ({"top_p": 0.9}, "top_p 0.9 filters draws, and temperature 0 draws none; leave one of them out"),
        ({"top_k": 3}, "top_k 3 filters draws"),
        ({"min_p": 0.1}, "min_p 0.1 filters draws"),
        ({"top_k": 2.0}, "top_k 2.0 is not an integer"),
        ({"top_p": 0.0}, "top_p 0.0 lies outside 0 < top_p <= 1"),
        ({"top_p": 1.1}, "top_p 1.1 lies outside"),
        ({"min_p": 0.0}, "min_p 0.0 lies outside 0 < min_p <= 1"),
        ({"min_p": float("nan")}, "min_p nan lies outside"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Draw(**{"generator": seeded(), **options}).choose(P)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


INF = float("inf")


@pytest.mark.parametrize("logits", [[0.0, float("nan")], [0.0, INF], [INF, -INF], [-INF, -INF]], ids=str)
@pytest.mark.parametrize(
    "draw", [Draw(), Draw(seeded(), 1.0), Draw(seeded(), 1.0, top_k=1), Draw(seeded(), 1.0, top_p=0.9)]
)
def test_logits_that_choose_no_token_are_refused(draw: Draw, logits: list[float]) -> None:
    """NaN became token 0 where nothing was drawn, and infinity an error of torch where something was."""
    for call in (draw.choose, draw.distribution):
        with pytest.raises(ValueError, match="the model's logits are NaN or infinite: no token can be chosen"):
            call(torch.tensor([[0.0, 1.0], logits]))


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_a_token_at_minus_infinity_cannot_come_and_the_others_can(options: dict[str, float]) -> None:
    logits = torch.tensor([[-INF, 1.0, -INF, -3e38]])
    assert Draw().choose(logits).tolist() == [1]
    assert Draw(seeded(), 1.0, **options).choose(logits).tolist() == [1]  # type: ignore[arg-type]
    assert Draw(seeded(), 1.0, **options).distribution(logits).tolist() == [[0, 1, 0, 0]]  # type: ignore[arg-type]


def test_rows_with_generators_of_their_own_draw_what_they_draw_alone() -> None:
    """Tokens and uniform draws, after rows have left too; and the number of generators is that of the rows."""
    p = torch.rand(3, 9, generator=seeded(), dtype=torch.float64)
    together = Draw([seeded(5), seeded(6), seeded(7)], 1.0)
    alone = [Draw(seeded(seed), 1.0) for seed in (5, 6, 7)]
    assert together.token(p).tolist() == [int(draw.token(row[None])) for draw, row in zip(alone, p, strict=True)]
    left = together.rows(torch.tensor([0, 2]))
    for _ in range(3):
        assert torch.equal(left.uniform(2, 4), torch.cat([alone[0].uniform(1, 4), alone[2].uniform(1, 4)]))
        assert left.token(p[[0, 2]]).tolist() == [int(alone[0].token(p[:1])), int(alone[2].token(p[2:]))]
    together.check_rows(3)
    for wrong, rows in ((together, 2), (Draw([], 1.0), 3)):
        with pytest.raises(ValueError, match=f"generators for {rows} rows; give one a row, or one"):
            wrong.check_rows(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_likeliest_token_stays_under_any_filter(dtype: torch.dtype) -> None:
    """A top_p that rounds to 0 in the numbers of the distribution kept nothing, and the draw failed."""
    p = probabilities(torch.tensor([[0.0, 2.0, 1.0]], dtype=dtype), 1.0, top_p=1e-300, min_p=1e-300)
    assert p.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": "1"}, "temperature must be a number, not '1'"),
        ({"temperature": None}, "temperature must be a number, not None"),
        ({"temperature": 1.0, "generator": seeded(), "top_p": "x"}, "top_p must be a number, not 'x'"),
        ({"temperature": 1.0, "generator": 5}, "generator must be a torch.Generator, or a list of one a row, not 5"),
        ({"temperature": 1.0, "generator": [5]}, r"or a list of one a row, not \[5\]"),
    ],
)
def test_what_is_no_number_and_no_generator_is_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Draw(**options)  # type: ignore[arg-type]
