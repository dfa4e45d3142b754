"""What a request may say: OpenAI's chat and text completions, and mull's own fields beside them.

    iterations, exit, capacity      how long to think, as everywhere in mull
    reasoning_effort                the same by a word; also in the model's name, text(high) or text(32)
    top_k, min_p                    further filters of draws

What the body says itself goes before the effort, and that before the name. Fields of OpenAI that would change the
answer and that are not supported are refused, unknown fields too: a misspelt `iteration` is told, and never dropped.
Those that change nothing (user, metadata, store ...) are accepted. Without a temperature the likeliest token is taken,
as everywhere in mull.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mull.checkpoints.efforts import EFFORTS
from mull.inference.chat import read_turn
from mull.inference.checks import check_known, check_prompt
from mull.inference.prompts import integers
from mull.inference.serve.efforts import depth_of, split_name
from mull.inference.serve.fields import MAX_SEED, Fields
from mull.inference.serve.limits import MAX_ANSWERS, MAX_STOP, MAX_STOP_LENGTH, MAX_TOP, Limits
from mull.inference.serve.refusals import Refused, wrong
from mull.inference.serve.rows import Wish
from mull.inference.serve.served import Served, Sharing
from mull.inference.text import encode

Kind = Literal["chat.completion", "text_completion"]
DEFAULT_TOKENS = 64  # of an answer whose length nobody named, as in mull.generate
MOST = 10**9
SHARED = (
    "model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "seed", "logprobs",
    "iterations", "exit", "capacity", "reasoning_effort", "top_k", "min_p",
)  # fmt: skip
HARMLESS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
)  # fmt: skip
NO_PENALTIES: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "logit_bias": ({},),
}  # fmt: skip
CHAT = {
    **NO_PENALTIES, "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
    "prediction": (), "web_search_options": (), "verbosity": (), "moderation": (),
}  # fmt: skip
TEXT = {**NO_PENALTIES, "suffix": ("",), "echo": (False,)}
FIELDS: dict[Kind, tuple[str, ...]] = {
    "chat.completion": (*SHARED, *HARMLESS, *CHAT, "messages", "max_completion_tokens", "top_logprobs"),
    "text_completion": (*SHARED, *HARMLESS, *TEXT, "prompt", "best_of"),
}
UNSUPPORTED = "it would change the answer, and these models cannot follow it"


@dataclass(frozen=True)
class Asked:
    """A request that can be answered.

    Attributes:
        kind: which endpoint.
        named: the model as the request calls it.
        served: the model.
        sharing: with whom its rows share batches.
        prompts: token ids.
        count: answers to each prompt.
        seed: of the first answer's draws; the next one of the request has one more.
        wish: how the answers are written.
        stream, include_usage: sent as they come; with a last chunk that says what they took.
    """

    kind: Kind
    named: str
    served: Served
    sharing: Sharing
    prompts: list[list[int]]
    count: int
    seed: int
    wish: Wish
    stream: bool
    include_usage: bool


def asked(kind: Kind, body: Mapping[str, Any], models: Mapping[str, Served], limits: Limits) -> Asked:
    """Read a request. Raises Refused for everything that it may not say."""
    fields = Fields(body, FIELDS[kind])
    fields.neutral(CHAT if kind == "chat.completion" else TEXT, UNSUPPORTED)
    named = fields.text("model", 256)
    if not named:
        raise Refused(f"model is missing; there are {', '.join(models)}", param="model")
    name, in_name = split_name(named, models)
    served = models[name]
    iterations, sharing = depth(fields, served, in_name, limits)
    count = fields.whole("n", 1, min(MAX_ANSWERS, limits.max_rows), 1) or 1
    best_of = fields.whole("best_of", 1, MAX_ANSWERS, count)
    if best_of != count:
        raise Refused(
            f"best_of {best_of} is not supported but as n, {count}: {UNSUPPORTED}; leave it out", param="best_of"
        )
    wish = wishes(fields, kind, iterations, limits)
    prompts = [conversation(fields, served)] if kind == "chat.completion" else prompts_of(fields, served)
    if len(prompts) * count > MAX_ANSWERS:
        raise Refused(
            f"{len(prompts)} prompts with n {count} are {len(prompts) * count} answers, above the limit of "
            f"{MAX_ANSWERS} of a request; ask for some of them at a time", param="n",
        )  # fmt: skip
    for ids in prompts:
        checked_ids(ids, served)
    seed = fields.whole("seed", -MAX_SEED, MAX_SEED)
    stream = fields.flag("stream")
    return Asked(
        kind, named, served, sharing, prompts, count, secrets.randbelow(MAX_SEED) if seed is None else seed, wish,
        stream, include_usage(fields, stream),
    )  # fmt: skip


def depth(fields: Fields, served: Served, in_name: str | None, limits: Limits) -> tuple[int, Sharing]:
    """How long to think, 1 where there is no loop, and with whom."""
    table, mean = served.efforts, served.model.config.default_iterations
    effort = fields.raw("reasoning_effort")
    if effort is not None and (not isinstance(effort, str) or effort not in EFFORTS):
        raise wrong("reasoning_effort", effort, f"one of {', '.join(EFFORTS)}")
    given = fields.whole("iterations", 1, limits.max_iterations)
    exit_rule = fields.text("exit", 100)
    if mean is None:
        for param, value in (("iterations", given), ("reasoning_effort", effort), ("model", in_name)):
            if value is not None:
                raise Refused(f"{served.name} has no loop: {param} {value} is refused, leave it out", param=param)
        iterations = None
    else:
        named = None if in_name is None else depth_of(in_name, table, limits.max_iterations)
        by_effort = None if effort is None else table[effort]
        chosen = [count for count in (given, by_effort, named) if count is not None]
        iterations = chosen[0] if chosen else min(mean, limits.max_iterations)
    try:
        return iterations or 1, served.sharing(iterations, exit_rule, capacity_of(fields))
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused(str(error)) from None


def capacity_of(fields: Fields) -> float | tuple[float, ...] | None:
    """The share of the positions that a routed pass takes, or a list of one for each pass."""
    value = fields.raw("capacity")
    if value is None:
        return None
    if not isinstance(value, list):
        return fields.number("capacity", 0, 1)
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1 for each in value)
    if not 1 <= len(value) <= 1024 or not numbers:
        raise wrong("capacity", value, "a number from 0 to 1, or a list of one for each routed pass")
    return tuple(map(float, value))


def wishes(fields: Fields, kind: Kind, iterations: int, limits: Limits) -> Wish:
    """How an answer is to be written."""
    most = limits.max_tokens
    length = fields.whole("max_tokens", 1, most)
    if kind == "chat.completion":
        own = fields.whole("max_completion_tokens", 1, most)
        if own is not None and length is not None and own != length:
            raise Refused(f"max_tokens {length} and max_completion_tokens {own} differ; give one", param="max_tokens")
        length = own if own is not None else length
    top_p = fields.number("top_p", 1e-6, 1)
    return Wish(
        iterations=iterations,
        max_tokens=min(DEFAULT_TOKENS, most) if length is None else length,
        temperature=fields.number("temperature", 0, 2) or 0.0,
        top_k=fields.whole("top_k", 1, MOST),
        top_p=None if top_p == 1 else top_p,
        min_p=fields.number("min_p", 1e-6, 1),
        stop=fields.texts("stop", MAX_STOP, MAX_STOP_LENGTH),
        top=top_of(fields, kind),
    )


def top_of(fields: Fields, kind: Kind) -> int | None:
    """How many of the likeliest tokens are told; None where no probabilities are."""
    if kind == "text_completion":
        return fields.whole("logprobs", 0, MAX_TOP)
    top = fields.whole("top_logprobs", 0, MAX_TOP)
    if not fields.flag("logprobs"):
        if top is not None:
            raise Refused(f"top_logprobs {top} needs logprobs: true", param="top_logprobs")
        return None
    return top or 0


def include_usage(fields: Fields, stream: bool) -> bool:
    """Whether a stream ends with what it took."""
    options = fields.raw("stream_options")
    if options is None:
        return False
    if not stream:
        raise Refused("stream_options is for streams: leave it out, or set stream: true", param="stream_options")
    if not isinstance(options, dict):
        raise wrong("stream_options", options, "an object")
    inner = Fields(options, ("include_usage", "include_obfuscation"), "stream_options")
    inner.flag("include_obfuscation")
    return inner.flag("include_usage")


def conversation(fields: Fields, served: Served) -> list[int]:
    """The prompt of messages, as `mull chat` has it: models here know of no roles. What is said is a turn on a line of
    its own, and what the assistant said stands behind the turn that it answered."""
    messages = fields.raw("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= 1024:
        raise wrong("messages", messages, "a list of 1 to 1024 messages")
    ids: list[int] = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict):
            raise wrong(where, message, 'an object such as {"role": "user", "content": "..."}')
        one = Fields(
            message,
            ("role", "content", "name", "refusal", "annotations", "audio", "function_call", "tool_calls"),
            where,
        )
        one.neutral(
            {"refusal": (), "annotations": ([],), "audio": (), "function_call": (), "tool_calls": ([],)}, UNSUPPORTED
        )
        one.text("name", 256)
        role = one.raw("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise wrong(f"role of {where}", role, "system, developer, user or assistant")
        text = content(one.raw("content"), where)
        if role == "assistant":
            ids += encoded(served, text, where, opening=not ids) if text else []
            continue
        try:
            opening, turn = read_turn(served.tokenizer, text, first=not ids)
        except ValueError as error:
            raise Refused(f"{where}: {error}", param="messages") from None
        ids += turn if ids else [*opening, *turn]
    return ids


def content(value: Any, where: str) -> str:
    """The text of a message: a text, or a list of parts that are texts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(f"content of {where}", value, "a text, or a list of parts of type text")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
            raise wrong(f"content of {where}", part, 'made of parts such as {"type": "text", "text": "..."}')
        if not isinstance(part["text"], str):
            raise wrong(f"content of {where}", part["text"], "made of texts")
        texts.append(part["text"])
    return "".join(texts)


