"""`mull sweep`: several runs of one configuration, by seed and by values of fields, and one table of what they can do.

    mull sweep --config parity --seeds 0,1,2 --set model.backprop_iterations=2,4 --output sweeps/window

is six runs, each `mull train` with a folder of its own below the output. They are trained one after the other, or as an
array of jobs on a SLURM cluster (--slurm, by submitit). The same line again keeps the finished runs and goes on with
the others. What the runs measured at their end (depth.json) is gathered by iteration count and difficulty, as mean and
standard deviation over the seeds, into sweep.json and sweep.csv.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mull.checkpoints.replacing import replace_all
from mull.checkpoints.store import DEPTH
from mull.inference.arguments import output_folder
from mull.inference.measure.inspect import read_depth
from mull.inference.measure.table import standard_output
from mull.training.saying import say

Cluster = Literal["slurm", "local", "debug"]
LONGEST = 255  # bytes of a file's name
LARGEST_SEED = 2**32 - 1  # that a run takes; written here, since to import Lightning, whose limit it is, takes seconds
MEASURES = ("accuracy", "exact_match", "loss", "bits_per_byte")  # what is averaged over seeds
OWN = (
    "output",
    "config",
    "seed_everything",
    "plugin",
    "from",
)  # fields that the sweep sets itself, or a run cannot have


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        settings: value of each field that is varied, as it was typed.
        seed: its seed.
        folder: where it goes.
        command: the arguments of `mull`.
    """

    settings: dict[str, str]
    seed: int
    folder: Path
    command: list[str]

    @property
    def line(self) -> str:
        return shlex.join(["mull", *self.command])


