"""Tiny random models of odd shape: whatever assumes square, even or power-of-two shapes fails on them.

At their usual start such models hardly look back and repeat one token, which would make any two texts equal. Here the
head is untied and attention is strong, so that the next token depends on all tokens and where they stand.

A browser, too, for what is looked at: one for all tests of a session."""

import copy
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import mull
from mull.models import LanguageModel
from mull.models.families import FAMILIES

SHAPE = {
    "tie_embeddings": False,
    "vocab_size": 11,
    "d_model": 24,
    "n_heads": 3,
    "n_kv_heads": 1,
    "d_ff": 20,
    "max_length": 32,
    "n_layers": 3,
    "n_prelude": 1,
    "n_core": 2,
    "n_coda": 1,
    "mean_iterations": 3,
}
SHORT = {"recurrent": "recurrent_depth"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "</script><script>document.title='broken';</script>"
Found = TypeVar("Found")


@cache
def built(family: str, seed: int, changes: frozenset[tuple[str, object]]) -> LanguageModel:
    """Made once: to start and to calibrate a model takes as long as many a test of it."""
    model_class = FAMILIES[SHORT.get(family, family)]
    known = {field.name for field in fields(model_class.config_class)}
    shape = {name: value for name, value in SHAPE.items() if name in known}
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**shape | dict(changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "attention.qkv.weight")):
                weight.mul_(4)
    model = model.double().eval()
    model.calibrate(torch.randint(11, (20, 24), generator=torch.Generator().manual_seed(seed)))
    return model


def build(family: str, seed: int = 0, **changes: object) -> LanguageModel:
    torch.manual_seed(seed)  # what a test draws next does not depend on whether the model was there
    return copy.deepcopy(built(family, seed, frozenset(changes.items())))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    """make_model("recurrent" or any model_type, seed=0, **config fields) -> a model in fp64, eval mode."""
    return build


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """On small shared machines two threads are slower than one."""
    torch.set_num_threads(1)


class Browser:
    """A browser in a thread of its own, since what drives it needs an event loop that other tests must not find.

    `visit(address, story)` gives the story a page of the address, and returns what it returns. Whatever the story is
    about, the page must ask nobody but its own server (a file nobody), break no rule of its own policy, and raise no
    error.
    """

    def __init__(self, path: str, start: Callable[[], Any]) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.path, self.start = path, start
        self.thread.submit(self.open).result(120)

    def open(self) -> None:
        self.driver = self.start().start()
        try:
            options = ["--no-sandbox", "--disable-gpu"]  # a graphics card that is made up costs time
            self.browser = self.driver.chromium.launch(executable_path=self.path, args=options)
        except BaseException:
            self.driver.stop()
            raise

    def close(self) -> None:
        self.thread.submit(lambda: (self.browser.close(), self.driver.stop())).result(60)
        self.thread.shutdown()

    def visit(self, address: str, story: Callable[[Any], Found], wide: int = 1000, **looks: Any) -> Found:
        return self.thread.submit(self.told, address, story, wide, looks).result(300)

    def told(self, address: str, story: Callable[[Any], Found], wide: int, looks: dict[str, Any]) -> Found:
        context = self.browser.new_context(viewport={"width": wide, "height": 800}, **looks)
        asked: list[str] = []
        wrong: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        try:
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on(
                "console", lambda said: wrong.append(said.text) if re.search("Security Policy", said.text) else None
            )
            page.goto(address)
            found = story(page)
        finally:
            context.close()
        own = urlsplit(address)
        assert asked[0] == address and not wrong, wrong
        assert [url for url in asked[1:] if own.scheme == "file" or urlsplit(url).netloc != own.netloc] == []
        return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """See `Browser`. Skips where there is none that starts."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    driver = pytest.importorskip("playwright.sync_api")
    try:
        found = Browser(path, driver.sync_playwright)
    except (driver.Error, TimeoutError) as error:
        pytest.skip(f"the browser does not start here: {str(error)[-200:]}")
    yield found
    found.close()


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint whose model answers nothing but tokens that end script blocks, and whose name is markup."""
    words = ["a", "b", HOSTILE, "<!--", "<img src=x onerror=alert(1)>", "@@script@@", "\u2028&amp;]]>"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*words, "<unk>"])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    torch.manual_seed(0)
    config = mull.RecurrentDepthConfig(vocab_size=8, d_model=16, n_heads=2, max_length=32)
    folder = tmp_path_factory.mktemp("folders") / "<b>bold<b>"
    mull.save(mull.RecurrentDepthTransformer(config), folder, tokenizer)
    return folder
