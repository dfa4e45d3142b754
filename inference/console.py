"""Prompts in, answers out: what `mull generate` reads and prints."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from mull.checkpoints.quantities import MEAN, number
from mull.inference.checks import check_prompt
from mull.inference.decoders import choose_decoder
from mull.inference.generate import stream
from mull.inference.measure.settling import settling
from mull.inference.prompts import Line, integers, padded
from mull.inference.rounds import NewTokens
from mull.inference.sampling import seed_from
from mull.inference.text import TextStream, continuation, encode
from mull.models import LanguageModel

# options of the command line that `stream` has under the same names
AS_THEY_ARE = (
    "exit", "decode", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "warm_start", "capacity",
)  # fmt: skip
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescaped(text: str) -> str:
    """A stop string of a command line, where \\n is a line end: shells have no short way to write one."""
    return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), text)


def call_of(options: Any) -> dict[str, Any]:
    """The options of a command that writes, as `stream` takes them."""
    depth = options.iterations
    if depth is None and isinstance(options.capacity, tuple):  # one share for each routed pass says how many there are
        depth = len(options.capacity) + 1
    return {
        "iterations": depth,
        "generator": generator_on(options.device).manual_seed(options.seed),
        "stop": [unescaped(each) for each in options.stop or []],
        "cache_dtype": dtype_of(options.cache_dtype),
        "residuals": True,  # of which the last line says whether answers had settled
        **{name: options[name] for name in AS_THEY_ARE if name in options},
    }


def generator_on(device: str) -> torch.Generator:
    """A new random generator on a device. Raises ValueError for a device that has none."""
    try:
        return torch.Generator(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot draw ({reason}); pass --device cpu or another") from None


def dtype_of(name: str) -> torch.dtype | None:
    """The number type of torch that an option names; None for `same`, the one that the weights are stored in."""
    return None if name == "same" else getattr(torch, name)


def write_answer(model: LanguageModel, prompt: str, call: dict[str, Any]) -> None:
    """Print one answer as it comes, and what it took when it ends or is interrupted."""
    ids = encode(model.tokenizer, prompt)
    text, written, start = TextStream(model.tokenizer, ids, call["stop"]), Written(), time.perf_counter()
    positions = stream(model, integers([ids], "prompt_ids"), **call)
    try:
        for position in positions:
            print(text.add(int(position.tokens)), end="", flush=True)
            written.add(position, 0)
    finally:
        if written.used:
            print(text.rest(), flush=True)
            print(summary(model, written, call, time.perf_counter() - start), file=sys.stderr)


def write_answers(
    model: LanguageModel, lines: Sequence[Line], source: str, batch_size: int, call: dict[str, Any]
) -> int:
    """Print the answers to the prompts of a file, one JSON object each, as soon as it is whole.

    Prompts of nearly one length share a batch, so answers come in another order than their lines, whose numbers they
    carry. What is drawn for a line depends on the seed and its number, and not on what it is answered beside. A line
    that cannot be answered is reported by its number, and the others are answered.

    Args:
        lines: of `read_prompts`.
        source: name of the file, for reports.
        batch_size: prompts that are answered at once.
        call: of `call_of`.

    Returns:
        The exit status: 2 if a line could not be answered.
    """
    start, written, failed = time.perf_counter(), Written(), 0
    good: list[tuple[Line, list[int]]] = []
    for line in lines:
        try:
            if line.wrong is not None:
                raise ValueError(line.wrong)
            ids = encode(model.tokenizer, line.prompt)
            check_prompt(model, integers([ids], "prompt_ids"), None)
            good.append((line, ids))
        except ValueError as error:
            failed += 1
            said = " ".join(str(error).split())
            print(f"mull: error: {source}, line {line.number}: {said}", file=sys.stderr, flush=True)
    good.sort(key=lambda pair: len(pair[1]))
    decoder = choose_decoder(call.get("decode"), call["exit"])
    draws = call["temperature"] > 0 or decoder.draws_more
    if draws and "generators" not in decoder.understands:
        batch_size = 1  # its rows would share their draws
    try:
        for first in range(0, len(good), batch_size):
            batch = good[first : first + batch_size]
            own = [generator_of(line.number, call["generator"]) for line, _ in batch]
            drawn_by = own[0] if len(own) == 1 or not draws else own
            written.join(write_batch(model, batch, {**call, "generator": drawn_by}))
    finally:
        if written.used:
            print(summary(model, written, call, time.perf_counter() - start), file=sys.stderr)
    return 2 if failed else 0


def generator_of(line: int, given: torch.Generator) -> torch.Generator:
    """The generator of a line, whose draws are a function of the given one's seed and of the number of the line."""
    return torch.Generator(given.device).manual_seed(seed_from(f"{given.initial_seed()} {line}"))


