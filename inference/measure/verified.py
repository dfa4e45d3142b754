"""Answers written out and judged by a verifier: the share that is right, by iterations and difficulty.

Accuracy and exact match compare with one answer, position by position, behind the right beginning. Where many answers
are right (a derivation, a schedule), or where a model must go on from its own words, this is the measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mull.inference.generate import generate
from mull.inference.measure.intervals import wilson
from mull.inference.measure.results import Result
from mull.models import LanguageModel
from mull.models.config import Capacity

Judged = tuple[str, Callable[[str], bool]]  # a prompt, and whether an answer to it is right


def verified(
    model: LanguageModel,
    results: Sequence[Result],
    questions: Mapping[int | None, Sequence[Judged]],
    batch_size: int = 64,
    exit: str | None = None,
    max_new_tokens: int = 256,
    capacity: Capacity | None = None,
) -> list[Result]:
    """The results with the share of written answers that are right, and its 95 % interval. Answers are greedy.

    Args:
        model: any that writes text.
        results: of `evaluate`, of which counts and difficulties are taken.
        questions: prompts by difficulty, each with its judge.
        batch_size: prompts answered at once.
        exit: the rule of the evaluation, if any.
        max_new_tokens: of an answer; a longer one is judged as far as it goes.
        capacity: of the evaluation, of a model that routes.
    """
    told = []
    for result in results:
        right = 0
        asked = questions[result.difficulty]
        for start in range(0, len(asked), batch_size):
            some = asked[start : start + batch_size]
            written = generate(
                model,
                [prompt for prompt, _ in some],
                result.iterations,
                exit,
                max_new_tokens=max_new_tokens,
                capacity=capacity,
            ).text
            assert isinstance(written, list)
            right += sum(judge(answer) for (_, judge), answer in zip(some, written, strict=True))
        low, high = wilson(right, len(asked))
        told.append(replace(result, verified=right / len(asked), verified_low=low, verified_high=high))
    return told
