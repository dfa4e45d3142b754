"""The problems of a comparison, the same ones for everybody: of the task of a checkpoint folder, or of a file.

A file has one object a line, {"problem": "...", "answer": "...", "difficulty": 4}; the difficulty may be left out. An
answer is right if it has the same words, whatever the blanks between them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mull.checkpoints.files import damaged, is_there, read_bytes
from mull.checkpoints.names import folder_of
from mull.checkpoints.store import TRAINING
from mull.inference.strategies.solver import Problem
from mull.training.evaluation import asks_texts, data_of

MAX_FILE = 256 << 20  # bytes
FIELDS = {"problem", "answer", "difficulty"}


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        source: where it comes from, for messages and for the settings of a comparison.
        difficulty_name: what a difficulty counts.
        problems: by difficulty.
        answers: of a file, which may be put right by whoever keeps it; a task's are a function of its problems.
    """

    source: str
    difficulty_name: str
    problems: Mapping[int | None, Sequence[Problem]]
    answers: Mapping[int | None, Sequence[str]] = field(default_factory=dict)

    def key(self, difficulty: int | None) -> str:
        """A key of the problems of a difficulty, in their order, and of a file's answers to them."""
        texts = [problem.text for problem in self.problems[difficulty]]
        texts += self.answers.get(difficulty, ())
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def of_folder(folder: str | Path, difficulties: Sequence[int] | None, examples: int, seed: int) -> Asked:
    """Held-out problems of the task that a folder was trained on.

    Raises:
        FileNotFoundError, ValueError: the folder does not say what it was trained on, or that has no problems.
    """
    if not is_there(folder_of(folder) / TRAINING):
        raise FileNotFoundError(
            f"{folder_of(folder) / TRAINING} is missing, so there is no task to ask: name another folder with --task, "
            "or give --problems FILE"
        )
    if asks_texts(folder):
        raise ValueError(f"{folder} was trained on texts, which ask no problems: name another folder with --task")
    data = data_of(folder)
    task: Any = getattr(data, "task", None)
    kind = type(data).__name__
    if not hasattr(data, "questions") or getattr(data, "in_place", False):
        raise ValueError(f"{folder} was trained on {kind}, which asks no problems: name another folder with --task")
    chosen = list(difficulties) if difficulties else None
    found: dict[int | None, list[Problem]] = {}
    if getattr(task, "mixture", None) is None:  # without traces there are answers only
        for each, pairs in data.questions(chosen, examples, seed).items():
            found[each] = [Problem(text, check, None, each) for text, check in pairs]
    else:
        for each in chosen or sorted(set(data.difficulties)):
            given = task.problems("test", seed, examples, each)
            found[each] = [Problem(text, check, steps, each) for text, check, steps in given]
    return Asked(f"task {getattr(task, 'name', kind)}", getattr(data, "difficulty_name", "difficulty"), found)


def of_file(path: str | Path, difficulties: Sequence[int] | None, examples: int) -> Asked:
    """The first problems of each difficulty in a file.

    Raises:
        ValueError: there is no such file, or a line of it is no problem.
    """
    place = Path(path).expanduser()
    try:
        text = read_bytes(place, MAX_FILE).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no file {place} of problems") from None
    except UnicodeDecodeError as error:
        raise damaged(place, f"is no UTF-8 text: {error}", "convert it") from None
    found: dict[int | None, list[Problem]] = {}
    answers: dict[int | None, list[str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            problem, answer = problem_of(place, number, line)
            found.setdefault(problem.difficulty, []).append(problem)
            answers.setdefault(problem.difficulty, []).append(answer)
    missing = [each for each in difficulties or () if each not in found]
    if not found or missing:
        what = f"has no problems of difficulty {missing[0]}" if missing else "has no problems"
        raise damaged(place, what, 'write {"problem": "1 + 1 = ?", "answer": "2", "difficulty": 1} a line')
    order: Sequence[int | None] = difficulties or sorted(found, key=lambda each: (each is not None, each or 0))
    problems = {each: found[each][:examples] for each in order}
    return Asked(f"file {place.name}", "difficulty", problems, {each: answers[each][:examples] for each in order})


def problem_of(place: Path, number: int, line: str) -> tuple[Problem, str]:
    """The problem of a line, and its answer. Raises ValueError for a line that holds none."""
    remedy = 'write {"problem": "1 + 1 = ?", "answer": "2"}'
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise damaged(place, f"holds no JSON in line {number}: {error}", remedy) from None
    if not isinstance(given, dict) or not {"problem", "answer"} <= given.keys() <= FIELDS:
        raise damaged(place, f"must hold an object with problem and answer, and difficulty, in line {number}", remedy)
    text, answer, difficulty = given["problem"], given["answer"], given.get("difficulty")
    if not isinstance(text, str) or not text.strip() or not isinstance(answer, str | int) or isinstance(answer, bool):
        raise damaged(place, f"must hold texts for problem and answer in line {number}", remedy)
    if not str(answer).strip():  # which every text without an answer would be right about
        raise damaged(place, f"holds an empty answer in line {number}", remedy)
    if difficulty is not None and (not isinstance(difficulty, int) or isinstance(difficulty, bool)):
        raise damaged(place, f"must hold an integer for difficulty in line {number}", remedy)
    return Problem(text, partial(same_words, str(answer)), None, difficulty), str(answer)


def same_words(expected: str, answer: str) -> bool:
    """Whether an answer has the expected words in their order; blanks and line breaks do not count."""
    return answer.split() == expected.split()
