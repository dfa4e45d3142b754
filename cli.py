"""The `mull` command: train, evaluate, generate, chat, trace, solve, compare, sweep, lm-eval, serve, inspect and more.

A user's mistake ends with exit status 2 and one line on stderr that names the value, the limit and the remedy. Set
MULL_TRACEBACK=1 to see where it came from.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

FOLDER = (
    "checkpoint folder, or the name of one: what is there as a path is a path, then checkpoints/NAME, then the folder "
    "that ships with mull"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a character still shows the others
    if args and args[0] == "help":
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"mull {import_module('mull').__version__}")
        return 0
    at_sigterm = signal.signal(signal.SIGTERM, end) if threading.current_thread() is threading.main_thread() else None
    before, warnings.formatwarning = warnings.formatwarning, warning_line
    try:
        if args[0] not in COMMANDS:
            raise ValueError(unknown(args[0]))
        return COMMANDS[args[0]](args[1:]) or 0
    except BrokenPipeError:  # `mull inspect FOLDER | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except BaseException as error:
        if os.environ.get("MULL_TRACEBACK") or not is_users(error):
            raise
        from mull.checkpoints.files import one_line

        print("mull: error: " + one_line(said(error), 500), file=sys.stderr)
        return 2
    finally:
        if at_sigterm is not None:
            signal.signal(signal.SIGTERM, at_sigterm)
        warnings.formatwarning = before


class Terminated(SystemExit):
    """SIGTERM has come; what is at work is ended in order, as by Ctrl-C, so that nothing is left half-written."""


def end(number: int, frame: object) -> None:  # noqa: ARG001 (what a signal's handler is given)
    """Handle a signal: raise `Terminated` with the exit status 128 + its number, as shells report it."""
    raise Terminated(128 + number)


def warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,  # noqa: ARG001 (what the module `warnings` gives)
) -> str:
    """A warning as one line: of mull what it says, of others where it comes from too."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    where = "" if ours else f"{filename}:{lineno}: {category.__name__}: "
    return f"mull: warning: {where}{' '.join(str(message).split())}\n"


def unknown(command: str) -> str:
    """The error for a command that does not exist."""
    near = get_close_matches(command.lower(), COMMANDS, 1)
    meant = f", do you mean {near[0]}?" if near else "."
    return f"there is no command {command!r}{meant} The commands are {', '.join(COMMANDS)}"


def said(error: BaseException) -> str:
    """The words of an error; of the file system's without their number, and with a way out."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; name another place, or make this one fit"
    if ran_out(error):
        return (
            f"out of memory: {str(error) or 'what was asked for does not fit'}; use smaller batches, fewer examples or "
            "samples, shorter texts or a smaller model, and in training `--model.checkpoint_iterations true`"
        )
    return str(error)


def ran_out(error: BaseException) -> bool:
    """Whether memory was at its end: of Python or numpy, or of a device, of which torch has no own error everywhere."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (
            isinstance(error, RuntimeError)
            and any(each in str(error) for each in ("can't allocate memory", "out of memory"))
        )
    )


def is_users(error: BaseException) -> bool:
    """Whether an error is the user's to mend; everything else is a defect and keeps its traceback.

    Three are known by name, so as not to import what raises them: a training that has left the numbers, settings or
    hardware that are not to be had, and a tokenizer that fails on a text.
    """
    by_name = ("NonFiniteLossError", "MisconfigurationException", "PanicException")
    return isinstance(error, ValueError | OSError | ArgumentError) or type(error).__name__ in by_name or ran_out(error)


