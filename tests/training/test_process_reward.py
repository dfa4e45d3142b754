"""The loss that teaches the process reward: by hand, what it moves, and whole runs that it starts and joins."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

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
HEAD = {"value_head.weight", "value_head.bias"}


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
    unlabelled = {name: column.clone() for name, column in batch.items()}  # one row is judged and has nothing to learn:
    b = int((batch["values"] >= 0).any(dim=1).int().argmax())  # it weighs as much as the others all the same
    unlabelled["labels"][b] = IGNORE
    less = LastIteration()(model(batch["input_ids"][b : b + 1], 2), batch["labels"][b : b + 1]).item()
    assert by_row.of_batch(out, unlabelled).item() == pytest.approx((sum(rows) - less) / 6, rel=1e-5)
    assert int(by_row.counted(unlabelled).sum()) == 6
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
    assert moved == HEAD if alone else moved > HEAD and {"embedding.weight", "final_norm.weight"} <= moved


def test_the_head_learns_what_it_is_told_behind_a_frozen_model() -> None:
    """Behind a model that knows nothing the head alone learns to tell wrong steps from right ones, better than any
    constant does on steps it has not seen. From judgements that are tossed it learns nothing; and told the opposite of
    everything, it learns the opposite."""

    def told(noise: float, sign: float = 1.0) -> tuple[torch.Tensor, float]:
        task = ModChain(2, modulus=5, distractors=0, variables=4, styles={"search": 1}, traces=Traces(0.5, noise=noise))
        given, loss = TaskData(task, batch_size=150, validation_examples=4), ProcessReward(alone=True)
        model = network(d_model=32, vocab_size=given.vocab_size).double()
        TrainingModule(model, Fixed(1), loss=loss).freeze_others()
        head: Any = model.value_head
        with torch.no_grad():
            head.weight.mul_(sign)
        taught, unseen = given.training_batch(0), given.training_batch(1)
        read: list[torch.Tensor] = []  # what the head reads, which stays as it is
        hook = head.register_forward_pre_hook(lambda _, x: read.append(x[0]))
        first, later = model(taught["input_ids"], 1), model(unseen["input_ids"], 1)
        hook.remove()
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05, weight_decay=0.0)
        for _ in range(50):
            optimizer.zero_grad()
            loss.of_batch(replace(first, value=head(read[0]).squeeze(-1)), taught).backward()
            optimizer.step()
        left = loss.of_batch(replace(later, value=head(read[1]).squeeze(-1)), unseen)
        share = unseen["values"][unseen["values"] >= 0].mean().item()
        constant = -share * math.log(share) - (1 - share) * math.log(1 - share)
        return torch.cat([each.detach().flatten() for each in head.parameters()]), constant - left.item()

    (right, gained), (opposite, also), (_, tossed) = told(0.0), told(1.0, -1.0), told(0.5)
    assert gained > 0.004 and also == pytest.approx(gained, rel=1e-4) and tossed < 0.002
    torch.testing.assert_close(opposite, -right, rtol=1e-6, atol=1e-6)


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
    with pytest.raises(ValueError, match=r"weight 0\.3 weighs the term against cross entropies"):
        ProcessReward(0.3, alone=True)
    with pytest.raises(ValueError, match="afresh begins a process reward anew behind a finished model: set alone"):
        ProcessReward(afresh=True)


def test_other_losses_do_not_ask_for_it() -> None:
    """A head that nothing trains must not stop devices that wait for every gradient."""
    assert TrainingModule(network(), Fixed(2)).may_leave_out
    assert not TrainingModule(network(), Fixed(2), loss=ProcessReward()).may_leave_out


# --------------------------------------------------------------------------------------------------------- whole runs


def configuration(tmp_path: Path, **model: object) -> list[str]:
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


def folder_of(place: Path, model: mull.models.LanguageModel) -> Path:
    mull.save(model, place, tokenizer=data().tokenizer)
    return place


def reward(tmp_path: Path, start: Path, name: str, **options: object) -> dict[str, torch.Tensor]:
    """The weights after a run from a folder with the process reward alone."""
    loss = {"class_path": "mull.training.losses.ProcessReward", "init_args": {"alone": True, **options}}
    recipe = {"class_path": "mull.training.optimizers.AdamW", "init_args": {"lr": 0.1, "weight_decay": 0.5}}
    args = configuration(tmp_path, loss=loss, optimizer=recipe)
    found = train([
        *args, "--from", str(start), "--output", str(tmp_path / name),
        "--model.network.init_args.config.value_head", "true",
    ])  # fmt: skip
    return mull.load(found).state_dict()


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less is measured at the end of a run."""
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))


