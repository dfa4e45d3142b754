"""Alignment against states by hand, and that it is there only where it was asked for."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mull.cli import main
from mull.inference.measure.alignment import aligned
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.results import from_json, to_json
from mull.inference.measure.table import alignment_table
from mull.models import LanguageModel
from mull.models.iterated import IteratedModel
from mull.models.labels import IGNORE

Make = Callable[..., LanguageModel]


def batch(rows: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(11, (rows, length), generator=generator)
    labels[:, :2] = IGNORE
    labels[0] = IGNORE  # an example without a question
    return torch.randint(11, (rows, length), generator=generator), labels


@torch.no_grad()
def test_it_is_the_cosine_of_states_from_two_starts(make_model: Make) -> None:
    """Each run by itself from its own state; over scored positions alone, whatever the batches are."""
    model = make_model("recurrent")
    assert isinstance(model, IteratedModel)
    pairs = [batch(4, 6, 3), batch(3, 6, 4)]
    found = aligned(model, evaluate(model, {8: pairs}, [1, 3]), {8: pairs}, torch.Generator().manual_seed(5))
    draws, cosines = torch.Generator().manual_seed(5), {1: [], 3: []}
    for ids, labels in pairs:
        one, other = model.start(torch.empty(2 * len(ids), 6, 24, dtype=torch.float64), draws).chunk(2)
        for count, told in cosines.items():
            states = [model(ids, count, state=start).state[labels != IGNORE] for start in (one, other)]
            told.append(torch.cosine_similarity(*states, dim=-1))
    for result, count in zip(found, (1, 3), strict=True):
        assert result.alignment == pytest.approx(float(torch.cat(cosines[count]).mean()), rel=1e-5)
        assert result.alignment_low < result.alignment < result.alignment_high <= 1
    both = {4: pairs[1:], 8: pairs}  # what else is asked for has draws of its own
    beside = aligned(model, evaluate(model, both, [1, 3]), both, torch.Generator().manual_seed(5))
    assert [result.alignment for result in beside[2:]] == [result.alignment for result in found]


def test_a_model_that_forgets_its_start_is_aligned(make_model: Make) -> None:
    """Of a core that does not look at its state any two starts come to one; where it only keeps it they stay apart."""
    model, pairs = make_model("recurrent"), [batch(5, 6, 1)]
    assert isinstance(model, IteratedModel)
    results = evaluate(model, {None: pairs}, [1, 4])
    model.think = lambda state, *_: torch.ones_like(state)  # type: ignore[method-assign]
    assert [result.alignment for result in aligned(model, results, {None: pairs})] == pytest.approx([1, 1])
    model.think = lambda state, *_: state  # type: ignore[method-assign]
    apart = aligned(model, results, {None: pairs})
    assert apart[0].alignment == apart[1].alignment and abs(apart[0].alignment) < 0.3


def test_it_is_there_only_on_request(make_model: Make) -> None:
    """JSON and tables of an evaluation without it are what they were; with it, it comes back."""
    model, pairs = make_model("recurrent"), [batch(5, 6, 1)]
    plain = evaluate(model, {8: pairs}, [1, 2])
    asked = aligned(model, plain, {8: pairs})
    assert all("alignment" not in row for row in json.loads(to_json(plain))["rows"])
    assert alignment_table(plain) is None
    assert from_json(to_json(asked)) == asked
    lost = [replace(result, alignment=math.nan) for result in asked]  # of a state that has left the numbers
    assert [row["alignment"] for row in json.loads(to_json(lost))["rows"]] == [None, None]
    table = alignment_table(asked)
    assert table is not None and [column.header for column in table.columns] == ["iterations", "at 8"]


def test_a_model_without_random_starts_is_refused(make_model: Make) -> None:
    for kind, options in (("transformer", {}), ("recurrent", {"initial_state": "zero"})):
        with pytest.raises(ValueError, match="--alignment compares two random starts"):
            aligned(make_model(kind, **options), [], {})


def test_the_command_tells_it_where_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """In JSON and as a table of its own; nothing else of the evaluation changes; mistakes end in one line."""
    command = ["evaluate", "parity", "--iterations", "2,16", "--difficulty", "16", "--examples", "6"]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["rows"]
    assert main([*command, "--json", "--alignment"]) == 0
    asked = json.loads(capsys.readouterr().out)["rows"]
    assert all(0 < row["alignment"] <= row["alignment_high"] <= 1 for row in asked)
    for one, other in zip(plain, asked, strict=True):
        assert all(other[name] == value for name, value in one.items() if name != "seconds")
    assert main([*command, "--alignment"]) == 0
    assert "do two starts come to one state?" in " ".join(capsys.readouterr().out.split())
    for wrong in ("--tokens", "--exit=latent:0.03"):
        assert main([*command, "--alignment", wrong]) == 2
        assert "leave" in capsys.readouterr().err
