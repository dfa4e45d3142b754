"""`mull compare`: options, and what is refused before anything is measured."""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from mull.checkpoints.files import made, printable
from mull.checkpoints.names import folder_of
from mull.checkpoints.replacing import lock_of
from mull.inference.arguments import Dtype, add_likeliest, at_least, counts, output_folder
from mull.inference.console import dtype_of
from mull.inference.exits import parse as parse_exit
from mull.inference.strategies import Strategy, choose_strategy
from mull.inference.strategies.best_of_n import BestOfN
from mull.inference.strategies.command import add_writers
from mull.inference.strategies.loading import is_ours, marks_asked, solver_from
from mull.inference.strategies.scorers import choose_scorer
from mull.inference.strategies.searching import Searching
from mull.training.comparing.cells import Cells
from mull.training.comparing.measuring import Writer, check, key_of, marks_of, measure, places
from mull.training.comparing.metrics import METRICS
from mull.training.comparing.problems import Asked, of_file, of_folder
from mull.training.comparing.report import Report

WRITING = ("exit", "max_new_tokens", "temperature", "top_k", "top_p", "min_p")


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument(
        "folders", nargs="*", default=[], help="checkpoint folders or names of them; also folders of transformers"
    )
    parser.add_argument(
        "--strategies", type=str, required=True, help='ways of spending compute, "direct;chain;draft;majority:8"'
    )
    parser.add_argument("--iterations", type=counts, help="counts, 1,4,16 (default: the trained mean)")
    parser.add_argument("--difficulty", type=counts, help="task difficulties, 4,8 (default: those of training)")
    parser.add_argument("--examples", type=at_least(1), default=300, help="problems of each difficulty")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the problems and of the draws")
    parser.add_argument(
        "--output", type=str, required=True, help="folder for the finished cells, compare.json, .csv and .png"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("--metrics", type=metrics, help=f"of papers, too: {','.join(METRICS)}, or all")
    parser.add_argument("--task", type=str, help="folder whose task is asked (default: the first one)")
    parser.add_argument("--problems", type=str, help='in its place a file, {"problem": ..., "answer": ...} a line')
    add_writers(parser)
    parser.add_argument("--max-new-tokens", type=at_least(1), default=256, help="longest text, thinking and answer")
    parser.add_argument(
        "--exit",
        type=str,
        help="rule that ends thinking early, as latent:0.03; counts are limits; of models with a loop",
    )
    parser.add_argument(
        "--temperature", type=float | None, help="0 takes the likeliest token (default: what a strategy draws at)"
    )
    add_likeliest(parser)
    parser.add_argument("--dtype", type=Dtype, default="same", help="of a mull folder's weights; same: as stored")
    parser.add_argument(
        "--batch-size", type=at_least(1, 4096), default=32, help="problems solved at once; the answers are the same"
    )
    parser.add_argument("--threads", type=at_least(1, 1024), help="of the processor (default: torch's own number)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def run(options: Any, command: str) -> None:
    """Compare; print and write what was found.

    Args:
        options: of the command.
        command: the command line, which is recorded beside the results.

    Raises:
        FileNotFoundError, ValueError: a folder or an option is wrong, or a writer fails. What was finished is kept.
    """
    strategies = listed(options.strategies)
    output = output_folder(options.output)
    if options.exit is not None:
        parse_exit(options.exit)
    marks = marks_asked(options.marks)
    writers = writers_of(options, marks)
    asked = asked_of(options)
    settings = {
        "problems": asked.source, "examples": options.examples, "seed": options.seed, "marks": marks,
        **{name: options[name] for name in WRITING}, "dtype": str(options.dtype),
    }  # fmt: skip
    cells = Cells(output, settings)
    wanted = places(writers, strategies, options.iterations, asked, cells)
    if options.exit is not None and all(place.iterations is None for _, place in wanted):
        raise ValueError(f"--exit {options.exit} leaves a loop early, and nobody here has a loop: leave it out")
    manner = {name: options[name] for name in WRITING}
    check(wanted, asked, cells, manner)
    if options.threads:
        torch.set_num_threads(options.threads)
    with made(output), lock_of(output) as free:
        if free is False:
            raise ValueError(f"another process is comparing in {output}: wait for it, or name another --output")
        found = measure(wanted, asked, cells, options.seed, manner, options.batch_size, say)
    report = Report(found, options.metrics or [], marks_of(writers), cells.settings, command)
    title = ", ".join(dict.fromkeys(writer.name for writer in writers))
    report.write(output, asked.difficulty_name, f"{title}: {asked.source}")  # before a reader who has gone ends it
    if options.json:
        print(report.json)
    else:
        report.print(title)


def say(text: str) -> None:
    """Tell how far it is, beside what is printed."""
    print(printable(text), file=sys.stderr, flush=True)


def listed(text: str) -> list[str]:
    """`direct;chain;majority:8` as a list of different strategies, all of which are known; two spellings of one are no
    different strategies."""
    found = [word.strip() for word in text.split(";") if word.strip()]
    if not found:
        raise ValueError(f'--strategies {text!r} names none; write "direct;chain;majority:8"')
    kinds: list[Any] = []
    for word in found:
        kind = meaning(choose_strategy(word))
        if kind in kinds:
            first = found[kinds.index(kind)]
            also = "" if first == word else f", the other time as {first}"
            raise ValueError(f"the strategy {word} is there twice in --strategies{also}: name it once")
        kinds.append(kind)
    return found


def meaning(strategy: Strategy) -> tuple[Any, ...]:
    """What is equal for a strategy in two spellings, also of its scorer, which a strategy has as text."""
    named = {field.name: getattr(strategy, field.name) for field in fields(strategy)}
    if isinstance(strategy, BestOfN | Searching):
        named["scorer"] = choose_scorer(strategy.scorer)
    return type(strategy), named


def metrics(text: str | list[str]) -> list[str]:
    """`s1,bins` as a list of known metrics; `all` for all of them."""
    words = text if isinstance(text, list) else [word.strip() for word in str(text).split(",")]
    if words == ["all"]:
        return list(METRICS)
    for word in words:
        if word not in METRICS:
            raise ValueError(f"there is no metric {word!r}; there are {', '.join(METRICS)}, or all")
    return list(dict.fromkeys(words))


metrics.__name__ = f"list of {', '.join(METRICS)};"


def writers_of(options: Any, marks: dict[str, str] | None) -> list[Writer]:
    """Who writes: each folder, and the model behind an endpoint; opened when they are needed.

    Raises:
        FileNotFoundError, ValueError: nobody is named, a folder is not there, or one is there twice.
    """
    named = {folder: folder_of(folder) for folder in options.folders}
    resolved = [place.resolve() for place in named.values()]
    if len(set(resolved)) < len(options.folders):
        raise ValueError(f"a folder is there twice in {' '.join(options.folders)}: name it once")
    if not named and options.endpoint is None:
        raise ValueError("nobody is named to write: name a folder, or --endpoint ADDRESS and --model NAME")
    if options.model is not None and options.endpoint is None:
        raise ValueError(f"--model {options.model} is the name of a model behind an endpoint: add --endpoint ADDRESS")
    ours_alone = options.endpoint is None and all(is_ours(place) for place in named.values())
    found = []
    for name, place in named.items():
        # Marks that were given are those of who is not mull's; where there is nobody else, they are mull's.
        own = marks if ours_alone or not is_ours(place) else None
        opened = partial(solver_from, place, marks=own, device=options.device, dtype=dtype_of(options.dtype))
        found.append(Writer(name, key_of(place, own), opened))
    if options.endpoint is not None:
        there = solver_from(
            endpoint=options.endpoint,
            model=options.model,
            marks=marks,
            timeout=options.timeout,
            retries=options.retries,
        )
        found.append(Writer(f"{options.model} at {options.endpoint}", "", lambda: there))
    return found


def asked_of(options: Any) -> Asked:
    """The problems. Raises ValueError where nobody says which."""
    if options.problems is not None:
        if options.task is not None:
            raise ValueError(f"--problems {options.problems} and --task {options.task} are two sources: give one")
        return of_file(options.problems, options.difficulty, options.examples)
    folders = [options.task] if options.task is not None else [each for each in options.folders if ours(each)]
    if not folders:
        raise ValueError("none of these says what to ask: give --task FOLDER, a folder of mull, or --problems FILE")
    return of_folder(folder_of(folders[0]), options.difficulty, options.examples, options.seed)


def ours(folder: str) -> bool:
    """Whether a folder holds a model of mull, and not one of transformers."""
    return is_ours(folder_of(folder))
