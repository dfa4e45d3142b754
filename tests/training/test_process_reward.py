"""The loss that teaches the process reward: by hand, what it moves, and whole runs that it starts and joins."""

import math

import pytest
import torch
import yaml

import mull
from mull.models.families import FAMILIES
from mull.training.data import ModChain, Parity, TaskData, Traces
from mull.training.data.task import IGNORE
from mull.training.iterations import Fixed
from mull.training.losses import LastIteration, ProcessReward
from mull.training.module import TrainingModule
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice

STYLES = {"direct": 1.0, "correct": 1.0, "search": 1.0}


def data(**options: object) -> TaskData:
    task = ModChain(2, modulus=5, distractors=1, variables=6, styles=STYLES, traces=Traces(wrong=0.5))
    return TaskData(task, batch_size=6, validation_examples=4, **options)  # type: ignore[arg-type]


def network(family: str = "recurrent_depth", **changes: object) -> mull.models.LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": data().vocab_size, "d_model": 16, "n_heads": 2, "d_ff": 24, "max_length": 128}
    kind = FAMILIES[family]
    return kind(kind.config_class(**{**shape, "value_head": True, **changes}))


def test_it_is_what_is_written_by_hand() -> None:
    """Over every judged position, in Python's own logarithms: joined to the cross entropy by scored token, and alone as
    a mean over judged ones. Judgements that are shares count as shares."""
    batch, model = data().training_batch(0), network()
    batch["values"][0, :] = torch.where(batch["values"][0] >= 0, 0.25, -1.0)
    out = model(batch["input_ids"], 2)
    terms = []
    for said, value in zip(out.value.flatten().tolist(), batch["values"].flatten().tolist(), strict=True):
        if value >= 0:
            chance = 1 / (1 + math.exp(-said))
            terms.append(-value * math.log(chance) - (1 - value) * math.log(1 - chance))
    scored = int((batch["labels"] != IGNORE).sum())
    assert 5 < len(terms) < scored
    plain = LastIteration()(out, batch["labels"]).item()
    joined, alone = ProcessReward(0.3), ProcessReward(alone=True)
    assert joined.of_batch(out, batch).item() == pytest.approx(plain + 0.3 * sum(terms) / scored, rel=1e-5)
    assert alone.of_batch(out, batch).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    rows = []
    for b in range(6):
        alike = {name: column[b : b + 1] for name, column in batch.items()}
        one = model(alike["input_ids"], 2)
        reward = ProcessReward(alone=True).of_batch(one, alike).item()  # 0 for a direct answer: no step is judged
        rows.append(LastIteration()(one, alike["labels"]).item() + 0.3 * reward)
    by_row = ProcessReward(0.3, by_row=True)
    assert by_row.of_batch(out, batch).item() == pytest.approx(sum(rows) / 6, rel=1e-5)
    assert int(by_row.counted(batch).sum()) == 6
    assert (int(joined.counted(batch).sum()), int(alone.counted(batch).sum())) == (scored, len(terms))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alone", [True, False])
def test_alone_it_moves_the_head_alone_and_joined_everything(family: str, alone: bool) -> None:
    """Guards what is frozen: gradients, by name."""
    model = network(family)
    iterations = None if model.config.default_iterations is None else Fixed(2)
    module = TrainingModule(model, iterations, loss=ProcessReward(alone=alone))
    module.freeze_others()
    batch = data().training_batch(0)
    module.loss.of_batch(module.output_for(batch["input_ids"], 0), batch).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    head = {"value_head.weight", "value_head.bias"}
    assert moved == head if alone else moved > head and {"embedding.weight", "final_norm.weight"} <= moved


def test_what_has_no_reward_or_no_judgements_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this RecurrentDepthTransformer has none: set .*value_head to true"):
        TrainingModule(network(value_head=False), Fixed(2), loss=ProcessReward())
    model, batch = network(), TaskData(Parity(8), batch_size=2).training_batch(0)
    with pytest.raises(ValueError, match=r"needs data whose steps are judged: a task with traces"):
        ProcessReward().of_batch(model(batch["input_ids"], 1), batch)
    with pytest.raises(ValueError, match="weight must be a number above 0, not 0"):
        ProcessReward(0)
    with pytest.raises(ValueError, match="by_row weighs cross entropies, which alone leaves out"):
        ProcessReward(by_row=True, alone=True)


def test_other_losses_do_not_ask_for_it() -> None:
    """A head that nothing trains must not stop devices that wait for every gradient."""
    assert TrainingModule(network(), Fixed(2)).may_leave_out
    assert not TrainingModule(network(), Fixed(2), loss=ProcessReward()).may_leave_out


# --------------------------------------------------------------------------------------------------------- whole runs


def configuration(tmp_path, **model: object) -> list[str]:  # type: ignore[no-untyped-def]
    """A run of a tiny reasoner on its data."""
    small = {"d_model": 16, "n_heads": 2, "d_ff": 24, "max_length": 128}
    task = {"operations": 2, "modulus": 5, "distractors": 1, "variables": 6, "styles": STYLES}
    run = {
        "threads": 1,
        "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 2},
        "model": {
            "network": {"class_path": "mull.RecurrentDepthTransformer", "init_args": {"config": small}},
            "iterations": {"class_path": "mull.training.iterations.Fixed", "init_args": {"mean": 2}},
            "validate_at": [1, 2],
            **model,
        },
        "data": {
            "class_path": "mull.training.data.TaskData",
            "init_args": {
                "task": {"class_path": "mull.training.data.ModChain", "init_args": task},
                "batch_size": 4,
                "validation_examples": 4,
            },
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return ["--config", str(tmp_path / "run.yaml")]


def test_a_finished_model_gains_a_reward_and_keeps_its_weights(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """`mull train --from FOLDER`: a fresh head is trained alone, everything else is as it was to the bit."""
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
    first = tmp_path / "first"
    mull.save(network(value_head=False, stop_tokens=data().stop_tokens), first, tokenizer=data().tokenizer)
    reward = {"class_path": "mull.training.losses.ProcessReward", "init_args": {"alone": True}}
    second = train([
        *configuration(tmp_path, loss=reward), "--from", str(first), "--output", str(tmp_path / "second"),
        "--model.network.init_args.config.value_head", "true",
    ])  # fmt: skip
    before, after = mull.load(first), mull.load(second)
    weights, now = before.state_dict(), after.state_dict()
    assert {*now} - {*weights} == {"value_head.weight", "value_head.bias"}
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    assert now["value_head.bias"].any()  # it started at zero


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_the_same_batches_in_the_same_order(workers: int) -> None:
    """Whatever their number, and from the batch that a resumed run goes on with."""
    made = data(workers=workers)
    made.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 1, "global_step": 5,
                                        "accumulate_grad_batches": 2})()  # fmt: skip
    loader = iter(made.train_dataloader())
    for number in range(10, 15):
        batch, expected = next(loader), data().training_batch(number)
        assert batch.keys() == expected.keys() == {"input_ids", "labels", "values"}
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
