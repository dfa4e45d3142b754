"""The page that `mull serve` shows, in a browser: what it shows is what the library says, and everybody can use it.

That the page asks nobody but its server, and breaks no rule of its policy, is checked at every visit (conftest.py of
the folder above).
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pytest
import torch

import mull
from mull.inference.serve.application import Service
from mull.inference.serve.guard import Guard
from mull.inference.serve.limits import Limits
from mull.inference.serve.running import Server, listening
from mull.inference.serve.served import Served
from mull.inference.text import continuation
from mull.models import LanguageModel

Visit = Callable[..., Any]
BITS = "1 0 1 0 0 1 0 1 1 0 1 1 1 1 1 0 1 1 0 0"
MARKUP = "<img src=x onerror=alert(1)></p><script>document.title='broken'</script>"


@pytest.fixture
def visit(browser: Any, running: Any) -> Iterator[Visit]:
    """visit(story): a page of the server, ready to be used; when it is left, no request is in flight."""

    def told(story: Callable[[Any], Any], **looks: Any) -> Any:
        def opened(page: Any) -> Any:
            page.wait_for_selector("#ask:visible")
            return story(page)

        return browser.visit(f"{running.url}/", opened, **looks)

    yield told
    until(lambda: running.service.metrics.in_flight == 0)


def until(true: Callable[[], bool]) -> None:
    for _ in range(400):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it does not become true")


def choose(page: Any, model: str, prompt: str | None = None, tokens: int | None = None) -> None:
    page.select_option("#model", model)
    if prompt is not None:
        page.fill("#prompt", prompt)
    if tokens is not None:
        page.evaluate("count => { document.querySelector('#max-tokens').value = count; }", tokens)


def think(page: Any, count: int, slider: int = 0) -> None:
    """Move a slider, by keys, to a count."""
    page.locator(".iterations").nth(slider).focus()
    page.keyboard.press("Home")
    for _ in range(80):
        if page.locator(".words").nth(slider).inner_text().removeprefix("At most ").split()[0] == str(count):
            return
        page.keyboard.press("ArrowRight")
    raise AssertionError(f"the slider never says {count}")


def answered(page: Any, times: int = 1) -> list[str]:
    """The answers, when they and the map are there."""
    page.wait_for_selector(f'html[data-ready="{times}"]', state="attached")
    return page.locator(".said").evaluate_all("all => all.map(each => each.textContent)")  # type: ignore[no-any-return]


def facts(page: Any, answer: int = 0) -> dict[str, str]:
    rows = page.locator("article").nth(answer).locator("dl div").all_inner_texts()
    return dict(row.split("\n") for row in rows)


def written(model: LanguageModel, prompt: str, **options: Any) -> tuple[str, list[int]]:
    """What mull.generate writes, and the iterations of its tokens."""
    ids = mull.generate(model, prompt, max_new_tokens=1, iterations=1).tokens[0, :-1].tolist()
    found = mull.generate(model, prompt, **options)
    return continuation(model.tokenizer, ids, found.tokens[0, len(ids) :].tolist()), found.iterations[0].tolist()


def test_the_answer_is_that_of_generate_at_the_depth_of_the_slider(visit: Visit, running: Any) -> None:
    """Guards the knob: the slider's count is the one that the model thinks, at two depths that answer differently; the
    example of the model stands there from the start; and what it cost is said."""

    def story(page: Any) -> tuple[str, list[str], list[str], dict[str, str]]:
        choose(page, "parity")
        example, marks = page.input_value("#prompt"), page.inner_text(".marks")
        assert "16, as trained" in marks and page.inner_text(".words") == "16 iterations"
        page.fill("#prompt", BITS)
        think(page, 1)
        page.click("#go")
        shallow = answered(page)
        think(page, 18)
        page.focus("#prompt")
        page.keyboard.press("Enter")
        return example, shallow, answered(page, 2), facts(page)

    example, shallow, deep, cost = visit(story)
    model = running.model("parity")
    assert example == "0 0 0 0 0 1 0 1"
    assert shallow == [written(model, BITS, iterations=1)[0]] and deep == [written(model, BITS, iterations=18)[0]]
    assert shallow == [" odd"] and deep == [" even"]  # twelve ones
    assert written(model, BITS, iterations=16)[0] == " even"  # the picture of docs/playground.md
    assert cost["iterations"] == "18 before each token" and cost["tokens"] == "1, ended by itself"
    assert re.fullmatch(r"[\d.]+ M FLOPs", cost["computed"]) and "settled" in cost["in the end"] and "s" in cost["took"]


def test_two_depths_are_compared(visit: Visit, running: Any) -> None:
    """Guards the comparison: one prompt, both answers are those of generate, and the marked words of either are those
    that the other does not have; what more one of them computed is said; a map of each."""

    def story(page: Any) -> tuple[list[str], list[list[str]], str, int]:
        choose(page, "text", "Natalia sold", 24)
        page.check("#compare")
        think(page, 8, 0)
        think(page, 2, 1)
        page.click("#go")
        said = answered(page)
        marked = "all => all.map(each => [...each.querySelectorAll('mark')].map(mark => mark.textContent).join(''))"
        return (
            said,
            page.locator(".said").evaluate_all(marked),
            facts(page)["computed"],
            page.locator("#maps h3").count(),
        )

    said, marked, computed, maps = visit(story)
    model = running.model("text")
    assert said == [written(model, "Natalia sold", iterations=count, max_new_tokens=24)[0] for count in (8, 2)]
    one, two = (text.split() for text in said)
    assert one != two and marked[0] and marked[1]
    left = [[word for word in words if word not in other] for words, other in ((one, two), (two, one))]
    assert all(word in marks for words, marks in zip(left, marked, strict=True) for word in words)
    assert all(
        len(marks) < len("".join(words)) for words, marks in zip((one, two), marked, strict=True)
    )  # some are common
    assert re.search(r"FLOPs, 2(\.\d)? times the other's", computed) and maps == 2


def test_what_two_texts_share_is_as_long_as_can_be(visit: Visit) -> None:
    """Guards which words are marked: what is left of both texts is the same, and no other choice would leave more."""
    draw = Random(0)
    texts = [[" ".join(draw.choices("a b ü ccc", k=draw.randrange(9))) for _ in range(2)] for _ in range(40)]
    texts += [["", ""], ["a", ""], ["  a\n b ", "b"], ["a b a b", "b a b a"]]
    marked = visit(lambda page: page.evaluate("all => all.map(([one, two]) => differingWords(one, two))", texts))
    for pair, places in zip(texts, marked, strict=True):
        left = [
            [found[0] for found in re.finditer(r"\S+", text) if [found.start(), found.end()] not in own]
            for text, own in zip(pair, places, strict=True)
        ]
        assert left[0] == left[1] and len(left[0]) == common(*(text.split() for text in pair))


def common(one: list[str], two: list[str]) -> int:
    """The length of the longest common subsequence, the slow way."""
    if not one or not two:
        return 0
    if one[0] == two[0]:
        return 1 + common(one[1:], two[1:])
    return max(common(one[1:], two), common(one, two[1:]))


def test_an_exit_rule_and_what_each_token_took(visit: Visit, running: Any) -> None:
    """Guards rules: the answer is that of generate under the rule, each token's bar tells its iterations, and so
    does the map, where a token was thought of."""

    def story(page: Any) -> tuple[list[str], list[str], dict[str, str], list[str]]:
        choose(page, "text", "Natalia sold", 24)
        think(page, 32)
        page.select_option(".rule", "kl")
        assert page.input_value(".threshold") == "0.001" and page.inner_text(".words") == "At most 32 iterations"
        page.fill(".threshold", "0.002")
        page.focus(".threshold")
        page.keyboard.press("Enter")
        said = answered(page)
        bars = page.locator(".said > span").evaluate_all("all => all.map(each => each.title)")
        page.focus("#maps canvas[tabindex]")
        cells = []
        for _ in bars:
            cells.append(page.inner_text("#cell"))
            page.keyboard.press("ArrowRight")
        return said, bars, facts(page), cells

    said, bars, cost, cells = visit(story)
    model = running.model("text")
    text, used = written(model, "Natalia sold", iterations=32, exit="kl:0.002", max_new_tokens=24)
    assert said == [text] and bars == [f"{count} iterations" for count in used] and len(set(used)) > 1
    assert cost["iterations"] == f"{round(sum(used) / len(used), 2):g} before a token on average, at most 32"
    assert [int(re.findall(r"The rule let it go after (\d+)\.", cell)[0]) for cell in cells] == used


def test_the_map_tells_what_the_trace_tells(visit: Visit, running: Any) -> None:
    """Guards the map: it is of what the model read, the cell under the cursor has the token, the answers and the
    step of mull.trace; the positions of the answer's own tokens are there, but for the last, which nobody read."""

    def story(page: Any) -> list[tuple[str, int, int]]:
        choose(page, "text", "Natalia sold", 6)
        think(page, 5)
        page.click("#go")
        assert len(answered(page)[0]) == 6
        seen = [(page.inner_text("#cell"), 4, len("Natalia sold") - 1)]
        page.locator("#maps canvas[tabindex]").focus()
        for key in ("ArrowUp", "ArrowUp", *["ArrowRight"] * 9):
            page.keyboard.press(key)
        return [*seen, (page.inner_text("#cell"), 2, seen[0][2] + 5)]

    model = running.model("text")
    text, _ = written(model, "Natalia sold", iterations=5, max_new_tokens=6)
    found = mull.trace(model, ("Natalia sold" + text)[:-1], 5)
    for cell, row, column in visit(story):
        own = found.answers["coda"]
        best, share = int(own.tokens[0, row, column, 0]), 100 * float(own.probabilities[0, row, column, 0])
        assert f"Position {column + 1} of {found.input_ids.shape[1]} reads" in cell
        assert f"After {row + 1} iterations" in cell and f"{share:.0f} %" in cell
        assert f"write {model.tokenizer.decode([best]).replace(' ', '␣')} (" in cell
        moved = re.search(r"moved its state by ([\d.]+) %", cell)
        assert moved and float(moved[1]) == pytest.approx(100 * float(found.residual[0, row, column]), rel=0.06)


