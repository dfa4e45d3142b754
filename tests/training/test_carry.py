"""Deep supervision: a state that goes on over batches. Segments are one run, cut where the gradient is; and a break of
the process is none."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml

from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.training.callbacks import Throughput
from mull.training.carrying import check_carry
from mull.training.data import Parity, ReachedAccuracy, Sudoku, TaskData, TextData
from mull.training.iterations import Fixed, PoissonPerSequence
from mull.training.module import TrainingModule
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and batch sizes


def build(**chosen):
    torch.manual_seed(0)
    small = dict(vocab_size=8, d_model=16, n_heads=2, d_ff=16, max_length=32, mean_iterations=2)
    return RecurrentDepthTransformer(RecurrentDepthConfig(**(small | chosen))).double()


def ids(seed=1):
    return torch.randint(8, (3, 6), generator=torch.Generator().manual_seed(seed))


def segment(module, input_ids, index):
    """One segment as a training step has it."""
    output = module.output_for(input_ids, index)
    module.carried.keep(input_ids, output.state)
    return output


@pytest.mark.parametrize("sampler", [Fixed(3), PoissonPerSequence(3)], ids=["one count", "a count by row"])
def test_segments_are_one_run(sampler):
    """Guards what is carried: three segments end where one run of all their iterations does; another batch, one of the
    same tokens in another order included, begins anew."""
    module = TrainingModule(build(initial_state="zero"), sampler, carry=True)
    counts = 0
    for index in range(3):
        output = segment(module, ids(), index)
        counts = counts + output.iterations[:, 0]
        whole = module.network(ids(), iterations=counts)
        torch.testing.assert_close(output.state, whole.state, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(output.logits, whole.logits, rtol=1e-10, atol=1e-10)
    for other in (ids().flip(0), ids(2), ids()[:2]):
        fresh = segment(module, other, 3)
        torch.testing.assert_close(fresh.state, module.network(other, iterations=fresh.iterations[:, 0]).state)


def test_the_gradient_ends_where_the_segment_begins():
    """Guards the detached state: the gradients of a second segment are those of a run from a given state."""
    module = TrainingModule(build(initial_state="zero"), Fixed(2), carry=True)

    def gradients(output):
        module.network.zero_grad()
        output.logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None}

    first = segment(module, ids(), 0)
    second = gradients(segment(module, ids(), 1))
    given = gradients(module.network(ids(), iterations=2, state=first.state.detach()))
    whole = gradients(module.network(ids(), iterations=4))
    torch.testing.assert_close(second, given)
    name = next(name for name, gradient in second.items() if name.startswith("core.") and gradient.dim() == 2)
    assert not torch.allclose(second[name], whole[name])


def test_the_first_segment_starts_at_random_and_later_ones_draw_their_noise():
    """Guards the generator: a carried state takes the place of the initial draw, and of nothing else."""
    module = TrainingModule(build(state_noise=0.2).train(), Fixed(2), carry=True)
    first, second = segment(module, ids(), 0), module.output_for(ids(), 1)
    assert not torch.equal(first.state, TrainingModule(module.network, Fixed(2)).output_for(ids(), 1).state)
    calm = module.network(ids(), iterations=2, state=first.state)
    assert not torch.equal(second.state, calm.state)


def test_a_batch_that_is_lost_takes_no_other_with_it():
    """Guards the segments behind a batch whose loss is no number: they begin anew, and are trained on."""
    module = TrainingModule(build(), Fixed(2), carry=True)
    module.batch_index, module.log = lambda number: number, lambda *_, **__: None  # there is no trainer
    batch, weight = {"input_ids": ids(), "labels": ids(2)}, module.network.embedding.weight
    kept = weight.detach().clone()
    weight.data.fill_(torch.nan)
    assert torch.isnan(module.training_step(batch, 0))
    weight.data.copy_(kept)
    assert torch.isfinite(module.training_step(batch, 1)) and module.carried.state_for(ids()) is not None


def test_a_batch_is_given_again_and_is_a_function_of_its_number():
    """Guards repeat: the items are those of a run without it, each batch three times; a change of difficulty, by number
    or by mastery, waits for the next items."""
    once = TaskData(Parity(), difficulty=[4, 8], batch_size=2)
    data = TaskData(Parity(), difficulty=4, curriculum={4: 6}, repeat=3, batch_size=2)
    rows = [data.training_batch(number) for number in range(9)]
    assert [row["labels"].shape[1] for row in rows] == [7, 7, 7, 7, 7, 7, 5, 5, 5]
    for number in range(9):
        assert torch.equal(rows[number]["input_ids"], data.training_batch(number // 3 * 3)["input_ids"])
    assert not torch.equal(rows[0]["input_ids"], rows[3]["input_ids"])
    assert torch.equal(data.training_batch(7, 1, 2)["labels"], data.training_batch(6, 1, 2)["labels"])
    assert not torch.equal(data.training_batch(7, 1, 2)["labels"], data.training_batch(7, 0, 2)["labels"])
    plain = TaskData(Parity(), difficulty=[4, 8], repeat=1, batch_size=2)
    assert all(torch.equal(once.training_batch(n)["labels"], plain.training_batch(n)["labels"]) for n in range(5))
    waiting = TaskData(Parity(), difficulty=[4, *[8] * 99], repeat=3, batch_size=2, advance=ReachedAccuracy(batches=1))
    waiting.advance.entries = [4]
    assert [waiting.training_difficulty(number) for number in range(3, 9)] == [4, 4, 4, 8, 8, 8]
    with pytest.raises(ValueError, match="repeat is 0: it must be 1 or more"):
        TaskData(Parity(), repeat=0)


def test_what_cannot_carry_a_state_is_refused(tmp_path, reliability):
    """Guards options that would do nothing: no loop, no state, no batch that comes twice, states that are not saved;
    and that the refusal comes before anything is written."""
    routed = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=2))
    flat = Transformer(TransformerConfig(vocab_size=5, d_model=8, n_heads=2, n_layers=1))
    for network, iterations in ((routed, Fixed(2)), (flat, None)):
        with pytest.raises(ValueError, match="goes on from no state: carry is refused"):
            TrainingModule(network, iterations, carry=True)
    for data in (TaskData(Parity(5)), TextData(["README.md"])):
        with pytest.raises(ValueError, match="gives no batch twice in a row"):
            check_carry(True, data, 1)
        check_carry(False, data, 4)
    with pytest.raises(ValueError, match="there are 2 devices"):
        check_carry(True, TaskData(Parity(5), repeat=2), 2)
    check_carry(True, SimpleNamespace(), 1)  # of data of one's own nothing is known
    args = [*reliability.arguments(tmp_path, {}), str(tmp_path / "out"), "--model.carry", "true"]
    with pytest.raises(ValueError, match="gives no batch twice in a row"):
        train(args)
    assert not (tmp_path / "out" / "trainer" / "config.yaml").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_whole_boards_are_thought_about_in_segments_under_the_trainer(tmp_path, precision):
    """Guards tasks with causal: false, and mixed precision; each segment takes an optimizer step of its own."""
    data = TaskData(Sudoku(4, side=4), repeat=2, batch_size=2, validation_examples=2)
    network = build(vocab_size=data.vocab_size, causal=False, initial_state="zero").float()
    module = TrainingModule(network, Fixed(2), carry=True, validate_at=[2])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []
    real = network.forward
    network.forward = lambda ids, **options: seen.append(options.get("state") is not None) or real(ids, **options)
    trainer = pl.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, precision=precision, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    assert seen == [False, True, False, True] and trainer.global_step == 4
    assert module.carried.state is not None
    module.trainer = trainer
    module.setup("fit")
    assert module.carried.state is None  # another fit begins with nothing
    assert not any(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Broken(Exception):
    """What ends a run in this test."""


def test_a_resumed_run_carries_the_state_on(tmp_path, reliability, monkeypatch):
    """Guards the saved state: a break in the middle of a batch's segments changes no bit."""
    real = TaskData.evaluation_batches
    monkeypatch.setattr(TaskData, "evaluation_batches", lambda self, **_: real(self, examples=4))
    args = reliability.arguments(tmp_path, {"save_every": 1})
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    config["model"]["carry"] = True
    config["data"]["init_args"]["repeat"] = 3
    config["trainer"]["val_check_interval"] = 100
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    train([*args, str(tmp_path / "whole")])

    def end(self, trainer, *_):  # noqa: ARG001
        if trainer.global_step == 3:  # the state of step 2 is gone on from
            raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", end)
        with pytest.raises(Broken):
            train([*args, str(tmp_path / "parts")])
    train([*args, str(tmp_path / "parts")])
    assert reliability.outcome(tmp_path / "parts") == reliability.outcome(tmp_path / "whole")
