"""Damaged and hostile copies of the shipped folders: each loads right, or is refused in one line, within five seconds.

    python benchmarks/mutants.py [--mutants 1000] [--seed 0] [--flips]

A mutant is a shipped folder with one thing changed: bytes flipped, a file cut short, fields dropped, retyped or
enlarged (half of the time vouched for by fresh checksums, as by somebody who means harm), files swapped, or something
else in a file's place. `--flips` flips every single bit of every config.json and tokenizer.json instead.

What counts as a fault: any other error than a ValueError or a FileNotFoundError of one short printable line, a word on
standard error, more than five seconds, a module out of the mutant, or a model or tokenizer that differs although nobody
vouched for the change. Printed are the counts; the exit status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import mull
from mull.checkpoints import load_tokenizer, store
from mull.inference.measure.inspect import inspection
from mull.training.evaluation import data_of

SHIPPED = [Path(__file__).parents[1] / "checkpoints" / name for name in ("parity", "text", "inner-thinking")]
FILES = ("config.json", "model.safetensors", "tokenizer.json", "training.yaml", "depth.json")
VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**30, 1e-300, 1e308, "", "x" * 5_000, "\x1b[31m[/x]", [], {}]
VALUES += [[[[]]], {"class_path": "evil.Data"}, ["a"] * 9_999, {"a": {"b": None}}]
SECONDS = 5.0


# Changes --------------------------------------------------------------------------------------------------------------


def flip(folder: Path, draw: random.Random) -> None:
    """Up to eight bytes of one file changed."""
    file = folder / draw.choice(FILES)
    data = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    file.write_bytes(data)


def cut(folder: Path, draw: random.Random) -> None:
    """One file cut short."""
    file = folder / draw.choice(FILES)
    os.truncate(file, draw.randrange(file.stat().st_size))


def swap(folder: Path, draw: random.Random) -> None:
    """One file in another's place, out of the same folder or another shipped one."""
    source = draw.choice([folder, *SHIPPED]) / draw.choice(FILES)
    target = folder / draw.choice(FILES)
    target.write_bytes(source.read_bytes())


def replace(folder: Path, draw: random.Random) -> None:
    """No file, a folder, a pipe or a link in a file's place."""
    file = folder / draw.choice(FILES)
    file.unlink()
    others: list[Callable[[], Any]] = [
        lambda: None,
        file.mkdir,
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to(file),
        lambda: file.symlink_to("nowhere"),
    ]
    draw.choice(others)()


def change_field(folder: Path, draw: random.Random) -> None:
    """A field of a JSON or YAML file dropped, or given a value of another type or size."""
    file = folder / draw.choice(("config.json", "config.json", "tokenizer.json", "training.yaml", "depth.json"))
    text = file.read_text(encoding="utf-8")
    found = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    node, key = draw.choice(list(places(found)))
    if draw.random() < 0.3:
        del node[key]
    elif isinstance(node[key], int | float) and draw.random() < 0.5:
        node[key] = node[key] * draw.choice([2, 1000, 10**9, -1, 0.5])
    else:
        node[key] = draw.choice(VALUES)
    file.write_text(json.dumps(found))  # JSON is YAML
    if draw.random() < 0.5:
        vouch(folder)