def usage() -> str:
    """What `mull --help` prints: the commands, each with the first line of its docstring."""
    lines = [f"  {name:<10}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "usage: mull COMMAND ... (each has --help), or mull --version\n\n" + "\n".join(lines)


def train(args: list[str]) -> None:
    """Train a model from a YAML file: mull train --config FILE [--output FOLDER] [--any.field VALUE ...]"""
    from mull.training.run import train as run

    run(args)


def evaluate(args: list[str]) -> None:
    """Measure accuracy or loss by iteration count: mull evaluate FOLDER --iterations 1,2,4,8"""
    from mull.training.measuring import add_options, measure_folder

    parser = new_parser("evaluate")
    add_options(parser)
    command = shlex.join(["mull", "evaluate", *(word for word in args if word != "--record")])
    measure_folder(parse(parser, args, ["exit"]), command)


def generate(args: list[str]) -> int:
    """Continue a prompt: mull generate FOLDER --prompt "1 0 1 1" --iterations 32"""
    from mull.inference.commands import add_generating, generate

    parser = new_parser("generate")
    add_generating(parser)
    return generate(parse(parser, args, ["exit", "decode"]))


def chat(args: list[str]) -> None:
    """Talk with a model that remembers what was said: mull chat FOLDER --iterations 32"""
    from mull.inference.commands import add_writing, chat

    parser = new_parser("chat")
    add_writing(parser)
    chat(parse(parser, args, ["exit", "decode"]))


def trace(args: list[str]) -> None:
    """Look at every iteration of a thought: mull trace FOLDER --prompt "1 0 1 1" --iterations 32 --output trace.html"""
    from mull.inference.tracing.command import add_options, run

    parser = new_parser("trace")
    add_options(parser)
    run(parse(parser, args))


def solve(args: list[str]) -> None:
    """One answer by a strategy, and what it cost: mull solve FOLDER --prompt "..." --strategy majority:16"""
    from mull.inference.strategies.command import add_options, run

    parser = new_parser("solve")
    add_options(parser)
    run(parse(parser, args, ["strategy", "scorer", "exit"]))


def lm_eval(args: list[str]) -> None:
    """Tasks of lm-evaluation-harness at several depths: mull lm-eval FOLDER --tasks a,b --iterations 1,4,16"""
    from mull.inference.harness.command import add_options, run

    parser = new_parser("lm-eval")
    add_options(parser)
    run(parse(parser, args, ["exit"]))


def serve(args: list[str]) -> None:
    """Answer OpenAI's clients, each request as deep as it asks: mull serve FOLDER [FOLDER ...] --port 8000"""
    from mull.inference.serve.command import add_options, run

    parser = new_parser("serve")
    add_options(parser)
    run(parse(parser, args))


def sweep(args: list[str]) -> None:
    """Several runs and one table: mull sweep --config FILE --seeds 0,1,2 --set model.backprop_iterations=2,4"""
    from mull.training.sweep import add_options, run

    parser = new_parser("sweep")
    add_options(parser)
    run(parse(parser, args))


def compare(args: list[str]) -> None:
    """Iterations, tokens and samples on one axis: mull compare FOLDER --strategies "direct;chain" --output DIR"""
    from mull.training.comparing.command import add_options, run

    parser = new_parser("compare")
    add_options(parser)
    run(parse(parser, args, ["strategy", "scorer", "exit"]), shlex.join(["mull", "compare", *args]))


def inspect(args: list[str]) -> None:
    """Say what a checkpoint is: parameters, cost by iteration count, training, measured depth."""
    from mull.inference.arguments import counts, shares

    parser = new_parser("inspect")
    parser.add_argument("--iterations", type=counts, help="counts, 1,2,4 (default: 1, r/2, r, 2r, 4r of training)")
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    parser.add_argument("--card", action="store_true", help="write README.md and depth.png of the folder anew first")
    options = parse(parser, args)

    from mull.inference.measure.inspect import inspection

    if options.card:
        from mull.training.export import renew_card

        renew_card(options.folder)
    print(inspection(options.folder, options.iterations, options.capacity))


def convert(args: list[str]) -> None:
    """Between layouts, told by what SOURCE is: mull convert SOURCE DEST (public recurrent-depth folder <-> mull's)"""
    parser = new_parser("convert")
    parser.add_argument("source", help="checkpoint folder, of mull or of the public recurrent-depth layout")
    parser.add_argument("destination", help="folder to write, new or empty")
    options = parse(parser, args)

    from mull.checkpoints.convert import convert as write

    print(f"wrote {write(options.source, options.destination)}")


def data(args: list[str]) -> None:
    """Fetch public text that configurations name: mull data gsm8k (without a name: what there is)"""
    from mull.training.data import corpora

    parser = new_parser("data")
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(corpora.SOURCES)}, or all")
    names = parse(parser, args).names
    asked = list(corpora.SOURCES) if names == ["all"] else names
    lines = [line for name in asked for line in corpora.fetch(name)]  # all of it, before a reader who has gone ends it
    print("\n".join(lines if names else corpora.listing()))


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "chat": chat,
    "trace": trace,
    "solve": solve,
    "lm-eval": lm_eval,
    "serve": serve,
    "sweep": sweep,
    "compare": compare,
    "inspect": inspect,
    "convert": convert,
    "data": data,
}


def new_parser(command: str) -> ArgumentParser:
    """A parser for a command, with what most commands share: the folder and `--plugin`.

    Args:
        command: a key of `COMMANDS`; compare, convert, data and sweep name their folders themselves.
    """
    from mull.checkpoints.names import shipped
    from mull.training.help import Page

    parser = ArgumentParser(
        prog=f"mull {command}",
        description=COMMANDS[command].__doc__,
        exit_on_error=False,
        allow_abbrev=False,  # --iter is no option; it could become another one's short form
        formatter_class=Page,
    )
    if command not in ("compare", "convert", "data", "sweep"):
        # mull solve may be told of an endpoint in its place
        parser.add_argument(
            "folder", nargs="?" if command == "solve" else None, help=f"{FOLDER} ({', '.join(shipped())})"
        )
    if command != "data":
        parser.add_argument("--plugin", action="append", help="module or .py file of yours to import first; repeatable")
    return parser


def parse(parser: ArgumentParser, args: list[str], words: Sequence[str] = ()) -> Any:
    """The options; the plugins they name are imported before anything is read.

    Args:
        words: registries whose words the help lists.
    """
    from mull.checkpoints.names import folder_of
    from mull.checkpoints.plugins import import_plugins, named_in
    from mull.training.help import listed
    from mull.training.mistakes import in_words

    import_plugins(named_in(args))  # before the help too, which lists what they register
    parser.epilog = listed(words)
    try:
        options = parser.parse_args(args)
    except ArgumentError as error:
        raise in_words(error, parser) from error
    if options.get("folder") is not None:
        options.folder = str(folder_of(options.folder))
    return options
