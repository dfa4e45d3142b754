"""Several processes against one with their batches together: loss, weights, files. Gloo, CPU, double precision.

That they stop, are killed and go on as one is in test_companions.py.
"""

import copy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, RecurrentDepthConfig, RecurrentDepthTransformer
from mull.training.cli import read_configuration
from mull.training.data import Parity, TaskData
from mull.training.identity import changes, identity_of
from mull.training.iterations import Fixed
from mull.training.losses import ExpectedOverIterations, LastIteration
from mull.training.module import TrainingModule
from mull.training.optimizers import AdamW
from mull.training.sharding import Sharded

pytestmark = pytest.mark.filterwarnings("ignore")

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "d_ff": 16, "max_length": 16}
RECURRENT = {
    "class_path": "mull.RecurrentDepthTransformer",
    "init_args": {"config": {**SMALL, "initial_state": "zero"}},
}


class Uneven(TaskData):
    """Parity of which item i scores its last 1 + i mod 4 positions, and items 3 to 5 none, whatever the batch size."""

    def training_batch(self, number: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        batch = super().training_batch(number, rank, world_size)
        start = (number * world_size + rank) * self.batch_size
        for row, item in enumerate(range(start, start + self.batch_size)):
            batch["labels"][row, : None if 3 <= item <= 5 else -1 - item % 4] = -100
        return batch


def trained(
    reliability: Any, folder: Path, rows: int, stop_before: int | None = None, **trainer: Any
) -> dict[str, Any]:
    """What a run with batches of so many rows leaves."""
    folder.mkdir(exist_ok=True)
    data = copy.deepcopy(reliability.BASE["data"])
    data["class_path"] = f"{__name__}.Uneven"
    data["init_args"]["batch_size"] = rows
    settings = {"precision": "64-true", "gradient_clip_val": 0.5, "val_check_interval": 6, **trainer}
    variant = {"data": data, "trainer": settings, "model": {"network": RECURRENT, "warmup_steps": 0}}
    args = reliability.arguments(folder, variant)
    if stop_before is not None:
        assert reliability.attempt(args, folder / "out", stop_before=stop_before) == reliability.KILLED
        return {}
    assert reliability.attempt(args, folder / "out") == 0
    return reliability.outcome(folder / "out")


def numbers(weights: dict[str, bytes]) -> np.ndarray:
    return np.concatenate([np.frombuffer(weights[name]) for name in sorted(weights)])


def losses(outcome: dict[str, Any]) -> list[float]:
    return [float(row["train/loss"]) for row in outcome["log"] if row.get("train/loss")]


def test_two_processes_equal_one_with_the_batches_of_both(reliability: Any, tmp_path: Path) -> None:
    """Guards data without overlap, depth that is shared, the mean over all scored positions, and files that are written
    once, under DDP and under FSDP2. The latter is killed and goes on, too."""
    reliability.adopt_orphans()
    one = trained(reliability, tmp_path / "one", rows=6)
    assert len(losses(one)) == 6
    for strategy in ("ddp", "fsdp2"):
        if strategy == "fsdp2":
            trained(reliability, tmp_path / strategy, rows=3, stop_before=20, devices=2, strategy=strategy)
        two = trained(reliability, tmp_path / strategy, rows=3, devices=2, strategy=strategy)
        np.testing.assert_allclose(numbers(two["weights"]), numbers(one["weights"]), rtol=0, atol=1e-12)
        np.testing.assert_allclose(losses(two), losses(one), rtol=1e-12)
        assert two["files"] == one["files"]


def test_another_number_of_processes_is_another_run() -> None:
    """Guards `devices: auto` on another machine; a record that does not say is believed."""
    configuration = {"trainer": {"devices": "auto"}}
    one, other = (identity_of(configuration, None, None, processes) for processes in (1, 2))
    assert changes(one, other) == ["number of processes: 1, now 2"] and changes(one, one) == []
    assert changes({**one, "processes": None}, other) == []


def test_shares_of_the_data_do_not_overlap() -> None:
    data = TaskData(Parity(length=12), batch_size=4)
    whole = TaskData(Parity(length=12), batch_size=12)
    for number in range(3):
        parts = [data.training_batch(number, rank, 3)["input_ids"] for rank in range(3)]
        assert torch.equal(torch.cat(parts), whole.training_batch(number)["input_ids"])


class OfTheGate(LastIteration):
    """A loss of one's own that trains the gate."""

    asks_gate = True


class Whole(AdamW):
    """An optimizer of one's own that looks at whole matrices."""

    needs_whole_matrices = True


def test_what_a_batch_may_leave_without_gradient() -> None:
    """Guards DDP, which waits for every gradient unless it is told."""
    gated = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=8, **SMALL, exit_gate=True))
    thinking = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=8, **SMALL))
    plain = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=8, **SMALL))
    assert TrainingModule(gated, Fixed(2)).may_leave_out and TrainingModule(thinking, Fixed(2)).may_leave_out
    asked = TrainingModule(gated, Fixed(2), loss=ExpectedOverIterations())
    assert not asked.may_leave_out and not TrainingModule(plain, Fixed(2)).may_leave_out
    assert not TrainingModule(gated, Fixed(2), loss=OfTheGate()).may_leave_out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--model.compile", "true"], r"leave model\.compile out, or take ddp"),
        (["--model.optimizer", "mull.training.optimizers.MuonAdamW"], "MuonAdamW needs whole matrices, which fsdp2"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, wrong: list[str], said: str) -> None:
    """Guards against tracebacks from inside of torch, and against a line from every process."""
    with pytest.raises(ValueError, match=said):
        read_configuration(["--config", "text", "--trainer.strategy", "fsdp2", "--output", str(tmp_path), *wrong])
    whole = TrainingModule(RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=8, **SMALL)), optimizer=Whole())
    with pytest.raises(ValueError, match="Whole needs whole matrices, which fsdp2 divides"):
        whole.check_dividing()
    own = TrainingModule(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="fsdp2 divides models of mull, and not a Linear; take ddp"):
        own.check_dividing()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_fragments_for_clusters_can_be_taken(tmp_path: Path, strategy: str) -> None:
    """Guards them against fields that do not exist; here on a CPU, alone."""
    here = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--output", str(tmp_path)]
    run = read_configuration(["--config", "text", "--config", str(CLUSTER / f"{strategy}.yaml"), *here])
    assert type(run.trainer.strategy) is {"ddp": DDPStrategy, "fsdp2": Sharded}[strategy]
    assert run.model.checkpoint_iterations is (strategy == "fsdp2") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["torchrun", "slurm"])
def test_the_scripts_for_clusters_ask_for_what_they_need(script: str) -> None:
    file = str(CLUSTER / f"{script}.sh")
    asked = subprocess.run(["sh", file], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"})
    assert asked.returncode != 0 and "name a configuration: CONFIG=text" in asked.stderr
