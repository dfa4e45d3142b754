"""The LightningModule under the Trainer: gradients, stops, depth draws, the validation sweep, networks of one's own."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    ModelOutput,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.training.data import Parity, TaskData
from mull.training.iterations import Fixed, IterationSampler, LogNormalPoisson, PoissonPerSequence, Progressive
from mull.training.losses import LastIteration
from mull.training.module import TrainingModule
from mull.training.optimizers import AdamW, MuonAdamW
from mull.training.run import train
from mull.training.skips import NonFiniteLossError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and batch sizes


def build(**chosen):
    torch.manual_seed(0)
    small = dict(vocab_size=8, d_model=16, n_heads=2, d_ff=16, max_length=32, mean_iterations=2)
    return RecurrentDepthTransformer(RecurrentDepthConfig(**(small | chosen)))


def fit(module, folder, steps=3, callbacks=(), **settings):
    """Train a module on short parity; return the trainer."""
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **settings,
    )  # fmt: skip
    trainer.fit(module, TaskData(Parity(length=6), batch_size=3, validation_examples=3))
    return trainer


@pytest.fixture
def ids():
    return torch.randint(8, (3, 6), generator=torch.Generator().manual_seed(1))


def gradients(loss, network):
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_the_window_reaches_the_network(ids):
    """Guards the gradient contract: the module's gradients are those of the last k iterations, and not those of all."""
    module = TrainingModule(build(initial_state="zero"), Fixed(5), backprop_iterations=2)
    found = gradients(module.output_for(ids, 0).logits.square().mean(), module.network)
    windowed = module.network(ids, iterations=5, backprop_iterations=2).logits.square().mean()
    expected = gradients(windowed, module.network)
    full = gradients(module.network(ids, iterations=5).logits.square().mean(), module.network)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found["injection.adapter.weight"], full["injection.adapter.weight"])


def test_a_window_that_the_sampler_draws_reaches_the_network(ids):
    """Guards the progressive loss: the gradients of a batch are those of its own n iterations without and k with."""
    sampler = Progressive(6, share=1.0)
    module = TrainingModule(build(initial_state="zero"), sampler)
    drawn = [(sampler(0, index, 3), sampler.window(0, index)) for index in range(20)]
    index = next(i for i, (count, window) in enumerate(drawn) if 1 < window < count - 1)
    found = gradients(module.output_for(ids, index).logits.square().mean(), module.network)
    count, window = drawn[index]
    windowed = module.network(ids, iterations=count, backprop_iterations=window).logits.square().mean()
    full = gradients(module.network(ids, iterations=count).logits.square().mean(), module.network)
    torch.testing.assert_close(found, gradients(windowed, module.network))
    assert not torch.allclose(found["injection.adapter.weight"], full["injection.adapter.weight"])
    with pytest.raises(ValueError, match="Progressive draws the gradient window of each batch: leave backprop_iter"):
        TrainingModule(build(), sampler, backprop_iterations=2)
    routed = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=2))
    with pytest.raises(ValueError, match="no gradient window: Progressive is refused"):
        TrainingModule(routed, sampler)


def test_memory_does_not_grow_with_depth(ids):
    """Guards the memory contract: what the graph keeps is the same at 4 and 40 iterations of one window."""

    def kept(iterations):
        sizes = []
        module = TrainingModule(build(), Fixed(iterations), backprop_iterations=2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            module.output_for(ids, 0)
        return sum(sizes)

    assert kept(40) == kept(4) > kept(1)


class Mostly(TaskData):
    """Parity whose second batch scores nothing."""

    def training_batch(self, number, rank=0, world_size=1):
        batch = super().training_batch(number, rank, world_size)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)} if number == 1 else batch


class Weights(pl.Callback):
    """Keeps the weights and the metrics after each step."""

    def __init__(self):
        self.seen, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))
        self.logged.append(trainer.logged_metrics.get("train/loss"))


