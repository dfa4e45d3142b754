"""docs/serving.md is true: its lines run, as they stand but for the address, and its limits are those of the code."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mull.inference.serve.limits import Limits

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("client")
def test_python(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The openai lines."""
    (code,) = blocks("python")
    exec(code.replace("http://127.0.0.1:8000", running.url), {})
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.startswith(" odd {") and "'iterations': 32" in first and len(rest) == 20


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl(running: Any) -> None:
    """The lines for a shell."""
    (lines,) = blocks("bash")
    run = subprocess.run(
        ["sh", "-e", "-c", lines.replace("http://127.0.0.1:8000", running.url)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0 and '"content":" odd"' in run.stdout and '"id":"parity"' in run.stdout


def test_limits() -> None:
    """The table of defaults."""
    told = dict(re.findall(r"\| `--([a-z-]+)` \| (\d+) \|", PAGE))
    usual = {field.name.replace("_", "-"): getattr(Limits(), field.name) for field in fields(Limits)}
    usual["cache-mib"] = usual.pop("cache-bytes") >> 20
    assert told == {name: str(value) for name, value in usual.items()}
