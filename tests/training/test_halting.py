"""A gate that is trained after the model: what is asked of it, that nothing else moves, and where it may come from."""

import dataclasses
import math

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mull
from mull.models import IteratedModel, ModelOutput, Reading
from mull.models.families import FAMILIES
from mull.models.labels import IGNORE
from mull.training.data import Parity, TaskData
from mull.training.iterations import Fixed
from mull.training.losses import HaltOnImprovement, LastIteration
from mull.training.module import TrainingModule
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes

HALTING = {"class_path": "mull.training.losses.HaltOnImprovement"}
GATE = {"exit_gate.weight", "exit_gate.bias"}


def output_of(logits, exit_logits):
    """An output with a reading for each of R counts: logits (R, B, T, V), exit_logits (R, B, T)."""
    readings = {t: Reading(logits=x, exit_logit=g) for t, (x, g) in enumerate(zip(logits, exit_logits, strict=True), 1)}
    used = torch.full(logits.shape[1:3], len(logits))
    state = torch.zeros(*used.shape, 1)
    return ModelOutput(logits=logits[-1], exit_logit=exit_logits[-1], state=state, iterations=used, readings=readings)


def nats(logits, label):
    return math.log(sum(math.exp(value) for value in logits.tolist())) - float(logits[label])


def by_hand(logits, gates, labels, sharpness, least):
    """The mean over positions and t = 2 .. R of -w log(1 - lambda) - (1 - w) log(lambda), from the definitions."""
    terms = []
    for b in range(labels.shape[0]):
        for place in range(labels.shape[1]):
            if labels[b, place] == IGNORE:
                continue
            losses = [nats(x[b, place], labels[b, place]) for x in logits]
            for t in range(1, len(losses)):
                wish = 1 / (1 + math.exp(-sharpness * (max(0.0, losses[t - 1] - losses[t]) - least)))
                leave = 1 / (1 + math.exp(-float(gates[t, b, place])))
                terms.append(-wish * math.log(1 - leave) - (1 - wish) * math.log(leave))
    return sum(terms) / len(terms)


@given(batch=st.integers(1, 3), positions=st.integers(1, 4), iterations=st.integers(2, 5), seed=st.integers(0, 99))
def test_the_loss_is_its_formula_position_by_position(batch, positions, iterations, seed):
    """Guards which iteration's gate is asked, the direction of the wish, its two numbers, and the mean."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(iterations, batch, positions, 5, generator=generator)
    gates = torch.randn(iterations, batch, positions, generator=generator)
    labels = torch.randint(5, (batch, positions), generator=generator)
    labels[torch.rand(batch, positions, generator=generator) < 0.3] = IGNORE
    labels[0, 0] = 1
    for loss in (HaltOnImprovement(), HaltOnImprovement(sharpness=3.0, least=0.4)):
        expected = by_hand(logits, gates, labels, loss.sharpness, loss.least)
        assert loss(output_of(logits, gates), labels).item() == pytest.approx(expected, rel=1e-4)


def test_the_defaults_are_those_of_the_paper():
    """Guards k = 50 and gamma = 0.005 of arXiv 2510.25741."""
    loss = HaltOnImprovement()
    assert (loss.sharpness, loss.least) == (50.0, 0.005) and list(loss.read_at(4)) == [1, 2, 3, 4]


def test_an_iteration_that_helps_is_gone_on_from_and_one_that_does_not_is_halted_at():
    """Guards the sign that everything hangs on: the gate falls where the loss fell, and rises where it stood still."""
    better = torch.tensor([[[[0.0, 0.0]]], [[[3.0, 0.0]]], [[[3.0, 0.0]]]])
    gates = torch.zeros(3, 1, 1, requires_grad=True)
    HaltOnImprovement()(output_of(better, gates), torch.tensor([[0]])).backward()
    unused, helped, idle = gates.grad.flatten().tolist()
    assert unused == 0 and helped > 0 > idle  # a positive gradient lowers the logit


def test_a_batch_of_one_iteration_and_one_that_scores_nothing_teach_nothing():
    """Guards against 0 / 0 where there is no improvement to look at."""
    for count, labels in ((1, torch.zeros(1, 2, dtype=torch.int64)), (3, torch.full((1, 2), IGNORE))):
        gates = torch.randn(count, 1, 2, requires_grad=True)
        loss = HaltOnImprovement()(output_of(torch.randn(count, 1, 2, 5), gates), labels)
        loss.backward()
        assert loss == 0 and not gates.grad.any()


def test_what_cannot_be_halted_is_refused_when_the_module_is_made():
    """Guards one clear line: families without a gate, a gate that is not there, counts by row, numbers out of range."""
    for family in FAMILIES.values():
        network = family(family.config_class(vocab_size=5, d_model=8, n_heads=2))
        if isinstance(network, IteratedModel) and network.can_halt:
            continue
        with pytest.raises(ValueError, match=r"this \w+ has none: set model\..*exit_gate to true"):
            TrainingModule(network, Fixed(2), loss=HaltOnImprovement())
    with pytest.raises(ValueError, match="one iteration count for the whole batch"):
        HaltOnImprovement().read_at(torch.tensor([1, 2]))
    for wrong in ({"sharpness": 0.0}, {"sharpness": math.nan}, {"least": -1.0}):
        with pytest.raises(ValueError, match="sharpness must be above 0 and least at least 0"):
            HaltOnImprovement(**wrong)


# --------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory, reliability):
    """The folder of a model without a gate."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        fewer(patch)
        return train([*reliability.arguments(folder, {}), str(folder / "out"), "--trainer.max_steps", "2"])


