"""The page of `mull trace` in a browser: drawn to its end, as one file that asks nobody, by mouse, by keys, on a phone.

That no page asks anybody, and none breaks its own policy, is checked at every visit (conftest.py).
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mull
from mull import cli
from mull.inference.tracing.pages import page as document
from mull.inference.tracing.pages import write_page
from mull.inference.tracing.trace import Trace, trace
from mull.inference.tracing.view import view
from mull.models import LanguageModel

Make = Callable[..., LanguageModel]
PROMPT = "1 0 1 1 0 1 0 0 1 1 1 0"


@pytest.fixture(scope="module")
def parity() -> LanguageModel:
    return mull.load("parity")


@pytest.fixture(scope="module")
def one(parity: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, str]:
    """A run, and the address of its page."""
    file = tmp_path_factory.mktemp("page") / "trace.html"
    options: Any = {"lenses": ("coda", "logit"), "keep_states": True, "exits": ["latent:0.03"]}
    found = trace(parity, "1 0 1 1", 6, labels=[[-100, 3, 3, 2, 3]], **options)
    write_page(file, parity, {"run": found}, "parity")
    return found, file.as_uri()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page of two runs, as the command line writes it."""
    file = tmp_path_factory.mktemp("page") / "two.html"
    line = f"trace parity --prompt '{PROMPT}' --compare '0{PROMPT[1:]}' --patch 4-9:0-4 --iterations 12 --output {file}"
    assert cli.main(shlex.split(line)) == 0
    return file.as_uri()


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    return page.locator("#maps canvas[tabindex]")


def cell_is(said: str, model: LanguageModel, found: Trace, row: int, column: int) -> None:
    """What is said of a cell is what was traced there."""
    said = " ".join(said.split())
    assert f"position {column}, iteration {row + 1}" in said
    residual, own = re.search(r"residual ([\d.e-]+)", said), found.answers["coda"]
    assert residual and float(residual[1]) == pytest.approx(float(found.residual[0, row, column]), rel=0.05)
    assert f"answers {model.tokenizer.id_to_token(int(own.tokens[0, row, column, 0]))} " in said
    assert f"rank {int(own.rank[0, row, column])}" in said
    assert f"leaves after {int(found.exits['latent:0.03'][0, column])}" in said


def test_by_mouse_and_by_keys_the_cell_has_the_numbers_of_the_trace(
    parity: LanguageModel, one: tuple[Trace, str], browser: Any
) -> None:
    """Guards the script's decoding, and both ways to a cell: residual, answer, rank and exit are those of the trace, at
    first, after moves by keys, and under the mouse; Enter keeps a position in the curves, and lets it go again."""
    found, address = one

    def story(page: Any) -> list[tuple[str, int, int]]:
        map, said = ready(page), lambda: page.inner_text("#cell")
        seen = [(said(), 5, 4)]
        map.focus()
        for key in ("ArrowLeft", "ArrowUp", "ArrowUp"):
            page.keyboard.press(key)
        seen.append((said(), 3, 3))
        lines = page.locator("#legend .swatch").count()
        page.keyboard.press("Enter")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#legend .swatch").count() == lines + 1
        seen.append((said(), 0, 2))
        box = map.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 5 * 1.5, box["y"] + box["height"] - 30)
        seen.append((said(), 4, 1))
        page.mouse.click(box["x"] + box["width"] / 5 * 3.5, box["y"] + box["height"] - 30)
        assert page.locator("#legend .swatch").count() == lines
        return seen

    for said, row, column in browser.visit(address, story):
        cell_is(said, parity, found, row, column)


