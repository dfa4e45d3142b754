"""The number of CPU threads: measured where nobody names one, and the same for the rest of the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mull.training import threads
from mull.training.cli import TrainingCLI, read_configuration
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice
ROOT = Path(__file__).parents[2]


def arguments(folder: Path, *more: str) -> list[str]:
    """The arguments of a tiny run on parity that names no number of threads."""
    return [
        "--config", str(ROOT / "configs" / "reference.yaml"), "--threads", "null", "--output", str(folder),
        "--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.enable_progress_bar", "false",
        "--trainer.callbacks", "null", "--data.init_args.validation_examples", "4", *more,
    ]  # fmt: skip


@pytest.fixture
def two() -> Iterator[None]:
    """torch would take two threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 0.95}, 1),  # not worth it
        ({1: 1.0, 2: 20.0, 8: 9.0}, 1),
        ({1: 1.0, 2: 0.7, 8: 0.69}, 2),
        ({1: 1.0, 2: 0.95, 8: 0.3}, 8),
        ({1: 1.0}, 1),
    ],
)
def test_more_threads_must_be_clearly_faster(seconds: dict[int, float], best: int) -> None:
    assert threads.fastest(seconds) == best


def test_measuring_leaves_the_run_as_it_was(tmp_path: Path, two: None) -> None:  # noqa: ARG001
    """Guards the results: weights, gradients, random numbers and mode are those of a run that measured nothing."""
    run = read_configuration(arguments(tmp_path / "run"))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.eval()
    mode, random = run.model.training, torch.get_rng_state()
    seconds = threads.measured(run, [1, 2])
    assert set(seconds) == {1, 2} and all(0 < each < 60 for each in seconds.values())
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())
    assert run.model.training == mode and torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == 2


def test_epochs_are_measured_by_their_first_batch(tmp_path: Path, two: None) -> None:  # noqa: ARG001
    """Guards runs that count epochs, whose steps nobody knows beforehand."""
    epochs = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4"]
    seconds = threads.measured(read_configuration([*arguments(tmp_path / "run"), *epochs]), [1])
    assert 0 < seconds[1] < 60


def test_every_loss_is_measured_as_it_trains(tmp_path: Path, two: None) -> None:  # noqa: ARG001
    """Guards losses that ask for more of a batch than its labels, and runs that train a part of the network."""
    run = read_configuration([
        "--from", "reasoner", "--config", str(ROOT / "configs" / "reward.yaml"), "--threads", "null",
        "--output", str(tmp_path / "run"), "--data.init_args.batch_size", "2",
    ])  # fmt: skip
    assert list(threads.measured(run, [1])) == [1]  # and no line that the loss needs judgements of steps
    trained = [name for name, weight in run.model.named_parameters() if weight.requires_grad]
    assert trained and all("value_head" in name for name in trained)


def test_a_run_keeps_the_number_it_began_with(
    tmp_path: Path, two: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: ARG001
) -> None:  # fmt: skip
    """Guards resuming: measured once and told, then read from the folder whatever the machine is like by then."""
    calls: list[list[int]] = []

    def one_is_faster(_: TrainingCLI, counts: list[int]) -> dict[int, float]:
        calls.append(counts)
        return {1: 0.1, 2: 0.4}

    monkeypatch.setattr(threads, "measured", one_is_faster)
    train(arguments(tmp_path / "run"))
    said = capsys.readouterr().out
    assert calls == [[1, 2]] and torch.get_num_threads() == 1
    assert "threads: 1 (a batch takes 0.100 s with 1, 0.400 s with 2)" in said and "2 steps, 1 thread, cpu" in said
    torch.set_num_threads(2)
    threads.choose_threads(read_configuration(arguments(tmp_path / "run")))
    assert len(calls) == 1 and torch.get_num_threads() == 1
    (tmp_path / "run" / "trainer" / threads.RECORD).write_text("2\n")
    threads.choose_threads(read_configuration(arguments(tmp_path / "run")))
    assert len(calls) == 1 and torch.get_num_threads() == 2
    named = read_configuration(arguments(tmp_path / "run", "--threads", "1"))  # who names a number gets it
    threads.choose_threads(named)
    assert len(calls) == 1 and torch.get_num_threads() == 1
    torch.set_num_threads(2)
    threads.choose_threads(read_configuration(arguments(tmp_path / "run")))  # and keeps it
    assert len(calls) == 1 and torch.get_num_threads() == 1
    (tmp_path / "run" / "trainer" / threads.RECORD).unlink()  # a state of before there was a record: torch's own number
    torch.set_num_threads(2)
    threads.choose_threads(read_configuration(arguments(tmp_path / "run")))
    assert len(calls) == 1 and torch.get_num_threads() == 2


def test_one_thread_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has one thread, by OMP_NUM_THREADS or the machine, there is no choice."""
    monkeypatch.setattr(threads, "measured", lambda *_: pytest.fail("measured"))
    threads.choose_threads(read_configuration(arguments(tmp_path / "run")))
    assert torch.get_num_threads() == 1 and (tmp_path / "run" / "trainer" / threads.RECORD).read_text() == "1\n"