CHANGES = (flip, cut, swap, replace, change_field, change_field)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in nested mappings and lists; of a long one the first twenty."""
    keys = list(node if isinstance(node, dict) else range(len(node)))[:20]
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


def vouch(folder: Path) -> None:
    """Fresh checksums in config.json, where it is still an object."""
    config = json.loads((folder / "config.json").read_text())
    config["tokenizer_sha256"] = store.checksum_of(folder / "tokenizer.json")
    config["config_sha256"] = store.fields_sum(config)
    (folder / "config.json").write_text(json.dumps(config))


# What becomes of them -------------------------------------------------------------------------------------------------


@contextmanager
def standard_error(file: Path) -> Iterator[None]:
    """Standard error of the process, libraries in other languages included, into a file."""
    kept = os.dup(2)
    with file.open("wb") as opened:
        os.dup2(opened.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def same_model(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return one.config == other.config and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def answer(call: Callable[[], Any], folder: Path) -> tuple[str, Any]:
    """("right", what came back), ("one line", None), or ("fault: ...", None)."""
    start, found = time.monotonic(), None
    try:
        found = call()
        verdict = "right"
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        short = text.isprintable() and len(text) <= 300 + 2 * len(str(folder))
        verdict = "one line" if short else f"fault: {len(text)} characters: {text[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict = f"fault: {type(error).__name__}: {str(error)[:200]!r}"
    if time.monotonic() - start > SECONDS:
        verdict = f"fault: {time.monotonic() - start:.1f} seconds"
    return verdict, found


def outcome(call: Callable[[], Any], folder: Path) -> tuple[str, Any]:
    """`answer`, where a word on standard error and a module out of the folder are faults too."""
    said, modules = folder.parent / "said", set(sys.modules)
    with standard_error(said):
        verdict, found = answer(call, folder)
    if said.stat().st_size:
        verdict = f"fault: printed {said.read_bytes()[:200]!r}"
    foreign = [
        name for name in set(sys.modules) - modules if str(folder) in str(getattr(sys.modules[name], "__file__", ""))
    ]
    return (f"fault: imported {foreign}" if foreign or "evil" in sys.modules else verdict), found


def claims(folder: Path) -> Any:
    """The checksum of config.json that stands in it; somebody who wrote another one vouches for the change."""
    if not (folder / "config.json").is_file():
        return None
    try:
        return json.loads((folder / "config.json").read_bytes()).get("config_sha256")
    except (ValueError, AttributeError, RecursionError):
        return None


def judge(folder: Path, source: Path) -> dict[str, str]:
    """What becomes of a mutant by each way in: the model, the tokenizer, `inspect`, and the data of `evaluate`."""
    vouched = claims(folder) != claims(source)
    verdicts = {}
    verdict, model = outcome(lambda: mull.load(folder), folder)
    if verdict == "right" and not vouched and not same_model(model, mull.load(source)):
        verdict = "fault: another model"
    verdicts["model"] = verdict
    verdict, tokenizer = outcome(lambda: load_tokenizer(folder), folder)
    if verdict == "right" and not vouched and tokenizer.to_str() != load_tokenizer(source).to_str():
        verdict = "fault: another tokenizer"
    verdicts["tokenizer"] = verdict
    verdict, page = outcome(lambda: inspection(folder), folder)
    if verdict == "right" and "one line" in verdicts["model"]:
        verdict = "fault: spoke well of a folder that does not load"
    if verdict == "right" and not all(line.isprintable() for line in page.splitlines()):
        verdict = "fault: control characters"
    verdicts["inspect"] = verdict
    verdicts["data"] = outcome(lambda: data_of(folder), folder)[0]
    return verdicts


def run_mutants(count: int, seed: int, sources: list[Path] = SHIPPED) -> Iterator[tuple[str, dict[str, str]]]:
    """`count` mutants and what became of each."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        source, change = draw.choice(sources), draw.choice(CHANGES)
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / source.name
            shutil.copytree(source, folder)
            try:
                change(folder, draw)
            except (ValueError, OSError, TypeError):  # a change that cannot be made, as a checksum of a list
                continue
            yield change.__name__, judge(folder, source)


def run_flips(source: Path, name: str, step: int = 1) -> Counter[str]:
    """Every step-th bit of config.json or tokenizer.json flipped: one line, or equal to what it was."""
    read: dict[str, Callable[[Path], Any]] = {
        "config.json": store.read_config,  # what decides a model but for its weights
        "tokenizer.json": lambda place: load_tokenizer(place).to_str(),
    }
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / source.name
        folder.mkdir()
        for file in ("config.json", "tokenizer.json"):
            shutil.copy(source / file, folder)
        sound, right = (folder / name).read_bytes(), read[name](source)
        with standard_error(folder.parent / "said"):
            for bit in range(0, 8 * len(sound), step):
                flipped = bytearray(sound)
                flipped[bit // 8] ^= 1 << bit % 8
                (folder / name).write_bytes(flipped)
                verdict, found = answer(lambda: read[name](folder), folder)
                counts["fault: another answer" if verdict == "right" and found != right else verdict] += 1
        if (folder.parent / "said").stat().st_size:
            counts["fault: printed"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (0)")
    parser.add_argument("--flips", action="store_true", help="every bit of config.json and tokenizer.json instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    if options.flips:
        for source in SHIPPED:
            for name in ("config.json", "tokenizer.json"):
                counts.update({(f"{source.name}/{name}", v): n for v, n in run_flips(source, name).items()})
    else:
        for kind, verdicts in run_mutants(options.mutants, options.seed):
            counts.update((f"{kind}, {way}", verdict) for way, verdict in verdicts.items())
    for (what, verdict), count in sorted(counts.items()):
        print(f"{what:<36}{verdict:<12}{count:>8,}")
    return int(any(verdict.startswith("fault") for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main())
