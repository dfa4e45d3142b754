"""The `mull` command as a person meets it: what works prints what was asked for, and every mistake is one clear line.

A mistake ends with exit status 2, one line on stderr that names the value, the limit and the remedy, and nothing
half-written (design: contracts of the command line).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mull
from mull.cli import COMMANDS, main
from mull.training.data import Parity

TASK = {
    "class_path": "mull.training.data.TaskData",
    "init_args": {"task": {"class_path": "mull.training.data.Parity", "init_args": {"length": 8}}, "batch_size": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random parity model as a checkpoint folder."""
    torch.manual_seed(0)
    task, path = Parity(8), tmp_path_factory.mktemp("checkpoints") / "tiny"
    config = mull.RecurrentDepthConfig(
        vocab_size=6, d_model=16, n_heads=2, mean_iterations=2, max_length=24, stop_tokens=task.stop_tokens
    )
    mull.save(mull.RecurrentDepthTransformer(config), path, tokenizer=task.tokenizer, training={"data": TASK})
    return path


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail the agreed way; return its line."""
    status = main(arguments)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert status == 2, captured
    assert len(lines) == 1 and lines[0].startswith("mull: error: "), captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dream"], "'dream'"),
        (["evaluate", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--prompt", "1"], "nowhere"),
        (["inspect", "nowhere"], "nowhere"),
        (["generate", "FOLDER", "--prompt", "1", "--iterations", "0"], "0"),
        (["generate", "FOLDER", "--prompt", "1", "--iterations", "-1"], "-1"),
        (["generate", "FOLDER", "--prompt", "1", "--iterations", "abc"], "abc"),
        (["evaluate", "FOLDER", "--iterations", "0"], "0"),
        (["evaluate", "FOLDER", "--iterations", "4,-1"], "-1"),
        (["evaluate", "FOLDER", "--iterations", "4,abc"], "abc"),
        (["evaluate", "FOLDER", "--difficulty", "100"], "24"),
        (["evaluate", "FOLDER", "--examples", "0"], "0"),
        (["evaluate", "FOLDER", "--paths", "x.txt"], "paths"),
        (["generate", "FOLDER", "--prompt", "1 7 1"], "'7'"),
        (["generate", "FOLDER", "--prompt", ""], "empty"),
        (["generate", "FOLDER", "--prompt", "1 " * 40], "24"),
        (["generate", "FOLDER", "--prompt", "1", "--temperature", "-1"], "-1"),
        (["generate", "FOLDER", "--prompt", "1", "--exit", "latnt:0.03"], "exit 'latnt' is not known"),
        (["generate", "FOLDER", "--prompt", "1", "--decode", "wavefront:x"], "iterations 'x' is not an integer"),
        (["generate", "FOLDER", "--prompt", "1", "--decode", "speculate:²:4"], "iterations '²' is not an integer"),
        (["generate", "FOLDER", "--prompt", "1", "--seed", str(2**63)], "integer from 0 to 2^63 - 1"),
        (["evaluate", "FOLDER", "--tokens", "--json"], "leave --json out"),
        (
            ["evaluate", "FOLDER", "--tokens", "--record", "--restarts", "3", "--settling"],
            "leave --record, --settling, --restarts out",
        ),
        (["evaluate", "FOLDER", "--exit", "null"], "exit 'null' is not known"),
        (["evaluate", "FOLDER", "--settling", "--exit", "latent:0.03"], "not where latent:0.03 ends: leave one out"),
        (["evaluate", "FOLDER", "--settling", "--iterations", "1"], "1 iteration has one: give --iterations 2 or more"),
        (["evaluate", "FOLDER", "--restarts", "5000"], "invalid integer from 1 to 4,096; value: '5000'"),
        (["evaluate", "FOLDER", "--choose", "majority"], "--choose majority chooses among starts, and there is one"),
        (["generate", "FOLDER"], "prompt"),
        (["generate", "FOLDER", "--prompt", "1", "--colour", "blue"], "colour"),
        (["generate", "FOLDER", "--prompt", "1", "--device", "abacus"], "abacus"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train"], "--config"),
        (["train", "--config", "VARIANT"], "--config BASE --config CHANGES"),
    ],
)
def test_mistakes_end_with_one_clear_line(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wrong argument is named on the one line of the error."""
    variant = Path(__file__).parents[1] / "configs" / "inner_thinking_x2.yaml"
    words = {"FOLDER": str(folder), "VARIANT": str(variant)}
    assert says in fails([words.get(word, word) for word in arguments], capsys)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["train", "--config", "parity", "--output", ""], "--output"),
        (["train", "--config", "parity", "--from", ""], "the path of the checkpoint folder"),
        (["sweep", "--config", "parity", "--seeds", "0", "--dry-run", "--output", ""], "--output"),
        (["evaluate", "FOLDER", "--iterations", "1", "--examples", "8", "--output", ""], "--output"),
        (["evaluate", ""], "the path of the checkpoint folder"),
        (["compare", "FOLDER", "--strategies", "direct", "--iterations", "1", "--output", ""], "--output"),
        (["trace", "FOLDER", "--prompt", "1", "--output", ""], "--output"),
        (["trace", "FOLDER", "--prompt", "1", "--json", "--output", ""], "--output"),
        (["lm-eval", "FOLDER", "--tasks", "parity_answer", "--output", ""], "--output"),
        (["convert", "FOLDER", ""], "the destination"),
    ],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_an_empty_path_is_not_the_working_directory(
    arguments: list[str],
    what: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variable of a shell that nobody has set: nothing is written, neither there nor where the default is."""
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "lm-eval":
        pytest.importorskip("lm_eval")
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    assert f"{what} is empty; name a path, or . for the working directory" in fails(arguments, capsys)
    assert not list(tmp_path.iterdir())


def damaged(folder: Path, tmp_path: Path, kind: str) -> Path:
    """A copy of a checkpoint folder with one thing wrong."""
    copy = tmp_path / kind
    shutil.copytree(folder, copy)
    weights, config = copy / "model.safetensors", copy / "config.json"
    fields, data = json.loads(config.read_text()), bytearray(weights.read_bytes())
    if kind == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif kind == "unknown":
        config.write_text(json.dumps({**fields, "wisdom": 3}))
    elif kind == "missing":
        del fields["d_model"]
        config.write_text(json.dumps(fields))
    elif kind == "absent":
        weights.unlink()
    return copy


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "model.safetensors"),
        ("flipped", "model.safetensors"),
        ("unknown", "wisdom"),
        ("missing", "d_model"),
        ("absent", "model.safetensors"),
    ],
)
def test_damaged_folders_are_named(
    kind: str, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage is found before anything is computed, and the line says where."""
    assert says in fails(["generate", str(damaged(folder, tmp_path, kind)), "--prompt", "1"], capsys)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("trainer.max_stepps", "3", "max_stepps"),
        ("model.network.init_args.config.wiring", "sandwitch", "sandwitch"),
        ("model.network.init_args.config.d_model", "17", "17"),
        ("model.iterations.init_args.minimum", "0", "minimum=0"),
        ("data.init_args.batch_size", "0", "batch_size"),
        ("model.backprop_iterations", "0", "backprop_iterations"),
        ("model.warmup_steps", "-10", "-10"),
        ("trainer.max_steps", "-1", "max_steps"),
        ("threads", "0", "threads"),
        ("threads", "1025", "threads is 1025, above the limit of 1,024: give fewer"),
        ("save_every", "0", "save_every"),
        ("trainer.accumulate_grad_batches", "0", "accumulate_grad_batches must be"),
        ("trainer.gradient_clip_val", "-1.0", "gradient_clip_val is -1.0; give 0 or more"),
        ("trainer.gradient_clip_val", ".nan", "gradient_clip_val is nan; give 0 or more"),
        ("trainer.gradient_clip_algorithm", "value", "gradient_clip_algorithm is value; leave it out, or give norm"),
        ("data.init_args.advance", "{accuracy: 0}", "mull: error: ReachedAccuracy: accuracy must lie above 0 and"),
        ("trainer.val_check_interval", "0", "val_check_interval is 0; give 1 or more"),
        ("data.class_path", "no.such.Data", "no.such.Data"),
        ("data.init_args.seed", "5", "data.init_args.seed is that of the whole run"),
        ("data", "{class_path: TaskData, init_args: {seed: 3}}", "data.init_args.seed is that of the whole run"),
        ("data.init_args", "{<<: {seed: 3}}", "data.init_args.seed is that of the whole run"),
        ("config", "{data: {seed: 3}}", "data.seed is that of the whole run"),
        ("seed_everything", "4294967296", "seed_everything is 4294967296; give an integer from 0 to 4,294,967,295"),
        ("trainer.limit_train_batches", "0", "not one step was taken after step 0: trainer.max_time and"),
        ("model.iterations.init_args.maximum", "10001", "maximum must be at most 10,000, not 10001"),
        ("data.init_args.curriculum", "{0: 8}", "the batch that a difficulty of the curriculum ends before must be"),
        ("data.init_args.curriculum", "{60: 5000}", "rows have up to 5001 tokens, and the network takes 4096"),
        ("data.init_args.difficulty", "1", "too few items of length 1"),
        ("trainer.val_check_interval", "0.5", "`Trainer(val_check_interval)`"),
        ("model.optimizer.init_args.lr", "-0.1", "lr must be a number of at least 0, not -0.1"),
    ],
)
def test_a_wrong_field_of_a_training_is_named_and_nothing_is_written(
    field: str, value: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that cannot run leaves no folder behind."""
    demo = Path(__file__).parents[1] / "configs" / "demo.yaml"
    output = tmp_path / "runs" / "run"
    line = fails(["train", "--config", str(demo), "--output", str(output), f"--{field}", value], capsys)
    assert says in line
    assert not output.parent.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), (b"", "tokens"), (b"caf\xe9 " * 900, "UTF-8")],
    ids=["missing", "empty", "unreadable"],
)
def test_text_that_cannot_be_trained_on_is_named(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing, empty or undecodable text file ends the training before it begins."""
    file, output = tmp_path / "mine.txt", tmp_path / "run"
    if content is not None:
        file.write_bytes(content)
    line = fails([*text_training(file, tmp_path), "--output", str(output)], capsys)
    assert "mine.txt" in line or says in line
    assert not output.exists()


def test_a_damaged_state_or_description_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What resume and evaluation read back can be damaged too: a line, no traceback, and the file stays as it is."""
    copy = tmp_path / "described"
    shutil.copytree(folder, copy)
    (copy / "training.yaml").write_text("data: [unclosed")
    assert "training.yaml" in fails(["evaluate", str(copy)], capsys)
    assert "training.yaml" in fails(["inspect", str(copy)], capsys)
    (copy / "training.yaml").unlink()
    (copy / "depth.json").write_text("{}")
    assert "depth.json" in fails(["inspect", str(copy)], capsys)

    output, demo = tmp_path / "run", Path(__file__).parents[1] / "configs" / "demo.yaml"
    small = ["--model.network.init_args.config.d_model", "16", "--data.init_args.batch_size", "2"]
    line = ["train", "--config", str(demo), "--output", str(output), *small, "--trainer.enable_progress_bar", "false",
            "--trainer.max_steps", "1", "--data.init_args.validation_examples", "1"]  # fmt: skip
    assert main(line) == 0
    capsys.readouterr()
    (output / "training.yaml").unlink()  # as if the run had not come to its end
    state = output / "trainer" / "last.ckpt"
    state.write_bytes(state.read_bytes()[:1000])
    assert "last.ckpt" in fails(line, capsys)
    assert state.stat().st_size == 1000


def text_training(file: Path, tmp_path: Path) -> list[str]:
    config = Path(__file__).parents[1] / "configs" / "text.yaml"
    small = {"d_model": 16, "n_heads": 2}
    return [
        "train", "--config", str(config), "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false",
        *(x for name, value in small.items() for x in (f"--model.network.init_args.config.{name}", str(value))),
        f"--data.init_args.paths=[{file}]", "--data.init_args.fields", "null", "--data.init_args.length", "16",
        "--data.init_args.cache", str(tmp_path / "cache"),
    ]  # fmt: skip


def test_evaluate_prints_the_agreed_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate --json` is read by other programs: one object, a result per count and difficulty, these keys."""
    arguments = ["evaluate", str(folder), "--iterations", "1,2", "--difficulty", "8,12", "--examples", "5", "--json"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)["rows"]
    assert [(result["iterations"], result["difficulty"]) for result in results] == [(1, 8), (2, 8), (1, 12), (2, 12)]
    keys = {"iterations", "difficulty", "accuracy", "exact_match", "loss", "examples", "flops_per_token", "seconds"}
    assert all(keys <= result.keys() and result["examples"] == 5 for result in results)
    assert main(arguments) == 0  # and the same seed measures the same items
    again = json.loads(capsys.readouterr().out)["rows"]
    assert [result["loss"] for result in again] == [result["loss"] for result in results]


def test_evaluate_writes_table_and_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--output` leaves JSON, CSV and a PNG."""
    assert main(["evaluate", str(folder), "--examples", "4", "--output", str(tmp_path / "out")]) == 0
    assert "iterations" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.json", "evaluation.csv", "evaluation.png"}
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, "terminated\n"), (signal.SIGINT, 130, "interrupted\n")]
)
def test_a_signal_ends_an_evaluation_in_order(folder, tmp_path, capsys, monkeypatch, number, status, said):
    """Guards what stood there before: a signal while measuring, or between two files of the report, changes no file."""
    output, arguments = tmp_path / "out", ["evaluate", str(folder), "--examples", "4", "--difficulty", "8"]
    arguments += ["--output", str(output)]
    assert main([*arguments, "--iterations", "1"]) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(before) == {"evaluation.json", "evaluation.csv", "evaluation.png"}
    handler = signal.getsignal(signal.SIGTERM)
    at_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored where tests run
    for place in ("mull.inference.measure.evaluate.score", "mull.checkpoints.replacing.write_through"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_: signal.raise_signal(number))
            capsys.readouterr()
            assert main([*arguments, "--iterations", "1,2"]) == status
        assert capsys.readouterr().err == said
        assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGINT, at_interrupt)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ([], {"evaluation.json", "evaluation.csv", "evaluation.png"}),
        (["--tokens", "--exit", "latent:0.5"], {"tokens.png"}),
    ],
)
def test_an_evaluation_that_nobody_reads_is_written(folder, tmp_path, monkeypatch, options, files):
    """Guards `mull evaluate ... | head -1`: files first, then what is printed; and ~ in `--output=~/x`."""

    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("rich.console.Console.print", gone)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # which would give pytest's own output away
    arguments = ["evaluate", str(folder), "--examples", "4", "--difficulty", "8", "--iterations", "4", *options]
    assert main([*arguments, "--output=~/x"]) == 0
    assert {path.name for path in (tmp_path / "x").iterdir()} == files


def test_a_measurement_that_fails_leaves_no_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards --output, which is made before the long part, so that it is known to work."""
    place = tmp_path / "new" / "deep"
    line = fails(["evaluate", str(folder), "--difficulty", "5000", "--examples", "1", "--output", str(place)], capsys)
    assert "5001 positions are more than the model's limit" in line and not place.parent.exists()


@pytest.mark.parametrize("option", [["--json"], ["--record"], ["--settling"], ["--restarts", "2"]])
def test_options_that_tables_of_tokens_leave_out_are_refused_at_once(folder, monkeypatch, capsys, option):
    """Guards whoever waits for a record that --tokens would not make: they are told before the model is loaded."""
    monkeypatch.setattr("mull.training.measuring.load", lambda *_: pytest.fail("the model was loaded"))
    assert f"leave {option[0]} out" in fails(["evaluate", str(folder), "--tokens", *option], capsys)


def apart(arguments: list[str], out: int, place: Path) -> tuple[int, str]:
    """Run a command in a process of its own, a fork of this one; return its status and what it says on stderr.

    Args:
        arguments: of `mull`.
        out: its standard output, which is closed here.
        place: a folder for what it says.
    """
    if (child := os.fork()) == 0:
        with open(place / "stderr", "w") as said, os.fdopen(out, "w") as standard:
            os.dup2(standard.fileno(), 1)
            sys.stderr, sys.stdout = said, os.fdopen(1, "w")
            warnings.resetwarnings()  # what pytest does with them is not what a user sees
            warnings.showwarning = lambda *args, **_: said.write(warnings.formatwarning(*args[:4]))
            status = 99
            try:
                status = main(arguments)
                sys.stdout.flush()
            finally:
                said.flush()
                os._exit(status)
    os.close(out)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (place / "stderr").read_text()
    (place / "stderr").unlink()
    return status, said


def test_fewer_items_than_asked_for_are_told_in_a_line_each(folder: Path, tmp_path: Path) -> None:
    """Guards evidence: 11 rows of 8 bits are no 512, and what says so is a line, without code and paths."""
    reading, writing = os.pipe()
    status, told = apart(["evaluate", str(folder), "--difficulty", "8,9,16", "--examples", "30"], writing, tmp_path)
    assert status == 0
    assert told.splitlines() == [
        f"mull: warning: parity has {there} different test items of length {length}: measured on these, not on 30"
        for length, there in ((8, 11), (9, 22))
    ]
    with os.fdopen(reading) as said:
        assert "11, 22, 30 examples" in " ".join(said.read().split())


def test_a_folder_may_be_called_null(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as YAML, such a name would be no name, and the results would be lost."""
    from mull.training.cli import read_configuration

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(folder), "--examples", "4", "--output", "null"]) == 0
    assert "iterations" in capsys.readouterr().out
    assert (tmp_path / "null" / "evaluation.json").is_file()
    demo = Path(__file__).parents[1] / "configs" / "demo.yaml"
    for name in ("null", "# x"):
        assert read_configuration(["--config", str(demo), "--output", name]).folder == Path(name)


@pytest.mark.parametrize("extra", [["--json"], ["--exit", "fixed:1", "--tokens"]], ids=" ".join)
def test_a_reader_who_has_gone_costs_no_results(extra: list[str], folder: Path, tmp_path: Path) -> None:
    """`mull evaluate ... --output DIR | head -0`: what was measured is written before it is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    line = ["evaluate", str(folder), "--examples", "4", "--output", str(tmp_path), *extra]
    assert apart(line, writing, tmp_path) == (0, "")
    pictures = {"tokens.png"} if "--tokens" in extra else {f"evaluation.{kind}" for kind in ("json", "csv", "png")}
    assert {path.name for path in tmp_path.iterdir()} == pictures


def test_generate_answers_what_the_model_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the decoded tokens of mull.generate, and nothing else on standard output."""
    model = mull.load(folder)
    ids = Parity(8).tokenizer.encode("1 0 1").ids
    expected = mull.generate(model, torch.tensor([ids]), iterations=3, max_new_tokens=4)
    assert main(["generate", str(folder), "--prompt", "1 0 1", "--iterations", "3", "--max-new-tokens", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == Parity(8).tokenizer.decode(expected.tokens[0, len(ids) :].tolist()).split()
    assert "3.00 iterations each" in captured.err


def test_inspect_says_what_the_folder_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, cost by iteration count and provenance, from the folder alone."""
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    parameters = sum(p.numel() for p in mull.load(folder).parameters())
    assert f"{parameters:,} parameters" in said
    assert "Parity(length=8)" in said
    assert "cache bytes" in said


@pytest.mark.parametrize(
    "greedy",
    [
        lambda: torch.empty(1 << 50),
        lambda: np.empty(1 << 50),
        lambda: [0] * (1 << 50),
        lambda: raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    ],
)
def test_the_end_of_memory_is_one_line(
    greedy: Callable[[], object], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the commonest failure on a GPU: what does not fit is told with a way out, by whoever's allocator."""
    monkeypatch.setattr("mull.training.measuring.measure_folder", lambda *_: greedy())
    assert main(["evaluate", str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mull: error: out of memory: ") and "use smaller batches" in line


def raised(error: BaseException) -> None:
    raise error


def test_other_failures_of_a_runtime_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the line above against defects: they are not the user's to mend."""
    monkeypatch.setattr("mull.training.measuring.measure_folder", lambda *_: raised(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        main(["evaluate", str(folder)])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints and exits with 0; each command can be told of classes of the user's own."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage" in said and ("--plugin" in said or command == "data")  # which reads no folder
    assert main(["--help"]) == 0


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    """`mull --version` says the version, `python -m mull` is the same command, and `dir(mull)` shows the face."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mull {mull.__version__}\n"
    said = subprocess.run([sys.executable, "-m", "mull", "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, f"mull {mull.__version__}\n")
    assert {"load", "save", "generate"} <= set(dir(mull))


@pytest.mark.parametrize("name", ["[x]", "[bold]x[", ":smile:", r"$\alpha_{$ x", "a b", "%d {0}", "null", "-x", "été"])
def test_a_folder_may_have_any_name(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup of tables, formulas of plots and signs of formats are letters in a name; all of the evaluation is kept."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, name)
    arguments = ["--examples", "2", "--iterations", "1,2", f"--output={name}"]
    assert main(["evaluate", f"./{name}", *arguments]) == 0
    assert name in capsys.readouterr().out
    assert {f"evaluation.{kind}" for kind in ("json", "csv", "png")} < {path.name for path in Path(name).iterdir()}
    assert main(["inspect", f"./{name}"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_a_home_is_the_users_in_every_option(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells leave `--output=~/x` as it is; taken as it stands, it would make a folder that is called ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(folder, tmp_path / "home" / "tiny")
    (tmp_path / "home" / "prompts.txt").write_text("1 0 1\n")
    (tmp_path / "home" / "own.yaml").write_text("seed_everything: 5\n")
    assert main(["evaluate", "~/tiny", "--examples", "2", "--output=~/out"]) == 0
    assert main(["generate", "~/tiny", "--prompts=~/prompts.txt", "--max-new-tokens=1"]) == 0
    with pytest.raises(SystemExit):  # with status 0, when it is printed
        main(["train", "--from=~/tiny", "--config=parity", "--config=~/own.yaml", "--print_config"])
    assert "seed_everything: 5" in capsys.readouterr().out
    assert (tmp_path / "home" / "out" / "evaluation.json").is_file() and not list((tmp_path / "here").iterdir())
