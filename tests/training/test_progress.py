"""What is shown while training: optimizer steps, on a terminal and elsewhere; and how much is measured afterwards."""

import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from mull.training import progress
from mull.training.data import Parity, TaskData
from mull.training.export import measured_examples
from mull.training.progress import Lines, duration
from mull.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, epochs and batch sizes


def arguments(reliability, folder, changes):
    accumulate = {"accumulate_grad_batches": 2, "enable_progress_bar": True, **changes}
    return [*reliability.arguments(folder, {"trainer": accumulate}), str(folder / "out")]


def test_lines_count_steps(tmp_path, reliability, capsys, monkeypatch):
    """Guards a log file: steps, loss, speed and time left, now and then and at the end, no control characters."""
    seconds = iter(range(0, 100000, 5))
    monkeypatch.setattr(progress, "EVERY", 20.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    train(arguments(reliability, tmp_path, {}))
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 2 of 6", "step 4 of 6", "step 6 of 6"]
    assert all("loss " in line and " tokens/s" in line for line in lines) and "\x1b" not in out
    assert lines[0].endswith("40 s left") and "left" not in lines[-1]


def test_the_bar_counts_steps(tmp_path, reliability, monkeypatch):
    """Guards the bar under accumulation: it ends at 6 of 6, also where the run is gone on with."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = []
    real = RichProgressBar.on_train_batch_end

    def noting(self, trainer, *rest):
        real(self, trainer, *rest)
        task = self.train_progress_bar
        shown.append((task.completed, task.total))

    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", noting)
    args = arguments(reliability, tmp_path, {"max_steps": 4})
    train([*args, "--model.decay_share", "0"])
    assert shown == [(step // 2, 4) for step in range(1, 9)]
    shown.clear()
    train([*args, "--model.decay_share", "0", "--trainer.max_steps", "6"])
    assert shown == [(4, 6), (5, 6), (5, 6), (6, 6)]


def test_lines_are_told_by_the_first_process_only():
    """Guards runs of several processes: Lightning switches the others off."""
    lines = Lines()
    lines.disable()
    assert not lines.enabled and [duration(s) for s in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]


@pytest.mark.parametrize(("batches", "examples"), [(None, 512), (2, 32), (40, 160), (10000, 512)])
def test_short_runs_are_measured_on_less(batches, examples):
    """Guards the time after a training: a quarter of what was trained on, at most 512 and at least 32."""
    assert measured_examples(TaskData(Parity(5), batch_size=16), batches) == examples
    both = TaskData(Parity(5), difficulty=[4, 5], batch_size=16)
    assert measured_examples(both, batches) == max(32, examples // 2 if examples < 512 else 512)