def test_it_can_be_stopped(visit: Visit, running: Any) -> None:
    """Guards the way out: the button ends the answer, what was there stays and is the beginning of the whole, and the
    server thinks no further."""

    def story(page: Any) -> str:
        choose(page, "text", "Natalia sold", 40)
        think(page, 64)
        page.evaluate(STOPPING)
        page.click("#go")
        page.wait_for_selector("#stop:not([hidden])", state="attached")
        page.wait_for_selector("#stop[hidden]", state="attached")
        assert page.locator("#stop").is_hidden() and page.evaluate("() => document.activeElement.id") == "prompt"
        until(lambda: running.service.metrics.in_flight == 0)
        assert page.inner_text(".thinking") == "stopped" and page.locator("#thought").is_hidden()
        return answered(page)[0]

    said = visit(story)
    beginning, _ = written(running.model("text"), "Natalia sold", iterations=64, max_new_tokens=len(said))
    assert 2 <= len(said) < 10 and beginning == said


# Presses the button as soon as two tokens are there, however slow the machine: what has come with them is not written.
STOPPING = """() => {
  const watcher = new MutationObserver(() => {
    if (document.querySelectorAll(".said > span").length < 2) return;
    watcher.disconnect();
    const stop = document.querySelector("#stop");
    stop.focus();
    stop.click();
  });
  watcher.observe(document.querySelector("#answers"), { childList: true, subtree: true });
}"""