def write_batch(model: LanguageModel, batch: Sequence[tuple[Line, list[int]]], call: dict[str, Any]) -> list[Written]:
    """Print the answers of one batch, each when its row has ended; return what all of them took."""
    answers: list[list[int]] = [[] for _ in batch]
    took = [Written() for _ in batch]
    open_rows = set(range(len(batch)))

    def close(row: int) -> None:
        open_rows.remove(row)
        line, prompt_ids = batch[row]
        share = took[row].settled
        answer = {
            **line.record,
            "line": line.number,
            "prompt": line.prompt,
            "text": continuation(model.tokenizer, prompt_ids, answers[row], call["stop"]),
            "tokens": len(answers[row]),
            "iterations": round(sum(took[row].used) / len(took[row].used), 2),
            "settled": None if share is None else round(share, 4),
        }
        print(json.dumps(answer, allow_nan=False), flush=True)

    ids, mask = padded([ids for _, ids in batch])
    for position in stream(model, ids, attention_mask=mask, **call):
        for row, (token, count) in enumerate(zip(*(part.tolist() for part in position), strict=True)):
            if count:
                answers[row].append(token)
                took[row].add(position, row)
            elif row in open_rows:  # the row had ended before, and is only filled up
                close(row)
    for row in sorted(open_rows):
        close(row)
    return took


class Written:
    """What tokens took that were written: the iterations of each, and the most that the last of them moved a state
    that the token depends on, NaN where nobody knows."""

    def __init__(self) -> None:
        self.used: list[int] = []
        self.moved: list[float] = []

    def add(self, position: NewTokens, row: int) -> None:
        self.used.append(int(position.iterations[row]))
        self.moved.append(math.nan if position.residuals is None else float(position.residuals[row]))

    def join(self, others: Iterable[Written]) -> None:
        for other in others:
            self.used += other.used
            self.moved += other.moved

    @property
    def settled(self) -> float | None:
        """The share of the tokens that had settled, with all before them (measure/settling.py); None where that is not
        known of all."""
        if not self.moved or any(map(math.isnan, self.moved)):
            return None
        return settling(self.moved, None).settled


def summary(model: LanguageModel, written: Written, call: dict[str, Any], seconds: float) -> str:
    """What was written in one line: how much, how long it was thought about, whether it had settled, and how fast."""
    used, share = written.used, written.settled
    said = [f"{len(used)} token{'s' * (len(used) != 1)}"]
    said.append(f"{number(sum(used) / max(len(used), 1), MEAN)} iterations each")
    rule = choose_decoder(call.get("decode"), call["exit"]).exit
    if rule is not None and used:
        limit = model.check_depth(call["iterations"])
        by_rule = sum(count < limit for count in used)
        said.append(f"{by_rule} ended by {rule.name} and {len(used) - by_rule} at the limit of {limit}")
    if share is not None:
        said.append(f"{share:.0%} settled".replace("%", " %"))
    return f"[{', '.join(said)}, {len(used) / seconds:.1f} tokens/s]"
