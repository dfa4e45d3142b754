"""`mull lm-eval`: tasks of lm-evaluation-harness at several iteration counts, in one table.

The released lm-eval does not read the entry point that names mull's model; this command does what `lm-eval run` would,
and asks for the log-likelihoods of all counts out of one unroll.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from importlib.metadata import version
from importlib.util import find_spec
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from mull.checkpoints.store import VERSION
from mull.inference.arguments import add_device, at_least, counts, output_folder, shares
from mull.inference.harness.report import rows_of, table_of, write_results
from mull.inference.measure.table import standard_output

if TYPE_CHECKING:
    from mull.inference.harness.model import MullLM


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument(
        "--tasks",
        type=str,
        required=True,
        help="names, a,b (* is any text), or YAML files; a task file may run code (!function): trust yours only",
    )
    parser.add_argument("--iterations", type=counts, help="counts, 1,4,16 (default: the trained mean)")
    parser.add_argument(
        "--include-path",
        type=str,
        action="append",
        help="folder of tasks, looked through in place of lm-eval's own; repeatable",
    )
    parser.add_argument("--limit", type=at_least(1), help="examples of each task (default: all)")
    parser.add_argument("--num-fewshot", type=at_least(0), help="worked examples before each (default: the task's)")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="rows at once")
    parser.add_argument(
        "--exit", type=str, help="rule that ends thinking early, as latent:0.03; each count is then a run of its own"
    )
    parser.add_argument("--capacity", type=shares, help="share of tokens in routed passes, 0.5 or one each: 0.9,0,0.9")
    parser.add_argument("--output", type=str, help="folder for lm-eval's own results_COUNT.json, and summary.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of worked examples, and of answers that are drawn")
    add_device(parser)


def run(options: Any) -> None:
    """Evaluate, then print and write what was found.

    Raises:
        FileNotFoundError, ValueError: the folder, a task or an option is wrong, or lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("mull lm-eval needs lm-evaluation-harness 0.4.13 or later: pip install 'mull[eval]'")
    output = None if options.output is None else output_folder(options.output)
    names = list(dict.fromkeys(name for name in (word.strip() for word in options.tasks.split(",")) if name))
    if not names:
        raise ValueError(f"--tasks {options.tasks!r} names no task; write them as a,b")
    with quiet():
        from mull.inference.harness.model import MullLM
        from mull.inference.harness.tasks import load_tasks

        asked = options.iterations or [None]
        lm = MullLM(
            options.folder,
            asked[-1],
            options.exit,
            options.capacity,
            options.batch_size,
            options.device,
            options.dtype,
            options.seed,
            also=[count for count in asked if count is not None],
        )
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)  # known to work before the long part
        tasks = load_tasks(names, options.include_path or [], options.num_fewshot, options.seed)
        found = {count: evaluated(lm.at(count), tasks, options) for count in lm.scorer.counts}
    rows = rows_of(found)
    means = {count: results["config"]["mean_iterations"] for count, results in found.items()}
    summary = {
        "folder": options.folder,
        "tasks": names,
        "exit": options.exit,
        "mean_iterations": [{"iterations": count, "mean": mean} for count, mean in means.items() if mean is not None],
        "mull_version": VERSION,
        "lm_eval_version": version("lm_eval"),
        "rows": rows,
    }
    if output is not None:  # before anything is printed, which ends where nobody reads any more
        write_results(output, found, summary)
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        used = ", ".join(f"{mean:.1f} of {count}" for count, mean in means.items() if mean is not None)
        notes = [f"exit {options.exit}: iterations used on average: {used}"] if options.exit else []
        standard_output().print(table_of(rows, str(options.folder), notes))


def evaluated(lm: MullLM, tasks: Any, options: Any) -> dict[str, Any]:
    """The harness's results at one count, with what `lm-eval run` would say of the run."""
    from lm_eval.evaluator import evaluate

    from mull.inference.harness.tasks import seed_examples, told

    start = time.time()
    seed_examples(tasks, options.seed)
    try:
        found = evaluate(lm=lm, task_dict=tasks, limit=options.limit, log_samples=False)
    except Exception as error:
        if isinstance(error, ValueError | OSError) or went_through_mull(error):
            raise
        raise ValueError(f"lm-eval cannot run {options.tasks} ({told(error)}): mend the task's file") from error
    results: dict[str, Any] = dict(found or {})
    about = {"batch_size": options.batch_size, "device": options.device, "limit": options.limit, "seed": options.seed}
    results["config"] = {**lm.get_model_info(), **about}
    results |= {"date": start, "max_length": lm.max_length, "eot_token_id": lm.eot_token_id}
    return results | {"lm_eval_version": version("lm_eval"), "mull_version": VERSION}


def went_through_mull(error: Exception) -> bool:
    """Whether mull was called by the harness when this was raised; if not, what was wrong is a task's file."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    return any(name.startswith("mull.") for name in names[1:])  # the first is the caller of the harness


@contextmanager
def quiet() -> Iterator[None]:
    """The harness without its progress bars, and its warnings as mull's, on one line each."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from lm_eval.api.task import tqdm

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("mull: warning: lm-eval: %(message)s"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: "using default" not in record.getMessage())  # of what a task leaves out
    theirs, hub = logging.getLogger("lm_eval"), logging.getLogger("huggingface_hub")
    before = theirs.propagate, hub.level, tqdm.__init__
    theirs.addHandler(handler)
    theirs.propagate = False
    hub.setLevel(logging.ERROR)  # says at every try that there is no network; in the end an error does
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # the harness asks nobody
    try:
        yield
    finally:
        theirs.removeHandler(handler)
        theirs.propagate = before[0]
        hub.setLevel(before[1])
        tqdm.__init__ = before[2]
