"""The model card says what the configuration and the depth table say, and nothing that is not known."""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

import mull
from mull.checkpoints import store
from mull.checkpoints.card import KEPT, About, Told, cell, depth_table, model_card, settling_table, told_in
from mull.inference.measure.results import Result
from mull.inference.measure.table import settling_table as printed
from mull.inference.measure.table import tables as measured_tables
from mull.models import LanguageModel, RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig

ROOT = Path(__file__).parents[2]
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
    assert tables(card)[0] == [
        ["difficulty", "iterations", "accuracy %", "FLOPs/token"],
        ["8", "1", "51.2", "12.3 k"],
        ["", "16", "100.0", "2.35 M"],
    ]


def test_a_command_is_one_line_of_code_whatever_it_holds() -> None:
    """Guards the page against what a stranger's depth.json has in place of a command: headings, fences, HTML."""
    card = model_card("tiny", MODELS[0].config, {**DEPTH, "command": "```\n<script>\n# x\n``"})
    assert "\n```` ``` <script> # x `` ````\n" in card
    assert "# x" not in card.splitlines()


def test_card_without_a_depth_table_claims_nothing() -> None:
    """Guards silence: no measurement, no section and no number of one."""
    card = model_card("x", MODELS[0].config, None)
    assert "iteration count" not in card and len(tables(card)) == 1 and "data: unknown" in card


def test_columns_are_those_of_an_evaluation() -> None:
    """Guards the names: a column that an evaluation renames would vanish from every card without a word."""
    result: dict[str, Any] = dict.fromkeys((f.name for f in fields(Result)), 1)
    result |= {"capacity_asked": [0.9, 0.1], "capacity_met": [0.9, 0.1]}
    assert depth_table([result])[0] == (
        "| difficulty | iterations | bits per byte | vs 1 | exact % | verified % | loss | asked % | met % | "
        "mean iterations | FLOPs/token |"
    )


def test_the_card_says_what_an_evaluation_says() -> None:
    """Guards one format for each quantity: the cells of a card are those of the table that `evaluate` prints."""
    given: dict[str, Any] = dict(
        iterations=4, difficulty=None, accuracy=0.97, accuracy_low=0.94, accuracy_high=0.98, exact_match=0.5,
        exact_match_low=0.4, exact_match_high=0.6, loss=0.25, loss_low=0.2, loss_high=0.3, bits_per_byte=None,
        examples=9, flops_per_token=2e6, seconds=1.0, reference=8, difference=-0.02, difference_low=-0.03,
        difference_high=-0.01, capacity=0.5, capacity_asked=(0.9, 0.9, 0.1), capacity_met=(0.9, 0.89, 0.11),
    )  # fmt: skip
    result = Result(**given)
    (made,) = measured_tables([result])
    shown = {str(column.header): str(next(iter(column.cells))) for column in made.columns}
    (header, row), *_ = tables("\n".join(depth_table([asdict(result)])) + "\n")
    assert dict(zip(header, row, strict=True)) == {name: text for name, text in shown.items() if name != "sec"}
    assert shown["vs 8"] == "-2.0 ±1.0" and shown["met %"] == "90.0/89.0/11.0" and shown["asked %"] == "90/90/10"
    assert shown["accuracy %"] == "97.0 +1.0 -3.0"


@pytest.mark.parametrize("card", sorted((ROOT / "checkpoints").glob("*/README.md")), ids=lambda card: card.parent.name)
def test_shipped_cards_have_every_field(card: Path) -> None:
    """Guards cards that were written before a field came: each shows the configuration that the folder loads with."""
    config, _ = store.read_config(card.parent)
    assert "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items()) in card.read_text()


@pytest.mark.parametrize("card", sorted((ROOT / "checkpoints").glob("*/README.md")), ids=lambda card: card.parent.name)
def test_shipped_cards_show_the_depth_table_of_their_folder(card: Path) -> None:
    """Guards the numbers of the cards: command and tables are what is written of the depth.json beside them."""
    depth = json.loads((card.parent / "depth.json").read_text())
    said = ["", "## By iteration count", "", f"`{depth['command']}`", "", *depth_table(depth["rows"])]
    assert "\n".join([*said, *settling_table(depth["rows"]), "", "## Shape"]) in card.read_text()


