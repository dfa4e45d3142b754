"""A trace as one HTML file that needs nothing else: no network, no server, no library.

The files of `page/` are laid into one document, beside the numbers as JSON. What comes from a folder or prompt is data
there, and nothing but data: in JSON no `<` is left that could end the block, the script puts text into the document as
text, and the document's own policy runs no script but ours, by its hash, and loads nothing.

Numbers are whole numbers of two bytes between the limits of their quantity, 1 / 65534 of the range apart (logarithmic
where small ones matter), which is finer than any screen; ranks and places in a vocabulary of at most 256 tokens are of
one byte. So two runs of 256 positions by 32 iterations are below a megabyte.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mull.checkpoints.files import path_of
from mull.inference.tracing.trace import Trace
from mull.inference.tracing.view import common_plane, texts, tokens_in, view
from mull.models import LanguageModel

PARTS = Path(__file__).with_name("page")
SCRIPTS = ("document.js", "numbers.js", "colours.js", "map.js", "charts.js", "main.js")  # in this order, as one script
UNKNOWN = 65535  # of two bytes: not a number
SMALLEST = 1e-12  # on a logarithmic scale; below it is zero
LOGARITHMIC = ("kl", "residual", "probabilities", "truth")  # where 0.0001 is another thing than 0.0002


def write_page(
    path: str | Path, model: LanguageModel, runs: Mapping[str, Trace], title: str = "a trace", about: Sequence[str] = ()
) -> int:
    """Write the first rows of one or two traces as a page; return its bytes. Paths of the state are on it where the
    traces kept their states.

    Args:
        path: the file, which is replaced.
        model: the one that was traced; its tokenizer says what tokens look like.
        runs: traces by name, in the order in which they are shown.
        title: the heading.
        about: lines below the heading.

    Raises:
        ValueError: an empty path, no run, or more than two.
    """
    place = path_of(path, "the path of the page")
    if len(runs) not in (1, 2):
        raise ValueError(f"a page shows one run or two, not {len(runs)}")
    plane = common_plane(list(runs.values()))
    views = [view(name, found, model, plane) for name, found in runs.items()]
    return place.write_bytes(page(title, about, views, model.tokenizer).encode())


def page(title: str, about: Sequence[str], views: Sequence[dict[str, Any]], tokenizer: Any) -> str:
    """The document.

    Args:
        title: of the page, such as the folder.
        about: lines that say what was run.
        views: one or two runs, as `view.view` gives them.
        tokenizer: says what tokens look like; None shows ids.
    """
    data = data_of(title, about, views, tokenizer)
    script = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    style = (PARTS / "page.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest(script)}'; style-src 'sha256-{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"title": escape(title), "policy": policy, "style": style, "data": as_data(data), "script": script}
    document = (PARTS / "page.html").read_text(encoding="utf-8")
    pieces = document.split("@@")  # text, name, text, name, ..., text: what is laid in is never looked at again
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def data_of(title: str, about: Sequence[str], views: Sequence[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """What the script of a page draws; the arguments are those of `page`."""
    known = texts(tokenizer, set().union(*map(tokens_in, views)))
    place = {token: number for number, token in enumerate(known)}
    return {
        "title": title,
        "about": list(about),
        "vocabulary": list(known.values()),
        "runs": [packed_view(shown, place) for shown in views],
    }


def digest(text: str) -> str:
    """The SHA-256 of a text in base64, as a Content-Security-Policy names the scripts and styles that it lets
    through."""
    return b64encode(sha256(text.encode()).digest()).decode()


def as_data(data: Any) -> str:
    """JSON that no HTML parser finds anything in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed_view(shown: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """A view with its tensors packed, and tokens as places in the page's vocabulary, -1 for none."""
    table = torch.zeros(max(place) + 1, dtype=torch.int64)
    for token, number in place.items():
        table[token] = number
    packed: dict[str, Any] = {name: shown[name] for name in ("name", "iterations", "counts", "settled", "exits")}
    packed["tokens"] = [place[token] for token in shown["tokens"]]
    packed["labels"] = [place[label] if label >= 0 else -1 for label in shown["labels"]]
    packed["motion"] = {name: packed_numbers(name, value) for name, value in shown["motion"].items()}
    packed["answers"] = {}
    for lens, found in shown["answers"].items():
        packed["answers"][lens] = {
            name: whole(table[value] if name == "tokens" else value)
            if name in ("tokens", "rank")
            else packed_numbers(name, value)
            for name, value in found.items()
        }
    if "path" in shown:
        points = shown["path"]["points"]
        axes = [packed_numbers(f"axis {number}", points[..., number]) for number in (0, 1)]
        packed["path"] = {"axes": axes, "shares": shown["path"]["shares"]}
    if "routers" in shown:
        logits = shown["routers"]["logits"]
        packed["routers"] = {
            "layers": shown["routers"]["layers"],
            "passes": shown["routers"]["selected"].shape[-1],
            "selected": whole(shown["routers"]["selected"].long()),
            "logits": None if logits is None else packed_numbers("logits", logits),
        }
    return packed


def whole(values: Tensor) -> dict[str, Any]:
    """Whole numbers from 0 to 65534, in one byte where that holds them; larger ones are as large as that."""
    if values.numel() and int(values.max()) < 256:
        return {"scale": "whole", "bytes": 1, "data": packed_bytes(values, "<u1")}
    return {"scale": "whole", "bytes": 2, "data": packed_bytes(values.clamp(max=UNKNOWN - 1), "<u2")}


def packed_numbers(name: str, values: Tensor) -> dict[str, Any]:
    """Numbers between their own limits; what is not finite is unknown."""
    values = values.double()
    scale = "log" if name in LOGARITHMIC else "linear"
    if scale == "log":
        values = torch.where(values.isfinite(), values.clamp(min=SMALLEST).log10(), values)
    known = values[values.isfinite()]
    low, high = (float(known.min()), float(known.max())) if known.numel() else (0.0, 1.0)
    if scale == "log":
        low = math.log10(SMALLEST)  # so that zero is the same code everywhere
        high = max(high, 0.0)  # 1 is exactly the largest code of a probability
    high = max(high, low + 1e-9)
    codes = ((values - low) / (high - low) * (UNKNOWN - 1)).round()
    codes = torch.where(values.isfinite(), codes, float(UNKNOWN))
    return {"scale": scale, "low": low, "high": high, "bytes": 2, "data": packed_bytes(codes.long(), "<u2")}


def packed_bytes(codes: Tensor, kind: str) -> str:
    """Whole numbers of so many bytes, little-endian, in base 64."""
    return b64encode(codes.contiguous().flatten().numpy().astype(kind).tobytes()).decode()
