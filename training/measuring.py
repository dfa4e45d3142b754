"""`mull evaluate`: a folder is measured; what was found is printed, and written where an output folder is named."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

from mull.checkpoints import load
from mull.checkpoints.files import made
from mull.checkpoints.names import called
from mull.inference.arguments import at_least, counts, output_folder, shares
from mull.inference.early_exit import choose_exit
from mull.inference.measure.alignment import aligned, check_aligning
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.report import write_report
from mull.inference.measure.restarts import AT_ONCE, Choose
from mull.inference.measure.results import to_json
from mull.inference.measure.table import print_table
from mull.inference.measure.tokens import show
from mull.inference.measure.verified import verified
from mull.models import LanguageModel
from mull.models.iterated import IteratedModel
from mull.models.loop import counts_around
from mull.models.selection import Selection
from mull.training.evaluation import data_of
from mull.training.export import check_keeping, keep_results, picture_of, trained_on


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument("--iterations", type=counts, help="counts, 1,2,4 (default: 1, r/2, r, 2r, 4r of training)")
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    parser.add_argument(
        "--selection",
        type=Selection | None,
        help="how routed tokens are chosen, top_k or threshold (default: threshold)",
    )
    parser.add_argument("--exit", type=str, help="rule that ends thinking early, as latent:0.03; counts are limits")
    parser.add_argument("--difficulty", type=counts, help="task difficulties, 8,16,32 (default: those of training)")
    parser.add_argument("--examples", type=at_least(1), default=512, help="items or windows of text per difficulty")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="items or windows per batch")
    parser.add_argument("--seed", type=at_least(0), help="of the test items (0); text has windows, and draws none")
    parser.add_argument("--paths", nargs="+", help="text files or folders to measure on instead of the run's own")
    parser.add_argument("--trust", action="store_true", help="let the folder's training.yaml say which texts are read")
    parser.add_argument("--output", type=str, help="folder for evaluation.json, .csv and .png")
    parser.add_argument("--record", action="store_true", help="keep the results in FOLDER, with picture and card")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument(
        "--restarts",
        type=at_least(1, AT_ONCE),
        default=1,
        help="random starts, of which one answers; see --choose",
    )
    parser.add_argument(
        "--choose",
        choices=get_args(Choose),
        help="calmest: the start that moves least at the end (default); majority: the answer of most starts",
    )
    parser.add_argument(
        "--settling", action="store_true", help="had it finished thinking; does that tell right from wrong"
    )
    parser.add_argument("--alignment", action="store_true", help="cosine of the states that two random starts come to")
    parser.add_argument("--verify", action="store_true", help="also write the answers, and have them checked")
    parser.add_argument("--tokens", action="store_true", help="which tokens think longest: tables, and tokens.png")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def measure_folder(options: Any, command: str) -> None:
    """Measure the model of a folder.

    Args:
        options: of `mull evaluate`, as `add_options` names them.
        command: the command line, which is recorded beside results that the folder keeps.

    Raises:
        FileNotFoundError, ValueError: the folder or an option is wrong.
    """
    check(options)
    if options.record:
        check_keeping(options.folder)
    output = None if options.output is None else output_folder(options.output)
    model = load(options.folder, options.device)
    data = data_of(options.folder, options.paths, trust=options.trust)
    asked = options.difficulty, options.examples, min(options.batch_size, options.examples)
    seed = {} if options.seed is None else {"seed": options.seed}
    batches = data.evaluation_batches(*asked, **seed)
    choose_exit(model, options.exit)
    if options.verify:
        check_verifying(model, data)
    if options.alignment:
        check_aligning(model)
    if options.settling:
        check_settling(model, depths(model, options.iterations, options.capacity))
    with nullcontext() if output is None else made(output):  # known to work before the long part
        if options.tokens:
            named = options.iterations or options.capacity
            counts = depths(model, options.iterations, options.capacity) if named else None
            pairs = [pair for difficulty in batches.values() for pair in difficulty]
            chosen = {name: options[name] for name in ("exit", "capacity", "selection")}
            return show(model, data.tokenizer, pairs, counts[-1] if counts else None, output, **chosen)
        results = evaluate(
            model,
            batches,
            depths(model, options.iterations, options.capacity),
            bytes_per_token=data.bytes_per_token,
            capacity=options.capacity,
            selection=options.selection,
            exit=options.exit,
            restarts=options.restarts,
            choose=options.choose or "calmest",
        )
        if options.verify:
            questions = data.questions(options.difficulty, options.examples, options.seed or 0)
            results = verified(model, results, questions, options.batch_size, options.exit, capacity=options.capacity)
        if options.alignment:
            results = aligned(model, results, data.evaluation_batches(*asked, **seed))
        if output is not None:  # before anything is printed, which ends where nobody reads any more
            write_report(output, results, picture_of(results, model, Path(options.folder), data))
        try:
            if options.record:
                keep_results(options.folder, trained_on(options.folder), model, results, command)  # not of --paths
        finally:  # results that cannot be kept are shown all the same
            if options.json:
                print(to_json(results))
            else:
                print_table(results, title=called(options.folder), settling=options.settling)


def check(options: Any) -> None:
    """Raise ValueError for options that do not go together, before anything is read."""
    others = {"--json": options.json, "--record": options.record, "--settling": options.settling}
    others["--restarts"] = options.restarts > 1
    others["--verify"], others["--alignment"] = options.verify, options.alignment
    asked = [name for name, given in others.items() if given]
    if options.tokens and asked:
        raise ValueError(f"--tokens prints tables of its own, and measures nothing else: leave {', '.join(asked)} out")
    if options.choose and options.restarts == 1:
        raise ValueError(f"--choose {options.choose} chooses among starts, and there is one: give --restarts 8, say")
    if options.verify and options.restarts > 1:
        raise ValueError(
            "--verify judges answers that are written out from one start: leave --restarts or --verify out"
        )
    if options.settling and options.exit is not None:
        raise ValueError(
            f"--settling asks how far states moved after the same iterations, not where {options.exit} ends: "
            "leave one out"
        )
    if options.verify and options.selection is not None:
        raise ValueError("--verify judges answers that are written out, which select causally: leave --selection out")
    if options.alignment and options.exit is not None:
        raise ValueError(
            f"--alignment compares states after the same iterations, not where {options.exit} ends: leave one out"
        )


def check_verifying(model: LanguageModel, data: Any) -> None:
    """Raise ValueError where nothing judges what the model writes, or it writes nothing."""
    model.check_order()
    if not hasattr(data, "questions") or getattr(data, "in_place", False):
        raise ValueError(
            f"--verify asks a verifier about answers, and {type(data).__name__} has none here: leave it out"
        )


def check_settling(model: LanguageModel, counts: list[int] | None) -> None:
    """Raise ValueError where nothing says how far a state moved."""
    if not isinstance(model, IteratedModel):
        raise ValueError(f"--settling asks how far a state moves, and a {type(model).__name__} has none: leave it out")
    if counts is not None and max(counts) < 2:
        raise ValueError(
            "--settling compares the last two states, and 1 iteration has one: give --iterations 2 or more"
        )


def depths(model: LanguageModel, asked: list[int] | None, capacity: Any = None) -> list[int] | None:
    """The counts to measure at: those asked for, or around the trained mean; None for a model without a loop."""
    if asked is None and isinstance(capacity, tuple):  # one share for each routed pass says how many passes there are
        return [len(capacity) + 1]
    mean = model.config.default_iterations
    return asked if asked is not None or mean is None else counts_around(mean)
