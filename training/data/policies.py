"""PolicyData: a task with traces, and a finished model, the policy, that writes on behind beginnings of its items."""

from functools import cached_property

import torch

from mull.checkpoints import load
from mull.inference.generate import generate
from mull.models import LanguageModel
from mull.training.data.module import TaskData
from mull.training.data.task import Task
from mull.training.data.traced import TracedTask
from mull.training.data.traces import STYLE_WORDS


class PolicyData(TaskData):
    """Base of data modules whose judgements come from what a policy writes. Its arguments are those of the subclasses.

    The policy is read when the first batch is made, since the folder of a run may come from anybody and name one.
    """

    policy_judges = True

    def __init__(
        self,
        task: Task,
        policy: str,
        temperature: float,
        iterations: int | None,
        difficulty: int | list[int] | None,
        batch_size: int,
        validation_examples: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(
            task,
            difficulty,
            batch_size=batch_size,
            validation_examples=validation_examples,
            workers=workers,
            seed=seed,
        )
        if not isinstance(task, TracedTask) or task.mixture is None:
            raise ValueError(f"the {task.name} task writes no steps to judge: name styles, as in styles: {{search: 1}}")
        self.traced, self.policy = task, policy
        self.temperature, self.iterations = temperature, iterations

    @cached_property
    def model(self) -> LanguageModel:
        """The policy. Raises ValueError where its tokens are not those of the task."""
        policy = load(self.policy)
        if policy.tokenizer is None or policy.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"the policy {self.policy} does not have the tokens of the {self.task.name} task: name a folder that "
                "was trained on this task with traces, or give the task the options of that folder"
            )
        return policy

    def continued(self, texts: list[str], seeds: list[int], most: int) -> list[str]:
        """What the policy writes behind each of these texts, each by draws of its own, and at most so many tokens."""
        if not texts:
            return []
        written = generate(
            self.model,
            texts,
            iterations=self.iterations,
            max_new_tokens=most,
            temperature=self.temperature,
            generator=[torch.Generator(self.model.device).manual_seed(seed) for seed in seeds],
        ).text
        assert isinstance(written, list)
        return written

    def words_of(self, tokens: list[int]) -> list[str]:
        """The words of a row of token ids."""
        return [self.traced.symbols[token] for token in tokens]


def behind_style(words: list[str]) -> int:
    """Where the trace of a row begins: the place behind the word of its style."""
    return 1 + next(place for place, word in enumerate(words) if word in STYLE_WORDS)
