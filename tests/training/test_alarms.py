"""Steps that are skipped, and alarms: one line each, counted, and the same for a run that goes on."""

import csv
import io
import re
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mull.models import InnerThinkingConfig, InnerThinkingTransformer, ModelOutput
from mull.training.alarms import Alarms, usual_depth, vital_signs
from mull.training.iterations import Fixed, LogNormalPoisson
from mull.training.module import TrainingModule
from mull.training.skips import NonFiniteLossError, Skips

pytestmark = pytest.mark.filterwarnings("ignore")


class Module:
    """What the alarms ask of a training module, and what they log."""

    iterations = Fixed(2)

    def __init__(self) -> None:
        self.signs: dict[str, torch.Tensor] | None = None
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value


def sounded(batches: list[dict[str, float]], alarms: Alarms | None = None, first: int = 0) -> tuple[list[str], Any]:
    """The lines of batches with these signs, one optimizer step each, and what was logged."""
    alarms, module = alarms or Alarms(), Module()
    trainer: Any = type("Trainer", (), {"global_step": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, signs in enumerate(batches, start=first):
            trainer.global_step = step
            module.signs = {name: torch.tensor(value) for name, value in signs.items()}
            alarms.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
    return [str(each.message) for each in caught], module.logged


def usual(number: int) -> dict[str, float]:
    """A healthy batch: the loss falls with some noise, state and residual waver."""
    wave = ((number * 7919) % 13 - 6) / 60
    signs = {"loss": 1 + 1 / (1 + number) + wave, "iterations": 2.0, "state": 1 + wave, "residual": 0.1 * (1 + wave)}
    return signs


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"loss": 4.0}, "step 200: the loss leaps to 4 from about 1"),
        ({"state": 5.0}, "step 200: the state is 5"),
        ({"residual": 2.0}, r"step 200: the last iteration moves the state 20.* times more than usual: it no longer"),
        ({"residual": 0.001}, "step 200: the last iteration moves the state 99.7 times less than usual: the loop does"),
        ({"loss": 4.0, "iterations": 1.0}, None),  # a shallow batch answers worse by design
        ({"loss": float("nan")}, None),  # such a step is skipped
        ({"loss": 0.2, "state": 0.1}, None),  # nothing to warn of
    ],
)
def test_an_alarm_is_one_line_and_is_counted(change: dict[str, float], line: str | None) -> None:
    """Guards each alarm against silence and against crying wolf; repeated, it is counted and not said again."""
    odd = [usual(number) | (change if number in (200, 201) else {}) for number in range(260)]
    lines, logged = sounded(odd)
    if line is None:
        assert lines == [] and logged == {}
    else:
        assert len(lines) == 1 and re.match(line, lines[0])
        (kind,) = logged
        assert logged[kind] == 2 and kind.startswith("alarms/")


def test_slow_growth_is_told_at_every_tenfold() -> None:
    lines, logged = sounded([usual(n) | {"state": 1.01 ** max(0, n - 100)} for n in range(900)])
    assert logged == {"alarms/state": 3.0} and len(lines) == 3 and all("grown tenfold" in line for line in lines)


@pytest.mark.parametrize("broken", ["flat", "places", None])
def test_a_broken_router_is_told_of(broken: str | None) -> None:
    """Guards the signs too: they are read off a real output. A router that looks at tokens is left in peace."""
    torch.manual_seed(0)
    model = InnerThinkingTransformer(
        InnerThinkingConfig(vocab_size=8, d_model=16, n_heads=2, d_ff=16, max_length=32, n_layers=2)
    ).train()
    module, alarms, lines = Module(), Alarms(), list[str]()
    for number in range(110):
        ids = torch.randint(8, (3, 12), generator=torch.Generator().manual_seed(number))
        if broken == "places":  # all rows are the same
            ids = ids[:1].expand(3, -1)
        output: ModelOutput = model(ids, 3)
        signs = vital_signs(output.logits.mean(), output)
        if broken == "flat":
            signs["spread"] = signs["spread"] * 1e-6
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.signs = signs
            trainer: Any = type("Trainer", (), {"global_step": number})
            alarms.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
        lines += [str(each.message) for each in caught]
    words = {"flat": "tells no token from another", "places": "picks the same places in every row", None: ""}[broken]
    assert module.logged == ({} if broken is None else {"alarms/router": 2.0})  # one layer of two passes
    told = f"the router of pass 2 in thinking layer 1 {words}"
    assert len(lines) == (broken is not None) and all(told in line for line in lines)


