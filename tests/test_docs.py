"""The pages are true: their code runs, what they show is printed, names and links exist, and the site builds.

How a block is tested is said before it; see docs/blocks.py.
"""

import asyncio
import contextlib
import importlib.util
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mull import cli
from mull.checkpoints.names import shipped
from mull.training.shipped import names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRACE = ROOT / "docs" / "trace.md"  # run once, for all tests of what it claims
ELSEWHERE = ("hugging-face.md", "lm-eval.md", "serving.md")  # they need packages, a server: run by tests of their own


def module() -> ModuleType:
    """docs/blocks.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("blocks", ROOT / "docs" / "blocks.py")
    assert spec is not None and spec.loader is not None
    loaded = sys.modules["blocks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


BLOCKS = module()


def place(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def to_run(page: Path) -> bool:
    return page != TRACE and page.name not in ELSEWHERE and any(block.is_run for block in BLOCKS.blocks(page))


# ---------------------------------------------------------------------------------------------------- what pages say


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)], ids=place)
@pytest.mark.usefixtures("short_cards")  # no page shows the card of its run: test_export.py looks at them
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """Guards every block against the day when it no longer does what stands there. A page that brings plugins has a
    process of its own, since they stay registered."""
    if "--plugin" not in page.read_text():
        assert BLOCKS.checked(page, tmp_path) == []
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:  # which tells of a process that has died
        assert pool.submit(BLOCKS.checked, page, tmp_path).result() == []


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Guards against code that slips by untested, and against files that are not what their name says."""
    for block in BLOCKS.blocks(page):
        assert block.language, block.code
        assert block.language == "bash" or not re.search(r"^mull \w", block.code, re.MULTILINE), block.code
        if block.language == "python":
            compile(block.code, place(page), "exec")
        for word in block.how:
            assert word in ("names", "short", "words", "any answer", "mistakes") or " => " in word, word


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every `mull ...` line: of bash blocks, and of the indented ones of the results."""
    blocks = [(place(page), block) for page in PAGES for block in BLOCKS.blocks(page) if "mistakes" not in block.how]
    found = [(page, words) for page, block in blocks for words in block.commands]
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", "\n".join(re.findall(r"^    (.*)$", page.read_text(), re.MULTILINE)))
        lines = [re.sub("['\"]", "", line.split("  #")[0]) for line in text.splitlines()]
        found += [(place(page), line.split()[1:]) for line in lines if re.match(r"mull [a-z-]+ ", line)]
    return found


@cache
def options_of(command: str) -> set[str]:
    """The options that a command's help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    return set(re.findall(r"--[a-z][\w-]*", said.getvalue())) | {"--help"}


def test_commands_name_what_exists() -> None:
    """Guards command lines that are too long to run: each command, configuration, folder and option is one that
    there is."""
    wrong, ours = [], {"--model", "--data", "--trainer"}
    lines = command_lines()
    for page, words in lines:
        missing = [] if words[0] in cli.COMMANDS else [words[0]]
        for before, word in pairwise(words):
            if before == "--config" and Path(word).stem not in names() and not (ROOT / word).exists():
                missing += [] if f"# {word}\n" in (ROOT / page).read_text() or "my_" in word else [word]
            if before == words[0] and before not in ("train", "data", "convert") and not word.startswith("-"):
                known = word in shipped() or word.startswith("checkpoints/") or word in ("FOLDER", "FOLDERS", "run")
                missing += [] if known else [word]
            missing += [word] if before == "--paths" and word.startswith("..") else []  # outside of a clone
            if word.startswith("--") and "." not in word and words[0] in cli.COMMANDS and word not in ours:
                missing += [] if word.split("=")[0] in options_of(words[0]) else [word]
        wrong += [f"{page}: mull {' '.join(words)}: {word}" for word in missing]
    assert wrong == [] and len(lines) > 50


def test_the_makefile_has_the_targets_that_pages_name() -> None:
    """Guards `make demo` and its siblings."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)}
    assert named <= targets and {"demo", "test", "data", "docs"} <= named


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_somewhere(page: Path) -> None:
    """Guards links between pages, to files of the repository and to headings, as the repository's pages show them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link, heading in re.findall(r"\]\(([^)\s#:]*)(#[\w-]+)?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading[1:] in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """One process for all notebooks, most of whose start are imports."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    found = pytest.importorskip("jupyter_client").AsyncKernelManager(kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield found
    asyncio.run(found.shutdown_kernel(now=True))


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_what_it_claims_holds(notebook: Path, kernel: Any) -> None:
    """Guards the `assert` lines of its cells, and that what is committed comes from these cells: outputs of the same
    kinds, whose numbers may be of another machine. How many parts a text comes in is a matter of time."""

    def outputs(cells: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        kinds = [groupby(map(itemgetter("output_type"), cell["outputs"])) for cell in code]
        return [(cell["source"], [kind for kind, _ in found]) for cell, found in zip(code, kinds, strict=True)]

    nbformat = pytest.importorskip("nbformat")
    found, committed = BLOCKS.executed(notebook, kernel), nbformat.read(notebook, as_version=4)
    assert outputs(found.cells) == outputs(committed.cells)
    assert "assert " in notebook.read_text() and any(kinds for _, kinds in outputs(committed.cells))


# ---------------------------------------------------------------------------------------------------------- the site


def test_the_site_builds_without_a_warning_and_brings_all_it_needs(tmp_path: Path) -> None:
    """Guards `make docs`: strict, with each public name documented, nothing from other hosts, and files as pages."""
    for needed in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(needed)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, (
        done.stderr
    )  # --quiet would hide them, from strict too
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    expected = {"index.html", "notebooks/tutorial.html", "source/configs/reference.yaml.html"}
    assert expected <= set(pages)
    for name, page in pages.items():
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\"]*", page) == [], name
    assert 'id="mull.generate"' in pages["reference/index.html"]
    told = "".join(pages[name] for name in pages if name.startswith("reference/"))
    for module in ("mull", "mull.models", "mull.inference", "mull.inference.tracing", "mull.training.data"):
        public = importlib.import_module(module).__all__
        missing = [name for name in public if f"{name}</span>" not in told and name not in ("IGNORE", "Split")]
        assert missing == [], module


