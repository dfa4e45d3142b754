"""--help is for people: no Python in it, mull's own options first, and all that can be chosen by a word is listed."""

import re
from pathlib import Path

import pytest

from mull.checkpoints import plugins
from mull.cli import COMMANDS, main
from mull.inference.decoders import DECODERS
from mull.inference.exits import EXITS
from mull.models.injection import INJECTIONS
from mull.training.shipped import names

RULE = '''
"""Leave after an even number of iterations."""
from dataclasses import dataclass
import torch
from mull.inference.exits import Exit, exit_rule

@exit_rule
@dataclass(frozen=True)
class EvenOnly(Exit):
    name, example = "even_only", "even_only:1"

    def value(self, thought):
        return torch.zeros_like(thought.state[:, 0]) if thought.count % 2 == 0 else thought.state[:, 0] * 0 + 9
'''


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("page", [*COMMANDS, "train trainer", "train model", "train data", "train all"])
def test_no_page_shows_python_objects(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`<function counts at 0x7f...>` says nothing to anybody."""
    command, *topic = page.split()
    said = help_of([command, "--help", *topic], capsys)
    assert not re.search(r"0x[0-9a-f]{4}|<function|<locals>", said)
    assert f"usage: mull {command}" in said


def test_the_first_page_of_train_is_mulls_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty fields of a trainer hid --from and --output; they have pages of their own, and `all` has everything."""
    first, trainer, everything = (help_of(["train", "--help", *more], capsys) for more in ([], ["trainer"], ["all"]))
    own = ("--config", "--output", "--threads", "--plugin", "--from", "--save_every", "--logger", "--seed_everything")
    assert all(f"{option} " in first for option in own) and "--trainer.devices" not in first
    own_words, _, configurations = first.partition("configurations by name")
    assert len(own_words.splitlines()) < 48 and configurations  # of which there may be ever more
    assert all(re.search(rf"\b{word}\b", first) for word in [*names(), *INJECTIONS])
    assert "--trainer.devices DEVICES" in trainer and "--output " not in trainer and "--model." not in trainer
    assert all(option in everything for option in (*own, "--trainer.devices", "--model.loss", "--data.help"))
    assert main(["train", "--help", "cooking"]) == 2
    assert "no help on 'cooking'" in capsys.readouterr().err


def test_networks_of_other_libraries_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    """The parser knows hundreds of torch modules that are no language models."""
    said = "".join(help_of(["train", "--help", "model"], capsys).split())
    assert "mull.RecurrentDepthTransformer" in said and "torch.nn." not in said and "torchmetrics" not in said


def test_rules_and_decoders_are_listed_those_of_a_plugin_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What --exit and --decode take stands in their help, with options, whoever has registered it."""
    said = help_of(["generate", "--help"], capsys)
    for kind in (*EXITS.values(), *DECODERS.values()):
        assert f"\n  {kind.example} " in said
    assert "options of each: [threshold, minimum=1, every=1]" in said and "width=32" in said
    assert "even_only" not in said
    monkeypatch.setattr(plugins, "NAMED", set())
    (tmp_path / "even.py").write_text(RULE)
    with_own = help_of(["evaluate", "--plugin", str(tmp_path / "even.py"), "--help"], capsys)
    assert re.search(r"\n  even_only:1 +Leave after an even number of iterations\.", with_own)
    del EXITS["even_only"]


@pytest.mark.parametrize("command", COMMANDS)
def test_abbreviations_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An abbreviation is another option as soon as one of that name comes; the line says which it may have been."""
    whole = {"train": "output", "data": "help"}.get(command, "plugin")
    folder = ["parity"] if command in ("evaluate", "generate", "chat", "inspect") else []
    assert main([command, *folder, f"--{whole[:-1]}", "x"]) == 2
    assert f"there is no option --{whole[:-1]}; do you mean --{whole}?" in capsys.readouterr().err