class Descent(AdamW):
    """Gradient descent, in which no gradient is no change."""

    def build(self, network):
        return torch.optim.SGD(network.parameters(), lr=0.1)


def test_a_batch_that_scores_nothing_changes_nothing_and_is_no_failure(tmp_path):
    """Guards against a loss of 0 / 0, for which the learning rate was blamed: told, not learned from, not logged."""
    weights = Weights()
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[weights], limit_val_batches=0,
    )  # fmt: skip
    module = TrainingModule(build(), Fixed(2), optimizer=Descent(), warmup_steps=0, decay_share=0.0)
    with pytest.warns(UserWarning, match="a training batch scores no position"):
        trainer.fit(module, Mostly(Parity(length=6), batch_size=3, validation_examples=3))
    first, second, third = weights.seen
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert weights.logged[0] > 0 and weights.logged[1] in (None, weights.logged[0])


class Gradients(pl.Callback):
    """Keeps the gradients of the first step."""

    def on_before_optimizer_step(self, _, pl_module, __):
        self.found = {name: p.grad.clone() for name, p in pl_module.network.named_parameters()}


class Uneven(TaskData):
    """Parity of which item i scores its last 1 + i mod 5 positions, and items 2 and 3 none, whatever the batch size."""

    def training_batch(self, number, rank=0, world_size=1):
        batch = super().training_batch(number, rank, world_size)
        start = (number * world_size + rank) * self.batch_size
        for row, item in enumerate(range(start, start + self.batch_size)):
            batch["labels"][row, : None if item in (2, 3) else -1 - item % 5] = -100
        return batch


@pytest.mark.parametrize("optimizer", [Descent(), AdamW(), MuonAdamW()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(("accumulated", "size"), [(2, 4), (4, 2)])
def test_accumulated_batches_equal_the_whole_batch(tmp_path, accumulated, size, optimizer):
    """Guards the mean over all scored positions of a step: rows and batches score different numbers of them, one batch
    none; clipped, so that the norm is that of the whole step. Equal to rounding in double precision."""
    found = []
    for batches, rows in ((1, 8), (accumulated, size)):
        module = TrainingModule(build(initial_state="zero"), Fixed(2), optimizer=optimizer, warmup_steps=0)
        trainer = pl.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0, precision="64-true",
            accumulate_grad_batches=batches, gradient_clip_val=0.5,
        )  # fmt: skip
        trainer.fit(module, Uneven(Parity(length=6), batch_size=rows, validation_examples=3))
        found.append(torch.cat([p.detach().flatten() for p in module.network.parameters()]))
    # Muon orthogonalises in float32: a difference in the last digit becomes one in the seventh
    close = 1e-5 if isinstance(optimizer, MuonAdamW) else 1e-11
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=close)


def test_batches_that_score_alike_are_averaged_as_they_are(tmp_path):
    """Guards the bits of runs whose batches all score as many positions: no weight, and no factor."""
    module, factors = TrainingModule(build(), Fixed(2)), []
    real = module.weighting.factor
    module.weighting.factor = lambda *given: factors.append(real(*given)) or factors[-1]
    module.weighting.weight = lambda *given: (
        factors.append(type(module.weighting).weight(module.weighting, *given)) or 1
    )
    fit(module, tmp_path, steps=2, accumulate_grad_batches=3)
    assert factors == [1.0] * 8


@pytest.mark.parametrize("injection", ["concat", "add", "diagonal"])
def test_gradients_reach_every_parameter_under_bf16_with_a_truncated_window(tmp_path, injection):
    """Guards the autocast trap: weights cast without gradient must not be reused inside the window."""
    seen = Gradients()
    module = TrainingModule(build(injection=injection), Fixed(5), backprop_iterations=2, optimizer=MuonAdamW())
    fit(module, tmp_path, steps=1, callbacks=[seen], precision="bf16-mixed")
    assert [name for name, grad in seen.found.items() if grad is None or not grad.any() or grad.isnan().any()] == []


