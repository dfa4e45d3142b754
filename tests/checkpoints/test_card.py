"""The model card says what the configuration and the depth table say, and nothing that is not known."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

import mull
from mull.checkpoints import store
from mull.checkpoints.card import cell, depth_table, model_card
from mull.inference.measure.results import Result
from mull.models import LanguageModel, RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig

SHAPE: dict[str, Any] = dict(vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, d_ff=20, max_length=2048)
MODELS = [
    RecurrentDepthTransformer(RecurrentDepthConfig(**SHAPE, n_core=3, injection="diagonal", exit_gate=True)),
    Transformer(TransformerConfig(**SHAPE, n_layers=2, tie_embeddings=False, stop_tokens=(3, 4))),
]
DEPTH: dict[str, Any] = {
    "command": "mull evaluate checkpoints/x --iterations 1,16",
    "rows": [
        {"iterations": 1, "difficulty": 8, "accuracy": 0.51236, "exact_match": None, "flops_per_token": 12345.0},
        {"iterations": 16, "difficulty": None, "accuracy": 1.0, "exact_match": None, "flops_per_token": 2345678.0},
    ],
}


def tables(card: str) -> list[list[list[str]]]:
    """The Markdown tables of a card, as rows of cells, without the line of dashes."""
    blocks = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    return [
        [[c.strip() for c in r.strip("|").split("|")] for r in b.splitlines() if set(r) - set("|-")] for b in blocks
    ]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.config.model_type)
def test_card_equals_the_configuration(tmp_path: Path, model: LanguageModel) -> None:
    """Guards the written card: its name, family, parameter count and every field are the model's own."""
    mull.save(model, tmp_path / "tiny")
    card = (tmp_path / "tiny" / "README.md").read_text()
    parameters = sum(p.numel() for p in model.parameters())
    assert card.startswith(f"# tiny\n\nA `{model.config.model_type}` model of {parameters:,} parameters")
    ((header, *rows),) = tables(card)
    assert header == ["field", "value"]
    assert dict(rows) == {name: str(value) for name, value in asdict(model.config).items()}


def test_card_equals_the_depth_table(tmp_path: Path) -> None:
    """Guards the numbers: the command that made them stands beside them; empty columns are not shown."""
    store.save(MODELS[0], tmp_path, depth=DEPTH)
    card = (tmp_path / "README.md").read_text()
    assert f"\n`{DEPTH['command']}`\n" in card
    assert tables(card)[1] == [
        ["difficulty", "iterations", "accuracy", "flops_per_token"],
        ["8", "1", "0.5124", "1.234e+04"],
        ["", "16", "1", "2.346e+06"],
    ]


def test_card_without_a_depth_table_claims_nothing() -> None:
    """Guards silence: no measurement, no section and no number of one."""
    card = model_card("x", MODELS[0].config, None)
    assert "iteration count" not in card and len(tables(card)) == 1


def test_columns_are_those_of_an_evaluation() -> None:
    """Guards the names: a column that an evaluation renames would vanish from every card without a word."""
    result = dict.fromkeys((f.name for f in fields(Result)), 1)
    assert depth_table([result])[0].count("|") - 1 == 8


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (3, "3"), (12345, "12,345"), (0.98765, "0.9877"), (0.0, "0"), ("text", "text")]
)
def test_cell(value: Any, text: str) -> None:
    """Guards the format of a number."""
    assert cell(value) == text


def test_card_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `mull.save(model, ".")`: the card carries the folder's name, not an empty one."""
    monkeypatch.chdir(tmp_path)
    mull.save(MODELS[0], ".")
    assert (tmp_path / "README.md").read_text().startswith(f"# {tmp_path.name}\n")