def test_the_slider_moves_along_the_path(one: tuple[Trace, str], browser: Any) -> None:
    """Guards the path of the state: as many points as iterations up to the slider's, by arrow keys; and the choices of
    quantity and lens, each of which draws another picture."""

    def story(page: Any) -> None:
        ready(page)
        points = page.locator("#path circle")
        assert points.count() == 6 and page.inner_text("#until-value") == "6"
        page.focus("#until")
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        assert points.count() == 2 and page.inner_text("#until-value") == "2"
        page.keyboard.press("End")
        assert points.count() == 6
        picture = "() => document.querySelector('#maps canvas[tabindex]').toDataURL()"
        pictures = {page.evaluate(picture)}
        offered = page.eval_on_selector_all("#quantity option", "all => all.map(each => each.value)")
        for quantity in offered[1:]:
            page.select_option("#quantity", quantity)
            assert page.inner_text("#meaning") and page.locator("#scale .swatch").count() >= 1
            pictures.add(page.evaluate(picture))
        assert len(pictures) == len(offered) == 8
        page.select_option("#lens", "logit")
        pictures.add(page.evaluate(picture))
        wide = page.evaluate("() => document.querySelector('#maps canvas[tabindex]').clientWidth")
        page.focus("#zoom")
        page.keyboard.press("Home")
        assert page.evaluate("() => document.querySelector('#maps canvas[tabindex]').clientWidth") < wide

    browser.visit(one[1], story)


def test_two_runs_share_a_cursor(two: str, browser: Any) -> None:
    """Guards the comparison: two maps, one cursor, which keys of either move; what differs is shown where it does."""

    def story(page: Any) -> None:
        maps = ready(page)
        assert maps.count() == 2
        page.select_option("#quantity", "agrees")
        assert "same answer" in page.inner_text("#scale") and "another answer" in page.inner_text("#scale")
        maps.nth(1).focus()
        page.keyboard.press("ArrowLeft")
        second = page.inner_text("#cell")
        assert re.search(r"position 11, iteration 12 of first prompt, states of the second", second)
        maps.nth(0).focus()
        first = page.inner_text("#cell")
        assert re.search(r"position 11, iteration 12 of first prompt\b(?!,)", first) and first != second

    browser.visit(two, story, wide=1400)


def test_everything_can_be_reached_and_seen_by_keys(two: str, browser: Any) -> None:
    """Guards who has no mouse: Tab goes through every control and both maps, each visibly in focus, and each has a
    name."""

    def story(page: Any) -> list[dict[str, Any]]:
        ready(page)
        reached = []
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
        return reached

    reached = browser.visit(two, story)
    assert [each["id"] for each in reached] == ["quantity", "lens", "zoom", "canvas", "canvas", "until"]
    assert all(each["outlined"] and each["named"] for each in reached), json.dumps(reached)


FOCUSED = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const named = at.getAttribute("aria-label") || (at.labels && at.labels.length && at.labels[0].textContent.trim());
  const id = at.id || at.tagName.toLowerCase();
  return { id, outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1, named: Boolean(named) };
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_in_one_direction(two: str, browser: Any, dark: bool) -> None:
    """Guards narrow screens: nothing but the maps' own frames scrolls sideways; and both colours of the ground."""

    def story(page: Any) -> tuple[int, str]:
        ready(page)
        page.focus("#zoom")
        page.keyboard.press("End")
        frame = (
            "() => { const at = document.querySelector('#maps .across'); at.scrollLeft = 50; return at.scrollLeft; }"
        )
        assert page.evaluate(frame) == 50
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return page.evaluate("() => document.documentElement.scrollWidth"), ground

    wide, ground = browser.visit(two, story, wide=390, color_scheme="dark" if dark else "light")
    assert wide <= 390
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark


def test_a_browser_runs_our_script_alone(hostile_folder: Path, browser: Any, tmp_path: Path) -> None:
    """Guards where it counts that tokens are data: the page is drawn to its end, and no script of a token has run."""
    hostile = "</script><script>document.title='broken';</script>"
    model = mull.load(hostile_folder)
    found = trace(model, [[0, 2, 4, 5, 6]], 3, top=8)
    file = tmp_path / "page.html"
    file.write_text(document("title", [hostile], [view(hostile, found, model)], model.tokenizer), encoding="utf-8")

    def story(page: Any) -> tuple[str, int, int, str]:
        ready(page)
        return page.title(), page.locator("script").count(), page.locator("img, b").count(), page.inner_text("#about")

    title, scripts, others, about = browser.visit(file.as_uri(), story)
    assert (title, scripts, others, about) == ("title", 2, 0, hostile)