def test_the_card_says_whether_it_had_finished_thinking() -> None:
    """Guards the shipped cards, which tell it row by row as `evaluate --settling` does, and those of models that have
    no state to compare, which are silent."""
    told = 0
    for folder in sorted((ROOT / "checkpoints").glob("*/depth.json")):
        rows, card = json.loads(folder.read_text())["rows"], (folder.parent / "README.md").read_text()
        lines = settling_table(rows)
        assert "\n".join(lines) in card and bool(lines) == ("finished thinking?" in card)
        if lines:
            results = [Result(**{name: row.get(name) for name in (f.name for f in fields(Result))}) for row in rows]
            made = printed(results)
            assert made is not None
            header, *body = tables("\n".join(lines) + "\n")[0]
            assert header == [str(column.header) for column in made.columns]
            columns = [list(map(str, column.cells)) for column in made.columns]
            assert [row[1:] for row in body] == [list(row)[1:] for row in zip(*columns, strict=True)]
            again = model_card("x", MODELS[0].config, {"command": "", "rows": rows})
            assert "\n".join([*lines, "", "## Shape"]) in again
            told += 1
    assert told > 5


ABOUT = About("Counts sheep.", "sheep of its own: nothing to license", "1 2", "3", " 3 \n", 8)


def test_the_card_begins_with_what_the_model_is_for() -> None:
    """Guards the stranger who opens a folder: purpose, an example with its answer, a picture, licences, then tables."""
    card = model_card("x", MODELS[0].config, DEPTH, ABOUT, "depth.png")
    assert card.startswith("# x\n\nCounts sheep. A `recurrent_depth` model")
    assert "mull generate . --prompt '1 2' --iterations 8\n    3\nmull inspect ." in card and "`3` is right" in card
    places = [
        card.index(each) for each in ("Counts", "mull generate", "](depth.png)", "## Licence", "## By", "## Shape")
    ]
    assert places == sorted(places)
    assert "- weights: not stated by whoever trained them\n- data: sheep of its own: nothing to license\n" in card
    assert "](depth.png)" not in model_card("x", MODELS[0].config, None, ABOUT, "depth.png")


def test_a_card_is_read_back() -> None:
    """Guards those who show a card: purpose and example come back as they went in, whatever quotes and lines they hold;
    of a page that mull has not written nothing is told, nor of words below the line."""
    for prompt in ("1", "1 2", "it's", "a 'b' \"c\" $d `e`\n--iterations 3", "--prompt ' '"):
        about = About(
            "Counts sheep. It is An `odd` model of none.", "x", prompt, answer="mull generate . --prompt 'no'"
        )
        assert told_in(model_card("x", MODELS[0].config, DEPTH, about)) == Told(about.purpose, prompt)
    bare = model_card("x", MODELS[0].config, None)
    assert told_in(bare) == told_in("") == told_in("# x\n\nMy own words.") == Told()
    assert told_in(f"{bare}\nmull generate . --prompt mine") == Told()
    assert told_in((ROOT / "checkpoints/parity/README.md").read_text()).prompt == "0 0 0 0 0 1 0 1"


def test_a_card_that_is_written_again_keeps_what_somebody_wrote() -> None:
    """Guards own words and the licence of the weights; everything else is new."""
    card = model_card("x", MODELS[0].config, None, ABOUT)
    own = card.replace("not stated by whoever trained them", "MIT") + "\n## Baselines\n\nOf sheep.\n"
    again = model_card("y", MODELS[0].config, None, None, before=own)
    assert again.startswith("# y\n\nA `recurrent") and "- weights: MIT\n- data: unknown" in again
    assert again.endswith(KEPT + "\n\n## Baselines\n\nOf sheep.\n")
    assert model_card("y", MODELS[0].config, None, None, before=again) == again


def test_a_page_that_is_not_mulls_is_kept_whole() -> None:
    """Guards a README.md of somebody's own, without the line above own words: nothing of it is lost, and none of it
    moves or doubles when the card is written again."""
    own = "# My sheep\n\nCounted by hand.\n"
    card = model_card("x", MODELS[0].config, None, None, before=own)
    assert card == model_card("x", MODELS[0].config, None) + "\n" + own
    assert model_card("x", MODELS[0].config, None, None, before=card) == card


def test_a_save_keeps_what_somebody_wrote(tmp_path: Path) -> None:
    """Guards own words and the licence of the weights where other weights are saved over a folder."""
    mull.save(MODELS[0], tmp_path)
    file = tmp_path / "README.md"
    file.write_text(file.read_text().replace("not stated by whoever trained them", "MIT") + "\nOf sheep.\n")
    mull.save(MODELS[1], tmp_path)
    card = file.read_text()
    assert "A `transformer` model" in card and "- weights: MIT\n" in card and card.endswith(KEPT + "\n\nOf sheep.\n")


@pytest.mark.parametrize(("value", "text"), [(None, ""), (3, "3"), (12345, "12,345"), ("text", "text")])
def test_cell(value: Any, text: str) -> None:
    """Guards the format of a number."""
    assert cell(value) == text


def test_card_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `mull.save(model, ".")`: the card carries the folder's name, not an empty one."""
    monkeypatch.chdir(tmp_path)
    mull.save(MODELS[0], ".")
    assert (tmp_path / "README.md").read_text().startswith(f"# {tmp_path.name}\n")