class Poisoned(LastIteration):
    """Loses the numbers on its third call: in its value, or only in its gradient."""

    def __init__(self, where):
        self.where, self.calls = where, 0

    def __call__(self, output, labels):
        self.calls += 1
        loss = super().__call__(output, labels)
        if self.calls < 3:
            return loss
        return loss * float("nan") if self.where == "loss" else loss + (output.logits.sum() * 0).sqrt()


class LastGood(pl.Callback):
    """Keeps the weights after every step."""

    def on_train_batch_end(self, _, pl_module, *__):
        self.weights = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}


@pytest.mark.parametrize("clip", [None, 0, 1.0])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_leaves_the_numbers_stops_before_the_weights_change(tmp_path, where, clip):
    """Guards the last good weights: NaN in the loss or in the gradient alone raises before the step, clipped or not."""
    last = LastGood()
    module = TrainingModule(build(), Fixed(2), loss=Poisoned(where), warmup_steps=0)
    start = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=f"{where}.* is nan at step 4, and 3 steps in a row"):
        fit(module, tmp_path, steps=9, callbacks=[last], gradient_clip_val=clip)
    after = dict(module.network.named_parameters())
    assert all(torch.equal(after[name], last.weights[name]) for name in after)
    assert not any(torch.equal(after[name], start[name]) for name in after)  # and the two good steps were taken


class Norms(pl.Callback):
    """Keeps the gradient's norm after clipping, step by step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, _, pl_module, *__):
        self.found.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())


def test_clipping_bounds_the_norm_over_all_parameters(tmp_path):
    """Guards gradient_clip_val, which our hook takes over from the trainer; 0 clips nothing, as it does there."""
    norms = {clip: Norms() for clip in (0.01, 0, None)}
    for clip, seen in norms.items():
        fit(TrainingModule(build(), Fixed(2)), tmp_path, callbacks=[seen], gradient_clip_val=clip)
    assert norms[0.01].found == pytest.approx([0.01] * 3, rel=1e-3)
    assert norms[0].found == norms[None].found and min(norms[0].found) > 0.1
    with pytest.raises(ValueError, match=r"must be norm, not value$"):
        fit(TrainingModule(build(), Fixed(2)), tmp_path, gradient_clip_val=1.0, gradient_clip_algorithm="value")


class Recorded(IterationSampler):
    """Notes the index of every batch."""

    def __init__(self):
        super().__init__(2)
        self.indices = []

    def draw(self, rng, index, _):
        self.indices.append(index)
        return rng.poisson(2) + 1


@pytest.mark.parametrize("accumulated", [1, 2])
def test_every_accumulated_batch_draws_a_depth_of_its_own(tmp_path, accumulated):
    """Guards the index: batches 0, 1, 2, ... counted through accumulation and epochs, none twice."""
    sampler = Recorded()
    fit(TrainingModule(build(), sampler), tmp_path, accumulate_grad_batches=accumulated, limit_train_batches=2)
    assert sampler.indices == list(range(3 * accumulated))


def test_a_batch_is_a_function_of_seed_and_index(ids):
    """Guards depth and initial state against the global generator, and against a seed that is not used."""

    network = build()

    def answer(seed, index):
        return TrainingModule(network, LogNormalPoisson(3), seed=seed).output_for(ids, index)

    first = answer(0, 4)
    torch.manual_seed(99)
    again, other_seed, other_index = answer(0, 4), answer(1, 4), answer(0, 5)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other_seed.logits)
    assert not torch.equal(first.logits, other_index.logits)


def test_the_initial_state_is_random_in_training(ids):
    """Guards generator=: at equal depth two batches start from different states."""
    module = TrainingModule(build(), Fixed(2))
    assert not torch.equal(module.output_for(ids, 0).logits, module.output_for(ids, 1).logits)


def test_counts_per_sequence_reach_the_network(ids):
    """Guards (B,) counts: each row is run at its own."""
    used = TrainingModule(build(), PoissonPerSequence(4)).output_for(ids, 0).iterations[:, 0]
    assert used.tolist() == PoissonPerSequence(4)(0, 0, 3).tolist()


def test_the_validation_sweep_equals_separate_runs(ids):
    """Guards the sweep: each reading is what a run at that count answers, from the deterministic state."""
    module = TrainingModule(build().double().eval(), Fixed(3))
    assert module.validate_at == [1, 3, 6, 12]
    with torch.no_grad():
        swept = module.validation_step({"input_ids": ids}, 0)
        for count in module.validate_at:
            alone = module.network(ids, iterations=count).logits
            torch.testing.assert_close(swept.readings[count].logits, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", [[], [0, 4]])
def test_counts_that_cannot_be_validated_at_are_refused_at_the_start(counts):
    """Guards against a run that fails at its first validation."""
    with pytest.raises(ValueError, match="validate_at"):
        TrainingModule(build(), Fixed(2), validate_at=counts)


def test_a_schedule_needs_an_end(tmp_path):
    """Guards the message for max_steps: -1, where warm-up and decay are undefined."""
    with pytest.raises(ValueError, match="max_steps"):
        fit(TrainingModule(build(), Fixed(2)), tmp_path, steps=-1)


class Looped(nn.Module):
    """A user's looped network, a plain module."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding, self.core, self.head = nn.Embedding(16, width), nn.Linear(width, width), nn.Linear(width, 16)

    def forward(self, input_ids, iterations):
        injected = state = self.embedding(input_ids)
        for _ in range(iterations):
            state = torch.tanh(self.core(state) + injected)
        return self.answer(state)

    def answer(self, state):
        used = torch.ones(state.shape[:2], dtype=torch.int64)
        return ModelOutput(logits=self.head(state), state=state, iterations=used)


