"""OwnTextData: judgements of the steps that a model writes itself, where a task's traces hold those that are made up.

A process reward that has seen nothing but made-up mistakes knows nothing of those that a model makes: best-of-N asks it
about texts of another distribution. Here a finished model, the policy, answers the questions of the training items, and
every <step> of its texts is judged,

    exact     whether the answer can still be reached from what stands before it, by the task's own checker of steps
    outcome   whether this text ends in a right answer: one continuation, which is written already, says how
              likely the policy gets there, roughly; it needs no checker of steps   (Cobbe et al., arXiv 2110.14168)

No token of them is a label, since a model is not to learn its own mistakes. They are for `ProcessReward(alone=True)`,
which trains a head and nothing else. With a share below 1 they stand beside rows of the task as they are, and the whole
model is trained further: it keeps what it can do, and learns to tell where its own texts go wrong.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mull.training.data.batches import Batch
from mull.training.data.policies import PolicyData, behind_style
from mull.training.data.streams import Stream
from mull.training.data.task import END, IGNORE, Task
from mull.training.data.traces import END_OF_THINKING, NOT_JUDGED, STEP


class OwnTextData(PolicyData):
    """The questions of a task with traces, and what a finished model writes behind them: `values` judge its steps.

    Args:
        task: The task, with its default difficulty; it must name styles, which are those that are written.
        policy: Checkpoint folder of the model that writes; it is read when the first batch is made.
        judgement: `exact` or `outcome`; see the head of the file.
        share: The share of a batch's rows that the policy writes, above 0 and at most 1; the others are those of
            `TaskData`, with labels and the judgements of the task.
        temperature: of the draws; strategies draw at 0.7.
        iterations: of the policy; None means its own.
        difficulty: Difficulty of all items, or a list, as of `TaskData`.
        batch_size: Items per batch and rank.
        validation_examples: Items of the validation split. Of each the task's own trace is scored as text, and what the
            policy writes is judged.
        workers: Processes that make batches ahead, as of `TaskData`; each has the policy.
        seed: Names the streams of items and of draws.
    """

    def __init__(
        self,
        task: Task,
        policy: str,
        judgement: Literal["exact", "outcome"] = "exact",
        share: float = 1.0,
        temperature: float = 0.7,
        iterations: int | None = None,
        difficulty: int | list[int] | None = None,
        batch_size: int = 64,
        validation_examples: int = 256,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            task, policy, temperature, iterations, difficulty, batch_size, validation_examples, workers, seed
        )
        if judgement not in ("exact", "outcome"):
            raise ValueError(f"judgement is {judgement!r}: it must be exact or outcome")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: it must be a number of at least 0; 0 draws nothing")
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}: it must be above 0 and at most 1, as a share of the rows of a batch")
        self.judgement = judgement
        self.own_rows = max(1, round(share * batch_size))  # the first of a batch
        self.scores_tokens = self.own_rows < batch_size

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = super().training_batch(number, rank, world_size)
        random = Stream("own texts", self.seed, rank, world_size).at(number)
        written = self.written(batch["input_ids"][: self.own_rows], random)
        return {name: torch.cat([written[name], rest[self.own_rows :]]) for name, rest in batch.items()}

    def validation_batches(self) -> list[Batch]:
        """The task's rows, which are not judged, and then what the policy writes behind their questions."""
        of_the_task = super().validation_batches()
        unjudged = [{**batch, "values": torch.full_like(batch["values"], NOT_JUDGED)} for batch in of_the_task]
        stream = Stream("own texts", self.seed, "validation")
        return unjudged + [self.written(batch["input_ids"], stream.at(i)) for i, batch in enumerate(of_the_task)]

    def written(self, asked: Tensor, random: np.random.Generator) -> Batch:
        """What the policy writes behind the questions of these rows, in as many tokens."""
        rows = [self.words_of(row) for row in asked.tolist()]
        begun = [row[: behind_style(row)] for row in rows]
        seeds = random.integers(2**63 - 1, size=len(rows)).tolist()
        most = asked.shape[1] + 1 - len(begun[0])  # the last word of a row is written, and not read
        texts = self.continued([" ".join(each) for each in begun], seeds, most)
        ids = self.tokenizer.get_vocab()  # those of the policy, which may also write what is no symbol of the task
        input_ids = torch.full_like(asked, ids[END])
        values = torch.full(asked.shape, NOT_JUDGED)
        for row, (question, text) in enumerate(zip(begun, texts, strict=True)):
            words = [*question, *text.split()][: asked.shape[1]]
            input_ids[row, : len(words)] = torch.tensor([ids[word] for word in words])
            thought = words[: words.index(END_OF_THINKING)] if END_OF_THINKING in words else words
            places = [place for place, word in enumerate(thought) if word == STEP]
            values[row, places] = torch.tensor(self.judged(" ".join(question), text, len(places)))
        return {"input_ids": input_ids, "labels": torch.full_like(input_ids, IGNORE), "values": values}

    def judged(self, question: str, text: str, steps: int) -> list[float]:
        """The judgements of the first steps of a text, so many."""
        if self.judgement == "outcome":
            return [float(self.traced.check(question, text))] * steps
        return [float(fine) for fine in self.traced.reachable(question, text)[:steps]]
