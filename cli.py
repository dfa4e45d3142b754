"""The `mull` command: train, evaluate, generate, chat, trace, inspect, convert, data.

A user's mistake ends with exit status 2 and one line on stderr that names the value, the limit and the remedy. Set
MULL_TRACEBACK=1 to see where it came from.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser

if TYPE_CHECKING:
    from mull.models import LanguageModel


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character still shows the others
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"mull {import_module('mull').__version__}")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise ValueError(f"there is no command {args[0]!r}; the commands are {', '.join(COMMANDS)}")
        return COMMANDS[args[0]](args[1:]) or 0
    except BrokenPipeError:  # `mull inspect FOLDER | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BaseException as error:
        if os.environ.get("MULL_TRACEBACK") or not is_users(error):
            raise
        from mull.checkpoints.files import one_line

        print("mull: error: " + one_line(str(error), 500), file=sys.stderr)
        return 2


def is_users(error: BaseException) -> bool:
    """Whether an error is the user's to mend; everything else is a defect and keeps its traceback.

    Three are known by name, so as not to import what raises them: a training that has left the numbers, settings or
    hardware that are not to be had, and a tokenizer that fails on a text.
    """
    by_name = ("NonFiniteLossError", "MisconfigurationException", "PanicException")
    return isinstance(error, ValueError | OSError | ArgumentError) or type(error).__name__ in by_name


def usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: mull COMMAND ... (each has --help), or mull --version\n\n" + "\n".join(lines)


def train(args: list[str]) -> None:
    """Train a model from a YAML file: mull train --config FILE [--output FOLDER] [--any.field VALUE ...]"""
    from mull.training.run import train as run

    run(args)


def evaluate(args: list[str]) -> None:
    """Measure accuracy or loss by iteration count: mull evaluate FOLDER --iterations 1,2,4,8"""
    from mull.inference.arguments import at_least, counts, shares
    from mull.inference.early_exit import choose_exit
    from mull.inference.measure.evaluate import evaluate as measure
    from mull.inference.measure.plots import write_plot
    from mull.inference.measure.results import to_csv, to_json
    from mull.inference.measure.table import print_table
    from mull.models.selection import Selection
    from mull.training.evaluation import data_of

    parser = new_parser("evaluate")
    parser.add_argument("folder", help="checkpoint folder")
    parser.add_argument("--iterations", type=counts, help="counts, 1,2,4 (default: 1, r/2, r, 2r, 4r of training)")
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    parser.add_argument("--selection", type=Selection | None, help="of routed tokens (default: threshold)")
    parser.add_argument("--exit", type=str, help="rule that ends thinking early, latent:0.03; counts are limits")
    parser.add_argument("--difficulty", type=counts, help="task difficulties, 8,16,32 (default: those of training)")
    parser.add_argument("--examples", type=at_least(1), default=512, help="items or windows of text per difficulty")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="items or windows per batch")
    parser.add_argument("--seed", type=at_least(0), help="of the test items (0); text has windows, and draws none")
    parser.add_argument("--paths", nargs="+", help="text files or folders to measure on instead of the run's own")
    parser.add_argument("--trust", action="store_true", help="let the folder's training.yaml say which texts are read")
    parser.add_argument("--output", type=str, help="folder for evaluation.json, .csv and .png")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--tokens", action="store_true", help="which tokens think longest: tables, and tokens.png")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    options = parse(parser, args)
    model = load(options)
    data = data_of(options.folder, options.paths, trust=options.trust)
    seed = {} if options.seed is None else {"seed": options.seed}
    size = min(options.batch_size, options.examples)
    batches = data.evaluation_batches(options.difficulty, options.examples, size, **seed)
    if options.tokens and options.json:
        raise ValueError("--tokens prints tables: leave --json out")
    choose_exit(model, options.exit)
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)  # known to work before the long part
    if options.tokens:
        return show_tokens(model, data, batches, options)
    results = measure(
        model,
        batches,
        depths(model, options.iterations, options.capacity),
        bytes_per_token=data.bytes_per_token,
        capacity=options.capacity,
        selection=options.selection,
        exit=options.exit,
    )
    if options.json:
        print(to_json(results))
    else:
        from rich.markup import escape

        print_table(results, title=escape(options.folder))
    if options.output:
        output = Path(options.output)
        (output / "evaluation.json").write_text(to_json(results) + "\n")
        (output / "evaluation.csv").write_text(to_csv(results))
        trained = model.config.default_iterations
        if trained is not None:  # a picture against iterations needs some
            write_plot(
                results,
                output / "evaluation.png",
                title=Path(options.folder).resolve().name,
                trained_iterations=trained,
                difficulty_name=getattr(data, "difficulty_name", "difficulty"),
            )


def show_tokens(model: LanguageModel, data: Any, batches: Any, options: Any) -> None:
    """Print what tokens use, at the deepest count asked for; draw it into the output folder."""
    from rich.console import Console

    from mull.inference.measure.routers import router_table, router_uses
    from mull.inference.measure.tokens import token_tables, token_uses, write_heat_map

    pairs = [pair for difficulty in batches.values() for pair in difficulty]
    asked = depths(model, options.iterations, options.capacity) if options.iterations or options.capacity else None
    count = asked[-1] if asked else None
    uses = token_uses(
        model,
        pairs,
        count,
        exit=options.exit,
        capacity=options.capacity,
        selection=options.selection,
    )
    for table in token_tables(uses, data.tokenizer):
        Console().print(table)
    if model.config.routed_layers and count != 1:
        routed = router_uses(model, pairs, count, capacity=options.capacity, selection=options.selection)
        Console().print(router_table(routed))
    if options.output:
        write_heat_map(uses, data.tokenizer, Path(options.output) / "tokens.png")
        print(f"wrote {Path(options.output) / 'tokens.png'}")


def generate(args: list[str]) -> int:
    """Continue a prompt: mull generate FOLDER --prompt "1 0 1 1" --iterations 32"""
    from mull.inference.arguments import at_least

    parser = new_parser("generate")
    add_writing(parser)
    parser.add_argument("--prompt", type=str, help="text to continue; the answer is streamed")
    parser.add_argument(
        "--prompts",
        type=str,
        help='file of prompts, one a line or {"prompt": ...} a line in .jsonl (- is standard input): one JSON line per '
        "answer as it is finished, with the number of its line",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="prompts of a file answered at once")
    parser.add_argument(
        "--decode",
        type=str,
        help="way of writing (plain): speculate:4:16 drafts 16 tokens at 4 iterations, same text, sooner; "
        "wavefront:4:32 thinks about up to 32 tokens at once, 4 iterations a round, sooner still, but lossy",
    )
    options = parse(parser, args)
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError('give either --prompt "text" or --prompts FILE')

    from mull.inference.console import call_of, write_answer, write_answers
    from mull.inference.prompts import read_prompts

    lines = None if options.prompts is None else read_prompts(options.prompts)
    model, call = load_writer(options), call_of(options)
    if lines is not None:
        return write_answers(model, lines, options.prompts, options.batch_size, call)
    write_answer(model, options.prompt, call)
    return 0


def chat(args: list[str]) -> None:
    """Talk with a model that remembers what was said: mull chat FOLDER --iterations 32"""
    parser = new_parser("chat")
    add_writing(parser)
    options = parse(parser, args)

    from mull.inference.chat import converse
    from mull.inference.console import call_of

    converse(load_writer(options), call_of(options))


def add_writing(parser: ArgumentParser) -> None:
    """The options of commands that write text."""
    from mull.inference.arguments import CacheDtype, Dtype, at_least, shares

    parser.add_argument("folder", help="checkpoint folder")
    parser.add_argument("--iterations", type=at_least(1), help="thinking per token (default: the trained mean)")
    parser.add_argument(
        "--capacity", type=shares, help="share of positions in routed passes, 0.5 or one each: 0.9,0,0.9"
    )
    parser.add_argument("--exit", type=str, help="rule that ends thinking early, latent:0.03; then the most")
    parser.add_argument("--warm-start", action="store_true", help="begin each token from the last one's state")
    parser.add_argument("--cache-dtype", type=CacheDtype, default="same", help="of keys and values; same: the model's")
    parser.add_argument("--dtype", type=Dtype, default="same", help="of the weights; same: as they are stored")
    parser.add_argument("--compile", action="store_true", help="compile the layers first: half a minute, then sooner")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=64, help="longest answer in tokens")
    parser.add_argument(
        "--stop", type=str, action="append", help=r"text that ends an answer, \n is a line end; repeatable"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=at_least(1), help="sample among the k likeliest")
    parser.add_argument("--top-p", type=float | None, help="sample among the likeliest that make up this mass")
    parser.add_argument("--min-p", type=float | None, help="sample among those at least so many times the likeliest")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sampling")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def load_writer(options: Any) -> LanguageModel:
    """The model of the folder, with the tokenizer that text needs."""
    from mull.checkpoints import load_tokenizer

    model = load(options)
    if model.tokenizer is None:
        model.tokenizer = load_tokenizer(options.folder)  # says what is missing
    if options.compile:
        model.compile_decoding()
    return model


def trace(args: list[str]) -> None:
    """Look at every iteration of a thought: mull trace FOLDER --prompt "1 0 1 1" --iterations 32 --output trace.html"""
    from mull.inference.tracing.command import add_options, run

    parser = new_parser("trace")
    parser.add_argument("folder", help="checkpoint folder")
    add_options(parser)
    run(parse(parser, args))


def inspect(args: list[str]) -> None:
    """Say what a checkpoint is: parameters, cost by iteration count, training, measured depth."""
    from mull.inference.arguments import counts, shares

    parser = new_parser("inspect")
    parser.add_argument("folder", help="checkpoint folder")
    parser.add_argument("--iterations", type=counts, help="counts, 1,2,4 (default: 1, r/2, r, 2r, 4r of training)")
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    options = parse(parser, args)

    from mull.inference.measure.inspect import inspection

    print(inspection(options.folder, options.iterations, options.capacity))


def convert(args: list[str]) -> None:
    """Between layouts, told by what SOURCE is: mull convert SOURCE DEST (public recurrent-depth folder <-> mull's)"""
    parser = new_parser("convert")
    parser.add_argument("source", help="checkpoint folder, of mull or of the public recurrent-depth layout")
    parser.add_argument("destination", help="folder to write, new or empty")
    options = parse(parser, args)

    import mull
    from mull.checkpoints import huginn, load_tokenizer
    from mull.checkpoints.files import read_json

    source, destination = Path(options.source).expanduser(), Path(options.destination).expanduser()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} is there already; name a folder that is new or empty")
    model = mull.load(source)
    tokenizer = load_tokenizer(source) if (source / "tokenizer.json").is_file() else None
    if huginn.is_huginn(read_json(source / "config.json")):
        mull.save(model, destination, tokenizer)
    else:
        huginn.write(model, destination, tokenizer)
    print(f"wrote {destination}")


