"""Folders by name: a path wins, then the run of that name in the working directory, then the folder that ships."""

from pathlib import Path

import pytest

import mull
from mull.checkpoints import load_tokenizer
from mull.checkpoints.names import SHIPPED, called, folder_of, shipped
from mull.checkpoints.store import verify
from mull.training.start import read_start


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the places. A run that is not finished is still the one that its name means."""
    monkeypatch.chdir(tmp_path)
    assert {"inner-thinking", "parity", "text"} <= set(shipped())
    assert folder_of("parity") == SHIPPED / "parity"
    run = Path("checkpoints/parity")
    (run / "trainer").mkdir(parents=True)
    assert folder_of("parity") == run
    Path("parity").mkdir()
    assert folder_of("parity") == Path("parity")
    assert folder_of(Path("checkpoints/../parity")) == Path("checkpoints/../parity")


def test_a_title_names_what_ships_and_says_where_the_rest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards tables against the long path of an installation above them."""
    monkeypatch.chdir(tmp_path)
    assert called(folder_of("parity")) == called(str(folder_of("parity"))) == "parity"
    Path("checkpoints/parity").mkdir(parents=True)
    assert called(folder_of("parity")) == "checkpoints/parity" and called("../parity") == "../parity"


@pytest.mark.parametrize("asked", ["nowhere", "checkpoints/parity", "./parity", "files.py", "__pycache__", "..parity"])
def test_what_is_no_name_is_refused(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a bare word is a name, and no part of the code beside the shipped folders is one; the names are listed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint folder .*(parity, reasoner, reasoner_.*, sudoku.*, text ship|called parity, without)",
    ):
        folder_of(asked)


def test_a_model_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mull.load("parity")` is the shipped model in any working directory, and a folder of that name where one is."""
    monkeypatch.chdir(tmp_path)
    assert mull.load("parity").config == mull.load(SHIPPED / "parity").config
    own = mull.Transformer(mull.TransformerConfig(vocab_size=3, d_model=8, n_heads=2, n_layers=1))
    mull.save(own, "parity")
    assert mull.load("parity").config == own.config


def test_an_unfinished_run_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C there is a folder and no model; copying it again, the remedy for damage, would not help."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints/mine/trainer").mkdir(parents=True)
    for read in (mull.load, load_tokenizer, verify, read_start):
        with pytest.raises(
            FileNotFoundError, match=r"mine holds a training and no model: .* the line that began it goes on"
        ):
            read("mine")
