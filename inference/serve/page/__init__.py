"""The page at `/`: its files, found by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

KINDS = (".html", ".css", ".js", ".svg", ".png")


@cache
def files() -> dict[str, Path]:
    """The files of the page by name: index.html at `/`, all of them at `/page/NAME`."""
    return {file.name: file for file in Path(__file__).parent.iterdir() if file.suffix in KINDS}