def data(args: list[str]) -> None:
    """Fetch public text that configurations name: mull data gsm8k (without a name: what there is)"""
    from mull.training.data import corpora

    parser = ArgumentParser(prog="mull data", description=data.__doc__, exit_on_error=False)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(corpora.SOURCES)}, or all")
    names = parser.parse_args(args).names
    if not names:
        print("\n".join(corpora.listing()))
    for name in corpora.SOURCES if names == ["all"] else names:
        print("\n".join(corpora.fetch(name)))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "chat": chat,
    "trace": trace,
    "inspect": inspect,
    "convert": convert,
    "data": data,
}


def new_parser(command: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"mull {command}", description=COMMANDS[command].__doc__, exit_on_error=False)
    parser.add_argument("--plugin", action="append", help="module or .py file of your own to import first; repeatable")
    return parser


def parse(parser: ArgumentParser, args: list[str]) -> Any:
    """The options; the plugins they name are imported before anything is read."""
    from mull.checkpoints.plugins import import_plugins

    options = parser.parse_args(args)
    import_plugins(options.plugin or [])
    return options


def load(options: Any) -> LanguageModel:
    import mull
    from mull.inference.console import dtype_of

    return mull.load(options.folder, options.device, dtype_of(options.get("dtype", "same")))


def depths(model: LanguageModel, asked: list[int] | None, capacity: Any = None) -> list[int] | None:
    """The counts to measure at: those asked for, or around the trained mean; None for a model without a loop."""
    from mull.models.loop import counts_around

    if asked is None and isinstance(capacity, tuple):  # one share for each routed pass says how many passes there are
        return [len(capacity) + 1]
    mean = model.config.default_iterations
    return asked if asked is not None or mean is None else counts_around(mean)