def add_options(parser: Any) -> None:
    """The options of the command."""
    parser.add_argument(
        "--config", action="append", type=str, required=True, help="as of mull train; repeatable, later ones override"
    )
    parser.add_argument("--seeds", type=str, default="0", help="seeds, 0,1,2; each setting is run with each of them")
    parser.add_argument(
        "--set", action="append", type=str, help="field=a,b: a field of the run and its values; repeatable, all pairs"
    )
    parser.add_argument("--output", type=str, help="folder of all runs (default: checkpoints/<config>-sweep)")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines, and train nothing")
    parser.add_argument("--gather", action="store_true", help="train nothing, and gather what is finished")
    parser.add_argument("--slurm", action="store_true", help="submit the unfinished runs as an array of SLURM jobs")
    parser.add_argument(
        "--slurm-option",
        action="append",
        type=str,
        help="of a job, as timeout_min=600, gpus_per_node=1 or slurm_partition=long (submitit's words); repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def seeds(text: str) -> list[int]:
    """`0,1,2` as a list of different integers of at least 0."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--seeds {text!r} is no list of integers of at least 0; write seeds as 0,1,2")
    found = [int(word) for word in words]
    if max(found) > LARGEST_SEED:
        raise ValueError(f"--seeds {text!r}: {max(found)} is above the limit of {LARGEST_SEED:,}")
    if len(set(found)) < len(found):
        raise ValueError(f"a seed is there twice in --seeds {text!r}: equal seeds give equal runs")
    return found


def run(options: Any) -> None:
    """Train what is not trained yet, and print what all can do.

    Raises:
        ValueError, OSError: an option or a configuration is wrong, a folder has another run, and nothing is trained;
            or a signal has ended a run.
        SystemExit: a run has failed, with the status and the words of that run; the finished ones stay.
    """
    asked = options.output
    folder = output_folder(f"checkpoints/{Path(options.config[-1]).stem}-sweep" if asked is None else asked)
    runs = planned(options.config, seeds(options.seeds), options.set or [], folder, options.plugin or [])
    if options.slurm_option and not options.slurm:
        raise ValueError("--slurm-option is for jobs: add --slurm, or leave it out")
    done = finished(runs)
    if options.dry_run:
        for each in runs:
            say(each.line)
        return
    if options.slurm and not options.gather:
        waiting = [each for each in runs if each not in done]
        if waiting:
            jobs = submit(waiting, folder, job_options(options.slurm_option or []))
            say(f"submitted {len(jobs)} runs as {jobs[0].partition('_')[0]}; later: the same line with --gather")
            return
    elif not options.gather:
        for number, each in enumerate(runs, start=1):
            print(f"run {number} of {len(runs)}: {each.line}", file=sys.stderr, flush=True)
            train(each, quiet=options.json)
        done = finished(runs)
    show(runs, done, folder, options.json)


def planned(
    configs: Sequence[str], numbers: Sequence[int], varied: Sequence[str], folder: Path, plugins: Sequence[str] = ()
) -> list[Run]:
    """All runs: every combination of values, with every seed."""
    axes = dict(axis(text) for text in varied)
    if len(axes) < len(varied):
        raise ValueError(f"a field is set twice in {' '.join(varied)}: give all its values in one --set")
    last = [name.rpartition(".")[2] for name in axes]
    short = {name: end if last.count(end) == 1 else name for name, end in zip(axes, last, strict=True)}
    runs = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        for seed in numbers:
            parts = [f"{short[name]}={value}" for name, value in settings.items()] + [f"seed={seed}"]
            place = folder / re.sub(r"[^\w.=+-]+", "_", "-".join(parts))
            if len(os.fsencode(place.name)) > LONGEST:
                raise ValueError(
                    f"the folder of a run would be called {place.name[:40]}..., which is longer than "
                    f"{LONGEST} bytes: give shorter values, or write a file for each run yourself"
                )
            command = ["train", *(word for plugin in plugins for word in ("--plugin", plugin))]
            command += [word for config in configs for word in ("--config", config)]
            command += [f"--{name}={value}" for name, value in settings.items()]
            runs.append(Run(settings, seed, place, [*command, f"--seed_everything={seed}", "--output", str(place)]))
    places = [each.folder for each in runs]
    if len(set(places)) < len(places):
        raise ValueError(f"two runs would be in one folder: the values of {' '.join(varied)} are too alike")
    return runs


def axis(text: str) -> tuple[str, list[str]]:
    """`field=a,b` as the field and its values; commas inside of brackets, braces and quotes part no values."""
    name, equals, values = text.partition("=")
    found = [value.strip() for value in parted(values)]
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name) or not all(found):
        raise ValueError(f"--set {text!r} is not understood; write a field and its values as model.warmup_steps=10,100")
    if name in OWN or name in ("model.seed", "data.init_args.seed"):  # which seed_everything sets
        raise ValueError(f"--set {name} is not for a sweep: {'give --seeds' if 'seed' in name else 'leave it out'}")
    if len(set(found)) < len(found):
        raise ValueError(f"--set {text!r} has a value twice")
    return name, found


def parted(values: str) -> list[str]:
    """The values of a list with commas; an empty one where a bracket, a brace or a quote is left open."""
    found, open_ones, quote = [""], "", ""
    for sign in values:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            open_ones += sign
        elif sign in "]}":
            if open_ones[-1:] + sign not in ("[]", "{}"):
                return [""]
            open_ones = open_ones[:-1]
        elif sign == "," and not open_ones:
            found.append("")
            continue
        found[-1] += sign
    return [""] if quote or open_ones else found


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that are trained and measured. Raises the error of `mull train` for a configuration that is wrong, and
    for a folder that holds a finished run of another one; ValueError where two settings are one configuration."""
    from mull.training.cli import quiet, read_configuration
    from mull.training.identity import has_finished

    quiet()
    found: list[Run] = []
    known: list[tuple[dict[str, Any], dict[str, str]]] = []  # configurations, and the settings that they are of
    for settings, alike in itertools.groupby(runs, key=lambda each: each.settings):
        those = list(alike)
        asked = read_configuration(those[0].command[1:])
        for resolved, others in known:
            if resolved == asked.resolved:
                raise ValueError(f"{spelled(settings)} and {spelled(others)} are one configuration: leave one out")
        known.append((asked.resolved, settings))
        for each in those:
            resolved = {**asked.resolved, "seed_everything": each.seed}
            if has_finished(each.folder, resolved, asked.completed) and (each.folder / DEPTH).is_file():
                found.append(each)
    return found


def spelled(settings: dict[str, str]) -> str:
    """Settings as they are typed."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def tell_mixed(done: Sequence[Run]) -> None:
    """Warn where runs of one setting were measured in different ways, which a mean over them does not show."""
    for settings, alike in itertools.groupby(done, key=lambda each: each.settings):
        ways = sorted({measured_by(each) for each in alike})
        if len(ways) > 1:
            warnings.warn(
                f"{spelled(settings) or 'a mean'} is over runs that were measured by {', and by '.join(ways)}: measure "
                "all alike with mull evaluate --record",
                stacklevel=2,
            )


def measured_by(each: Run) -> str:
    """How a run was measured, but for its folder: at the end of its training, or by a command that was recorded
    later."""
    words = [word for word in read_depth(each.folder / DEPTH)["command"].split() if each.folder.name not in word]
    return "their training" if words[:2] == ["mull", "train"] else f"`{' '.join(words)}`"


def train(each: Run, quiet: bool) -> None:
    """Train a run, or go on with it, in a process of its own; `mull train` knows what is done already.

    Args:
        quiet: let what it prints go to standard error.
    """
    process = subprocess.Popen([sys.executable, "-m", "mull", *each.command], stdout=sys.stderr if quiet else None)
    try:
        status = process.wait()
    except SystemExit:  # SIGTERM: it saves its state, and then we end; Ctrl-C it was sent itself
        process.terminate()
        process.wait()
        raise
    except KeyboardInterrupt:
        process.wait()
        raise
    if status < 0:
        raise ValueError(f"{each.folder} was ended by {signal.Signals(-status).name}; the same line goes on there")
    if status:
        print(f"{each.folder} is unfinished, as is said above; what is finished stays", file=sys.stderr)
        raise SystemExit(status)


def job_options(words: Sequence[str]) -> dict[str, int | str]:
    """`timeout_min=600` and the like as submitit takes them."""
    found: dict[str, int | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--slurm-option {word!r} is not understood; write it as timeout_min=600")
        found[name] = int(value) if value.isdecimal() else value
    return found


def submit(runs: Sequence[Run], folder: Path, options: dict[str, int | str], cluster: Cluster = "slurm") -> list[str]:
    """Submit runs as one array of jobs; return the numbers of the jobs.

    Args:
        runs: the runs.
        folder: of the sweep; scripts and outputs of the jobs go to jobs/ below it.
        options: of each job.
        cluster: slurm; local and debug are for trying it without one.

    Raises:
        ValueError: there is no submitit, no cluster, or no such option.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError('--slurm needs submitit: pip install "mull[sweep]", or leave it out') from None
    try:
        executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
        executor.update_parameters(name=folder.name, **options)
        with executor.batch():
            jobs = [executor.submit(job, [sys.executable, "-m", "mull", *each.command]) for each in runs]
    except (RuntimeError, NameError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"the runs cannot be submitted: {error}") from error
    return [str(each.job_id) for each in jobs]


def job(command: list[str]) -> int:
    """What a job does; a signal before its time is over lets the run save its state."""
    return subprocess.run(command, check=True).returncode


def gathered(done: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each setting, difficulty and iteration count: mean and deviation over the seeds that have it."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in done:
        for result in read_depth(each.folder / DEPTH)["rows"]:
            place = (tuple(each.settings.items()), result.get("difficulty"), result.get("iterations"))
            found.setdefault(place, []).append(result)
    rows = []
    for (settings, difficulty, iterations), measured in found.items():
        row: dict[str, Any] = {
            "settings": dict(settings), "difficulty": difficulty, "iterations": iterations, "n": len(measured)
        }  # fmt: skip
        for measure in MEASURES:
            values = [each[measure] for each in measured if each.get(measure) is not None]
            row[measure] = statistics.fmean(values) if values else None
            row[f"{measure}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def show(runs: Sequence[Run], done: Sequence[Run], folder: Path, as_json: bool) -> None:
    """Write sweep.json and sweep.csv, and print them as a table or as JSON."""
    tell_mixed(done)
    rows, missing = gathered(done), [str(each.folder) for each in runs if each not in done]
    if not rows:
        raise ValueError(f"no run in {folder} is finished yet; the same line without --gather trains them")
    found = {"runs": [each.line for each in runs], "unfinished": missing, "rows": rows}
    replace_all(
        folder, {"sweep.json": (json.dumps(found, indent=2) + "\n").encode(), "sweep.csv": as_csv(rows).encode()}
    )
    if as_json:
        print(json.dumps(found))
        return
    print_rows(rows)
    if missing:
        say(f"{len(missing)} of {len(runs)} runs are unfinished: the same line goes on with them")


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV, a column for each setting."""
    flat = [{**row["settings"], **{name: value for name, value in row.items() if name != "settings"}} for row in rows]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table: means with their standard deviation, and over how many seeds."""
    from rich.table import Table

    table = Table(caption="mean ± standard deviation over n seeds")
    shown = [measure for measure in MEASURES if any(row[measure] is not None for row in rows)]
    places = [place for place in ("difficulty", "iterations") if any(row[place] is not None for row in rows)]
    for name in (*rows[0]["settings"], *places, *(measure.replace("_", " ") for measure in shown), "n"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*cells(row, places, shown))
    standard_output().print(table)


def cells(row: dict[str, Any], places: Sequence[str], shown: Sequence[str]) -> Iterator[str]:
    """A row of the table."""
    yield from row["settings"].values()
    for place in places:
        yield "" if row[place] is None else str(row[place])
    for measure in shown:
        value, spread, scale = row[measure], row[f"{measure}_sd"], 100 if measure in MEASURES[:2] else 1
        digits = 1 if scale == 100 else 4
        told = "" if value is None else f"{scale * value:.{digits}f}"
        yield told if spread is None else f"{told} ± {scale * spread:.{digits}f}"
    yield str(row["n"])
