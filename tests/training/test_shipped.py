"""Configurations by name: a file wins, then those that come with mull; what is neither is told the names."""

from pathlib import Path

import pytest

from mull.training.shipped import FOLDER, names, with_paths


def test_files_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every spelling of --config, and nowhere else on the command line."""
    monkeypatch.chdir(tmp_path)
    parity, text = str(FOLDER / "parity.yaml"), str(FOLDER / "text.yaml")
    assert with_paths(["--config", "parity", "--config=text", "-c", "text", "--output", "parity"]) == [
        "--config", parity, f"--config={text}", "-c", text, "--output", "parity",
    ]  # fmt: skip
    Path("parity").write_text("seed_everything: 1\n")
    assert with_paths(["--config", "parity"]) == ["--config", "parity"]
    assert with_paths(["--config", '{"threads": 1}', "--config", "threads: 1"])[1::2] == [
        '{"threads": 1}',
        "threads: 1",
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("parrity", "do you mean parity"),
        ("mine", "addition, demo"),
        ("mine.yaml", "addition, demo"),
        ("parity.yaml", "--config parity"),
        ("configs/parity.yaml", "--config parity"),
    ],
)
def test_what_is_neither_is_told_the_names(
    asked: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped path does not silently become the shipped configuration of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no configuration {asked}.*{says}"):
        with_paths(["--config", asked])
    assert {"demo", "parity", "text"} <= set(names())
