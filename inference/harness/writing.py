"""Answers that are written: the generation options of a task in mull's words, and prompts in batches of one length.

Requests with equal options are answered together, the longest first. What is drawn for a request depends on the seed,
its prompt and how often that was asked before it, and not on what it is answered beside.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mull.inference.generate import generate
from mull.inference.harness.encoding import Encoder
from mull.inference.harness.scoring import Scorer
from mull.inference.sampling import seed_from
from mull.models.selection import first_passes

TASKS_OWN = ("until", "do_sample", "max_gen_toks", "temperature", "top_k", "top_p", "min_p")


def call_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The generation options of a task, in the harness's normal form, as `generate` takes them.

    Raises ValueError for one that means nothing here.
    """
    unknown = sorted(set(options) - set(TASKS_OWN))
    if unknown:
        raise ValueError(
            f"generation_kwargs {unknown[0]}={options[unknown[0]]!r} means nothing to mull: leave it out; known are "
            f"{', '.join(TASKS_OWN)}"
        )
    draws = bool(options["do_sample"])
    temperature = float(options.get("temperature", 1.0)) if draws else 0.0
    filters = {name: options[name] for name in ("top_k", "top_p", "min_p") if options.get(name)}
    return {
        "stop": [text for text in options["until"] if text],
        "max_new_tokens": int(options["max_gen_toks"]),
        "temperature": temperature,
        **(filters if temperature > 0 else {}),  # greedy decoding has nothing to filter
    }


def write(
    how: Scorer, count: int | None, encoder: Encoder, requests: Sequence[tuple[str, Mapping[str, Any]]], seed: int
) -> list[str]:
    """The answers to (prompt, options), in their order, at one iteration count."""
    alike: dict[str, list[int]] = defaultdict(list)
    asked = Counter[str]()
    draws = []  # by request, the seed of its draws
    for number, (prompt, options) in enumerate(requests):
        alike[json.dumps(options, sort_keys=True, default=str)].append(number)
        draws.append(seed_from(f"{seed} {asked[prompt]} {prompt}"))
        asked[prompt] += 1
    texts = [""] * len(requests)
    for numbers in alike.values():
        call = call_of(requests[numbers[0]][1])
        call |= {} if how.capacity is None else {"capacity": first_passes(how.capacity, count or 1)}
        ids = encoder.prompts([requests[number][0] for number in numbers], call["max_new_tokens"])
        rows = sorted(zip(ids, numbers, strict=True), key=lambda row: (-len(row[0]), row[1]))
        for first in range(0, len(rows), how.batch_size):
            batch = rows[first : first + how.batch_size]
            own = [torch.Generator(how.model.device).manual_seed(draws[number]) for _, number in batch]
            if call["temperature"] > 0:
                call["generator"] = own[0] if len(own) == 1 else own
            answer = generate(how.model, [row for row, _ in batch], count, how.exit, **call)
            if how.exit is not None:
                how.spent[count].add(answer.iterations)
            for text, (_, number) in zip(answer.text or [], batch, strict=True):
                texts[number] = text
    return texts
