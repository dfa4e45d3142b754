"""Prompts in, answers out: what `mull generate` reads and prints."""

import json
import re
import sys
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch

from mull.checkpoints.quantities import MEAN, number
from mull.inference.checks import check_prompt
from mull.inference.decoders import choose_decoder
from mull.inference.generate import stream
from mull.inference.prompts import Line, integers, padded
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
        **{name: options[name] for name in AS_THEY_ARE if name in options},
    }


def generator_on(device: str) -> torch.Generator:
    try:
        return torch.Generator(device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot draw ({reason}); pass --device cpu or another") from None


def dtype_of(name: str) -> torch.dtype | None:
    return None if name == "same" else getattr(torch, name)


def write_answer(model: LanguageModel, prompt: str, call: dict[str, Any]) -> None:
    """Print one answer as it comes, and what it took when it ends or is interrupted."""
    ids = encode(model.tokenizer, prompt)
    text, used, start = TextStream(model.tokenizer, ids, call["stop"]), [], time.perf_counter()
    positions = stream(model, integers([ids], "prompt_ids"), **call)
    try:
        for tokens, iterations in positions:
            print(text.add(int(tokens)), end="", flush=True)
            used.append(int(iterations))
    finally:
        if used:
            print(text.rest(), flush=True)
            print(summary(used, time.perf_counter() - start), file=sys.stderr)


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
    start, counts, failed = time.perf_counter(), list[int](), 0
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
            counts += write_batch(model, batch, {**call, "generator": drawn_by})
    finally:
        print(summary(counts, time.perf_counter() - start), file=sys.stderr)
    return 2 if failed else 0


def generator_of(line: int, given: torch.Generator) -> torch.Generator:
    """The generator of a line, whose draws are a function of the given one's seed and of the number of the line."""
    digest = blake2b(f"{given.initial_seed()} {line}".encode(), digest_size=8).digest()
    return torch.Generator(given.device).manual_seed(int.from_bytes(digest, "little") >> 1)


def write_batch(model: LanguageModel, batch: Sequence[tuple[Line, list[int]]], call: dict[str, Any]) -> list[int]:
    """Print the answers of one batch, each when its row has ended; return the iterations of all their tokens."""
    answers: list[list[int]] = [[] for _ in batch]
    used: list[list[int]] = [[] for _ in batch]
    open_rows = set(range(len(batch)))

    def close(row: int) -> None:
        open_rows.remove(row)
        line, prompt_ids = batch[row]
        answer = {
            **line.record,
            "line": line.number,
            "prompt": line.prompt,
            "text": continuation(model.tokenizer, prompt_ids, answers[row], call["stop"]),
            "tokens": len(answers[row]),
            "iterations": round(sum(used[row]) / len(used[row]), 2),
        }
        print(json.dumps(answer), flush=True)

    ids, mask = padded([ids for _, ids in batch])
    for tokens, iterations in stream(model, ids, attention_mask=mask, **call):
        for row, (token, count) in enumerate(zip(tokens.tolist(), iterations.tolist(), strict=True)):
            if count:
                answers[row].append(token)
                used[row].append(count)
            elif row in open_rows:  # the row had ended before, and is only filled up
                close(row)
    for row in sorted(open_rows):
        close(row)
    return [count for row in used for count in row]


def summary(used: list[int], seconds: float) -> str:
    mean = sum(used) / max(len(used), 1)
    tokens = f"{len(used)} token{'s' * (len(used) != 1)}"
    return f"[{tokens}, {number(mean, MEAN)} iterations each, {len(used) / seconds:.1f} tokens/s]"
