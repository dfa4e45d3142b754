"""A browser, where there is one, and a folder whose tokens are out to break a page."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import mull

HOSTILE = "</script><script>document.title='broken';</script>"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Rendered = Callable[[str], str]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The document that a browser makes of a page, its scripts run. Skips where there is no browser that starts."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")
    folder = tmp_path_factory.mktemp("browser")

    def render(text: str) -> str:
        file = folder / "page.html"
        file.write_text(text, encoding="utf-8")
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1000,1000",
            "--virtual-time-budget=5000",
        )
        command = [browser, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            pytest.skip("the browser does not start within two minutes")
        if run.returncode or "<html" not in run.stdout:
            pytest.skip(f"the browser does not run here: {run.stderr.strip()[-200:]}")
        return run.stdout

    return render


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