def test_errors_are_the_one_line_of_the_server(visit: Visit) -> None:
    """Guards mistakes: below the answer stands what the server says of the prompt, that it is gone, that a stream broke
    off or tells of an error; a number beyond its limit is shown where it lies; and asking again works."""

    def story(page: Any) -> tuple[str, str, list[str], list[str]]:
        choose(page, "parity", "1 2 <b>3</b>")
        page.click("#go")
        answered(page)
        first = page.inner_text("article .error")
        page.context.set_offline(True)
        page.fill("#prompt", "1 0")
        page.click("#go")
        answered(page, 2)
        second = page.inner_text("article .error")
        page.evaluate("() => { document.querySelector('#max-tokens').value = 1e6; }")
        page.click("#go")  # not sent; what is wrong lies in a fold, which opens
        assert page.evaluate("() => document.activeElement.id") == "max-tokens"
        page.evaluate("() => { document.querySelector('#max-tokens').value = 8; }")
        page.context.set_offline(False)
        page.click("#go")
        said, broken = answered(page, 3), []
        for times, body in enumerate(("", 'data: {"error": {"message": "the model failed"}}\n\n'), 4):
            page.route("**/v1/completions", streaming(body))
            page.click("#go")
            answered(page, times)
            broken.append(page.inner_text("article .error"))
        return first, second, said, broken

    first, second, said, broken = visit(story)
    assert first == "prompt: the prompt holds the unknown symbol '2'; known are 0 1 even odd, with blanks between them"
    assert second == "the server does not answer; is mull serve still running?" and said == [" odd"]
    assert broken == ["the answer broke off: the server has ended the connection", "the model failed"]