@pytest.mark.usefixtures("fewer")
def test_a_finished_model_gains_a_reward_and_keeps_its_weights(tmp_path: Path) -> None:
    """`mull train --from FOLDER`: a fresh head is trained alone, everything else is as it was to the bit."""
    first = folder_of(tmp_path / "first", network(value_head=False, stop_tokens=data().stop_tokens))
    weights, now = mull.load(first).state_dict(), reward(tmp_path, first, "second")
    assert {*now} - {*weights} == HEAD
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    assert now["value_head.bias"].any()  # it started at zero


def test_a_reward_alone_needs_a_model(tmp_path: Path) -> None:
    """Without --from all else would be frozen as it began, and a folder be written that answers nothing."""
    loss = {"class_path": "mull.training.losses.ProcessReward", "init_args": {"alone": True}}
    args = configuration(tmp_path, loss=loss)
    with pytest.raises(ValueError, match=r"ProcessReward trains a part of a finished model.* with --from"):
        train([*args, "--output", str(tmp_path / "out"), "--model.network.init_args.config.value_head", "true"])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fewer")
def test_a_reward_that_begins_afresh_knows_nothing_of_the_old_one(tmp_path: Path) -> None:
    """From two folders that differ in nothing but the old head the same head comes, to the bit, and it is that of a
    folder without one; without `afresh` the old ones are gone on with, and stay apart."""
    model = network(stop_tokens=data().stop_tokens)
    one = folder_of(tmp_path / "one", model)
    torch.nn.init.normal_(model.value_head.weight, std=3.0)  # type: ignore[union-attr]
    other = folder_of(tmp_path / "other", model)
    bare = network(value_head=False, stop_tokens=data().stop_tokens)
    bare.load_state_dict({name: weight for name, weight in model.state_dict().items() if name not in HEAD})
    without = folder_of(tmp_path / "without", bare)
    found = [reward(tmp_path, each, f"anew-{each.name}", afresh=True) for each in (one, other, without)]
    assert all(torch.equal(found[0][name], each[name]) for each in found for name in found[0])
    old = model.state_dict()
    assert all(torch.equal(found[0][name], old[name]) == (name not in HEAD) for name in old)
    on = [reward(tmp_path, each, f"on-{each.name}")["value_head.weight"] for each in (one, other)]
    assert (on[0] - on[1]).abs().max() > 1 < (on[1] - found[1]["value_head.weight"]).abs().max()


@pytest.mark.usefixtures("fewer")
def test_data_without_labels_goes_with_the_reward_alone(tmp_path: Path) -> None:
    """One line, before anything is written or a policy is read; and with it a model learns from what it writes."""
    start = folder_of(tmp_path / "start", network(stop_tokens=data().stop_tokens))
    own = {"class_path": "mull.training.data.OwnTextData", "init_args": {"policy": "nowhere"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": own}))
    more = ["--config", str(tmp_path / "own.yaml"), "--from", str(start), "--output", str(tmp_path / "out")]
    for loss in (None, {"class_path": "mull.training.losses.ProcessReward"}):
        with pytest.raises(ValueError, match=r"OwnTextData judges steps and has no tokens to learn.*with alone: true"):
            train([*configuration(tmp_path, loss=loss), *more])
    rollouts = ["--data", "mull.training.data.RolloutData", "--data.init_args.policy", "nowhere"]
    for other in (["--data.init_args.share", "0.5"], rollouts):
        with pytest.raises(ValueError, match=r"Data has a policy write texts .* LastIteration does not learn: take"):
            train([*configuration(tmp_path, loss=None), *more, *other])
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("*.yaml"))
    alone = {"class_path": "mull.training.losses.ProcessReward", "init_args": {"alone": True}}
    written = configuration(tmp_path, loss=alone)
    folder = train([*written, *more, "--data.init_args.policy", str(start), "--data.init_args.temperature", "2.0"])
    before, after = mull.load(start).state_dict(), mull.load(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in HEAD)


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