# --------------------------------------------------------------------------------------------------- docs/trace.md


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is there when docs/trace.md has run, on fewer rows, and the folder where it put its pictures."""
    found: dict[str, Any] = {"folder": tmp_path_factory.mktemp("pictures")}
    assert BLOCKS.checked(TRACE, found["folder"], found) == []
    return found


def test_the_pictures_of_traces_are_made(trace: dict[str, Any]) -> None:
    """Guards the pictures that the text shows, and the code of two of them."""
    shown = re.findall(r"!\[.*?\]\((.*?)\)", TRACE.read_text())
    assert shown == ["trace-page.png", "trace-length.png", "trace-influence.png"]
    assert {path.name for path in (trace["folder"] / "docs").glob("*.png")} == {*shown[1:]}


def test_the_solved_length_grows(trace: dict[str, Any]) -> None:
    """Guards the first claim: the share of right rows rises from the left, iteration by iteration, past the longest row
    of training, and what is right stays so."""
    right = trace["right"]
    solved = [int((row >= 0.95).int().cumprod(0).sum()) for row in right]
    assert solved[0] <= 4 and 10 <= solved[7] <= 18 and 50 <= solved[-1] < 64 and (right[24:, :32] == 1).all()
    assert solved == sorted(solved)


def test_influence_arrives_as_a_front_while_it_is_held(trace: dict[str, Any]) -> None:
    """Guards the second: nothing before the patch, the patched positions with it, then later answers turned round, near
    ones first; `flipped` is that of the run in which the states are held."""
    share = trace["flipped"].float().mean(0)[:, 1:]  # by iteration, from 1, and bit
    assert (share[:15] == 0).all() and (share[15, :8] == 1).all() and (share[15, 8:] == 0).all()
    assert (share[-1] > 0.9).all() and (share[23, :12] == 1).all() and (share[23, 28:] < 0.1).all()
    arrival = (share[:, :26] >= 0.5).int().argmax(0)
    assert (arrival.diff() >= -1).all() and arrival[-1] - arrival[8] >= 6  # 32 rows tell the front to one iteration


def test_options_of_traces_are_those_of_the_command() -> None:
    """Guards the table: every option that the text names is one that there is."""
    assert set(re.findall(r"(--[a-z][a-z-]+)", TRACE.read_text())) <= options_of("trace")


# ---------------------------------------------------------------------------------------------------- the mechanism


def test_a_page_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """Guards the guard: other output, a missing word, a command that fails, one that should and does not, a text to be
    replaced that is not there; and what agrees, agrees."""
    page = tmp_path / "page.md"

    def found(block: str, output: str, how: str = "") -> int:
        page.write_text(f"{how}```{block}```\n\n```text\n{output}\n```\n")
        return len(BLOCKS.checked(page, Path(tempfile.mkdtemp(dir=tmp_path))))

    assert found("python\nprint(1)\n", "1") == 0 and found("python\nprint(1)\n", "2") == 1
    how = "<!-- test: words; 5 => 6 -->\n"
    assert (
        found("python\nprint('took', 5)\n", "took 9", how) == 0
        and found("python\nprint('took', 5)\n", "gave 5", how) == 1
    )
    ask = "bash\nmull inspect {}\n"
    shown, how = "  vocab_size 6, stop_tokens (2, 3), {}d_model 64\n  steps: 5\n", "<!-- test: words -->\n"
    page.write_text(f"{how}```{ask.format('parity')}```\n\n```text\n{shown.format('')}```\n")
    (inspected,) = BLOCKS.blocks(page)
    assert inspected.agrees(shown.format("").replace("64", "32"))
    assert not inspected.agrees(shown.format("board False, ")) and not inspected.agrees(shown + "  seed: 0\n")
    with pytest.raises(RuntimeError, match="there is no checkpoint folder pairity"):
        found(ask.format("pairity"), "")
    with pytest.raises(RuntimeError, match="otherwise than the page says"):
        found(ask.format("parity"), "", "<!-- test: mistakes -->\n")
    with pytest.raises(ValueError, match="3 is not in the block"):
        found("python\nprint(1)\n", "1", "<!-- test: 3 => 4 -->\n")