def streaming(body: str) -> Callable[[Any], None]:
    """An answer of a server that there is not."""
    return lambda route: route.fulfill(content_type="text/event-stream", body=body)  # type: ignore[no-any-return]


def test_markup_stays_text(visit: Visit) -> None:
    """Guards the page from what is typed: markup in a prompt is shown as it was typed, and makes no element."""

    def story(page: Any) -> tuple[str, int, str]:
        choose(page, "text", MARKUP, 4)
        page.click("#go")
        answered(page)
        return page.inner_text(".asked"), page.locator("main img, main script").count(), page.title()

    assert visit(story) == (MARKUP, 0, "text · mull")


def test_by_keys_alone(visit: Visit, running: Any) -> None:
    """Guards who has no mouse: Tab goes through everything in order, each visibly in focus and with a name; a prompt is
    asked, two depths are compared, and an answer is ended, by keys; the answers are live."""

    def story(page: Any) -> tuple[list[dict[str, Any]], list[str]]:
        reached = []
        page.focus("#model")
        page.keyboard.type("parity")
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
        page.keyboard.press("Space")  # compare
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")  # ask
        said = answered(page)
        for _ in range(6):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
        assert page.locator(".said[aria-live=polite]").count() == 2
        page.select_option("#model", "text")
        page.focus("#prompt")
        page.keyboard.press("Enter")
        page.locator(".said > span").first.wait_for(state="attached")
        page.keyboard.press("Escape")
        assert page.locator("#stop").is_hidden()
        return reached, said

    reached, said = visit(story)
    names = [each["id"] for each in reached]
    assert names == ["prompt", "iterations", "rule", "summary", "go", "compare",
                     "compare", "answer", "answer", "quantity", "canvas", "canvas"]  # fmt: skip
    assert all(each["outlined"] and each["named"] for each in reached), json.dumps(reached)
    model = running.model("parity")
    assert said == [written(model, "0 0 0 0 0 1 0 1", iterations=count)[0] for count in (16, 1)]


FOCUSED = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const label = at.labels && at.labels.length ? at.labels[0].textContent : at.textContent;
  const id = at.id || at.classList[0] || at.tagName.toLowerCase();
  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  return { id, outlined, named: Boolean((at.getAttribute("aria-label") || label).trim()) };
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_in_one_direction(visit: Visit, dark: bool) -> None:
    """Guards narrow screens, with everything unfolded, words that no line can hold, and two maps; and that text stands
    out from its ground in both colours (WCAG AA: 4.5), without motion for who wants none."""

    def story(page: Any) -> tuple[int, int, list[float], str]:
        choose(page, "text", "w" * 80, 16)
        for each in page.locator("summary").all():
            each.click()
        page.check("#compare")
        page.locator(".rule").first.select_option("latent")
        before = page.evaluate("() => document.documentElement.scrollWidth")
        page.click("#go")
        answered(page)
        motion = page.evaluate("() => getComputedStyle(document.querySelector('.busy')).animationName")
        return before, page.evaluate("() => document.documentElement.scrollWidth"), page.evaluate(CONTRASTS), motion

    scheme = "dark" if dark else "light"
    before, after, contrasts, motion = visit(story, wide=390, color_scheme=scheme, reduced_motion="reduce")
    assert before <= 390 and after <= 390 and motion == "none"
    assert len(contrasts) == 6 and min(contrasts) >= 4.5


