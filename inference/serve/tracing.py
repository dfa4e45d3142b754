"""POST /mull/trace: what `mull trace` puts on its page, as JSON, for a prompt and an iteration count.

    {"model": "text", "prompt": "...", "iterations": 16, "read_at": [1, 2, 4, 8, 16], "top": 3}

With "answer": [17, 4] these tokens are read behind the prompt; with "exit": "latent:0.03" it is said where that rule
lets each position go; "capacity" is that of routed passes.

What is sent is the data of the page (inference/tracing/pages.py): title, about, vocabulary and one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mull.inference.serve.efforts import depth_of, split_name
from mull.inference.serve.fields import Fields
from mull.inference.serve.limits import MAX_TRACED, Limits
from mull.inference.serve.protocol import capacity_of, checked_ids, encoded
from mull.inference.serve.refusals import Refused, wrong
from mull.inference.serve.served import Served
from mull.inference.tracing.pages import as_data, data_of
from mull.inference.tracing.trace import trace
from mull.inference.tracing.view import common_plane, view
from mull.models import IteratedModel
from mull.models.config import Capacity


class Traced(NamedTuple):
    """A request that can be answered."""

    served: Served
    ids: list[int]
    iterations: int
    read_at: list[int] | None
    top: int
    exit: str | None
    capacity: Capacity | None


def traced(body: Mapping[str, Any], models: Mapping[str, Served], limits: Limits) -> Traced:
    """Read a request. Raises Refused for what it may not say."""
    fields = Fields(body, ("model", "prompt", "answer", "iterations", "exit", "capacity", "read_at", "top"))
    name, in_name = split_name(fields.text("model", 256) or next(iter(models)), models)
    served = models[name]
    mean = served.model.config.default_iterations
    if mean is None:
        raise Refused(f"{name} has no loop, so there is nothing to trace", param="model")
    count = fields.whole("iterations", 1, limits.max_iterations)
    if count is None:
        count = mean if in_name is None else depth_of(in_name, served.efforts, limits.max_iterations)
    prompt = fields.text("prompt")
    if not prompt:
        raise wrong("prompt", prompt, "a text")
    ids = [*encoded(served, prompt, "prompt"), *answer(fields, served)]
    checked_ids(ids, served)
    if len(ids) * count > MAX_TRACED:
        raise Refused(
            f"{len(ids)} positions by {count} iterations are above the limit of {MAX_TRACED:,} of a trace; "
            "shorten the prompt or think shorter"
        )
    rule, capacity = fields.text("exit", 100), capacity_of(fields)
    try:
        served.sharing(count, rule, capacity)
    except ValueError as error:
        raise Refused(str(error)) from None
    return Traced(served, ids, count, read_at(fields, count), fields.whole("top", 1, 10, 3) or 3, rule, capacity)


def picture(asked: Traced) -> str:
    """The answer, as JSON."""
    served = asked.served
    cored = isinstance(served.model, IteratedModel)
    found = trace(
        served.model, [asked.ids], asked.iterations, read_at=asked.read_at, top=asked.top, keep_states=cored,
        lenses=("coda", "logit") if cored else ("coda",), exits=[asked.exit] if asked.exit else (),
        capacity=asked.capacity,
    )  # fmt: skip
    shown = [view("prompt", found, served.model, common_plane([found]))]
    return as_data(data_of(served.name, [f"{asked.iterations} iterations"], shown, served.tokenizer))


def answer(fields: Fields, served: Served) -> list[int]:
    """The tokens behind the prompt, as a stream told them."""
    given, last = fields.raw("answer") or [], served.model.config.vocab_size - 1
    good = isinstance(given, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
    if not good or not all(0 <= n <= last for n in given):
        raise wrong("answer", given, f"a list of token ids from 0 to {last}")
    return given


def read_at(fields: Fields, count: int) -> list[int] | None:
    """The iterations that are shown; None for all."""
    given = fields.raw("read_at")
    if given is None:
        return None
    good = isinstance(given, list) and given and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
    if not good or not all(1 <= n <= count for n in given):
        raise wrong("read_at", given, f"a list of integers from 1 to {count}")
    return sorted(set(given))
