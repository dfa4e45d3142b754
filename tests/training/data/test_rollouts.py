"""Judgements by rollouts: shares of continuations that end right, by the task's own checker."""

from pathlib import Path

import pytest
import torch

import mull
from mull.training.data import ModChain, Parity, TaskData, Traces
from mull.training.data.rollouts import RolloutData
from mull.training.data.traces import STEP

TASK = ModChain(2, modulus=10, distractors=0, variables=6, styles={"direct": 1, "search": 2}, traces=Traces(wrong=0.5))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with fresh weights."""
    folder = tmp_path_factory.mktemp("policy")
    data = TaskData(TASK)
    torch.manual_seed(0)
    config = mull.RecurrentDepthConfig(
        vocab_size=data.vocab_size, d_model=16, n_heads=2, max_length=256, stop_tokens=data.stop_tokens
    )
    mull.save(mull.RecurrentDepthTransformer(config), folder, tokenizer=data.tokenizer)
    return folder


def rollouts(policy: Path, **options: object) -> RolloutData:
    return RolloutData(TASK, str(policy), batch_size=8, **options)  # type: ignore[arg-type]


def test_a_share_is_that_of_the_continuations_that_are_right(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a policy that is right three times in four from steps that can still lead there, and never from others:
    one <step> of each row with steps is judged, and everything else of the batch is as it was."""
    asked = []

    def continued(_: RolloutData, texts: list[str], seeds: list[int], most: int) -> list[str]:
        assert most == TASK.width(2) and len(set(seeds)) == len(texts) and all(text.endswith(STEP) for text in texts)
        asked.extend(texts)
        found = []
        for i, text in enumerate(texts):
            question, style, written = text.partition(" <search>")
            right = TASK.told(question)[-1][-1]
            fine = TASK.reachable(question + style, written)[-1] and i % 4
            found.append(f"</think> {right if fine else (int(right) + 1) % 10}")
        return found

    monkeypatch.setattr(RolloutData, "continued", continued)
    exact, judged = TaskData(TASK, batch_size=8).training_batch(3), rollouts(policy).training_batch(3)
    assert all(torch.equal(exact[name], judged[name]) for name in ("input_ids", "labels"))
    seen = set()
    for truth, value in zip(exact["values"], judged["values"], strict=True):
        places = (value >= 0).nonzero().flatten().tolist()
        assert len(places) == bool((truth >= 0).any())
        for place in places:
            assert value[place] == 0.75 * truth[place] and truth[place] >= 0
            seen.add(float(value[place]))
    assert seen == {0.0, 0.75} and len(asked) == 4 * int((judged["values"] >= 0).sum())


def test_a_batch_is_a_function_of_its_number_and_the_policy_itself_writes(policy: Path) -> None:
    """Made again it is the same; and what continues is `mull.generate`, row by row, by the seeds that it is given."""
    one, same, other = (rollouts(policy, rollouts=1).training_batch(number) for number in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one) and not torch.equal(one["values"], other["values"])
    data = rollouts(policy, rollouts=2, temperature=0.7, iterations=2)
    text = "a = 3 ; b = a + 1 ; c = b + 1 ; ? c <search> a = 3 <step>"
    found = data.continued([text, text, text.removesuffix(" a = 3 <step>")], [5, 6, 7], TASK.width(2))
    alone = mull.generate(
        mull.load(policy), text, iterations=2, temperature=0.7, max_new_tokens=TASK.width(2),
        generator=torch.Generator().manual_seed(6),
    ).text  # fmt: skip
    assert found[1] == alone != found[0]


def test_bad_input_is_refused_in_a_sentence(policy: Path) -> None:
    """And a policy is not read before a batch is asked for: a folder from anybody may name one."""
    assert rollouts(Path("nowhere")).policy == "nowhere"
    with pytest.raises(ValueError, match="the parity task writes no steps to judge: name styles"):
        RolloutData(Parity(8), str(policy))
    with pytest.raises(ValueError, match="temperature is 0: rollouts that are all alike judge nothing"):
        rollouts(policy, temperature=0)
    with pytest.raises(ValueError, match="rollouts is 0: it must be 1 or more"):
        rollouts(policy, rollouts=0)
