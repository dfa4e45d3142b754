"""What is watched: loss by depth, collapse, an ignored loop, speed."""

import itertools
import math
import types
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, ModelOutput, Reading
from mull.training import callbacks
from mull.training.callbacks import Calibration, DepthValidation, Throughput, token_correlation
from mull.training.cli import read_configuration
from mull.training.iterations import Fixed
from mull.training.module import TrainingModule
from mull.training.thresholds import calibrate


class Staged(nn.Module):
    """Answers as told: right with a confidence that grows with the count or does not, from spread or equal states."""

    def __init__(self, used_loop, collapsed):
        super().__init__()
        self.used_loop, self.collapsed = used_loop, collapsed

    def answer(self, input_ids, count):
        return Reading(logits=F.one_hot(input_ids, 5) * float(count if self.used_loop else 2))

    def forward(self, input_ids, iterations=1, read_at=()):
        readings = {count: self.answer(input_ids, count) for count in read_at}
        states = torch.randn(*input_ids.shape, 32, generator=torch.Generator().manual_seed(0))
        if self.collapsed:
            states = states[:, :1].expand(states.shape) + 1e-3 * states
        return ModelOutput(
            logits=self.answer(input_ids, iterations).logits, state=states, iterations=input_ids, readings=readings
        )


def validate(used_loop=True, collapsed=False, iterations=4, after_step=0, wrong=0):
    """(metrics, warnings of ours) of a validation over two batches; the first `wrong` labels are not as predicted."""
    ids = torch.arange(12).view(2, 6) % 5
    labels = ids.clone()
    labels.view(-1)[:wrong] = (labels.view(-1)[:wrong] + 1) % 5
    labels[:, -1] = -100
    batches = [{"input_ids": ids, "labels": labels}, {"input_ids": ids[:1], "labels": labels[:1]}]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[DepthValidation(after_step=after_step)],
    )  # fmt: skip
    module = TrainingModule(Staged(used_loop, collapsed), Fixed(iterations) if iterations else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        metrics = trainer.validate(module, loader, verbose=False)[0]
    ours = [str(w.message) for w in caught if "step 0" in str(w.message)]
    return metrics, ours


@pytest.mark.parametrize("repeated", [False, True])
def test_a_process_reward_is_validated_by_the_judged_steps_alone(repeated, monkeypatch):
    """By hand, over two batches of unlike size and two counts: the loss and the share on the right side of one half,
    whose means are over judged steps and not over scored tokens; what another device was dealt too is left out, and
    without judgements nothing of it is logged."""
    monkeypatch.setattr(callbacks, "is_repeat", lambda _, batch_idx, __: repeated and batch_idx == 1)

    class Judging(Staged):
        def answer(self, input_ids, iterations):
            said = (input_ids - 2.0) * iterations
            return Reading(logits=super().answer(input_ids, iterations).logits, value=said)

    ids = torch.arange(12).view(2, 6) % 5
    values = torch.tensor([[1, -1, 0.25, -1, -1, 0], [-1, -1, 1, -1, -1, -1]])
    batches = [{"input_ids": ids, "labels": ids, "values": values}]
    batches += [{"input_ids": ids[:1], "labels": torch.full_like(ids[:1], -100), "values": values[:1]}]
    plain = [{name: value for name, value in batch.items() if name != "values"} for batch in batches]
    once = batches[:1] if repeated else batches
    read, told = (torch.cat([batch[name].flatten() for batch in once]).tolist() for name in ("input_ids", "values"))
    judged_steps = [(token - 2.0, value) for token, value in zip(read, told, strict=True) if value >= 0]
    for given, judged in ((batches, judged_steps), (plain, [])):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[DepthValidation()],
        )  # fmt: skip
        module = TrainingModule(Judging(True, False), Fixed(4), validate_at=[1, 4])
        metrics = trainer.validate(module, torch.utils.data.DataLoader(given, batch_size=None), verbose=False)[0]
        assert bool(judged) == any("reward" in name for name in metrics)
        for count in (1, 4) if judged else ():
            losses = [
                math.log1p(math.exp(count * z)) * (1 - v) + math.log1p(math.exp(-count * z)) * v for z, v in judged
            ]
            right = [(z > 0) == (v > 0.5) for z, v in judged]
            assert metrics[f"val/reward_loss@{count}"] == pytest.approx(sum(losses) / len(judged), rel=1e-5)
            assert metrics[f"val/reward_accuracy@{count}"] == pytest.approx(sum(right) / len(judged))
            assert metrics["val/reward_loss"] == metrics["val/reward_loss@4"]
            assert 0 < sum(right) < len(judged)


def test_a_healthy_model_is_left_in_peace():
    """Guards against false alarms."""
    assert validate()[1] == []


def test_collapse_is_told():
    """Guards the first quiet failure: positions that all carry one vector."""
    metrics, told = validate(collapsed=True)
    assert metrics["val/token_correlation"] > 0.98
    assert len(told) == 1 and "collapsed" in told[0]


