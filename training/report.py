"""`mull evaluate`: a folder is measured; what was found is printed, and written where an output folder is named."""

from pathlib import Path
from typing import Any

from mull.checkpoints import load
from mull.checkpoints.files import file_in_the_way
from mull.inference.early_exit import choose_exit
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.plots import write_plot
from mull.inference.measure.results import to_csv, to_json
from mull.inference.measure.routers import router_table, router_uses
from mull.inference.measure.table import print_table, standard_output
from mull.inference.measure.tokens import token_tables, token_uses, write_heat_map
from mull.models import LanguageModel
from mull.models.loop import counts_around
from mull.training.evaluation import data_of


def report(options: Any) -> None:
    """Measure the model of a folder.

    Args:
        options: of `mull evaluate`, as cli.py names them.

    Raises:
        FileNotFoundError, ValueError: the folder or an option is wrong.
    """
    output = Path(options.output).expanduser() if options.output else None
    blocking = None if output is None else file_in_the_way(output)
    if blocking is not None:
        raise ValueError(f"{blocking} is a file; name a folder with --output")
    model = load(options.folder, options.device)
    data = data_of(options.folder, options.paths, trust=options.trust)
    batches = data.evaluation_batches(
        options.difficulty,
        options.examples,
        min(options.batch_size, options.examples),
        **({} if options.seed is None else {"seed": options.seed}),
    )
    if options.tokens and options.json:
        raise ValueError("--tokens prints tables: leave --json out")
    choose_exit(model, options.exit)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)  # known to work before the long part
    if options.tokens:
        return show_tokens(model, data, batches, options, output)
    results = evaluate(
        model,
        batches,
        depths(model, options.iterations, options.capacity),
        bytes_per_token=data.bytes_per_token,
        capacity=options.capacity,
        selection=options.selection,
        exit=options.exit,
    )
    if output is not None:  # before anything is printed: a reader who has gone ends the command
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
    if options.json:
        print(to_json(results))
    else:
        print_table(results, title=options.folder)


def show_tokens(model: LanguageModel, data: Any, batches: Any, options: Any, output: Path | None) -> None:
    """Print what tokens use, at the deepest count asked for; draw it into the output folder."""
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
    if output is not None:
        write_heat_map(uses, data.tokenizer, output / "tokens.png")
    for table in token_tables(uses, data.tokenizer):
        standard_output().print(table)
    if model.config.routed_layers and count != 1:
        routed = router_uses(model, pairs, count, capacity=options.capacity, selection=options.selection)
        standard_output().print(router_table(routed))
    if output is not None:
        print(f"wrote {output / 'tokens.png'}")


def depths(model: LanguageModel, asked: list[int] | None, capacity: Any = None) -> list[int] | None:
    """The counts to measure at: those asked for, or around the trained mean; None for a model without a loop."""
    if asked is None and isinstance(capacity, tuple):  # one share for each routed pass says how many passes there are
        return [len(capacity) + 1]
    mean = model.config.default_iterations
    return asked if asked is not None or mean is None else counts_around(mean)