def test_batches_are_looked_at_whoever_left_them_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the depth of a batch: positions that are not selected take fewer passes, and the batch all of them; and
    of a sampler that never draws its mean, the nearest that it draws is the usual one."""
    shape = {"vocab_size": 8, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_length": 32, "n_layers": 2}
    model = InnerThinkingTransformer(InnerThinkingConfig(**shape, capacity=0.5)).train()
    output = model(torch.randint(8, (3, 12)), 4)
    assert output.iterations.double().mean() < 3 and vital_signs(output.logits.mean(), output)["iterations"] == 4
    for sampler, usual_one in (
        (Fixed(3), 3),
        (LogNormalPoisson(8), 8),
        (LogNormalPoisson(8, maximum=4), 4),
        (LogNormalPoisson(3, minimum=6), 6),
    ):
        assert usual_depth(sampler) == usual_one
    monkeypatch.setattr(Module, "iterations", LogNormalPoisson(8, maximum=4))
    healthy = [usual(number) | {"iterations": 4.0} for number in range(150)]
    lines, logged = sounded([*healthy, {**healthy[-1], "loss": 9.0}, {**healthy[-1], "loss": 9.0, "iterations": 3.0}])
    assert len(lines) == 1 and logged == {"alarms/loss": 1.0}


def test_a_run_that_goes_on_warns_as_one_without_a_stop() -> None:
    """Guards the resumable state: running values, counts, and when the last line was."""
    batches = [usual(n) | ({"loss": 9.0} if n in (150, 180, 290) else {}) for n in range(300)]
    whole = sounded(batches)
    for stop in (90, 165, 200):
        before, after = Alarms(), Alarms()
        lines, _ = sounded(batches[:stop], before)
        after.load_state_dict(torch.load(saved(before.state_dict()), weights_only=True))
        more, logged = sounded(batches[stop:], after, first=stop)
        assert (lines + more, logged) == whole and len(whole[0]) == 2


def saved(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


# ------------------------------------------------------------------------------------------------------ skipped steps


def test_three_skipped_steps_in_a_row_end_a_run_and_fewer_do_not() -> None:
    skips, said = Skips(), []
    for step, bad in enumerate([1, 1, 0, 1, 1, 0]):
        if bad:
            skips.reason = "the loss is nan"
            said.append(skips.skip(step))
            other = Skips()
            other.restore(skips.state())
            skips = other
        else:
            skips.take()
    assert skips.total == 4 and [each is None for each in said] == [False, True, True, True]
    with pytest.raises(NonFiniteLossError, match="the gradient norm is inf at step 8, and 3 steps in a row"):
        for step in (6, 7, 8):
            skips.reason = "the gradient norm is inf"
            skips.skip(step)


@pytest.mark.parametrize("optimizer", ["AdamW", "MuonAdamW"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_skipped_step_changes_nothing_and_is_counted_through_a_stop(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, accumulated: int, reliability: Any
) -> None:
    """Guards weights, decay and momentum at a step of a bad batch; the run goes on, and stopped behind it ends in the
    same bits with the same count."""
    real = TrainingModule.output_for
    bad = 2 * accumulated  # of step 2: with accumulation the first batch of two

    def output_for(self: TrainingModule, ids: torch.Tensor, index: int) -> ModelOutput:
        output = real(self, ids, index)
        if index == bad:
            output.logits.data[0, 0, 0] = torch.nan
        return output

    monkeypatch.setattr(TrainingModule, "output_for", output_for)
    states: list[list[torch.Tensor]] = []

    def note(self: Any, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:  # noqa: ARG001
        moments = [v for s in trainer.optimizers[0].state_dict().get("state", {}).values() for v in s.values()]
        states.append([p.detach().clone() for p in module.network.parameters()] + [m.clone() for m in moments])

    variant = {"trainer": {"accumulate_grad_batches": accumulated}, "save_every": 1}
    variant["model"] = {"optimizer": {"class_path": f"mull.training.optimizers.{optimizer}"}}
    args = reliability.arguments(tmp_path, variant)
    with monkeypatch.context() as patch:
        patch.setattr(Alarms, "on_train_batch_end", note)
        reliability.train([*args, str(tmp_path / "whole")])
    after = states[accumulated - 1 :: accumulated]  # a state for each step
    assert all(torch.equal(a, b) for a, b in zip(after[1], after[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(after[2], after[3], strict=True))
    with open(tmp_path / "whole/trainer/logs/version_0/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["train/iterations"]]
    told = [row["train/skipped_steps"] for row in rows if row["train/skipped_steps"]]
    assert set(told) == {"1.0"} and len(told) == 4
    assert [bool(row["train/gradient_norm"]) for row in rows] == [True, True, False, True, True, True]  # not repeated
    with pytest.raises(RuntimeError), monkeypatch.context() as patch:

        def broken(self: Any, trainer: pl.Trainer, *_: Any) -> None:  # noqa: ARG001
            if trainer.global_step == 4:
                raise RuntimeError

        patch.setattr(Alarms, "on_train_batch_end", broken)
        reliability.train([*args, str(tmp_path / "stopped")])
    reliability.train([*args, str(tmp_path / "stopped")])
    assert reliability.outcome(tmp_path / "stopped") == reliability.outcome(tmp_path / "whole")