def fewer(patch):
    real = TaskData.evaluation_batches
    patch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))


def tune(start, folder, reliability, *options, **model):
    """Train the gate of a folder's model; return the new folder."""
    folder.mkdir()
    args = reliability.arguments(folder, {})
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["model"] = {"network": {"init_args": {"config": {"exit_gate": True}}}} | {
        "iterations": {"class_path": "mull.training.iterations.Fixed", "init_args": {"mean": 3}},
        "loss": HALTING, "warmup_steps": 0, **model,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return train([*args, str(folder / "out"), "--from", str(start), "--trainer.max_steps", "3", *options])


@pytest.mark.parametrize("optimizer", ["AdamW", "MuonAdamW"])
def test_a_fresh_gate_is_trained_and_every_other_weight_stays_to_the_bit(
    plain, tmp_path, reliability, monkeypatch, optimizer
):
    """Guards the freeze against weight decay, momentum and averages of weights, which round; the result has a gate that
    exits."""
    fewer(monkeypatch)
    recipe = {"class_path": f"mull.training.optimizers.{optimizer}", "init_args": {"lr": 0.1, "weight_decay": 0.5}}
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.999}}
    out = tune(plain, tmp_path / "run", reliability, f"--trainer.callbacks+={yaml.safe_dump(average)}",
               optimizer=recipe)  # fmt: skip
    before, after = mull.load(plain), mull.load(out)
    assert after.config == dataclasses.replace(before.config, exit_gate=True)
    old, new = before.state_dict(), after.state_dict()
    assert new.keys() - old.keys() == GATE and old.keys() <= new.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert new["exit_gate.bias"].any()  # it started at zero
    ids = torch.tensor([[0, 1, 0, 1]])
    least = mull.generate(after, ids, iterations=6, exit="gate:1.0", max_new_tokens=2)
    assert set(least.iterations.flatten().tolist()) == {1}  # whatever the gate says, it has halted some mass at once


def test_a_gate_that_is_there_goes_on_from_its_weights_and_one_cannot_be_lost(
    plain, tmp_path, reliability, monkeypatch
):
    """Guards a second helping: the folder's own gate is what is trained on; leaving it out is another architecture."""
    fewer(monkeypatch)
    first = tune(plain, tmp_path / "first", reliability)
    trained = mull.load(first).exit_gate.weight
    seen = []
    real = TrainingModule.training_step
    monkeypatch.setattr(
        TrainingModule, "training_step",
        lambda self, *rest: seen.append(self.network.exit_gate.weight.detach().clone()) or real(self, *rest),
    )  # fmt: skip
    tune(first, tmp_path / "second", reliability)
    assert torch.equal(seen[0], trained) and not torch.equal(seen[0], seen[-1])
    with pytest.raises(ValueError, match=r"config\.exit_gate is False, and True in .*leave it out"):
        tune(first, tmp_path / "third", reliability, "--model.network.init_args.config.exit_gate", "false", loss=None)


def test_nothing_of_the_loop_is_kept_for_a_backward_pass():
    """Guards the cost: with everything else frozen the graph does not grow with the depth of the loop alone."""
    torch.manual_seed(0)
    config = mull.RecurrentDepthConfig(vocab_size=8, d_model=16, n_heads=2, exit_gate=True)

    def kept(loss):
        sizes = []
        module = TrainingModule(mull.RecurrentDepthTransformer(config), Fixed(6), loss=loss)
        module.freeze_others()
        batch = TaskData(Parity(6), batch_size=2).training_batch(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            module.loss(module.output_for(batch["input_ids"], 0), batch["labels"])
        return sum(sizes)

    assert kept(HaltOnImprovement()) < kept(LastIteration()) / 8
