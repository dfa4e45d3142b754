"""What is said of settling is what plain calls of the model say, whatever the way of writing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mull
from mull.cli import main
from mull.inference import stream
from mull.inference.measure.settling import SETTLED
from mull.inference.session import Session
from mull.models import LanguageModel
from mull.training.data import Parity

PROMPTS = torch.tensor([[3, 0, 1, 1], [3, 1, 0, 1]])


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = mull.RecurrentDepthConfig(vocab_size=9, d_model=16, n_heads=2, n_core=2, max_length=64, mean_iterations=4)
    return mull.RecurrentDepthTransformer(config).double().eval()


@pytest.fixture
def restless(model: LanguageModel) -> LanguageModel:
    """The same with large weights: what moves most comes anywhere in a text, in drafts that are refused too."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(6 if weights.dim() == 2 else 1)
    return model


def expected(model: LanguageModel, tokens: Tensor, iterations: int, new: int) -> Tensor:
    """The most that the last iteration moves a state before each new token of whole rows, out of one call without a
    cache."""
    before, last = (model(tokens, count).state for count in (iterations - 1, iterations))
    moved = (last - before).norm(dim=-1) / last.norm(dim=-1)
    return torch.stack([moved[:, :end].amax(dim=1) for end in range(tokens.shape[1] - new, tokens.shape[1])], dim=1)


@pytest.mark.parametrize("options", [{}, {"policy": "deepest"}, {"decode": "speculate:1:5"}], ids=str)
@torch.no_grad()
def test_residuals_are_those_of_whole_rows(restless: LanguageModel, options: dict[str, str]) -> None:
    """By cache and by drafts, of which many are refused and forgotten; they cost nothing where nobody asks."""
    given: dict[str, Any] = {"max_new_tokens": 14, "stop_tokens": (), **options}
    found = mull.generate(restless, PROMPTS, 6, residuals=True, **given)
    assert found.residuals is not None and (found.residuals[:, -1] > found.residuals[:, 0]).all()
    torch.testing.assert_close(found.residuals.double(), expected(restless, found.tokens, 6, 14), rtol=1e-5, atol=0)
    assert mull.generate(restless, PROMPTS, 6, **given).residuals is None


@pytest.mark.parametrize("options", [{}, {"decode": "speculate:2:3"}, {"exit": "latent:0.2"}], ids=str)
def test_padding_and_other_rows_move_nothing(restless: LanguageModel, options: dict[str, str]) -> None:
    """Rows of other lengths, padded on either side: what is said of each is what is said of it alone."""
    ids, mask = torch.tensor([[3, 0, 1, 1, 0, 7], [8, 7, 6, 3, 1, 0], [8, 7, 6, 3, 1, 5]]), torch.ones(3, 6)
    mask[1, :3] = mask[2, 2:] = mask[2, :1] = 0
    more: dict[str, Any] = {"max_new_tokens": 5, "stop_tokens": (), "residuals": True, **options}
    together = mull.generate(restless, ids, 6, attention_mask=mask, **more).residuals
    alone = [
        mull.generate(restless, row[there.bool()][None], 6, **more).residuals
        for row, there in zip(ids, mask, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))  # type: ignore[arg-type]


def test_a_chain_that_waits_has_not_settled() -> None:
    """The last bit of a row rests while it waits for those before it: what moves there says that nothing is done yet.
    Guards against a calm last state under a wrong answer."""
    parity, rows = mull.load("parity"), Parity(24).batch("test", 0, range(40))[0]
    ids, right = torch.from_numpy(rows), torch.from_numpy(rows[:, 1:].sum(1) % 2 + 2)
    for count in (4, 8, 24):
        found = mull.generate(parity, ids, count, max_new_tokens=1, residuals=True)
        assert found.residuals is not None
        settled = found.residuals[:, 0] < SETTLED
        assert settled.all() if count == 24 else not settled.any()
        assert (found.new_tokens[:, 0] == right).all() == (count == 24)


@torch.no_grad()
def test_an_exit_rule_tells_where_it_left() -> None:
    """The rule `latent` leaves below its threshold, so what it left is below; what is said is the largest so far
    of what left and what ran to the limit, prompt included, and the largest of all comes in the answer."""
    text, rule, threshold, limit = mull.load("text"), "latent:0.06", 0.06, 6
    ids = torch.tensor([text.tokenizer.encode("How many").ids])
    found = mull.generate(text, ids, limit, exit=rule, max_new_tokens=24, stop_tokens=(), residuals=True)
    session = Session(text, 1, 64, limit, rule, residuals=True)
    pieces = [ids, *found.new_tokens[:, :-1].split(1, dim=1)]
    outs, moves = zip(*[session.thought(piece, None) for piece in pieces], strict=True)
    moved, used = torch.cat(moves, dim=1), torch.cat([out.iterations for out in outs], dim=1)
    assert (moved[used < limit] < threshold).all() and 2 < (used[:, -24:] < limit).sum() < 22
    assert torch.equal(used[:, -24:], found.iterations) and moved.argmax() > ids.shape[1]
    assert found.residuals is not None
    torch.testing.assert_close(found.residuals, moved.cummax(dim=1).values[:, -24:])


