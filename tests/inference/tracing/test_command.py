"""`mull trace`: one page or one JSON object, or one line that says what to mend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mull
from mull.cli import main
from mull.inference.tracing import Noise, Patch
from mull.inference.tracing.command import read_change
from mull.inference.tracing.trace import trace

ROOT = Path(__file__).parents[3]
PARITY, THINKING = str(ROOT / "checkpoints/parity"), str(ROOT / "checkpoints/inner-thinking")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["trace", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_says_what_the_trace_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the numbers of the command line: those of `mull.trace`, tokens as text beside them."""
    said = printed(
        capsys, PARITY, "--prompt", "1 0 1", "--labels", "odd odd even", "--iterations", "5", "--exit", "latent:0.1",
        "--exit", "fixed:3", "--read-at", "2,4",
    )  # fmt: skip
    model = mull.load(PARITY)
    rules = ["latent:0.1", "fixed:3"]
    found = trace(model, "1 0 1", 5, labels=[[-100, 3, 3, 2]], exits=rules, read_at=[2, 4], lenses=("coda", "logit"))
    (run,) = said["runs"]
    assert said["vocabulary"]["4"] == "<start>" and run["counts"] == [2, 4, 5] and run["iterations"] == 5
    assert run["labels"] == [-100, 3, 3, 2] and run["settled"] == found.settled[0].tolist()
    assert run["exits"] == {rule: left[0].tolist() for rule, left in found.exits.items()} and "path" not in run
    assert run["answers"]["logit"]["tokens"] == found.answers["logit"].tokens[0].tolist()
    assert run["answers"]["coda"]["rank"] == found.answers["coda"].rank[0].tolist()
    assert run["answers"]["coda"]["truth"][0][0] is None  # no label there
    shown = torch.tensor(run["motion"]["residual"])
    torch.testing.assert_close(shown, found.residual[0, [1, 3, 4]], rtol=1e-5, atol=1e-8)


def test_second_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Guards --compare, --compare-iterations, --patch and --noise: each is the run that its words say."""
    one, two = "1 0 1 1 0", "0 0 1 1 0"
    model = mull.load(PARITY)
    base = (PARITY, "--prompt", one, "--iterations", "6")
    clean, donor = trace(model, one, 6), trace(model, two, 6, keep_states=True)

    def second(*more: str) -> list[Any]:
        first, other = printed(capsys, *base, *more)["runs"]
        assert first["answers"]["coda"]["tokens"] == clean.answers["coda"].tokens[0].tolist()
        return [other["answers"]["coda"]["tokens"], other["iterations"]]

    assert second("--compare", two) == [donor.answers["coda"].tokens[0].tolist(), 6]
    shorter = trace(model, two, 3).answers["coda"].tokens[0].tolist()
    assert second("--compare", two, "--compare-iterations", "3") == [shorter, 3]
    assert second("--compare-iterations", "3") == [trace(model, one, 3).answers["coda"].tokens[0].tolist(), 3]
    patched = trace(model, one, 6, patch=Patch.of(donor, [0, 1, 2], 2, last=6)).answers["coda"].tokens[0].tolist()
    assert second("--compare", two, "--patch", "2-6:0-2") == [patched, 6]
    assert patched != clean.answers["coda"].tokens[0].tolist()
    noisy = trace(model, one, 6, patch=Noise(2, 0.9, [1, 2], until=4, seed=3)).answers["coda"].tokens[0].tolist()
    assert second("--noise", "2-4:0.9:1-2", "--seed", "3") == [noisy, 6]


def test_a_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards --output and its default, for both kinds of models; a folder with routers has one lens and its passes."""
    monkeypatch.chdir(tmp_path)
    assert main(["trace", PARITY, "--prompt", "1 0 1", "--iterations", "4"]) == 0
    assert capsys.readouterr().out.startswith("wrote trace.html (")
    assert main(["trace", THINKING, "--prompt", "Tom has", "--capacity", "0.9,0,0.9", "--output", "two.html"]) == 0
    said = (tmp_path / "two.html").read_text()
    assert '"iterations":4' in said and '"routers":{"layers":[1,3],"passes":3' in said and '"logit"' not in said
    assert "recurrent_depth, 51,008 parameters" in (tmp_path / "trace.html").read_text()
    capsys.readouterr()
    assert main(["trace", PARITY, "--prompt", "1", "--json", "--output", "three.html"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] and (tmp_path / "three.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prompt"),
        (["--prompt", "1 x"], "unknown symbol 'x'"),
        (["--prompt", "1", "--iterations", "0"], "--iterations"),
        (["--prompt", "1", "--read-at", "9", "--iterations", "3"], "read_at [9] lies outside 1 .. iterations=3"),
        (["--prompt", "1", "--lens", "tuned"], "coda,logit"),
        (["--prompt", "1", "--labels", "odd odd odd"], "--labels has 3 tokens and the prompt 2"),
        (["--prompt", "1", "--exit", "soon"], "exit 'soon' is not known"),
        (["--prompt", "1", "--capacity", "0.5"], "has no routed passes"),
        (["--prompt", "1", "--patch", "1:0"], "give it with --compare TEXT"),
        (["--prompt", "1", "--compare", "0 1", "--patch", "1:0"], "prompts of one length; they have 2 and 3 tokens"),
        (["--prompt", "1", "--compare", "0", "--patch", "1-x:0"], "write iterations and positions as 8:0-3"),
        (["--prompt", "1", "--compare", "0", "--patch", "17:0"], "iteration=17 is beyond the 16 iterations"),
        (["--prompt", "1", "--compare", "0", "--patch", "2:3-5"], "position 3 lies outside 0 .. 1"),
        (["--prompt", "1", "--compare", "0", "--patch", "2:1-0"], "one position or more"),
        (["--prompt", "1", "--noise", "2:much"], "write iterations and positions as 4:0.1"),
        (["--prompt", "1", "--noise", "2:0.1", "--compare", "0"], "leave --compare out"),
        (["--prompt", "1", "--noise", "2:0.1", "--compare-iterations", "3"], "leave --compare-iterations out"),
        (["--prompt", "1", "--output", "nowhere/trace.html"], "there is no folder nowhere"),
        (["--prompt", "1", "--output", "."], "is a folder: name a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[2:]) or "-",
)
def test_mistakes_end_with_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    """Guards the contract: exit status 2, one line that names value, limit and remedy, nothing written."""
    monkeypatch.chdir(tmp_path)
    assert main(["trace", PARITY, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mull: error: ") and message in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_changes_as_they_are_written() -> None:
    """Guards the small language of --patch and --noise."""
    assert read_change("--patch", "8:0-3", "", number=False) == (8, 8, 0.0, [0, 1, 2, 3])
    assert read_change("--patch", "8-24:5", "", number=False) == (8, 24, 0.0, [5])
    assert read_change("--noise", "4:1e-1", "", number=True) == (4, 4, 0.1, None)
    assert read_change("--noise", "4-6:.5:2-3", "", number=True) == (4, 6, 0.5, [2, 3])
    for text in ("", "8", "a:1", "1:0.1:2:3", "-1:0.1", "1:-", "1:0.1:"):
        with pytest.raises(ValueError, match="is not understood; write"):
            read_change("--noise", text, "x", number=True)
