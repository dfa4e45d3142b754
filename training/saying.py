"""What a command says while it works: lines, and a bar while a folder is measured.

Commands that train nothing say it too, so nothing here imports the trainer, which takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

Batches = Mapping[int | None, Iterable[tuple[Tensor, Tensor]]]


def on_terminal() -> bool:
    """Whether a person watches."""
    return sys.stdout.isatty()


def say(text: str) -> None:
    """Print a line at once. A reader who has gone, as `| head -1` does, ends no run: the rest goes nowhere."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def measuring(batches: Batches, examples: int) -> Iterator[Batches]:
    """The same batches, while a bar or a line says that they are being measured on.

    Args:
        batches: the batches (input_ids, labels) of each difficulty.
        examples: most examples of a difficulty.
    """
    if not on_terminal():
        say(f"measuring on at most {examples} examples of each difficulty")
        yield batches
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("measuring", total=examples * len(batches))

        def watched(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
            for pair in pairs:
                yield pair
                bar.advance(task, len(pair[0]))

        yield {difficulty: watched(pairs) for difficulty, pairs in batches.items()}
