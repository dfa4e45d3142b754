"""Answers in OpenAI's form, whole or in chunks, and what they took.

usage   prompt and completion tokens; reasoning_tokens is 0: thinking longer writes no token here
mull    iterations        that were asked for, under an exit rule the most of a token; null without a loop
        mean_iterations   spent on each new token, on average
        flops             forward, of the prompt and of the new tokens as they were executed
        settled           whether the last iteration moved each state of each answer, those of the prompt included, by
                          less than 0.03; null where nobody can say (mull/inference/measure/settling.py)

In a stream, chunks with text have in `mull` its `tokens` and the `iterations` of each; the last has what is above.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from mull.inference.serve.protocol import Asked
from mull.inference.serve.rows import Ended, Likely, Piece
from mull.inference.text import UNDECIDED, decode

DONE = b"data: [DONE]\n\n"


def chunk(body: Any) -> bytes:
    """A message of a stream."""
    return b"data: " + json.dumps(body, allow_nan=False).encode() + b"\n\n"


class Reply:
    """The answer to one request, from what its rows say."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.chat = asked, asked.kind == "chat.completion"
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        rows = len(asked.prompts) * asked.count
        self.texts: list[list[str]] = [[] for _ in range(rows)]
        self.likely: list[list[Likely]] = [[] for _ in range(rows)]
        self.ended: dict[int, Ended] = {}

    def take(self, event: Piece | Ended) -> None:
        """Keep what a row said."""
        if isinstance(event, Ended):
            self.ended[event.row] = event
        else:
            self.texts[event.row].append(event.text)
            self.likely[event.row] += event.likely

    # Whole ------------------------------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The answer, when all rows have ended."""
        choices = []
        for row, texts in enumerate(self.texts):
            text = "".join(texts)
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append(
                {
                    "index": row,
                    **said,
                    "logprobs": self.logprobs(self.likely[row]),
                    "finish_reason": self.ended[row].reason,
                    "stop_reason": self.ended[row].stop,
                }
            )
        return {**self.head(), "choices": choices, "usage": self.usage(), "mull": self.took()}

    def head(self, streamed: bool = False) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat and streamed else self.asked.kind
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.named}

    def usage(self) -> dict[str, Any]:
        prompt = sum(map(len, self.asked.prompts))
        new = sum(end.spent.tokens for end in self.ended.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def took(self) -> dict[str, Any]:
        spent = [end.spent for end in self.ended.values()]
        settled = [each.settled for each in spent]
        return {
            "iterations": self.asked.wish.iterations if self.asked.served.efforts else None,
            "mean_iterations": sum(each.iterations for each in spent) / max(1, sum(each.tokens for each in spent)),
            "flops": sum(each.flops for each in spent),
            "settled": None if None in settled else all(settled),
        }

    # In chunks --------------------------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        """What comes before all text."""
        if not self.chat:
            return []
        rows = range(len(self.texts))
        return [self.part(row, {"delta": {"role": "assistant", "content": "", "refusal": None}}) for row in rows]

    def streamed(self, event: Piece | Ended) -> bytes:
        """What a row said, as a chunk."""
        if isinstance(event, Ended):
            return self.part(event.row, {"delta": {}} if self.chat else {"text": ""}, ended=event)
        said = {"delta": {"content": event.text}} if self.chat else {"text": event.text}
        return self.part(event.row, said, event.likely, used=event.used)

    def part(
        self,
        row: int,
        said: dict[str, Any],
        told: Sequence[Likely] = (),
        ended: Ended | None = None,
        used: Sequence[tuple[int, int]] | None = None,
    ) -> bytes:
        choice = {"index": row, **said, "logprobs": self.logprobs(told) if told else None}
        choice |= (
            {"finish_reason": None} if ended is None else {"finish_reason": ended.reason, "stop_reason": ended.stop}
        )
        usage = {"usage": None} if self.asked.include_usage else {}
        mull = {}
        if used is not None:
            mull["mull"] = {"tokens": [token for token, _ in used], "iterations": [count for _, count in used]}
        return chunk({**self.head(True), "choices": [choice], **usage, **mull})

    def closing(self) -> list[bytes]:
        """What comes behind all text."""
        last = {**self.head(True), "choices": [], "usage": self.usage(), "mull": self.took()}
        return [*([chunk(last)] if self.asked.include_usage else []), DONE]

    # Probabilities ----------------------------------------------------------------------------------------------------

    def logprobs(self, told: Sequence[Likely]) -> dict[str, Any] | None:
        """What is told of tokens, in the form of the endpoint; None where nobody asked."""
        if self.asked.wish.top is None:
            return None
        if self.chat:
            return {"content": [self.one(each) for each in told], "refusal": None}
        return {
            "tokens": [self.token(each.token) for each in told],
            "token_logprobs": [each.log_p for each in told],
            "top_logprobs": [self.named(each.top) for each in told],
            "text_offset": [each.offset for each in told],
        }

    def one(self, told: Likely) -> dict[str, Any]:
        return {
            **self.spelled(told.token, told.log_p),
            "top_logprobs": [self.spelled(token, log_p) for token, log_p in told.top],
        }

    def named(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Log probabilities, the largest first, by token; of tokens that look alike, that of the likeliest."""
        found: dict[str, float] = {}
        for token, log_p in top:
            found.setdefault(self.token(token), log_p)
        return found

    def spelled(self, token: int, log_p: float) -> dict[str, Any]:
        text = decode(self.asked.served.tokenizer, [token])
        spelling = None if UNDECIDED in text else list((text or self.token(token)).encode())
        return {"token": self.token(token), "logprob": log_p, "bytes": spelling}

    def token(self, token: int) -> str:
        """A token as text; one that is no whole character, or stands for no text, by its name."""
        tokenizer = self.asked.served.tokenizer
        text = decode(tokenizer, [token])
        return text if text and UNDECIDED not in text else tokenizer.id_to_token(token) or text or f"<{token}>"
