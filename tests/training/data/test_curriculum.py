"""The next difficulty enters when the present one is mastered: what is counted, from which batch on, resumed or not."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from mull.training.callbacks import Throughput
from mull.training.data import Parity, ReachedAccuracy, TaskData
from mull.training.data.curriculum import AHEAD
from mull.training.data.task import IGNORE
from mull.training.evaluation import data_of
from mull.training.module import TrainingModule
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes


def answers(rows, vocabulary=4):
    """Logits whose best token is the one named, by row."""
    return torch.nn.functional.one_hot(torch.tensor(rows), vocabulary).float()


def test_rows_and_tokens_are_counted_where_they_are_scored():
    """Guards the two units: a row counts once, is right throughout or not, and one that scores nothing counts for
    neither; a token counts where it is scored."""
    labels = torch.tensor([[1, 2, IGNORE], [1, 2, 3], [IGNORE] * 3, [0, IGNORE, IGNORE]])
    logits = answers([[1, 2, 0], [1, 2, 0], [1, 1, 1], [1, 1, 1]])
    assert ReachedAccuracy(of="rows").count(logits, labels).tolist() == [1, 3]
    assert ReachedAccuracy(of="tokens").count(logits, labels).tolist() == [4, 6]


def test_the_share_is_that_of_the_latest_batches_and_no_fewer():
    """Guards the window, the threshold (reached counts) and that the next difficulty starts with an empty one."""
    rule = ReachedAccuracy(accuracy=0.75, batches=2)
    for number, right in enumerate((4, 1, 3, 2)):  # of 4: shares of 5/8, 4/8, 5/8
        rule.observe(number, right, 4)
    assert rule.entries == []
    rule.observe(7, 4, 4)  # 6/8: reached
    assert rule.entries == [7 + AHEAD] and rule.latest == []
    assert [rule.entered(number) for number in (0, 8, 9, 10)] == [1, 1, 2, 2]
    rule.observe(11, 4, 4)
    assert rule.entries == [9]
    nothing = ReachedAccuracy(batches=1)
    nothing.observe(0, 0, 0)
    assert nothing.entries == []


def test_difficulties_enter_from_the_easiest_and_mix_with_those_that_are_there():
    """Guards the order, whatever that of the list, and the shares of the list among those that have entered."""
    rule = ReachedAccuracy(batches=1)
    data = TaskData(Parity(), difficulty=[12, 4, 8, 12], advance=rule, batch_size=2)
    rule.entries = [100, 200]
    drawn = [data.training_difficulty(number) for number in range(600)]
    assert set(drawn[:100]) == {4} and set(drawn[100:200]) == {4, 8} and set(drawn[200:]) == {4, 8, 12}
    assert 140 < drawn[200:].count(12) < 260  # half of 400, six deviations are 60
    assert data.training_batch(150)["input_ids"].shape[1] in (5, 9)


def test_only_the_newest_difficulty_is_looked_at_and_after_the_last_one_nothing():
    """Guards the share against easier batches, and against those of a difficulty that others have overtaken."""
    rule = ReachedAccuracy(batches=1)
    data = TaskData(Parity(), difficulty=[4, 8], advance=rule, batch_size=2)
    labels = data.training_batch(0)["labels"]
    right = answers(labels.clamp(min=0).tolist(), 9)
    assert data.answered(0, right, labels) == {"train/hardest": 4.0} and rule.entries == [AHEAD]
    assert data.answered(1, right, labels) == {"train/hardest": 4.0} and rule.entries == [AHEAD]  # overtaken
    assert data.answered(AHEAD, right, labels) == {"train/hardest": 8.0}
    assert rule.latest == [] and rule.entries == [AHEAD]  # there is none after 8
    data.setup("validate")
    assert rule.entries == [AHEAD]
    data.setup("fit")  # another training begins with the easiest
    assert rule.entries == []


def test_all_devices_decide_alike():
    """Guards several devices: it is the sum over all of them that reaches the share or does not."""
    for others, reached in (([2, 2], True), ([0, 2], False)):
        rule = ReachedAccuracy(accuracy=0.9, batches=1)
        data = TaskData(Parity(), difficulty=[4, 8], advance=rule, batch_size=2)
        asked = []

        def reduce(seen, reduce_op, others=others, asked=asked):
            asked.append(reduce_op)
            return seen + torch.tensor(others)

        data.trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce))
        batch = data.training_batch(0)
        data.answered(0, answers(batch["labels"].clamp(min=0).tolist(), 9), batch["labels"])
        assert bool(rule.entries) == reached and asked == ["sum"]


def test_what_cannot_be_is_refused():
    """Guards one clear line for each."""
    with pytest.raises(ValueError, match=r"takes the place of a curriculum, and there is one: leave \{3: 4\} out"):
        TaskData(Parity(), difficulty=[4, 8], curriculum={3: 4}, advance=ReachedAccuracy())
    for alone in (8, [8, 8], None):
        with pytest.raises(ValueError, match="advance has nothing to let in: name at least two"):
            TaskData(Parity(), difficulty=alone, advance=ReachedAccuracy())
    for wrong in ({"accuracy": 0.0}, {"accuracy": 1.5}, {"batches": 0}):
        with pytest.raises(ValueError, match="accuracy must lie above 0 and at most at 1, and batches"):
            ReachedAccuracy(**wrong)
    with pytest.raises(ValueError, match="of must be one of rows, tokens, not 'cells'"):
        ReachedAccuracy(of="cells")


class Broken(Exception):
    """What ends a run in these tests."""


def seen_by(patch, break_after=None):
    """Note the length of every batch that is trained on; end the run right after an optimizer step."""
    lengths = []
    real = TrainingModule.training_step
    patch.setattr(
        TrainingModule, "training_step",
        lambda self, batch, number: lengths.append(batch["labels"].shape[1]) or real(self, batch, number),
    )  # fmt: skip
    if break_after is not None:

        def ending(self, trainer, *_):  # noqa: ARG001
            if trainer.global_step == break_after:
                raise Broken

        patch.setattr(Throughput, "on_train_batch_end", ending)
    return lengths


@pytest.mark.parametrize(("accumulated", "stops"), [(1, (2, 3)), (2, (2,))])
def test_a_resumed_run_goes_up_at_the_same_batches(tmp_path, reliability, monkeypatch, accumulated, stops):
    """Guards the saved state: a decision made just before the break takes effect where it does without one, although
    the loader had made a batch ahead. The share is reached at every batch, and what has entered is nearly all there
    is from then on, so that a batch made too early or too late has another length."""
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
    rule = {"class_path": "mull.training.data.ReachedAccuracy"}
    rule["init_args"] = {"accuracy": 0.01, "of": "tokens", "batches": 1}
    args = reliability.arguments(tmp_path, {"save_every": 1})
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    config["data"]["init_args"] |= {"difficulty": [4] + 6 * [5] + 60 * [6], "advance": rule}
    config["trainer"] |= {"accumulate_grad_batches": accumulated, "val_check_interval": 100}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with monkeypatch.context() as patch:
        whole = seen_by(patch)
        train([*args, str(tmp_path / "whole")])
    assert whole[:6] == [5, 5, 6, 6, 7, 7]  # one position more than the difficulty
    parts = []
    for stop in stops:
        with monkeypatch.context() as patch:
            lengths = seen_by(patch, stop)
            with pytest.raises(Broken):
                train([*args, str(tmp_path / "parts")])
        parts += lengths[: (stop - 1) * accumulated - len(parts)]  # the state of the last step does not count yet
    with monkeypatch.context() as patch:
        lengths = seen_by(patch)
        train([*args, str(tmp_path / "parts")])
    assert parts + lengths == whole
    assert reliability.outcome(tmp_path / "parts") == reliability.outcome(tmp_path / "whole")
    assert data_of(tmp_path / "whole").advance.accuracy == 0.01  # a folder's data is rebuilt with it
