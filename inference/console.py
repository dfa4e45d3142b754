"""Prompts in, answers out: what `mull generate` reads and prints."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from mull.inference.rounds import NewTokens


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt. Raises ValueError for an empty one, and for symbols the tokenizer does not know."""
    if not text:
        raise ValueError("the prompt is empty; give at least one symbol")
    encoded = tokenizer.encode(text)
    unknown = tokenizer.token_to_id("<unk>")
    if unknown is not None and unknown in encoded.ids:
        start, end = encoded.offsets[encoded.ids.index(unknown)]
        known = [symbol for symbol in sorted(tokenizer.get_vocab()) if not symbol.startswith("<")]
        raise ValueError(
            f"the prompt holds the unknown symbol {text[start:end]!r}; known are {' '.join(known[:40])}, "
            "with blanks between them"
        )
    return encoded.ids


def write_stream(positions: Iterator[NewTokens], tokenizer: Tokenizer) -> None:
    """Print one answer as it comes, and what it took when it ends or is interrupted."""
    decoded, used, start = DecodeStream(skip_special_tokens=True), [], time.perf_counter()
    try:
        for tokens, iterations in positions:
            print(decoded.step(tokenizer, int(tokens)) or "", end="", flush=True)
            used.append(int(iterations))
    finally:
        if used:
            print(flush=True)
            print(summary(used, time.perf_counter() - start), file=sys.stderr)


def write_lines(positions: Iterator[NewTokens], tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Print the answers to many prompts, one JSON object a line, in order."""
    start = time.perf_counter()
    answers: list[list[int]] = [[] for _ in prompts]
    used: list[list[int]] = [[] for _ in prompts]
    for tokens, iterations in positions:
        for row, (token, count) in enumerate(zip(tokens.tolist(), iterations.tolist(), strict=True)):
            if count:
                answers[row].append(token)
                used[row].append(count)
    for prompt, answer, counts_used in zip(prompts, answers, used, strict=True):
        mean = sum(counts_used) / len(counts_used)
        text = tokenizer.decode(answer)
        print(json.dumps({"prompt": prompt, "text": text, "tokens": len(answer), "iterations": round(mean, 2)}))
    print(summary([count for row in used for count in row], time.perf_counter() - start), file=sys.stderr)


def summary(used: list[int], seconds: float) -> str:
    mean = sum(used) / max(len(used), 1)
    return f"[{len(used)} tokens, {mean:.1f} iterations each, {len(used) / seconds:.1f} tokens/s]"


def read_prompts(path: str) -> list[str]:
    """The lines of a file, or of standard input for `-`; empty ones are left out."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{'standard input' if path == '-' else path} holds no prompt; give one a line")
    return prompts
