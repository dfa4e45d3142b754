"""Steps that a model writes itself: which are judged, how, that nothing of them is learned as text, and what stands
beside them."""

from pathlib import Path

import pytest
import torch

import mull
from mull.training.data import Countdown, OwnTextData, Parity, TaskData
from mull.training.data.task import IGNORE
from mull.training.data.traces import STEP
from mull.training.losses import ProcessReward, check_labels

TASK = Countdown(3, largest=20, styles={"chain": 1, "draft": 1})


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with fresh weights."""
    folder, data = tmp_path_factory.mktemp("policy"), TaskData(TASK)
    torch.manual_seed(0)
    size = {"d_model": 16, "n_heads": 2, "max_length": 128, "stop_tokens": data.stop_tokens}
    mull.save(
        mull.RecurrentDepthTransformer(mull.RecurrentDepthConfig(vocab_size=data.vocab_size, **size)),
        folder,
        tokenizer=data.tokenizer,
    )
    return folder


def own(policy: str | Path, rows: int = 4, **options: object) -> OwnTextData:
    return OwnTextData(TASK, str(policy), batch_size=rows, **options)  # type: ignore[arg-type]


WRITTEN = {  # behind "2 3 4 -> 14 :": what the exact checker says of each step, and whether the answer is right
    "3 * 4 = 12 <step> 12 + 2 = 14 <step> </think> 3 * 4 = 12 , 12 + 2 = 14": ([1, 1], 1),
    "3 + 4 = 7 <step> 7 * 2 = 14 <step> </think> 3 + 4 = 7 , 7 * 2 = 15": ([1, 1], 0),  # right steps, wrong answer
    "2 + 3 = 5 <step> 5 + 4 = 14 <step> </think> 3 + 4 = 7 , 7 * 2 = 14": (
        [0, 0],
        1,
    ),  # a wrong sum, right all the same
    "4 - 3 = 1 <step> <backtrack> 3 * 4 = 12 <step> 12 + 2 = 14 <step> 14 + 14": ([0, 1, 1], 0),  # stops in the middle
    "</think> 3 * 4 = 12 , 12 + 2 = 14 <step>": ([], 1),  # what stands behind the thinking is no step of it
    "": ([], 0),
}


@pytest.mark.parametrize("judgement", ["exact", "outcome"])
def test_every_step_of_what_was_written_is_judged(
    policy: Path, monkeypatch: pytest.MonkeyPatch, judgement: str
) -> None:
    """By hand: the judgement stands where the model would read it, at <step>; the rest of the row is no step; no token
    is a label; and a text that is longer than a row is cut off with its judgements."""
    question = "2 3 4 -> 14 : <chain>"
    ids = {word: token for token, word in enumerate(TASK.symbols)}
    begun = torch.tensor([ids[word] for word in question.split()])
    asked = torch.full((len(WRITTEN), TASK.width(3)), ids["<end>"])
    asked[:, : len(begun)] = begun
    rest = {"labels": torch.zeros_like(asked), "values": torch.zeros(asked.shape)}  # of rows of the task: not these
    monkeypatch.setattr(TaskData, "training_batch", lambda *_: {"input_ids": asked, **rest})
    told = []

    def continued(_: OwnTextData, texts: list[str], seeds: list[int], most: int) -> list[str]:
        told.append(texts)
        assert len(set(seeds)) == len(texts) and most == TASK.width(3) - TASK.lengths(3).question
        return list(WRITTEN)

    monkeypatch.setattr(OwnTextData, "continued", continued)
    batch = own(policy, len(WRITTEN), judgement=judgement).training_batch(5)
    assert told == [[question] * len(WRITTEN)] and bool((batch["labels"] == IGNORE).all())
    for row, (text, (steps, right)) in enumerate(WRITTEN.items()):
        words = [TASK.symbols[token] for token in batch["input_ids"][row].tolist()]
        whole = [*question.split(), *text.split()]
        assert words == (whole + ["<end>"] * len(words))[: len(words)]
        places = [place for place, word in enumerate(whole) if word == STEP][: len(steps)]
        expected = {
            place: float(step if judgement == "exact" else right) for place, step in zip(places, steps, strict=True)
        }
        values = batch["values"][row]
        assert {int(place): float(values[place]) for place in (values >= 0).nonzero().flatten()} == {
            place: value for place, value in expected.items() if place < len(words)
        }


def test_a_batch_is_a_function_of_its_number_and_the_policy_itself_writes(policy: Path) -> None:
    """Made again it is the same; and each row is what `mull.generate` writes behind the question of the training item,
    in the style that the item has, with the draws that the row is given."""
    data = own(policy, temperature=0.7, iterations=2)
    one, same, other = (data.training_batch(number) for number in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    items = TaskData(TASK, batch_size=4).training_batch(1)["input_ids"]
    begun = TASK.lengths(3).question + 1
    assert torch.equal(one["input_ids"][:, :begun], items[:, :begun])
    assert not torch.equal(one["input_ids"], items)
    text = "2 3 4 -> 14 : <draft>"
    alone = mull.generate(
        mull.load(policy), text, iterations=2, temperature=0.7, max_new_tokens=9,
        generator=torch.Generator().manual_seed(6),
    ).text  # fmt: skip
    assert data.continued([text, text], [5, 6], 9)[1] == alone != data.continued([text], [5], 9)[0]


@pytest.mark.parametrize(("share", "written"), [(0.01, 1), (0.5, 2), (0.75, 3)])
def test_the_other_rows_are_those_of_the_task(policy: Path, share: float, written: int) -> None:
    """With their labels and judgements, to the bit, and those that the policy writes are what they are without others:
    so that a model can be trained on which learns no text of its own."""
    whole, mixed = (own(policy, share=each, iterations=1).training_batch(3) for each in (1.0, share))
    of_the_task = TaskData(TASK, batch_size=4).training_batch(3)
    assert bool((of_the_task["labels"] != IGNORE).any(dim=1).all()) and bool((whole["labels"] == IGNORE).all())
    for name, rows in mixed.items():
        assert rows.dtype == of_the_task[name].dtype and torch.equal(rows[written:], of_the_task[name][written:])
        assert torch.equal(rows[:written], whole[name][:written])
    check_labels(ProcessReward(), own(policy, share=share))
    with pytest.raises(ValueError, match="has no tokens to learn, which ProcessReward of this kind needs"):
        check_labels(ProcessReward(), own(policy))


def test_validation_scores_the_text_of_the_task_and_judges_that_of_the_policy(policy: Path) -> None:
    """Each by itself: a process reward is validated on what it will be asked about, and the tokens as everywhere."""
    of_the_task = TaskData(TASK, batch_size=4, validation_examples=6).validation_batches()
    found = own(policy, validation_examples=6, iterations=1, difficulty=[3]).validation_batches()
    assert [len(batch["labels"]) for batch in found] == [4, 2, 4, 2]
    for plain, scored, judged in zip(of_the_task, found[:2], found[2:], strict=True):
        assert torch.equal(scored["labels"], plain["labels"]) and torch.equal(scored["input_ids"], plain["input_ids"])
        assert bool((scored["values"] < 0).all()) and bool((plain["values"] >= 0).any())
        begun = TASK.lengths(3).question + 1
        assert torch.equal(judged["input_ids"][:, :begun], plain["input_ids"][:, :begun])
        assert bool((judged["labels"] == IGNORE).all())
    again = own(policy, validation_examples=6, iterations=1, difficulty=[3]).validation_batches()
    assert all(torch.equal(one[name], other[name]) for one, other in zip(found, again, strict=True) for name in one)


def test_bad_input_is_refused_in_a_sentence(policy: Path) -> None:
    """And a policy is not read before a batch is asked for: a folder from anybody may name one."""
    assert own("nowhere").policy == "nowhere"
    with pytest.raises(ValueError, match="the parity task writes no steps to judge: name styles"):
        OwnTextData(Parity(8), str(policy))
    with pytest.raises(ValueError, match="judgement is 'fair': it must be exact or outcome"):
        own(policy, judgement="fair")
    with pytest.raises(ValueError, match="temperature is -1: it must be a number of at least 0"):
        own(policy, temperature=-1)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"share is {share}: it must be above 0 and at most 1"):
            own(policy, share=share)
    other = OwnTextData(Countdown(3, largest=30, styles={"chain": 1}), str(policy), batch_size=4)
    with pytest.raises(ValueError, match="does not have the tokens of the countdown task: name a folder that"):
        other.training_batch(0)