CONTRASTS = """() => {
  const light = (name) => {
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return ["--ink", "--quiet", "--mark"].flatMap((text) => ["--ground", "--field"].map((ground) => {
    const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
}"""


def test_models_that_differ_are_shown_as_they_are(visit: Visit, running: Any) -> None:
    """Guards the page of each family: inner thinking has a capacity and no exit rules, a model without a loop has no
    depth and no map, and both write what generate writes."""

    def story(page: Any) -> tuple[list[str], list[str]]:
        choose(page, "inner-thinking", "Natalia sold", 8)
        assert page.locator(".stops").is_hidden() and page.input_value("#capacity")
        page.click("#settings summary")
        page.fill("#capacity", "0.1")
        page.click("#go")
        routed = answered(page)
        passes = page.locator("#routers canvas").get_attribute("aria-label")
        assert re.match(r"routed passes of 2 layers by \d+ positions", passes)
        choose(page, "plain", "a plain text", 4)
        assert page.locator("fieldset").count() == 0 and page.locator("#compare").is_hidden()
        page.click("#go")
        return routed, answered(page, 2)

    routed, plain = visit(story)
    options: dict[str, Any] = {"iterations": 4, "max_new_tokens": 8}
    usual, own = (
        written(running.model("inner-thinking"), "Natalia sold", **options, capacity=c)[0] for c in (None, 0.1)
    )
    assert routed == [own] and own != usual
    model = running.model("plain")
    found = mull.generate(model, "a plain text", max_new_tokens=4).tokens[0].tolist()
    assert plain == [continuation(model.tokenizer, found[:-4], found[-4:])]


def test_a_key_is_asked_for_and_kept_in_memory_alone(hostile_folder: Path, browser: Any) -> None:
    """Guards servers with a key: the page asks for it, says that it is wrong, works with the right one, and stores it
    nowhere. The model here is called by markup and writes markup, which stays text too."""
    limits = Limits(max_tokens=8)
    served = Served.of(hostile_folder, limits, dtype=torch.float64)
    service = Service({served.name: served}, limits, Guard("127.0.0.1", b"open"))
    server = Server(service, listening("127.0.0.1", 0))

    def story(page: Any) -> tuple[list[str], str]:
        for given in ("shut", "open"):
            page.wait_for_selector("#key-form:visible")
            assert page.locator("#ask").is_hidden() and page.evaluate("() => document.activeElement.id") == "key"
            page.fill("#key", given)
            page.keyboard.press("Enter")
            if given == "shut":
                page.wait_for_selector("#key-error:not(:empty)")
                assert page.inner_text("#key-error") == "this is not the key of the server"
        page.wait_for_selector("#ask:visible")
        assert page.locator("#key-form").is_hidden() and page.input_value("#key") == ""
        page.fill("#prompt", "a b <!--")
        page.evaluate("() => { document.querySelector('#max-tokens').value = 8; }")
        page.click("#go")
        said = answered(page)
        assert page.locator("main img, main script").count() == 0 and page.locator("#maps canvas").count() == 2
        assert page.title() == "<b>bold<b> · mull" and page.inner_text("h1") == "<b>bold<b>"
        kept = page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]")
        assert kept == [0, 0, ""] and page.context.cookies() == []
        page.reload()
        page.wait_for_selector("#key-form:visible")
        return said, page.inner_text("main")

    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        said, rest = browser.visit(f"{server.url}/", story)
    finally:
        server.end()
        thread.join(10)
    assert said == [written(served.model, "a b <!--", max_new_tokens=8)[0]] and "<" in said[0]
    assert "open" not in rest
