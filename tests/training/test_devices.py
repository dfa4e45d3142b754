"""Training on a second device (tests/elsewhere.py): whole runs under Lightning's Trainer, with every loss, sampler,
optimizer and callback. Nothing is left on the CPU, and the weights are those that the CPU comes to."""

import copy
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy

from mull.models import LanguageModel
from mull.models.families import FAMILIES
from mull.training import capacities, iterations
from mull.training.callbacks import Calibration, DepthValidation, Throughput
from mull.training.data import Parity, ReachedAccuracy, TaskData
from mull.training.export import export, measure
from mull.training.losses import Consistency, ExpectedOverIterations, HaltOnImprovement, LastIteration
from mull.training.module import TrainingModule
from mull.training.optimizers import AdamW, MuonAdamW

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and batch sizes

RUNS: dict[str, dict[str, Any]] = {
    "fixed": {"iterations": iterations.Fixed(3), "optimizer": MuonAdamW()},
    "window": {"iterations": iterations.LogNormalPoisson(3, maximum=5), "backprop_iterations": 2},
    "by row": {"iterations": iterations.PoissonPerSequence(3, maximum=5), "optimizer": MuonAdamW()},
    "curriculum": {"iterations": iterations.LinearCurriculum(3, batches=3, maximum=5)},
    "bfloat16": {"iterations": iterations.Fixed(2), "optimizer": MuonAdamW(orthogonalize_in="bfloat16")},
    "expected": {"iterations": iterations.Fixed(3), "loss": ExpectedOverIterations()},
    "halt": {"iterations": iterations.Fixed(3), "loss": HaltOnImprovement()},
    "consistency": {"iterations": iterations.Fixed(3), "loss": Consistency()},
    "progressive": {"iterations": iterations.Progressive(5, share=1.0)},
    "carried": {"iterations": iterations.Fixed(3), "carry": True},
    "capacity": {"iterations": iterations.Fixed(4), "capacity": capacities.Uniform()},
    "warm-up": {"iterations": iterations.Fixed(3), "capacity": capacities.WarmUp(0.5, 2)},
    "no loop": {"optimizer": MuonAdamW()},
}
FAMILY = {"expected": "recurrent_depth", "window": "recurrent_depth", "capacity": "inner_thinking"}
FAMILY |= {"curriculum": "recurrent_depth", "bfloat16": "inner_thinking"}  # counts and matrices are as in "fixed"
FAMILY |= dict.fromkeys(("halt", "consistency", "progressive", "carried"), "recurrent_depth")
FAMILY |= {"warm-up": "inner_thinking", "no loop": "transformer"}
FIELDS = {"expected": {"exit_gate": True}, "halt": {"exit_gate": True}, "carried": {"state_noise": 0.1}}
PAIRS = [
    (run, family)
    for run, family in itertools.product(RUNS, FAMILIES)
    if FAMILY.get(run, family) == family and (run == "no loop" or family != "transformer")
]


class Anywhere(CPUAccelerator):
    """Takes the second device too."""

    def setup_device(self, device: torch.device) -> None:
        pass


class Where(pl.Callback):
    """Where weights and the optimizer's means are while training; at its end the trainer brings them to the CPU."""

    def __init__(self) -> None:
        self.found: set[torch.device] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        parts = getattr(optimizer, "optimizers", [optimizer])
        means = [x for part in parts for state in part.state.values() for x in state.values()]
        tensors = [*pl_module.state_dict().values(), *(x for x in means if isinstance(x, torch.Tensor) and x.dim())]
        self.found |= {tensor.device for tensor in tensors}


def network(family: str, run: str) -> LanguageModel:
    torch.manual_seed(0)
    more = {} if family == "transformer" else {"mean_iterations": 3}
    more |= {} if family == "recurrent_depth" else {"n_layers": 2}
    more |= FIELDS.get(run, {})
    config = FAMILIES[family].config_class(vocab_size=8, d_model=8, n_heads=2, d_ff=8, max_length=16, **more)
    return FAMILIES[family](config)


def fit(
    network: LanguageModel, run: str, folder: Path, device: torch.device
) -> tuple[TrainingModule, dict[str, float]]:
    """Two steps, in two of the runs of two batches each, with a validation behind them; what was logged too."""
    batches = 2 if run in ("fixed", "carried") else 1
    module = TrainingModule(network, **{"loss": LastIteration(), "optimizer": AdamW()} | RUNS[run], warmup_steps=1)
    where = Where()
    trainer = pl.Trainer(
        max_steps=2, accumulate_grad_batches=batches, val_check_interval=2 * batches, check_val_every_n_epoch=None,
        strategy=SingleDeviceStrategy(device=device, accelerator=Anywhere()),
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0,
        callbacks=[Calibration(), DepthValidation(after_step=0), Throughput(), EMAWeightAveraging(decay=0.5), where],
    )  # fmt: skip
    again: dict[str, Any] = {}
    if run == "carried":  # and two lengths, the second of which enters as soon as it can
        again = {"difficulty": [4, 6], "advance": ReachedAccuracy(0.01, "tokens", 1), "repeat": 2}
    trainer.fit(module, TaskData(Parity(length=6), batch_size=3, validation_examples=6, **again))
    assert where.found == {device}
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "per_second" not in name}
    return module, logged


@pytest.mark.parametrize(("run", "family"), PAIRS, ids=[f"{run}-{family}" for run, family in PAIRS])
def test_a_whole_run_trains_elsewhere_to_the_same_weights(
    elsewhere: ModuleType, tmp_path: Path, run: str, family: str
) -> None:
    """To rounding. Sums run in another order on the second device, and Muon makes the difference larger."""
    here, logged = fit(network(family, run), run, tmp_path, torch.device("cpu"))
    with elsewhere.second_device():
        there, logged_there = fit(elsewhere.moved(network(family, run)), run, tmp_path, elsewhere.ELSEWHERE)
    assert logged.keys() == logged_there.keys() and len(logged) >= 5
    assert logged == pytest.approx(logged_there, rel=1e-3, abs=1e-4)
    for name, tensor in here.state_dict().items():
        torch.testing.assert_close(
            there.state_dict()[name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_finished_run_is_measured_where_it_was_trained(elsewhere: ModuleType, tmp_path: Path) -> None:
    """Thresholds and the table of depth.json: on the CPU they could take longer than the training. The trainer has
    brought the network back to the CPU by then."""
    data = TaskData(Parity(length=12), batch_size=3, validation_examples=6)
    trained = network("inner_thinking", "fixed")
    found = []
    with elsewhere.second_device():
        for device in ("cpu", elsewhere.ELSEWHERE):
            folder, model = tmp_path / str(device), copy.deepcopy(trained)
            export(model, data, folder, "{}", device)
            assert model.device == torch.device(device)
            measure(folder, data, [1, 3], "mull train", 8, lambda _: None, device)
            rows = json.loads((folder / "depth.json").read_text())["rows"]
            found.append([value for row in rows for name, value in sorted(row.items()) if name != "seconds"])
    assert len(found[0]) == len(found[1])
    for here, there in zip(*found, strict=True):
        assert here == pytest.approx(there)
