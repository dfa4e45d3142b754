"""Wrong fields of a run are one line in a person's words, which names the field, the value and what would be right."""

import pytest

from mull.cli import main


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("max_steps", "3", "there is no option --max_steps; do you mean --trainer.max_steps?"),
        ("trainer.max_stepps", "3", "there is no option --trainer.max_stepps; do you mean --trainer.max_steps?"),
        ("zzz", "3", "there is no option --zzz; `mull train --help` lists what there is"),
        ("trainer.max_steps", "x", "trainer.max_steps: x is not an integer"),
        ("model.backprop_iterations", "x", "model.backprop_iterations: x is not an integer"),
        ("seed_everything", "x", "seed_everything: x is not true, false or an integer"),
        (
            "model.iterations.init_args.mean",
            "x",
            "model.iterations: mull.training.iterations.LogNormalPoisson: mean: x is not a number",
        ),
        (
            "model.network.init_args.config.d_modell",
            "8",
            "model.network: mull.RecurrentDepthTransformer has no option 'd_modell'; do you mean d_model?",
        ),
        (
            "model.network.init_args.config.wiring",
            "pre",
            "model.network: mull.RecurrentDepthTransformer: config.wiring: pre is not one of 'sandwich', 'pre_norm'",
        ),
        (
            "data.init_args.task.init_args.lenght",
            "4",
            "data: mull.training.data.Parity has no option 'lenght'; do you mean length?",
        ),
        ("data.init_args.curriculum", "5", "data: mull.training.data.TaskData: curriculum: 5 is not a dict"),
        (
            "data.length",
            "3",
            "data: mull.training.data.TaskData has no option 'length'; it takes task, difficulty, curriculum, "
            "batch_size, validation_examples, seed",
        ),
    ],
)
def test_a_wrong_field_in_a_persons_words(
    field: str, value: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser's own message names unions, subtypes and class objects, and not what would be right."""
    assert main(["train", "--config", "parity", "--output", "nowhere", f"--{field}", value]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mull: error: {line}"