def test_an_ignored_loop_is_told():
    """Guards the second: the same loss at 1 iteration and at the mean."""
    told = validate(used_loop=False)[1]
    assert len(told) == 1 and "the loop is ignored" in told[0] and "at 4" in told[0]


@pytest.mark.parametrize("iterations", [1, None])
def test_no_loop_can_be_ignored_where_there_is_none(iterations):
    """Guards runs at one iteration and without a loop against the second alarm."""
    assert validate(used_loop=False, iterations=iterations)[1] == []


def test_a_fresh_model_is_not_told_off():
    """Guards after_step."""
    assert validate(used_loop=False, collapsed=True, after_step=1)[1] == []


def test_metrics_are_means_over_scored_positions_by_count():
    """Guards names and values: loss and accuracy at each count over all batches, and at the mean without a count."""
    metrics, _ = validate(wrong=2)
    assert set(metrics) == {f"val/{what}@{count}" for what in ("loss", "accuracy") for count in (1, 2, 4, 8, 16)} | {
        "val/loss", "val/accuracy", "val/token_correlation",
    }  # fmt: skip
    scored, wrong = 15, 4  # 10 positions in the first batch, 5 in the second, two of each mislabelled
    for count in (1, 2, 4, 8, 16):
        nats = torch.logsumexp(torch.tensor([float(count), 0, 0, 0, 0]), 0).item()
        assert metrics[f"val/loss@{count}"] == pytest.approx(nats - count * (scored - wrong) / scored, rel=1e-5)
        assert metrics[f"val/accuracy@{count}"] == pytest.approx((scored - wrong) / scored)
    assert metrics["val/loss"] == metrics["val/loss@4"]


def staged_batches():
    """Three batches of which the scored positions are 10, 5 and 1, with a mistake each in the first two."""
    ids = torch.arange(12).view(2, 6) % 5
    labels = ids.clone()
    labels[:, -1] = -100
    labels[0, 0] = (labels[0, 0] + 1) % 5
    few = torch.full_like(ids[:1], -100)
    few[0, 2] = ids[0, 2]
    pairs = [(ids, labels), (ids[:1], labels[:1]), (ids[:1], few)]
    return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]


def staged_metrics(devices, batches):
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[DepthValidation()],
    )  # fmt: skip
    module = TrainingModule(Staged(True, False), Fixed(4))
    return trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)[0]


@pytest.mark.filterwarnings("ignore")  # Lightning's advice for tests on several devices
@pytest.mark.parametrize("count", [1, 3])
def test_two_devices_measure_what_one_measures(count):
    """Guards the sums: ranks with different numbers of scored positions, a batch that is dealt out twice to make them
    even, and a rank that has nothing of its own."""
    batches = staged_batches()[:count]
    one, two = staged_metrics(1, batches), staged_metrics(2, batches)
    assert one.keys() == two.keys() and len(one) > 10
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-6), name


def test_a_validation_that_scores_nothing_says_so():
    """Guards against a division by zero in the middle of a run."""
    batches = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in staged_batches()]
    with pytest.warns(UserWarning, match="no position of the validation batches is scored"):
        assert staged_metrics(1, batches) == {}
    assert "val/loss" in staged_metrics(1, [*batches, staged_batches()[0]])  # some do


def test_a_network_without_a_loop_has_one_loss():
    """Guards the baseline's metrics."""
    assert set(validate(iterations=None)[0]) == {"val/loss", "val/accuracy", "val/token_correlation"}


def slow_correlation(state):
    """Mean cosine of centred states over all pairs of different positions, pair by pair."""
    cosines = []
    for sequence in state:
        centred = [vector - vector.mean() for vector in sequence]
        for i, j in itertools.permutations(range(len(centred)), 2):
            cosines.append(F.cosine_similarity(centred[i], centred[j], dim=0))
    return torch.stack(cosines).mean()


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 5, 8), (2, 7, 4)])
def test_token_correlation_equals_its_slow_twin(shape):
    """Guards the closed form, shared offsets and states without direction included."""
    state = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    torch.testing.assert_close(token_correlation(state), slow_correlation(state))
    state[0, 0] = 7.0
    torch.testing.assert_close(token_correlation(state), slow_correlation(state))


def test_token_correlation_at_its_ends():
    """Guards 1 for equal positions, whatever their size, and 0 for a single one."""
    one = torch.randn(2, 1, 8)
    assert token_correlation(one * torch.tensor([1.0, 2.0, 5.0])[:, None]).item() == pytest.approx(1)
    assert token_correlation(one).item() == 0


