"""Cells whose truth is known: each problem has a height, and is right where what is spent on it reaches that height."""

from collections.abc import Callable

import numpy as np
import pytest

from mull.training.comparing.cells import Answered, Cell, Place

SAMPLES = {"direct": None, "draft": None, "chain": None}
Make = Callable[..., Cell]


@pytest.fixture
def make() -> Make:
    """A cell of problems with heights spread evenly over 0 .. 1, shuffled, right up to `accuracy` of them."""

    def cell(
        strategy: str,
        iterations: int | None = 1,
        accuracy: float = 0.5,
        *,
        samples: int | None = None,
        tokens: float = 8,
        flops: float | None = 100.0,
        difficulty: int | None = None,
        folder: str = "model",
        problems: int = 200,
        ceiling: bool = False,
        style: str | None = "chain",
    ) -> Cell:
        heights = np.random.default_rng(0).permutation((np.arange(problems) + 0.5) / problems)
        answered = tuple(Answered(bool(h < accuracy), flops, int(tokens), samples or 1, 0.5) for h in heights)
        style = strategy if strategy in SAMPLES else style
        place = Place(folder, "", strategy, iterations, difficulty)
        return Cell(place, f"{difficulty}", answered, ceiling, samples, style)

    return cell
