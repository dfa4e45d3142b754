"""`mull solve`: one answer by a strategy, its trace and its cost, for people or as JSON."""

from __future__ import annotations

import json
from typing import Any

from mull.checkpoints.quantities import si
from mull.inference.arguments import MAX_ASKED, add_device, add_likeliest, at_least
from mull.inference.console import dtype_of
from mull.inference.strategies.contract import Event, Solution, choose_strategy
from mull.inference.strategies.loading import OURS, marks_asked, solver_from
from mull.inference.strategies.meter import Cost
from mull.inference.strategies.solver import Problem
from mull.inference.strategies.solving import solve

WIDEST = 100  # characters of a text in the trace


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument("--prompt", type=str, required=True, help="the problem, without a style: the strategy adds it")
    parser.add_argument("--strategy", type=str, default="chain", help="how compute is spent, as majority:16")
    parser.add_argument("--iterations", type=at_least(1, MAX_ASKED), help="thinking per token (default: trained mean)")
    parser.add_argument(
        "--exit", type=str, help="rule that ends thinking early, as latent:0.03; --iterations is then the most"
    )
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, help="longest text, thinking and answer")
    parser.add_argument(
        "--temperature", type=float | None, help="0 takes the likeliest token (default: what the strategy draws at)"
    )
    add_likeliest(parser)
    parser.add_argument(
        "--difficulty", type=at_least(1), help="of the problem, where it is known: compute_optimal asks"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=64, help="texts written at once; the answer is the same"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_writers(parser)
    add_device(parser)


def add_writers(parser: Any) -> None:
    """The options that name a writer which is no folder of mull, and how it is spoken to."""
    parser.add_argument("--endpoint", type=str, help="a model behind this address, http://127.0.0.1:8000/v1")
    parser.add_argument("--model", type=str, help="its name there")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that an endpoint may be silent")
    parser.add_argument("--retries", type=at_least(0, 100), default=2, help="how often an endpoint is asked again")
    parser.add_argument(
        "--marks", type=str, help=f"JSON file of instructions and marks for models that are not mull's; {OURS}: its own"
    )


def run(options: Any) -> None:
    """Solve, and print the answer, what happened and what it cost.

    Raises:
        FileNotFoundError, ValueError: the folder or an option is wrong.
    """
    strategy = choose_strategy(options.strategy)
    solver = solver_from(
        options.folder,
        endpoint=options.endpoint,
        model=options.model,
        marks=marks_asked(options.marks),
        device=options.device,
        dtype=dtype_of(options.dtype),
        timeout=options.timeout,
        retries=options.retries,
        batch_size=options.batch_size,
    )
    names = ("iterations", "exit", "temperature", "top_k", "top_p", "min_p", "max_new_tokens")
    found = solve(
        solver,
        Problem(options.prompt, difficulty=options.difficulty),
        strategy,
        generator=options.seed,
        **{name: options[name] for name in names},
    )
    print(json.dumps(found.as_dict(), allow_nan=False) if options.json else page(found))


def page(found: Solution) -> str:
    """A solution for people."""
    ceiling = " (a ceiling: the exact checker chose)" if found.ceiling else ""
    answer = found.answer or "none: the thinking had not ended when tokens, room or rounds of a search were used up"
    lines = [f"answer    {answer}{ceiling}", f"strategy  {found.strategy}"]
    lines += [f"          {line}" for line in map(told, found.trace)]
    return "\n".join([*lines, f"cost      {bill(found.cost)}"])


def told(event: Event) -> str:
    """One thing that happened: chosen ones have a star."""
    text = event.text if len(event.text) <= WIDEST else f"{event.text[: WIDEST - 3]}..."
    score = "" if event.score is None else f" {event.score:.3f} {event.scorer}"
    return f"{'*' if event.chosen else ' '} {event.what}{score}: {text}"


def bill(cost: Cost) -> str:
    """What was spent, in one line."""
    scorer = f" ({si(cost.scorer_flops)} of them the scorer's)" if cost.scorer_flops else ""
    looped = f", {cost.iterations:,} iterations" if cost.iterations else ""
    flops = f"{si(cost.flops)}FLOPs{scorer}" if cost.flops else "FLOPs not known"  # as behind an endpoint
    return (
        f"{flops}, {counted(cost.tokens, 'token')} written, {cost.read:,} read{looped}, "
        f"{counted(cost.calls, 'call')}, {cost.seconds:.2f} s"
    )


def counted(number: int, what: str) -> str:
    """A number with its noun, in the plural but for 1: `2 calls`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