def prompts_of(fields: Fields, served: Served) -> list[list[int]]:
    """The prompts of a text completion: a text, token ids, or a list of either."""
    given = fields.raw("prompt")
    several = isinstance(given, list) and bool(given) and all(isinstance(each, str | list) for each in given)
    each = given if several else [given]
    if len(each) > MAX_ANSWERS:
        raise Refused(f"{len(each)} prompts are above the limit of {MAX_ANSWERS} of a request", param="prompt")
    prompts = []
    for place, prompt in enumerate(each):
        where = f"prompt[{place}]" if several else "prompt"
        if isinstance(prompt, str):
            prompts.append(encoded(served, prompt, where))
        elif (
            isinstance(prompt, list) and prompt and all(isinstance(t, int) and not isinstance(t, bool) for t in prompt)
        ):
            wrong_id = next((t for t in prompt if not 0 <= t < served.model.config.vocab_size), None)
            if wrong_id is not None:
                raise wrong(where, wrong_id, f"of token ids from 0 to {served.model.config.vocab_size - 1}")
            prompts.append(list(prompt))
        else:
            raise wrong(where, prompt, "a text, a list of token ids, or a list of either, and not empty")
    return prompts


def encoded(served: Served, text: str, where: str, opening: bool = True) -> list[int]:
    """The token ids of a text of a request.

    Args:
        served: the model that is asked.
        text: what is read.
        where: the field that it comes from, which the refusal names.
        opening: the text opens a row, so that tokens which open one are put before it.

    Raises:
        Refused: the tokenizer cannot read the text.
    """
    try:
        return encode(served.tokenizer, text, opening)
    except ValueError as error:
        raise Refused(f"{where}: {error}", param=where) from None


def checked_ids(ids: Sequence[int], served: Served) -> None:
    """Raise Refused for a prompt that leaves no room for an answer."""
    if not ids:
        raise Refused("the prompt is empty; give at least one symbol", param="messages")
    try:
        given = integers([list(ids)], "prompt")
        check_prompt(served.model, given, None)
        check_known(served.model, "token id", given)
    except ValueError as error:
        long = len(ids) >= served.model.config.max_length
        raise Refused(str(error), code="context_length_exceeded" if long else None) from None
