"""The page at `/`: its files, found by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mull.inference.tracing.pages import PARTS

KINDS = (".html", ".css", ".js", ".svg", ".png")
SHARED = ("document.js", "numbers.js", "colours.js", "map.js", "page.css")


@cache
def files() -> dict[str, Path]:
    """The files of the page by name: index.html at `/`, all of them at `/page/NAME`. The map and its colours are those
    of `mull trace`."""
    own = {file.name: file for file in Path(__file__).parent.iterdir() if file.suffix in KINDS}
    return {**{name: PARTS / name for name in SHARED}, **own}