def test_throughput_is_tokens_over_seconds_without_validation(monkeypatch):
    """Guards the rate: all ranks' tokens, no rate from a single batch, and validation is not the next batch's time."""
    clock = iter([0.0, 2.0, 100.0, 102.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    logged = []
    module = types.SimpleNamespace(log=lambda name, value, **_: logged.append((name, value)))
    trainer, batch, throughput = types.SimpleNamespace(world_size=2), {"input_ids": torch.zeros(4, 5)}, Throughput()
    for index in range(4):
        throughput.on_train_batch_end(trainer, module, None, batch, index)
        if index == 1:
            throughput.on_validation_end(trainer, module)
    assert logged == [("train/tokens_per_second", pytest.approx(20.0))] * 2


def inner_thinking_run(auxiliary_weight):
    """(module, batch, trainer) of a small inner-thinking network."""
    torch.manual_seed(0)
    config = InnerThinkingConfig(vocab_size=7, d_model=16, n_heads=2, d_ff=16, n_layers=2, max_length=32)
    module = TrainingModule(InnerThinkingTransformer(config), Fixed(4), auxiliary_weight=auxiliary_weight)
    ids = torch.randint(7, (4, 16))
    return module, {"input_ids": ids, "labels": ids}


def test_thresholds_are_set_before_a_validation():
    """Guards validation at the capacity asked for: a router that has moved is calibrated first."""
    module, batch = inner_thinking_run(0.001)
    network = module.network
    with torch.no_grad():
        network.layers[1].router += 3
    before = network.layers[1].thresholds.clone()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Calibration()],
    )  # fmt: skip
    trainer.validate(module, torch.utils.data.DataLoader([batch] * 2, batch_size=None), verbose=False)
    assert not torch.equal(before, network.layers[1].thresholds)
    met = network.eval()(batch["input_ids"], capacity=0.5).selected.float().mean(dim=(0, 1))
    assert (met - 0.5).abs().max() < 0.04  # 64 positions, calibrated on the same


@pytest.mark.filterwarnings("ignore:.*WeightAveraging doesn't support sharding")  # as a run does
def test_averaged_weights_are_validated_at_the_capacity_asked_for():
    """Guards what early stopping goes by: the average has thresholds of its own, not those of the live weights."""
    module, batch = inner_thinking_run(0.001)
    seen = []

    class Far(EMAWeightAveraging):  # the live routers are far from their average
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            pl_module.network.layers[1].router.data.mul_(-3)

        def on_validation_batch_start(self, _, pl_module, *__):
            seen.append(pl_module.network(batch["input_ids"], capacity=0.2).selected.float().mean(dim=(0, 1)))

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, val_check_interval=1, num_sanity_val_steps=0,
        callbacks=[Far(decay=0.5), Calibration()],
    )  # fmt: skip
    batches = torch.utils.data.DataLoader([batch] * 2, batch_size=None)
    trainer.fit(module, batches, torch.utils.data.DataLoader([batch], batch_size=None))
    assert len(seen) == 2 and all((met - 0.2).abs().max() < 0.04 for met in seen), seen


def test_averages_are_put_in_place_before_thresholds_are_set(tmp_path):
    """Guards the order of callbacks: thresholds are set for the weights that stand there then."""
    reference = Path(__file__).parents[2] / "configs" / "reference.yaml"  # which averages weights
    run = read_configuration(["--config", str(reference), "--output", str(tmp_path / "run")])
    order = [type(each) for each in run.trainer.callbacks]
    assert order.index(EMAWeightAveraging) < order.index(Calibration)


def test_thresholds_are_of_all_difficulties():
    """Guards a capacity over all difficulties, which come one after the other and have lengths of their own: of the
    first ones alone, thresholds are those of other texts. A few tokens are taken evenly, and padding is not counted."""
    network = inner_thinking_run(0.001)[0].network.eval()
    with torch.no_grad():
        network.layers[1].router.copy_(3 * network.embedding.weight[0])  # one symbol stands out
    easy = [{"input_ids": torch.randint(0, 3, (32, 8))} for _ in range(4)]
    hard = [{"input_ids": torch.randint(3, 7, (32, length))} for length in (12, 16, 16, 16)]

    def met():
        with torch.no_grad():
            parts = [network(batch["input_ids"], capacity=0.3).selected.float().sum((0, 1)) for batch in easy + hard]
        return sum(parts) / sum(batch["input_ids"].numel() for batch in easy + hard)

    for n_tokens in (10**6, 1000):
        calibrate(network, easy + hard, n_tokens)
        assert (met() - 0.3).abs().max() < 0.03, n_tokens
    calibrate(network, easy)
    assert (met() - 0.3).abs().max() > 0.1  # the guard: it matters whose thresholds they are
    calibrate(network, [])


def test_the_auxiliary_loss_reaches_the_training_loss(monkeypatch):
    """Guards the router's own loss: it is added with its weight, and 0 leaves it out."""
    losses = {}
    for weight in (0.0, 10.0):
        module, batch = inner_thinking_run(weight)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        monkeypatch.setattr(module, "batch_index", lambda _: 0)
        losses[weight] = module.training_step(batch, 0)
        auxiliary = module.output_for(batch["input_ids"], 0).auxiliary_loss
    assert (losses[10.0] - losses[0.0]).item() == pytest.approx(10 * auxiliary.item(), rel=1e-4)
    with pytest.raises(ValueError, match="auxiliary_weight must be a number of at least 0, not -1"):
        inner_thinking_run(-1)
