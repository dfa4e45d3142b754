"""Wrong fields of a run are one line in a person's words, which names the field, the value and what would be right."""

from pathlib import Path
from typing import Annotated, Literal

import lightning.pytorch as pl
import pytest

from mull.cli import main
from mull.training.cli import read_configuration
from mull.training.data.batches import check_workers
from mull.training.mistakes import check_mappings, check_nulls


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("max_steps", "3", "there is no option --max_steps; do you mean --trainer.max_steps?"),
        ("trainer.max_stepps", "3", "there is no option --trainer.max_stepps; do you mean --trainer.max_steps?"),
        ("zzz", "3", "there is no option --zzz; `mull train --help` lists what there is"),
        ("trainer.max_steps", "x", "trainer.max_steps: x is not an integer"),
        ("model.backprop_iterations", "x", "model.backprop_iterations: x is not an integer"),
        ("seed_everything", "x", "seed_everything: x is not true, false or an integer"),
        (
            "model.iterations.init_args.minimum",
            "x",
            "model.iterations: mull.training.iterations.Uniform: minimum: x is not an integer",
        ),
        (
            "model.network.init_args.config.d_modell",
            "8",
            "model.network: mull.RecurrentDepthTransformer has no option 'd_modell'; do you mean d_model?",
        ),
        (
            "model.network.init_args.config.wiring",
            "pre",
            "model.network: mull.RecurrentDepthTransformer: config.wiring: pre is not one of 'sandwich', 'pre_norm'",
        ),
        (
            "data.init_args.task.init_args.lenght",
            "4",
            "data: mull.training.data.Parity has no option 'lenght'; do you mean length?",
        ),
        ("data.init_args.curriculum", "5", "data: mull.training.data.TaskData: curriculum: 5 is not a dict"),
        (
            "data.init_args.curriculum",
            "{50:4}",
            "data.init_args.curriculum: 50:4 lacks a blank behind its colon: write 50: 4",
        ),
        (
            "data.init_args.curriculum",
            "{5:4, 9: 8}",
            "data.init_args.curriculum: 5:4 lacks a blank behind its colon: write 5: 4",
        ),
        (
            "data.init_args.curriculum",
            "{50: }",
            "data.init_args.curriculum: there is nothing for 50: write '{50: VALUE}'",
        ),
        ("data.init_args.curriculum", "{5: 0}", "length 0 is too small for the parity task: use 1 or more"),
        ("data.init_args.repeat", "0", "repeat is 0: it must be 1 or more"),
        ("save_every", "", "save_every: '' is not an integer"),
        (
            "trainer.precision",
            "abc",
            "trainer.precision: abc is not an integer or one of 'transformer-engine', 'transformer-engine-float16', "
            "'16-true', '16-mixed', 'bf16-true', 'bf16-mixed', '32-true', '64-true', '64', '32', '16', 'bf16'",
        ),
        (
            "model.network",
            "mull.RecurentDepthTransformer",
            "model.network: mull.RecurentDepthTransformer: mull has no RecurentDepthTransformer; do you mean "
            "RecurrentDepthTransformer?",
        ),
        (
            "trainer.callbacks",
            "[{class_path: lightning.pytorch.callbacks.EarlyStoping, init_args: {monitor: val/loss}}]",
            "trainer.callbacks: lightning.pytorch.callbacks.EarlyStoping: lightning.pytorch.callbacks has no "
            "EarlyStoping; do you mean EarlyStopping?",
        ),
        ("trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch must be at least 1, not 0"),
        ("trainer.devices", "x", "trainer.devices is x; give a number, a list of numbers, or auto"),
        (
            "trainer.devices",
            "1,",
            "trainer.devices is 1,: `devices` selected with `CPUAccelerator` should be an int > 0.",
        ),
        ("trainer.devices", "null", "trainer.devices is null; give a number, a list of numbers, or auto"),
        ("model.validate_at", "[1, 10001]", "validate_at names 10001, above the limit of 10,000"),
        (
            "data.init_args.batch_size",
            f"{2**31}",
            "batch_size is 2147483648, above the limit of 2,147,483,647: give less",
        ),
        (
            "data.init_args.repeat",
            "null",
            "data.init_args.repeat is null: give a value, or leave it out for what it is by itself",
        ),
        (
            "data.length",
            "3",
            "data: mull.training.data.TaskData has no option 'length'; it takes task, difficulty, curriculum, advance, "
            "repeat, batch_size, validation_examples, workers, seed",
        ),
    ],
)
def test_a_wrong_field_in_a_persons_words(
    field: str, value: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser's own message names unions, subtypes and class objects, and not what would be right."""
    assert main(["train", "--config", "parity", "--output", "nowhere", f"--{field}", value]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mull: error: {line}"


STOPPING = "[{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {{monitor: {}}}}}]"
AVERAGE = "[{class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.9}}]"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--trainer.callbacks", STOPPING.format("val/loss@27")],
            "EarlyStopping goes by val/loss@27, which is not logged; take val/loss@26",
        ),
        (
            ["--trainer.callbacks", STOPPING.format("val/loss"), "--model.validate_at", "[1, 3]"],
            "EarlyStopping goes by val/loss, which is not logged: it is at the mean of 26 iterations, which "
            "validate_at leaves out; take val/loss@3",
        ),
        (
            ["--trainer.callbacks", AVERAGE, "--trainer.devices", "2", "--trainer.strategy", "fsdp2"],
            "EMAWeightAveraging copies the network, which fsdp2 divides: leave it out, or take ddp",
        ),
    ],
)
def test_callbacks_that_would_end_a_training_are_told_before_it(
    options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards what Lightning finds out at the first validation, or in the processes of a divided network."""
    named = ["--config", "parity", "--output", str(tmp_path / "nowhere"), "--model.validate_at", "[1, 26]"]
    assert main(["train", *named, *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mull: error: {line}"
    assert not (tmp_path / "nowhere").exists()


class Mine(pl.Callback):
    """Logs what it likes."""

    class Inner:
        """What may be null in any way of saying so, or says nothing."""

        def __init__(
            self, one: Literal["a", None] = "a", other: Annotated[int | None, ""] = 3, any: object = 1
        ) -> None:
            pass


CHECKPOINT = "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitor: step, mode: max}}]"


@pytest.mark.parametrize(
    "said",
    [
        *map(STOPPING.format, ("val/loss", "val/accuracy@8", "val/token_correlation", "train/loss")),
        STOPPING.format("val/mine, strict: false"),
        CHECKPOINT,
        STOPPING.format("val/mine").removesuffix("]") + f", {{class_path: {__name__}.Mine}}]",
    ],
)
def test_what_is_logged_may_be_gone_by(said: str) -> None:
    """And what is not, where a callback does without it, or one of somebody's own may log it."""
    named = ["--config", "parity", "--model.validate_at", "[8, 26]"]
    assert read_configuration([*named, "--trainer.callbacks", said])


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (b"trainer: {max_step: 3}", "there is no option --trainer.max_step; do you mean --trainer.max_steps?"),
        (b"sede_everything: 3", "there is no option --sede_everything; do you mean --seed_everything?"),
        (b"", "{} holds no text: give fields and their values, as YAML in UTF-8"),
        (b"\xa3\x00\xff", "{} holds no text: give fields and their values, as YAML in UTF-8"),
    ],
)
def test_a_wrong_file_in_a_persons_words(
    written: bytes, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names in a file are told their nearest as those of the command line are; what is no text is named."""
    file = tmp_path / "mine.yaml"
    file.write_bytes(written)
    assert main(["train", "--config", "parity", "--config", str(file), "--output", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"mull: error: {line.format(file)}"


def test_a_section_without_anything_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  max_steps: 3\nmodel:\n")
    assert main(["train", "--config", "parity", "--config", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("mine.yaml, line 3: there is nothing for model: leave it out, or give its fields")


def test_null_is_for_arguments_that_say_so() -> None:
    """The parser hands a null on to any argument of a class; inside, and of a callback in a list, it is found too."""

    def trains(task: dict[str, object] | None = None, **data: object) -> None:
        task = {"class_path": "mull.training.data.Parity", "init_args": {"length": 4}} if task is None else task
        said = {"class_path": "mull.training.data.TaskData", "init_args": {"task": task, **data}}
        stops = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"stopping_threshold": None}}
        check_nulls({"data": said, "trainer": {"callbacks": [stops], "precision": None}})

    trains(difficulty=None, curriculum=None)
    for kind in ("Mine.Inner", "Mine", "Nothing"):
        said = {"class_path": f"{__name__}.{kind}", "init_args": dict.fromkeys(("one", "other", "any", "more"))}
        check_nulls({"model": said})
    trains(seed=None)  # that of the whole run, linked in later
    for name in ("batch_size", "workers"):
        with pytest.raises(ValueError, match=rf"^data\.init_args\.{name} is null: "):
            trains(**{name: None})
    with pytest.raises(ValueError, match=r"^data\.init_args\.task\.init_args\.length is null: "):
        trains(task={"class_path": "mull.training.data.Parity", "init_args": {"length": None}})
    stops = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"patience": None}}
    with pytest.raises(ValueError, match=r"^trainer\.callbacks\.0\.init_args\.patience is null: "):
        check_nulls({"trainer": {"callbacks": [stops]}})


def test_more_workers_than_any_machine_has_a_use_for_are_none() -> None:
    """Each is a process: a slip of the finger, as 100000, would take all memory of a machine, and of all who use it."""
    check_workers(16, advances=False)
    with pytest.raises(ValueError, match=r"^workers is 257, above the limit of 256 processes: give fewer"):
        check_workers(257, advances=False)


@pytest.mark.parametrize("value", ["{50:4}", "{b: {50:4}}", "{b: {c: 1}, 50:4}", "[{50:4}]"])
def test_a_mapping_behind_an_equals_sign_or_inside_another_is_looked_at_too(value: str) -> None:
    with pytest.raises(ValueError, match=r"^data.init_args.curriculum: 50:4 lacks a blank"):
        check_mappings(["--config", "parity", f"--data.init_args.curriculum={value}"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: {b: {50:4}}", 2),
        ("a: {b: {c: 1}, 50:4}", 2),
        ("a:\n  {50: 4,\n  50:4}", 4),
        ("a: ' # {60:5}'\nb: {50:4}  # {50: 4}", 3),
        ("a:\n  b:\n    50:4", 4),
    ],
)
def test_a_mapping_in_a_file_is_looked_at_too(
    text: str, line: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards what is written in a file, where comments and texts may say anything, and mappings within mappings."""
    plain, named = tmp_path / "mine", tmp_path / "mine.yaml"  # --config takes any file, --data one with this ending
    for file, option in ((plain, [f"--config={plain}"]), (plain, ["-c", str(plain)]), (named, ["--data", str(named)])):
        file.write_text(f"# {{60:5}}\n{text}\n")
        assert main(["train", *option, "--config", "parity"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"mull: error: {file}, line {line}: 50:4 lacks a blank behind its colon: write 50: 4"


MEANT = [
    "{a: null}",
    '{"a":null}',
    '{"50":4}',
    "{50: 4}",
    '{"u":"http://h:8/x"}',
    "{t: 12:30}",
    "{2024-02-30: 1}",
    "a:b",
    "run-{epoch:02d}",
    "{epoch:02d}",
    "'{epoch:02d}'",
    "&a {b: &c 1, d: *c}",
    '{1: 2, "1": 3}',
    "{<<: {b: 1}, <<: {c: 2}}",
    "12:30",
    "\n  http://h:8",
    "\n  1:30:00",
    "1\t# a comment",
    '{"u":\t1}',
    "\n  '12:30'",
    "-1",
]


@pytest.mark.parametrize("value", MEANT)
def test_what_yaml_reads_as_it_is_meant_passes(value: str, tmp_path: Path) -> None:
    """Guards against a check that refuses too much: names with null, JSON, addresses, times, formats, what stands
    elsewhere, and what is no mapping."""
    (tmp_path / "mine.yaml").write_text(f"a: {value}\nb: |\n  {value} {{1:2}}\n")
    assert check_mappings(["--x", value, f"--y={value}", "--config", str(tmp_path / "mine.yaml")]) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "line 1: this is more than 100 mappings and lists deep: write fewer"),
        ("a: 1\nb: " + "[" * 101 + "]" * 101, "line 2: this is more than 100 mappings and lists deep: write fewer"),
        ("a: &it\n- b: *it", "line 2: *it stands inside of what it names: write it out"),
        ("trainer: {max_steps: 2,\n max_steps: 3}", "line 1: max_steps stands here twice: leave one of them out"),
        ("threads: 1\ntrainer: {}\nthreads: 2", "line 1: threads stands here twice: leave one of them out"),
    ],
)
def test_what_the_parser_would_take_or_fall_over_is_refused(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the process, which the first ends without a word, and a value that another one replaces unsaid."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for command in (["train"], ["sweep", "--seeds", "0,1", "--dry-run"]):
        assert main([*command, "--config", "parity", "--config", str(file)]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"mull: error: {file}, {told}"


@pytest.mark.parametrize(("field", "value"), [("vocab_size", "7"), ("stop_tokens", "[1]")])
def test_what_the_data_say_is_said_by_nobody_else(
    field: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a field that is read, and then is another one without a word; on a line and in a file."""
    told = f"model.network.init_args.config.{field} is"
    (tmp_path / "mine.yaml").write_text(f"model: {{network: {{init_args: {{config: {{{field}: {value}}}}}}}}}\n")
    short = told.replace("init_args.", "").removesuffix(" is")
    for more in (["--model.network.init_args.config." + field, value], ["--config", str(tmp_path / "mine.yaml")]):
        assert main(["train", "--config", "parity", *more, "--output", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"mull: error: {told} th")
    assert main(["train", "--config", "parity", f"--{short}", value, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mull: error: {short} is th")
    (tmp_path / "mine.yaml").write_text("model: {seed: 3}\n")
    assert main(["train", "--config", "parity", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "model.seed is that of the whole run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1, 2", "line 3: this is no YAML: while parsing a flow sequence, "),
        ("a:\n  50:4\n  60: 8", "line 4: this is no YAML: mapping values are not allowed "),
    ],
)
def test_of_several_files_the_one_that_is_no_yaml_is_named(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parser says what is wrong, and not where. Values of other options, and files that are no configurations, may
    be no YAML."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"seed_everything: 1\n{text}\n")
    assert main(["train", "--config", "parity", "--config", str(file)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"mull: error: {file}, {told}")
    assert check_mappings(["--x", "{a: [1, 2", "--y", "[a-z]{2}", "--z", '"\\UFFFFFFFF"', "--text", str(file)]) is None


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["train", "parity"], "'parity' belongs to no option; do you mean --config parity?"),
        (["train", "help"], "'help' belongs to no option; `mull train --help` lists what there is"),
        (["generate", "parity", "1 0 1"], "'1 0 1' belongs to no option; do you mean --prompt '1 0 1'?"),
        (["evaluate", "parity", "text"], "'text' belongs to no option; `mull evaluate --help` lists what there is"),
        (["evaluate", "parity", "--iter", "4"], "there is no option --iter; do you mean --iterations?"),
        (["trian", "--config", "parity"], "there is no command 'trian', do you mean train? The commands are train, "),
        (["train"], "name the run: mull train --config FILE, or a name, as mull train --config demo"),
    ],
)
def test_what_students_type(typed: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A word that stands alone, a short form, a command that does not exist: the line says what was meant."""
    assert main(typed) == 2
    assert capsys.readouterr().err.startswith(f"mull: error: {line}")


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    """`mull help`, and `mull help train`, as people try it."""
    assert main(["help"]) == main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert usage[: len(usage) // 2] == usage[len(usage) // 2 :] and "train" in usage
    with pytest.raises(SystemExit) as end:
        main(["help", "evaluate"])
    assert end.value.code == 0 and "usage: mull evaluate" in capsys.readouterr().out


def test_errors_of_the_file_system_name_the_place_and_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`[Errno 17] File exists` is for programs; a file in a folder's place is told in words, before the long part."""
    (tmp_path / "notes.md").write_text("mine")
    for place in ("notes.md", "notes.md/deeper"):
        assert main(["evaluate", "parity", "--examples", "1", "--output", str(tmp_path / place)]) == 2
        said = capsys.readouterr()
        assert (
            said.err == f"mull: error: {tmp_path / 'notes.md'} is a file; name a folder with --output\n"
            and not said.out
        )
    assert main(["train", "--config", "parity", "--output", str(tmp_path / "notes.md" / "run")]) == 2
    said = capsys.readouterr().err
    assert "notes.md is a file; name a folder with --output" in said and "Errno" not in said
    assert (tmp_path / "notes.md").read_text() == "mine"
