"""bf16-mixed: every family under every sampler, and what is left of such a run."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import mull
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.inspect import read_depth
from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    LanguageModel,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.training.data import Parity, TaskData
from mull.training.iterations import (
    Fixed,
    IterationSampler,
    LinearCurriculum,
    LogNormalPoisson,
    PoissonPerSequence,
    Progressive,
    Uniform,
)
from mull.training.losses import ExpectedOverIterations
from mull.training.module import TrainingModule

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {"vocab_size": 8, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_length": 32}
SAMPLERS: list[IterationSampler | None] = [
    Fixed(4),
    Uniform(3, 5, per_sequence=True),
    LogNormalPoisson(4, minimum=3),
    LinearCurriculum(4, batches=2, start=3, minimum=3),
    PoissonPerSequence(4, minimum=3),
    Progressive(5),
]


class Gradients(pl.Callback):
    """Adds up the size of the gradient of each parameter."""

    def on_before_optimizer_step(self, _: pl.Trainer, module: pl.LightningModule, __: Any) -> None:
        found = {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in module.network.named_parameters()}
        self.sizes = {name: size + getattr(self, "sizes", {}).get(name, 0.0) for name, size in found.items()}


def family(word: str) -> LanguageModel:
    torch.manual_seed(0)
    if word == "recurrent_depth":
        return RecurrentDepthTransformer(RecurrentDepthConfig(**SMALL, exit_gate=True))
    if word == "inner_thinking":
        return InnerThinkingTransformer(InnerThinkingConfig(**SMALL, n_layers=2))
    return Transformer(TransformerConfig(**SMALL, n_layers=2))


def test_every_sampler_is_among_them() -> None:
    known = [each for base in (IterationSampler, LogNormalPoisson) for each in base.__subclasses__()]
    assert {type(sampler) for sampler in SAMPLERS} == {each for each in known if each.__module__.startswith("mull.")}


@pytest.mark.parametrize(
    ("word", "sampler"),
    [("recurrent_depth", s) for s in SAMPLERS]
    + [("inner_thinking", s) for s in SAMPLERS if not isinstance(s, Progressive)]  # which has no gradient window
    + [("transformer", None)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_parameter_gets_a_gradient(tmp_path: Any, word: str, sampler: IterationSampler | None) -> None:
    """Guards the autocast trap: weights that were cast without gradient must not be used again inside the window."""
    options: dict[str, Any] = {}
    if word == "recurrent_depth":
        options = {"backprop_iterations": 2, "checkpoint_iterations": isinstance(sampler, LogNormalPoisson)}
        if isinstance(sampler, Progressive):  # which draws the window itself
            del options["backprop_iterations"]
        if not isinstance(sampler, Uniform | PoissonPerSequence):
            options["loss"] = ExpectedOverIterations()
    seen = Gradients()
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[seen], precision="bf16-mixed",
    )  # fmt: skip
    trainer.fit(
        TrainingModule(family(word), sampler, **options),
        TaskData(Parity(length=6), batch_size=3, validation_examples=3),
    )
    missing = {name for name, size in seen.sizes.items() if not 0 < size < float("inf")}
    assert missing == ({"exit_gate.weight", "exit_gate.bias"} if options and "loss" not in options else set())


def test_what_is_left_is_measured_in_the_precision_that_it_is_saved_in(tmp_path: Any, reliability: Any) -> None:
    """Guards depth.json against numbers of autocast: weights are fp32, and whoever measures it finds the same."""
    args = reliability.arguments(tmp_path, {"trainer": {"precision": "bf16-mixed"}})
    reliability.train([*args, str(tmp_path / "out")])
    model = mull.load(tmp_path / "out")
    assert model.dtype == torch.float32
    data = TaskData(Parity(length=9), difficulty=[7, 9], batch_size=3)
    found = evaluate(model, data.evaluation_batches(examples=4), [1, 3, 12])
    recorded = read_depth(tmp_path / "out" / "depth.json")["rows"]
    rows = {(row["iterations"], row["difficulty"]): row["loss"] for row in recorded}
    assert len(found) == 3
    for each in found:
        assert each.loss == pytest.approx(rows[each.iterations, each.difficulty], rel=1e-5)
