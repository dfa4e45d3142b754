"""What an evaluation is written as: JSON that other programs read, CSV, and a table for people."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from mull.inference.measure.results import Result, from_json, headline, to_csv, to_json
from mull.inference.measure.table import print_table, si

KEYS = ["iterations", "difficulty", "accuracy", "exact_match", "loss", "examples", "flops_per_token", "seconds"]
TASK = Result(
    iterations=8, difficulty=32, accuracy=0.971, accuracy_low=0.962, accuracy_high=0.98, exact_match=0.9,
    exact_match_low=0.87, exact_match_high=0.93, loss=0.1, loss_low=0.08, loss_high=0.12, bits_per_byte=None,
    examples=512, flops_per_token=1.2e6, seconds=0.8,
)  # fmt: skip
TEXT = replace(
    TASK, difficulty=None, exact_match=None, exact_match_low=None, exact_match_high=None, loss=1.4, loss_low=1.3,
    loss_high=1.5, bits_per_byte=2.0,
)  # fmt: skip
BASELINE = replace(TASK, iterations=None, accuracy=0.5)


def test_json_holds_the_agreed_keys_and_comes_back() -> None:
    results = [TASK, TEXT, BASELINE]
    found = json.loads(to_json(results))
    assert list(found) == ["rows"]
    assert all(set(KEYS) <= set(result) for result in found["rows"])
    assert found["rows"][1]["exact_match"] is None
    assert from_json(to_json(results)) == results
    assert from_json(json.dumps({"command": "mull evaluate", **found})) == results


def test_json_has_null_where_a_number_is_not_finite() -> None:
    """NaN in a file is no JSON, and a strict reader would lose all the other results."""
    text = to_json([replace(TASK, loss=math.nan, loss_high=math.inf)])
    result = json.loads(text, parse_constant=pytest.fail)["rows"][0]
    assert result["loss"] is None
    assert result["loss_high"] is None
    assert math.isnan(from_json(text)[0].loss)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", 'a list "rows"'), ('{"rows": [{"loss": 1}]}', "lacks iterations"), ("{", "Expecting")]
)
def test_json_of_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_null_is_no_number_that_every_result_has() -> None:
    """Guards pictures and cards of a file that somebody changed; what may be unknown may be null."""
    row = json.loads(to_json([TASK]))["rows"][0]
    for name in ("flops_per_token", "accuracy", "examples"):
        with pytest.raises(ValueError, match=f"^a result of the evaluation has null for {name}; evaluate"):
            from_json(json.dumps({"rows": [{**row, name: None}]}))
    unknown = dict.fromkeys(("iterations", "difficulty", "loss", "exact_match", "loss_low"))
    assert from_json(json.dumps({"rows": [{**row, **unknown}]}))[0].iterations is None


def test_csv_holds_every_value() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv([TASK, TEXT]))))
    assert [float(line["accuracy_low"]) for line in lines] == [0.962, 0.962]
    for line, result in zip(lines, [TASK, TEXT], strict=True):
        assert {name: None if value == "" else float(value) for name, value in line.items()} == vars(result)


def test_headline_of_text_is_bits_per_byte_with_its_own_interval() -> None:
    assert headline(TASK) == (0.971, 0.962, 0.98)
    assert headline(TEXT) == pytest.approx((2.0, 2.0 * 1.3 / 1.4, 2.0 * 1.5 / 1.4))
    assert headline(replace(TEXT, loss_low=None, loss_high=None)) == (2.0, None, None)


def printed(results: list[Result], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(results, title="a title", console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_of_one_difficulty() -> None:
    text = printed([replace(TASK, iterations=1, accuracy=0.5), TASK], width=80)
    (line,) = [line.split() for line in text.splitlines() if line.strip().startswith("8 ")]
    assert " ".join(line) == "8 97.1 ±0.9 90.0 ±3.0 0.1000 1.2 M 0.80"
    assert "a title" in text
    assert "at 32" in text


def test_table_of_several_difficulties_has_one_column_each_and_leaves_gaps() -> None:
    text = printed(
        [
            TASK,
            replace(TASK, difficulty=64, accuracy=0.8, accuracy_low=0.77, accuracy_high=0.82),
            replace(TASK, difficulty=64, iterations=16),
        ]
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "8 97.1 ±0.9 80.0 +2.0 -3.0 1.2 M 1.60" in lines
    assert "16 97.1 ±0.9 1.2 M 0.80" in lines


def test_differences_of_several_difficulties_have_a_table_of_their_own() -> None:
    """Guards the narrow terminal: values and differences side by side would break every cell; nothing is lost."""
    low = replace(TASK, iterations=1, reference=8, difference=-0.4, difference_low=-0.42, difference_high=-0.38)
    results = [
        low,
        TASK,
        replace(low, difficulty=64, difference=-0.1, difference_low=-0.2, difference_high=0.38, examples=9),
    ]
    text = printed([*results, replace(TASK, difficulty=64, examples=9)], width=100)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines.index("difference to 8 iterations") < lines.index("1 -40.0 ±2.0 -10.0 +48.0 -10.0")
    assert sum(line.startswith("8 ") for line in lines) == 1  # the reference differs from itself by nothing
    assert "512, 9 examples" in text
    single = printed([low, TASK], width=120)
    assert "vs 8" in single and "-40.0 ±2.0" in single


def test_capacities_of_several_difficulties_have_a_table_of_their_own() -> None:
    """Guards asked and met, by pass, also where difficulties stand side by side: hard ones take more than they ask."""
    routed = replace(TASK, capacity=0.5, capacity_asked=(0.9, 0.1), capacity_met=(0.91, 0.12))
    text = printed([routed, replace(routed, difficulty=64, capacity_met=(0.95, 0.3))], width=100)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "8 90/10 91.0/12.0 95.0/30.0" in lines and "who took each routed pass" in lines
    single = printed([routed], width=120)
    assert "90/10" in single and "91.0/12.0" in single


def test_table_of_text_and_of_a_model_without_a_loop() -> None:
    text = printed([TEXT, replace(TEXT, iterations=None)])
    assert "bits per byte" in text
    assert "accuracy" not in text
    assert "2.000 ±0.143" in text
    assert any(line.strip().startswith("- ") for line in text.splitlines())


def test_a_narrow_terminal_breaks_cells_and_loses_nothing() -> None:
    results = [replace(TASK, difficulty=difficulty) for difficulty in (8, 16, 32, 64)]
    text = printed(results, width=60)
    assert "…" not in text
    assert "".join(text.split()).count("±0.9") == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (999, "999"),
        (999.9, "1 k"),
        (1.234e6, "1.23 M"),
        (999.9e6, "1 G"),
        (4.5e12, "4.5 T"),
        (2e16, "20000 T"),
    ],
)
def test_numbers_with_a_prefix(value: float, text: str) -> None:
    assert si(value) == text
