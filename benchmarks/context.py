"""Do iterations help for longer where there is more to read? python benchmarks/context.py FOLDER [--file FILE.jsonl]

Bits per byte of a text model of bytes by iterations, in two series. The same bytes are scored at every context, so that
differences are those of the context and of the count, and not of the text:

- bytes of context: the last 32 bytes of windows of 64, 256 and 1,024 bytes, behind the rest of them;
- examples: the answers of a problem's record behind its question, and behind 0, 1 or 2 other records before that.

Texts follow on each other as in training, with the token that ends a text between them. A series saturates at the least
count that has 99 % of what the best count gains over one iteration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import mull
from mull.checkpoints import load_tokenizer
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.results import Result
from mull.training.data import IGNORE
from mull.training.data.corpora import find
from mull.training.data.task import END

COUNTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 256, 1024)  # bytes of a window
SCORED = 32  # the last of them
EXAMPLES = (0, 1, 2)
LONGEST = 340  # bytes of a record, so that three of them are a window
Pair = tuple[Tensor, Tensor]
Encode = Callable[[str], np.ndarray]


def pairs(windows: list[np.ndarray], scored: list[int], at_once: int = 16) -> Iterator[Pair]:
    """Batches of (input_ids, labels) of texts, of each of which the last so many tokens are scored."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))  # little padding
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        width = max(len(windows[i]) for i in chosen) - 1
        ids, labels = torch.zeros(len(chosen), width, dtype=torch.int64), torch.full((len(chosen), width), IGNORE)
        for row, i in enumerate(chosen):  # padded on the right, which nothing attends to
            tokens = torch.from_numpy(windows[i])
            ids[row, : len(tokens) - 1] = tokens[:-1]
            labels[row, len(tokens) - 1 - scored[i] : len(tokens) - 1] = tokens[-scored[i] :]
        yield ids, labels


def by_context(records: list[str], windows: int, encode: Encode) -> dict[int, list[Pair]]:
    """The same last bytes behind ever more of a text."""
    text = np.concatenate([encode(record + END) for record in records])
    starts = np.linspace(0, len(text) - max(CONTEXTS) - 1, windows).astype(int)
    whole = [text[start : start + max(CONTEXTS) + 1] for start in starts]
    return {context: list(pairs([w[-context - 1 :] for w in whole], [SCORED] * windows)) for context in CONTEXTS}


def by_examples(records: list[tuple[str, str]], windows: int, encode: Encode) -> dict[int, list[Pair]]:
    """The same answers behind ever more solved problems."""
    short = [(asked, told) for asked, told in records if len(asked.encode()) + len(told.encode()) < LONGEST]
    chosen, found = short[:windows], {}
    for many in EXAMPLES:
        texts, scored = [], []
        for number, (asked, told) in enumerate(chosen):
            before = [short[(number + k) % len(short)] for k in range(1, many + 1)]
            shown = "".join(f"{question}\n{answer}{END}" for question, answer in before)
            texts.append(encode(f"{shown}{asked}\n{told}"))
            scored.append(len(encode(told)))
        found[many] = list(pairs(texts, scored))
    return found


def saturation(results: list[Result]) -> int:
    """The least count that has 99 % of what the best count gains over one iteration."""
    best = min(result.loss for result in results)
    enough = best + 0.01 * (results[0].loss - best)
    return next(int(result.iterations or 0) for result in results if result.loss <= enough)


def main(folder: str, file: str, windows: int) -> None:
    """Print both series."""
    model, tokenizer = mull.load(folder), load_tokenizer(folder)
    lines = find(file).read_text().splitlines()
    records = [(record["question"], record["answer"]) for record in map(json.loads, lines)]

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids)

    if len(encode("abc")) != 3:
        raise ValueError(f"{folder} is no model of bytes: contexts are counted in bytes here")
    print(f"{folder}: {windows} windows of {Path(file).name}, bits per byte; torch {torch.__version__}, 1 thread")
    print(f"{'':24}" + "".join(f"{count:>8}" for count in COUNTS) + "   99 % of the gain at")
    series = {
        "{} bytes of context": by_context(["\n".join(record) for record in records], windows, encode),
        "{} examples before": by_examples(records, windows, encode),
    }
    for name, batches in series.items():
        results = evaluate(model, batches, COUNTS, bytes_per_token=1.0)
        for much in batches:
            own = [result for result in results if result.difficulty == much]
            told = "".join(f"{result.bits_per_byte:8.3f}" for result in own)
            print(f"{name.format(much):24}{told}   {saturation(own)}")
            last = own[-1]
            if last.difference is not None and last.difference_low is not None and last.difference_high is not None:
                interval = f"{last.difference_low:+.4f} to {last.difference_high:+.4f}"
                print(f"{'':24}64 iterations less {last.reference}: {last.difference:+.4f} ({interval})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--file", default="data/gsm8k-test.jsonl", help="records with question and answer")
    parser.add_argument("--windows", type=int, default=256)
    options = parser.parse_args()
    main(options.folder, options.file, options.windows)
