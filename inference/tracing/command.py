"""`mull trace`: a run or two, as a page to look at or as JSON.

--compare TEXT               a second run, of another prompt
--compare-iterations 8       a second run, of another depth
--compare TEXT --patch 8-24:0-8
                             a second run of the first prompt, in which the states of positions 0 .. 8 are those of
                             the other prompt after the iterations 8 .. 24
--noise 4:0.1                a second run with noise of a tenth of the state's size after iteration 4
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mull.checkpoints import load, load_tokenizer
from mull.checkpoints.files import path_of
from mull.inference.arguments import MAX_ASKED, add_device, at_least, counts, shares
from mull.inference.console import dtype_of
from mull.inference.text import encode
from mull.inference.tracing.answers import LENSES
from mull.inference.tracing.interventions import Intervention, Noise, Patch
from mull.inference.tracing.pages import write_page
from mull.inference.tracing.trace import Trace, trace
from mull.inference.tracing.view import plain, texts, tokens_in, view
from mull.models import IteratedModel, LanguageModel
from mull.models.labels import IGNORE

Run = tuple[str, Trace]  # what it is called, and what it was


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument("--prompt", type=str, required=True, help="text that is thought about")
    parser.add_argument("--iterations", type=at_least(1), help="how long (default: the trained mean)")
    parser.add_argument("--read-at", type=counts, help="iterations that are shown, 1,2,4,8 (default: all)")
    parser.add_argument("--labels", type=str, help="tokens to predict at the last positions (default: the next tokens)")
    parser.add_argument(
        "--lens",
        type=lenses,
        help="how answers are read: coda, logit, or coda,logit (default: both; coda alone in inner thinking)",
    )
    parser.add_argument("--top", type=at_least(1), default=3, help="tokens shown of each answer")
    parser.add_argument("--exit", type=str, action="append", help="rule to be marked, latent:0.03; repeatable")
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    parser.add_argument("--compare", type=str, help="prompt of a second run beside the first")
    parser.add_argument("--compare-iterations", type=at_least(1), help="iterations of the second run")
    parser.add_argument(
        "--patch",
        type=str,
        help="8:0-3 makes the second run one of the first prompt with states of the --compare prompt after iteration 8 "
        "at positions 0 to 3; 8-24:0-3 holds them until iteration 24",
    )
    parser.add_argument(
        "--noise",
        type=str,
        help="4:0.1 makes the second run one with noise of a tenth of the state's size after iteration 4; "
        "4-8:0.1:0-3 after each of 4 to 8, at positions 0 to 3",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the noise")
    parser.add_argument("--output", type=str, help="page to write (trace.html; with --json none)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(parser)


def run(options: Any) -> None:
    """Trace, and write the page or print the numbers.

    Raises:
        FileNotFoundError, ValueError: the folder or an option is wrong; nothing is written then.
    """
    name = "trace.html" if options.output is None and not options.json else options.output
    target = None if name is None else path_of(name, "--output")
    if target is not None and target.is_dir():
        raise ValueError(f"{target} is a folder: name a file, such as {target / 'trace.html'}")
    if target is not None and not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} for {target.name}: make it, or name another file")
    model = load(options.folder, options.device, dtype_of(options.dtype))
    if model.tokenizer is None:
        model.tokenizer = load_tokenizer(options.folder)  # says what is missing
    runs = dict(traces(model, options))
    if options.json:
        views = [view(word, found, model) for word, found in runs.items()]
        known = texts(model.tokenizer, set().union(*map(tokens_in, views)))
        print(json.dumps({"vocabulary": known, "runs": plain(views)}))
    if target is not None:
        size = write_page(target, model, runs, Path(options.folder).resolve().name, about(model, options, runs))
        if not options.json:
            print(f"wrote {target} ({size / 1000:,.0f} kB): open it in a browser")


def traces(model: LanguageModel, options: Any) -> Iterator[Run]:
    """The first run, and the second where one is asked for."""
    wanted = {
        "read_at": options.read_at,
        "lenses": options.lens or (LENSES if isinstance(model, IteratedModel) else LENSES[:1]),  # others have no coda
        "top": options.top,
        "capacity": options.capacity,
        "keep_states": isinstance(model, IteratedModel),  # for the paths, and for patches
    }
    ids = encode(model.tokenizer, options.prompt)
    labels = labels_of(model, options.labels, len(ids))
    first = {**wanted, "iterations": options.iterations, "labels": labels, "exits": options.exit or ()}
    change = options.patch or options.noise
    check_second(options)
    yield "first prompt" if options.compare or change else "prompt", trace(model, [ids], **first)
    depth = options.compare_iterations or options.iterations
    if change:
        made, said = changes(model, options, ids, wanted)
        yield said, trace(model, [ids], **{**first, "exits": (), "patch": made})
    elif options.compare:
        other = encode(model.tokenizer, options.compare)
        none = None if labels is None else [[IGNORE] * len(other)]
        second = {**first, "iterations": depth, "labels": none}
        yield "second prompt", trace(model, [other], **shallower(second, depth))
    elif options.compare_iterations:
        yield (
            f"the same prompt, {depth} iteration{'' if depth == 1 else 's'}",
            trace(model, [ids], **shallower({**first, "iterations": depth}, depth)),
        )


def check_second(options: Any) -> None:
    """Raise a ValueError for options that no second run can follow together."""
    if options.patch and options.noise:
        raise ValueError("--patch and --noise are second runs of their own: give one of them")
    if options.patch and not options.compare:
        raise ValueError("--patch takes the states of another prompt: give it with --compare TEXT")
    if options.noise and options.compare:
        raise ValueError("--noise is a second run of the first prompt: leave --compare out")
    if (options.patch or options.noise) and options.compare_iterations:
        raise ValueError("a changed run has as many iterations as the first: leave --compare-iterations out")
    if options.capacity is not None and options.compare_iterations:
        raise ValueError("--compare-iterations with --capacity is not clear where passes have one each: leave one out")


def shallower(arguments: dict[str, Any], depth: int | None) -> dict[str, Any]:
    """The same without readings beyond a count."""
    if depth is None or arguments["read_at"] is None:
        return arguments
    return {**arguments, "read_at": [count for count in arguments["read_at"] if count <= depth]}


def changes(model: LanguageModel, options: Any, ids: Sequence[int], wanted: dict[str, Any]) -> tuple[Intervention, str]:
    """What is changed on the way in the second run, and what that is called."""
    if options.noise:
        first, last, scale, places = read_change("--noise", options.noise, "4:0.1 or 4-8:0.1:0-3", number=True)
        where = f" at positions {span(places)}" if places else ""
        noise = Noise(first, scale, places, None if first == last else last, seed=options.seed)
        return noise, f"first prompt, noise of {scale:g} after {iterations_said(first, last)}{where}"
    first, last, _, places = read_change("--patch", options.patch, "8:0-3 or 8-24:0-3", number=False)
    other = encode(model.tokenizer, options.compare)
    if len(other) != len(ids):
        raise ValueError(f"--patch needs prompts of one length; they have {len(ids)} and {len(other)} tokens")
    donor = trace(model, [other], **{**wanted, "iterations": options.iterations, "read_at": ()})
    said = f"first prompt, states of the second at positions {span(places)} after {iterations_said(first, last)}"
    return Patch.of(donor, places, first, last), said


def read_change(option: str, text: str, example: str, number: bool) -> tuple[int, int, float, list[int] | None]:
    """`8-24:0-3`, or with a number in the middle `8-24:0.1:0-3` whose positions may be left out."""
    whole = r"(\d+)(?:-(\d+))?"
    pattern = rf"{whole}:([\d.e+-]+)(?::{whole})?" if number else rf"{whole}:(){whole}"
    found = re.fullmatch(pattern, text.strip())
    try:
        if found is None:
            raise ValueError
        first, last, scale, start, end = found.groups()
        value = float(scale) if number else 0.0
    except ValueError:
        raise ValueError(f"{option} {text!r} is not understood; write iterations and positions as {example}") from None
    if start is not None and int(end or start) > MAX_ASKED:
        raise ValueError(f"{option}: position {end or start} is above the limit of {MAX_ASKED:,}")
    places = None if start is None else list(range(int(start), int(end or start) + 1))
    return int(first), int(last or first), value, places


def span(places: Sequence[int] | None) -> str:
    """The positions that a change is made at as words: `all`, `none`, one, or the first to the last."""
    if places is None:
        return "all"
    return f"{places[0]}" if len(places) == 1 else f"{places[0]} to {places[-1]}" if places else "none"


def iterations_said(first: int, last: int) -> str:
    """The iterations at which a change is made as words, from `first` to `last`, both included."""
    return f"iteration {first}" if first == last else f"each of the iterations {first} to {last}"


def lenses(text: Any) -> tuple[str, ...]:
    """`coda`, `logit` or `coda,logit`."""
    found = tuple(text) if isinstance(text, list | tuple) else tuple(dict.fromkeys(str(text).split(",")))
    if not found or any(word not in LENSES for word in found):
        raise ValueError(f"{text!r} is no lens; write {', '.join(LENSES)} or {','.join(LENSES)}")
    return found


lenses.__name__ = f"{', '.join(LENSES)} or {','.join(LENSES)};"


def labels_of(model: LanguageModel, text: str | None, length: int) -> list[list[int]] | None:
    """Labels for the last positions, one token each; nothing is predicted at those before. None without a text."""
    if text is None:
        return None
    found = encode(model.tokenizer, text, opening=False)
    if len(found) > length:
        raise ValueError(
            f"--labels has {len(found)} tokens and the prompt {length}: give one for each position at most"
        )
    return [[IGNORE] * (length - len(found)) + found]


def about(model: LanguageModel, options: Any, runs: Mapping[str, Trace]) -> list[str]:
    """Lines that say what was run."""
    config = model.config
    lines = [f"{config.model_type}, {config.parameters:,} parameters"]
    lines += [f"first prompt: {options.prompt}" if options.compare else f"prompt: {options.prompt}"]
    if options.compare:
        lines.append(f"second prompt: {options.compare}")
    for name, found in runs.items():
        settled = int(found.settled.sum())
        known = not bool(torch.isnan(found.residual[:, -1]).all())
        lines.append(
            f"{name}: {found.iterations} iteration{'' if found.iterations == 1 else 's'}"
            + (f", after which {settled} of {found.settled.numel()} positions are settled" if known else "")
            + "".join(f"; {rule} uses {left.double().mean():.1f} on average" for rule, left in found.exits.items())
        )
    return lines
