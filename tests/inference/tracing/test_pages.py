"""The page holds the numbers of the trace, needs nothing else, and runs nothing but its own script."""

import copy
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mull
from mull.inference.tracing.pages import PARTS, packed_numbers, page, write_page
from mull.inference.tracing.principal import plane_of
from mull.inference.tracing.trace import trace
from mull.inference.tracing.view import common_plane, view
from mull.models import LanguageModel

ROOT = Path(__file__).parents[3]
PARITY = ROOT / "checkpoints/parity"
Make = Callable[..., LanguageModel]
HOSTILE = "</script><script>document.title='broken';</script>"


class Elements(HTMLParser):
    """Scripts and styles of a document with their text, and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action", "style")
        ]
        self.links += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        self.open = tag in ("script", "style", "title")
        if self.open:
            self.texts.append((tag, dict(attrs), ""))

    def handle_endtag(self, _: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            tag, attrs, text = self.texts[-1]
            self.texts[-1] = (tag, attrs, text + data)


def data_of(text: str) -> Any:
    found = [body for _, attrs, body in Elements(text).texts if attrs.get("type") == "application/json"]
    assert len(found) == 1
    return json.loads(found[0])


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    """What page/numbers.js does."""
    codes = np.frombuffer(b64decode(packed["data"]), dtype=f"<u{packed['bytes']}")
    if packed["scale"] == "whole":
        return codes
    values = packed["low"] + codes * (packed["high"] - packed["low"]) / 65534
    if packed["scale"] == "log":
        values = np.where(codes == 0, 0.0, 10**values)
    return np.where(codes == 65535, np.nan, values)


@pytest.fixture(scope="module")
def parity() -> LanguageModel:
    return mull.load(PARITY)


def parity_page(model: LanguageModel, **options: Any) -> tuple[mull.inference.tracing.Trace, str]:  # type: ignore[name-defined]
    found = trace(model, "1 0 1 1", 6, labels=[[-100, 3, 3, 2, 3]], keep_states=True, exits=["latent:0.03"], **options)
    plane = common_plane([found])
    return found, page("parity", ["a line"], [view("run", found, model, plane)], model.tokenizer)


def test_the_page_holds_the_numbers_of_the_trace(parity: LanguageModel) -> None:
    """Guards the picture: what is decoded from the page is what was traced, to the steps of two bytes."""
    found, text = parity_page(parity, lenses=("coda", "logit"))
    data = data_of(text)
    run, words = data["runs"][0], data["vocabulary"]
    assert [words[token] for token in run["tokens"]] == ["<start>", "1", "0", "1", "1"]
    assert [words[label] if label >= 0 else None for label in run["labels"]] == [None, "odd", "odd", "even", "odd"]
    assert run["exits"] == {"latent:0.03": found.exits["latent:0.03"][0].tolist()}
    for lens, own in found.answers.items():
        for name, value in vars(own).items():
            shown, expected = unpacked(run["answers"][lens][name]), value[0].numpy().ravel()
            if name == "tokens":
                shown = np.array([parity.tokenizer.token_to_id(words[token]) for token in shown])
            exact = name in ("tokens", "rank")
            close = np.isclose(shown, expected, rtol=0 if exact else 6e-4, atol=0 if exact else 1e-4, equal_nan=True)
            assert close.all(), (lens, name)
    for name in ("residual", "cosine"):
        expected = getattr(found, name)[0].numpy().ravel()
        np.testing.assert_allclose(unpacked(run["motion"][name]), expected, rtol=6e-4, atol=1e-4, equal_nan=True)


def test_a_page_of_traces_made_in_python(parity: LanguageModel, tmp_path: Path) -> None:
    """Guards write_page: the traces in their order, named, with paths where states were kept."""
    kept, bare = trace(parity, "1 0 1", 3, keep_states=True), trace(parity, "1 0", 2)
    size = write_page(tmp_path / "page.html", parity, {"one": kept, "two": bare}, title="both")
    text = (tmp_path / "page.html").read_text()
    assert size == len(text.encode())
    runs = data_of(text)["runs"]
    assert [run["name"] for run in runs] == ["one", "two"] and "path" in runs[0] and "path" not in runs[1]
    with pytest.raises(ValueError, match="a page shows one run or two, not 0"):
        write_page(tmp_path / "none.html", parity, {})
    assert not (tmp_path / "none.html").exists()


def test_a_page_of_states_that_have_left_the_numbers(parity: LanguageModel, tmp_path: Path) -> None:
    """It is written, without a path."""
    broken = copy.deepcopy(parity)
    with torch.no_grad():
        broken.get_parameter("embedding.weight").fill_(torch.nan)
    write_page(tmp_path / "page.html", broken, {"one": trace(broken, "1 0 1", 3, keep_states=True)})
    [run] = data_of((tmp_path / "page.html").read_text())["runs"]
    assert "path" not in run and np.isnan(unpacked(run["motion"]["residual"])).all()


def test_the_ends_of_a_scale_are_exact() -> None:
    """Guards what is read most: 0 and 1 of a probability, the limits of any other quantity, and what is unknown."""
    values = torch.tensor([0.0, 1.0, 0.25, float("nan")])
    assert unpacked(packed_numbers("truth", values))[[0, 1]].tolist() == [0.0, 1.0]
    shown = unpacked(packed_numbers("cosine", values * 3 - 1))
    assert shown[[0, 1]].tolist() == [-1.0, 2.0] and np.isnan(shown[3]) and shown[2] == pytest.approx(-0.25, abs=3e-5)
    assert np.isnan(unpacked(packed_numbers("kl", values[3:]))).all()


def test_the_page_needs_nothing_and_allows_nothing(parity: LanguageModel) -> None:
    """Guards that a page is one file: no address, no attribute that loads or runs, and a policy whose hashes are those
    of the style and the script as they stand in it, so that a browser runs them and nothing else."""
    _, text = parity_page(parity)
    elements = Elements(text)
    assert elements.links == [] and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; ") and "unsafe" not in policy[1]
    for tag in ("script", "style"):
        (body,) = [body for name, attrs, body in elements.texts if name == tag and "type" not in attrs]
        assert f"{tag}-src 'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'" in policy[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)
    assert {path.name for path in PARTS.iterdir()} >= {"page.html", "page.css", "main.js"}


def test_tokens_are_data(hostile_folder: Path) -> None:
    """Guards against folders that write scripts: tokens and names full of markup open no element, and come out of the
    data as they went in; a token that looks like a place of the template is left alone."""
    model = mull.load(hostile_folder)
    found = trace(model, [[0, 2, 4, 5, 6]], 3, top=8)
    text = page(hostile_folder.name, [HOSTILE, "@@data@@"], [view(HOSTILE, found, model)], model.tokenizer)
    data, plain = data_of(text), Elements(text)
    assert (
        HOSTILE in data["vocabulary"] and "@@script@@" in data["vocabulary"] and data["about"] == [HOSTILE, "@@data@@"]
    )
    assert [tag for tag in plain.tags if tag == "script"] == ["script"] * 2 and "b" not in plain.tags
    assert "img" not in plain.tags and ("title", {}, "<b>bold<b>") in plain.texts
    assert text.count("<!--") == 0 and text.count("</script>") == 2 and "\u2028" not in text


def test_a_long_trace_is_below_a_megabyte(make_model: Make) -> None:
    """Guards the size: 256 positions by 32 iterations through both lenses, with paths and exits, once and beside
    another run; and that tokens of a vocabulary most of which is not on the page are still those of the trace, in one
    byte and in two."""
    model = make_model("recurrent", max_length=256, vocab_size=300)
    ids = torch.randint(100, (1, 256), generator=torch.Generator().manual_seed(0)) * 3
    found = trace(model, ids, 32, lenses=("coda", "logit"), keep_states=True, exits=["latent:0.03"])
    text = page("long", [], [view("run", found, model, common_plane([found]))], None)
    assert 300_000 < len(text.encode()) < 1_000_000
    few = make_model("recurrent", max_length=256, vocab_size=250)
    traces = [trace(few, ids % 250, 32, lenses=("coda", "logit"), keep_states=True) for _ in range(2)]
    both = [view("run", run, few, common_plane(traces)) for run in traces]
    assert 500_000 < len(page("two", [], both, None).encode()) < 1_000_000
    data = data_of(text)
    words, packed = data["vocabulary"], data["runs"][0]["answers"]["logit"]["tokens"]
    own = found.answers["logit"].tokens
    assert len(words) < 300 and len({*words}) == len(words)
    assert [words[token] for token in unpacked(packed)] == [f"#{token}" for token in own.flatten().tolist()]


def test_routed_passes_are_on_the_page(make_model: Make) -> None:
    """Guards the choices of inner thinking on the page."""
    model = make_model("inner_thinking", thinking_layers=(0, 2), mean_iterations=3)
    found = trace(model, [[1, 2, 3, 4, 5]], capacity=0.5)
    routers = data_of(page("itt", [], [view("run", found, model)], None))["runs"][0]["routers"]
    assert routers["layers"] == [0, 2] and routers["passes"] == 2 and found.selected is not None
    assert unpacked(routers["selected"]).tolist() == found.selected[0].int().flatten().tolist()


def test_the_plane_is_that_of_the_largest_variance() -> None:
    """Guards the paths: projection and shares are those of a full decomposition, up to the sign, of any shape."""
    generator = torch.Generator().manual_seed(0)
    for count, width in ((40, 12), (5, 30), (2, 3), (7, 1)):
        states = torch.randn(count, width, generator=generator) * torch.linspace(5, 1, width)
        plane, lost = plane_of(states), torch.full((3, width), torch.nan)
        assert plane is not None and torch.equal(plane.mean, states.mean(0))
        lost[0, :] = torch.inf
        with_lost = plane_of(torch.cat([lost, states]))  # which have left the numbers, and are in no plane
        assert with_lost is not None and torch.equal(with_lost.axes, plane.axes) and plane_of(lost) is None
        centred = states - states.mean(0)
        _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
        kept = min(2, len(lengths))
        expected = torch.zeros(count, 2)
        expected[:, :kept] = centred @ axes[:kept].T
        torch.testing.assert_close(plane.project(states).abs(), expected.abs(), rtol=1e-3, atol=1e-3)
        assert plane.shares[0] == pytest.approx(float(lengths[0] ** 2 / lengths.square().sum()), rel=1e-4)
    still = plane_of(torch.ones(4, 3))
    assert still is not None
    assert still.project(torch.ones(4, 3)).abs().max() == 0 and still.shares == (0.0, 0.0)