class Plain(Looped):
    """A user's network without a loop: it takes the ids and nothing else."""

    def forward(self, input_ids):
        return self.answer(self.embedding(input_ids))


FIXED = {"--model.iterations": "mull.training.iterations.Fixed", "--model.iterations.init_args.mean": "3"}


@pytest.mark.parametrize(("name", "iterations"), [("Looped", FIXED), ("Plain", {"--model.iterations": "null"})])
def test_a_network_of_ones_own_trains_by_class_path(tmp_path, name, iterations, capsys):
    """Guards the plug: no config, no vocabulary to link, no folder format; the last weights are in the state."""
    options = {
        "--output": str(tmp_path / "own"),
        "--model.network": f"{__name__}.{name}",
        "--model.network.init_args.width": "6",
        **iterations,
        "--data": "mull.training.data.TaskData",
        "--data.init_args.task": "mull.training.data.Parity",
        "--data.init_args.task.init_args.length": "6",
        "--data.init_args.batch_size": "2",
        "--trainer.max_steps": "3",
        "--trainer.accelerator": "cpu",
        "--trainer.enable_progress_bar": "false",
    }
    folder = train([word for option in options.items() for word in option])
    state = torch.load(folder / "trainer" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert state["state_dict"]["network.core.weight"].shape == (6, 6)
    assert "no folder format" in capsys.readouterr().out
    assert not (folder / "config.json").exists()


def test_what_a_network_has_no_use_for_is_refused_when_the_module_is_made() -> None:
    """Guards options that would be ignored, or fail after a folder is written."""
    flat = Transformer(TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1))
    routed = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=2))
    for network, iterations in ((flat, None), (routed, Fixed(4))):
        with pytest.raises(ValueError, match="no gradient window: backprop_iterations is refused"):
            TrainingModule(network, iterations, backprop_iterations=2)
    with pytest.raises(ValueError, match="needs a sampler of iterations"):
        TrainingModule(flat, validate_at=[4])
