"""RolloutData: judgements of steps where nobody knows them exactly, as a model's own rollouts estimate them.

The judgement of a <step> is the share of k continuations, drawn from a finished model, that end in a right answer
(Math-Shepherd, arXiv 2312.08935). It says how likely this model reaches the answer from there, which is less than
whether it can be reached at all: a policy's mistakes count as the step's. For each row one <step> is drawn; the others
are not judged, since rollouts of all would cost as many times as much. The steps are those of the task's traces; for
the steps that the model itself writes see own_texts.py.
"""

import torch

from mull.training.data.batches import Batch, require_positive
from mull.training.data.policies import PolicyData, behind_style
from mull.training.data.streams import Stream
from mull.training.data.task import Task
from mull.training.data.traces import NOT_JUDGED


class RolloutData(PolicyData):
    """A task with traces whose steps are judged by rollouts: `values` are shares from 0 to 1.

    Args:
        task: The task, with its default difficulty; it must name styles.
        policy: Checkpoint folder of the model that continues; it is read when the first batch is made.
        rollouts: k, continuations of each judged step.
        temperature: of the draws.
        iterations: of the policy; None means its own.
        difficulty: Difficulty of all items, or a list, as of `TaskData`.
        batch_size: Items per batch and rank.
        validation_examples: Items of the validation split. Their steps are judged exactly, and not by rollouts.
        workers: Processes that make batches ahead, as of `TaskData`; each has the policy.
        seed: Names the streams of items and of draws.
    """

    def __init__(
        self,
        task: Task,
        policy: str,
        rollouts: int = 4,
        temperature: float = 1.0,
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
        require_positive(rollouts=rollouts)
        if temperature <= 0:
            raise ValueError(
                f"temperature is {temperature}: rollouts that are all alike judge nothing, use more than 0"
            )
        self.rollouts = rollouts

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> Batch:
        batch = super().training_batch(number, rank, world_size)
        stream = Stream("rollouts", self.seed, rank, world_size)
        judged = batch["values"] >= 0
        values = torch.full_like(batch["values"], NOT_JUDGED)
        rows = [row for row in range(len(judged)) if bool(judged[row].any())]
        random = stream.at(number)
        places = [int(judged[row].nonzero()[random.integers(int(judged[row].sum()))]) for row in rows]
        begun = [
            self.words_of(batch["input_ids"][row, : place + 1].tolist())
            for row, place in zip(rows, places, strict=True)
        ]
        seeds = random.integers(2**63 - 1, size=len(rows) * self.rollouts).tolist()
        longest = max(self.traced.width(difficulty) for difficulty in self.difficulties)
        ended = self.continued([" ".join(each) for each in begun for _ in range(self.rollouts)], seeds, longest)
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            behind = behind_style(begun[i])
            prompt, written = " ".join(begun[i][:behind]), " ".join(begun[i][behind:])
            mine = ended[i * self.rollouts : (i + 1) * self.rollouts]
            right = sum(self.traced.check(prompt, f"{written} {text}") for text in mine)
            values[row, place] = right / self.rollouts
        return {**batch, "values": values}