@torch.no_grad()
def test_a_session_tells_of_all_that_it_holds(model: LanguageModel) -> None:
    """Of what it read in pieces as at once, of rows that are copied or joined, of the tokens that `think` read; and of
    rows that were cut nobody knows, since what is left may have moved less."""
    ids = torch.randint(9, (3, 12), generator=torch.Generator().manual_seed(1))
    moved = model(ids, 5).residual
    assert moved is not None and (moved[:, 5:8].amax(1) > moved[:, :5].amax(1)).any()

    def after(rows: Tensor, length: int) -> Session:
        session = Session(model, len(rows), 64, 5, residuals=True)
        session.read(rows[:, :5])
        (session.read if length != 8 else session.think)(rows[:, 5:length])
        return session

    def holds(session: Session, expected: Tensor) -> bool:
        return bool(torch.allclose(session.residual, expected, rtol=1e-6))  # type: ignore[arg-type]

    whole = after(ids, 8)
    assert holds(whole, moved[:, :8].amax(dim=1)) and holds(whole.fork([2, 0]), moved[[2, 0], :8].amax(dim=1))
    joined = Session.gathered([(after(ids[:1], 9), 0), (after(ids[1:], 9), 1), (after(ids[1:], 9), 0)])
    assert holds(joined, moved[[0, 2, 1], :9].amax(dim=1))
    joined.read(ids[[0, 2, 1], 9:])
    assert holds(joined, moved[[0, 2, 1]].amax(dim=1))
    whole.cut([8, 8, 8])
    assert holds(whole, moved[:, :8].amax(dim=1))
    asked, silent = Session(model, 1, 64, 5, residuals=True), Session(model, 1, 64, 5)
    asked.read(ids[:1, :5])
    silent.read(ids[1:2, :5])
    for order in ([0, 1], [1, 0]):
        mixed = Session.gathered([((asked, silent)[row], 0) for row in order])
        mixed.read(ids[order, 5:6])
        assert mixed.residual is not None and mixed.residual[order.index(1)].isnan()  # of the one that was not asked
        assert torch.allclose(mixed.residual[order.index(0)], moved[0, :6].amax(), rtol=1e-6)
    whole.cut([5, 8, 0])
    assert whole.residual is not None and whole.residual[0].isnan() and not whole.residual[2]
    assert torch.allclose(whole.residual[1], moved[1, :8].amax(), rtol=1e-6)
    whole.read(ids[:, 5:6])
    assert whole.residual[0].isnan() and whole.residual[1:].isfinite().all()
    whole.cut([0, 0, 0])
    whole.read(ids[:, :5])
    assert holds(whole, moved[:, :5].amax(dim=1))


def test_nobody_knows_of_one_iteration_nor_without_a_loop(model: LanguageModel) -> None:
    """Where nothing can be said nothing is; rows that are only filled up are no number."""
    for position in stream(model, PROMPTS, 1, max_new_tokens=3, residuals=True):
        assert position.residuals is None
        tokens, iterations = position  # a pair, as ever
        assert tokens is position.tokens and iterations is position.iterations
    by_row = mull.generate(model, PROMPTS, torch.tensor([1, 4]), max_new_tokens=3, stop_tokens=(), residuals=True)
    assert by_row.residuals is not None and by_row.residuals.isnan().any(dim=1).tolist() == [True, False]
    torch.manual_seed(0)
    untied = mull.Transformer(mull.TransformerConfig(vocab_size=9, d_model=16, n_heads=2, n_layers=2, max_length=64))
    found = mull.generate(untied, PROMPTS, max_new_tokens=3, stop_tokens=(), residuals=True)
    assert found.residuals is not None and found.residuals.isnan().all()
    first = int(mull.generate(model, PROMPTS, 3, max_new_tokens=9).new_tokens[0, 2])
    rows = mull.generate(model, PROMPTS, 3, max_new_tokens=9, stop_tokens=(first,), residuals=True)
    assert rows.residuals is not None
    assert torch.equal(rows.residuals.isnan(), rows.iterations == 0)


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    mull.save(model.float(), tmp_path / "model", tokenizer=Parity(8).tokenizer)
    return tmp_path / "model"


def test_the_last_line_says_whether_it_had_settled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The share of the tokens below the one threshold, in the footer and in lines; with a rule, who ended them."""
    command = ["generate", str(folder), "--max-new-tokens", "8", "--seed", "0"]
    loaded, lines = mull.load(folder), folder.parent / "prompts.txt"
    lines.write_text("1 0 1\n0 1\n")
    shares = []
    for iterations in (2, 24):
        found = mull.generate(loaded, "1 0 1", iterations, max_new_tokens=8, residuals=True)
        assert found.residuals is not None
        shares.append(float((found.residuals < SETTLED).double().mean()))
        assert main([*command, "--prompt", "1 0 1", "--iterations", str(iterations)]) == 0
        assert f", {shares[-1]:.0%}".replace("%", " % settled,") in capsys.readouterr().err
        assert main([*command, "--prompts", str(lines), "--iterations", str(iterations)]) == 0
        printed = {answer["line"]: answer for answer in map(json.loads, capsys.readouterr().out.splitlines())}
        assert printed[1]["settled"] == round(shares[-1], 4)
    assert shares[0] != shares[1]
    assert main([*command, "--prompt", "1 0 1", "--iterations", "24", "--exit", "latent:0.03"]) == 0
    said = re.search(r"(\d+) ended by latent and (\d+) at the limit of 24, (\d+) % settled", capsys.readouterr().err)
    ruled = mull.generate(loaded, "1 0 1", 24, exit="latent:0.03", max_new_tokens=8, residuals=True)
    assert said and int(said[1]) == int((ruled.iterations < 24).sum()) and int(said[1]) + int(said[2]) == 8
    assert ruled.residuals is not None and int(said[3]) == round(
        100 * float((ruled.residuals < SETTLED).double().mean())
    )
    assert main([*command, "--prompt", "1 0 1", "--iterations", "1"]) == 0
    assert "settled" not in capsys.readouterr().err
    assert main([*command, "--prompts", str(lines), "--iterations", "8", "--decode", "wavefront:2:4"]) == 0
    assert all(json.loads(line)["settled"] is None for line in capsys.readouterr().out.splitlines())
