"""What strangers may put into a folder: everything ends as one short printable line, soon; nothing else is printed."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mull
from mull.checkpoints import load_tokenizer, store, tensors
from mull.checkpoints.files import MAX_LINE, one_line, read_json, read_tokenizer, read_yaml, shown
from mull.cli import main
from mull.training.data.tokenizer import byte_tokenizer

SHAPE: dict[str, Any] = dict(vocab_size=257, d_model=16, n_heads=2, d_ff=16, max_length=16)
PARITY = Path(__file__).parents[2] / "checkpoints" / "parity"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "training.yaml", "depth.json")
READ: dict[str, Callable[[Path], Any]] = {"json": read_json, "yaml": read_yaml, "tokenizer": read_tokenizer}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with every file."""
    model = mull.RecurrentDepthTransformer(mull.RecurrentDepthConfig(**SHAPE))
    depth = {"command": "mull evaluate x", "rows": [{"iterations": 2, "accuracy": 0.5}]}
    store.save(model, tmp_path / "model", byte_tokenizer(), {"seed_everything": 1}, depth)
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    """Other fields, vouched for by the checksum: only their values can give them away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config | {"config_sha256": store.fields_sum(config)}))


def change_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors")
    change_config(folder, weights_sha256=store.checksum_of(folder / "model.safetensors"))


def line_of(call: Callable[[], Any], place: Path) -> str:
    """The message of a call that must be refused: soon, short, on one printable line that names the place."""
    start = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    message = str(caught.value)
    assert time.monotonic() - start < 60  # seconds: it comes to an end, on a busy machine too
    assert message.isprintable() and len(message) <= max(MAX_LINE, 220 + len(str(place))), message
    assert str(place) in message
    return message


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must be refused, on all of standard error, that of libraries in Rust included."""
    start = time.monotonic()
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert time.monotonic() - start < 60  # seconds: it comes to an end, on a busy machine too
    assert said.startswith("mull: error: ") and said.count("\n") == 1 and said.strip().isprintable() and len(said) < 520
    return said


NESTED_YAML = "a: " + "[" * 5_000
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("json", b'{"a": ' + b"[" * 100_000, "cannot be read as JSON"),
        ("json", b'{"a": 1, "a": 2}', "the key a is there twice"),
        ("json", b'{"a": {"b": [1, NaN]}}', "b is nan, no finite number"),
        ("json", b'{"a": -Infinity}', "a is -inf"),
        ("json", b'{"a": 1e999}', "a is inf"),
        ("json", b'{"a": 99999999999999999999}', "a is an integer of more than 64 bits"),
        ("json", b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read as JSON"),
        ("json", b'{"\x1b[31m": 1, "\\u001b[31m": "', "cannot be read as JSON"),
        ("json", b'{"\\u001b[31m": 1, "\\u001b[31m": 1}', r"the key \x1b[31m is there twice"),
        ("json", b'{"' + b"k" * 9_000 + b'": NaN}', "kkk... is nan"),
        ("json", b"\xef\xbb\xbf{}", "cannot be read as JSON"),
        ("json", b"\xff", "cannot be read as JSON"),
        ("json", b" " * (5 << 20), "is longer than 4,194,304 bytes"),
        ("yaml", NESTED_YAML.encode(), "cannot be read as YAML"),
        ("yaml", b"a: " + b"[" * 200 + b"]" * 200, "it is more than 100 mappings and lists deep"),
        ("yaml", BOMB.encode(), "it holds an anchor or an alias"),
        ("yaml", b"a: &a [*a]", "it holds an anchor or an alias"),
        ("yaml", b"a: 1\na: 2", "the key a is there twice"),
        ("yaml", b"a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("yaml", b"a: !!int ''", "cannot be read as YAML"),
        ("yaml", b"a: !!timestamp x", "cannot be read as YAML"),
        ("yaml", b"a: 0x" + b"f" * 50_000, "a is an integer of more than 64 bits"),
        ("yaml", b"? [1]\n: 2", "cannot be read as YAML"),
        ("yaml", b"a: \x07", "cannot be read as YAML"),
        ("yaml", b"a: [" + b"1," * 300_000 + b"]", "it holds more than 20,000 values"),
        ("yaml", b"[]", "must hold one YAML mapping"),
        ("yaml", b"\xff", "cannot be read as YAML"),
        ("tokenizer", b"[" * 100_000, "is no tokenizer"),
        ("tokenizer", b'{"version": "1.0", "version": "1.0"}', "the key version is there twice"),
    ],
)
def test_files_that_are_no_data(kind: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert says in line_of(lambda: READ[kind](tmp_path / "file"), tmp_path / "file")


def test_yaml_as_a_training_writes_it_is_read(tmp_path: Path) -> None:
    """Guards against refusing too much: nested mappings, lists, infinite numbers, keys that are no text, and names of
    files that are no UTF-8, which libyaml does not read."""
    (tmp_path / "file").write_text("a: {b: [1, .inf, null, 'x: y']}\n8: 2.5e-3\nlong: " + "x" * 5_000)
    expected = {"a": {"b": [1, float("inf"), None, "x: y"]}, 8: 2.5e-3, "long": "x" * 5_000}
    assert read_yaml(tmp_path / "file") == expected
    (tmp_path / "file").write_text(yaml.safe_dump({"path": "x\udcff"}))
    assert read_yaml(tmp_path / "file") == {"path": "x\udcff"}


def pipe(path: Path) -> None:
    os.mkfifo(path)


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "pipe": pipe,
    "folder": lambda path: path.mkdir(),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file(name: str, kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards every file of a folder against a pipe, a device, a folder or a dead link in its place: nothing waits."""
    (folder / name).unlink()
    SPECIAL[kind](folder / name)
    assert name in refused(["inspect", str(folder)], capfd)
    if name == "tokenizer.json":
        assert name in refused(["generate", str(folder), "--prompt", "a"], capfd)


def test_a_link_to_a_file_is_the_file(folder: Path, tmp_path: Path) -> None:
    """Guards against refusing too much: download caches keep links in folders."""
    for name in FILES:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert mull.load(folder).config.d_model == 16 and load_tokenizer(folder).get_vocab_size() == 257


def test_words_out_of_files_are_shown_in_print() -> None:
    assert (
        shown("a\x1b[2J\u202eb\ud800") == r"a\x1b[2J\u202eb\ud800" and shown(["x" * 99], 20) == "['xxxxxxxxxxxxxxx..."
    )
    assert one_line("a\n\tb  c\x00") == r"a b c\x00"
    long = one_line("place " + "x" * 10_000 + " remedy")
    assert len(long) == MAX_LINE and long.startswith("place x") and long.endswith("x remedy")


# -------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_like(path: Path, **parts: Any) -> Path:
    """A tokenizer.json that is sound but for these parts."""
    path.write_text(json.dumps(json.loads(byte_tokenizer().to_str()) | parts))
    return path


TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"post_processor": {**TEMPLATE, "special_tokens": {}}}, "no entry found for key"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "b" * 50}}, "is no tokenizer"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 99}] * 9,
                }
            },
            "may lengthen a text more than 1,000 times",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 9_000}}, "may lengthen a text"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}}, ""),
        ({"model": {"type": "Unigram", "unk_id": 9, "vocab": []}}, "is no tokenizer"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 1000, "stop": 1000}}, "index out of bounds"),
    ],
)
def test_tokenizers_that_fail_when_they_are_used(
    parts: dict[str, Any], says: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards against panics, which are no Exceptions and print by themselves, and against texts without end."""
    tokenizer_like(folder / "tokenizer.json", **parts)
    change_config(folder, tokenizer_sha256=None)
    assert says in line_of(lambda: load_tokenizer(folder), folder / "tokenizer.json")
    assert "tokenizer.json" in refused(["generate", str(folder), "--prompt", "a"], capfd)


def test_stored_padding_and_truncation_are_left_aside(tmp_path: Path) -> None:
    """Guards prompts, which a limit would cut silently, and memory, which padding to any length would take."""
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    file = tokenizer_like(tmp_path / "tokenizer.json", padding=padding, truncation=truncation)
    assert len(read_tokenizer(file).encode("abcdef").ids) == 6


# -------------------------------------------------------------------------------------------------- sizes and weights


@pytest.mark.parametrize(
    "changes",
    [
        {"n_core": 20_000},
        {"n_core": 9_999},
        {"d_ff": 10**12},
        {"d_ff": 10**400},
        {"d_model": 2**31 - 2, "n_heads": 1},
        {"vocab_size": 10**18},
        {"mean_iterations": 10**9},
        {"max_length": 10**15},
        {"rope_base": 10**30},
        {"stop_tokens": list(range(100_000))},
        {"wiring": "x" * 100_000},
        {"\x1b[31m" * 50: 1},
    ],
    ids=lambda changes: next(iter(changes))[:12].strip("\x1b"),
)
def test_sizes_are_compared_before_anything_is_built(
    changes: dict[str, Any], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guards time and memory: what the weights cannot be is refused at once, though the checksum vouches for it."""
    change_config(folder, **changes)
    assert "config.json" in refused(["inspect", str(folder)], capfd)


def test_many_layers_beside_one_large_tensor(tmp_path: Path) -> None:
    """Guards building where the numbers would suffice: 9,999 tiny layers are not built for a handful of tensors."""
    config = mull.RecurrentDepthConfig(**SHAPE | dict(d_model=2, n_heads=1, d_ff=1))
    store.save(mull.RecurrentDepthTransformer(config), tmp_path)
    change_weights(tmp_path, {"embedding.weight": torch.zeros(500_000)})
    change_config(tmp_path, n_core=9_999)
    assert "many more layers than there are weights" in line_of(lambda: mull.load(tmp_path), tmp_path / "config.json")


def test_a_file_of_weights_that_is_far_too_long(folder: Path) -> None:
    """Guards the checksum's time: a sparse file of a terabyte is refused by its length."""
    os.truncate(folder / "model.safetensors", 1 << 40)
    assert "has 1,099,511,627,776 bytes, many more than" in line_of(lambda: mull.load(folder), folder)


@pytest.mark.parametrize("size", [2**63, 2**40, 100 << 20])
def test_a_header_that_is_far_too_long(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(size.to_bytes(8, "little"))
    change_config(folder, weights_sha256=store.checksum_of(file))
    assert "is no safetensors file: its header has" in line_of(lambda: mull.load(folder), file)


def test_weights_of_several_types_become_the_widest(folder: Path) -> None:
    """Guards the first forward, which fails on mixed types: public folders may keep their norms wider."""
    weights = load_file(folder / "model.safetensors")
    change_weights(folder, {name: t if "norm" in name else t.bfloat16() for name, t in weights.items()})
    model = mull.load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    change_weights(folder, {name: t.to(torch.float8_e4m3fn) for name, t in weights.items()})
    assert "not floating-point (F64, F32, F16, BF16)" in line_of(lambda: mull.load(folder), folder)


def test_more_weights_than_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    with pytest.raises(ValueError, match="this machine has 0; load them on a larger one, or with mapped=True"):
        mull.load(folder)
    assert mull.load(folder, mapped=True).config.d_model == 16


OVERWRITTEN = """
import os, sys, torch, mull
model, file = mull.load(sys.argv[1]), os.path.join(sys.argv[1], "model.safetensors")
before = model(torch.tensor([[1, 2]])).logits
open(file, "wb").close()
assert torch.equal(model(torch.tensor([[1, 2]])).logits, before)
"""


def test_weights_do_not_depend_on_their_file(folder: Path) -> None:
    """Guards a model in memory against a file overwritten in place: mapped, its next forward kills the process."""
    assert subprocess.run([sys.executable, "-c", OVERWRITTEN, str(folder)]).returncode == 0


def test_a_file_that_becomes_shorter_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensors.open_regular

    def cut(path: Path) -> Any:
        os.truncate(path, os.stat(path).st_size - 1)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "check_memory", lambda _: patch.setattr(tensors, "open_regular", cut))
        assert "it has become shorter" in line_of(lambda: mull.load(folder), folder / "model.safetensors")


# -------------------------------------------------------------------------------------------- checksums and `inspect`


def test_each_file_that_decides_answers_has_a_checksum(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards against values that are changed and still sound: a base of rotations, an end token, a token's text."""
    config, tokens = folder / "config.json", folder / "tokenizer.json"
    sound = config.read_bytes()
    for old, new in (
        ("50000.0", "50001.0"),
        ('"n_coda": 1', '"n_coda": 2'),
        ('"tokenizer_sha256": "', '"tokenizer_sha256": "0'),
    ):
        config.write_bytes(sound.replace(old.encode(), new.encode(), 1))
        assert config.read_bytes() != sound
        assert "config.json is damaged: its fields" in line_of(lambda: mull.load(folder), config)
        assert "config.json is damaged" in refused(["inspect", str(folder)], capfd)
    config.write_bytes(sound)
    tokens.write_bytes(tokens.read_bytes().replace(b"<end>", b"<enD>"))
    assert "tokenizer.json is damaged: its checksum" in line_of(lambda: load_tokenizer(folder), tokens)
    assert "tokenizer.json is damaged" in refused(["inspect", str(folder)], capfd)
    assert "tokenizer.json is damaged" in refused(["convert", str(folder), str(folder / "new")], capfd)


def test_a_save_without_a_tokenizer_vouches_for_the_one_that_stays(folder: Path) -> None:
    mull.save(mull.load(folder), folder)
    assert load_tokenizer(folder).get_vocab_size() == 257
    (folder / "tokenizer.json").write_text("{}")
    assert "is damaged" in line_of(lambda: load_tokenizer(folder), folder)


def test_folders_of_earlier_versions_load(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards old folders, which have the checksum of the weights only; `inspect` says what nothing vouches for."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("config_sha256", "tokenizer_sha256"):
        config.pop(name)
    (folder / "config.json").write_text(json.dumps(config))
    assert mull.load(folder).config.d_model == 16 and load_tokenizer(folder).get_vocab_size() == 257
    assert main(["inspect", str(folder)]) == 0
    said = capfd.readouterr().out
    assert "checksums right: model.safetensors; without a checksum: config.json, tokenizer.json" in said


def test_inspect_speaks_well_of_sound_folders_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    count = sum(p.numel() for p in mull.load(folder).parameters())
    assert (
        f"weights: {count:,} numbers, complete and finite; "
        "checksums right: config.json, model.safetensors, tokenizer.json\n"
    ) in capfd.readouterr().out
    weights = load_file(folder / "model.safetensors")
    weights["final_norm.weight"][3] = float("inf")
    change_weights(folder, weights)
    assert "final_norm.weight has numbers that are not finite" in refused(["inspect", str(folder)], capfd)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "model.safetensors is damaged" in refused(["inspect", str(folder)], capfd)
    file.rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle, which is never read" in refused(["inspect", str(folder)], capfd)


@pytest.mark.parametrize(
    "rows",
    [
        3,
        [3],
        [[]],
        [{"iterations": 8, "accuracy": 0.5}],
        [{"iterations": {"a": "\x1b[31m"}, "accuracy": "\n"}],
        [{"accuracy": ["x"] * 99}],
        [{"accuracy": [0.5]}],
        [{"capacity_met": 3}],
        [{"capacity_asked": ["a"]}],
        [{"iterations": True, "loss": 1e301}],
        None,
    ],
)
def test_odd_rows_in_depth_json(rows: Any, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards `inspect` against a table that is none, and terminals against what stands in it."""
    (folder / "depth.json").write_text(json.dumps({"command": "\x1b[31m" + "x" * 999, "rows": rows}))
    if not (isinstance(rows, list) and isinstance(rows[0], dict)):
        assert "depth.json lacks a command or rows" in refused(["inspect", str(folder)], capfd)
        return
    if rows != [{"iterations": 8, "accuracy": 0.5}]:
        assert "which is no number; measure again" in refused(["inspect", str(folder)], capfd)
        return
    assert main(["inspect", str(folder)]) == 0
    said = capfd.readouterr().out
    assert all(line.isprintable() and len(line) < 400 for line in said.splitlines()[3:])
    assert re.search(r"\\x1b\[31mx+\.\.\.`:", said)


@pytest.mark.parametrize(
    "training", ["trainer: 3", "data: [1]", "data: {class_path: [1], init_args: 3}", "model: {iterations: '\\e[31m'}"]
)
def test_odd_trainings(training: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "training.yaml").write_text(training)
    status = main(["inspect", str(folder)])
    said = capfd.readouterr()
    assert status == 0 or (status == 2 and "must hold mappings" in said.err)
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())


@pytest.mark.parametrize("option", ["--difficulty", "--iterations"])
@pytest.mark.parametrize("value", ["1000000000", "9" * 30])
def test_what_would_never_end_is_refused(option: str, value: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards the command line: a slip of the hand ends in one line, and not with a machine out of memory."""
    assert "list of integers from 1 to 1,000,000" in refused(["evaluate", str(PARITY), option, value], capfd)
    assert "is too large for the parity task" in refused(["evaluate", str(PARITY), "--difficulty", "900000"], capfd)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"class_path": "mull.training.data.PHop", "init_args": {"max_hops": 10**9}}, "must be at most 100,000"),
        ({"class_path": "mull.training.data.PHop", "init_args": {"length": 10**9}}, "must be at most 100,000"),
        ({"class_path": "mull.training.data.Parity", "init_args": {"length": 10**9}}, "is too large"),
        ({"class_path": "mull.training.data.Addition", "init_args": {"numbers": 10**9}}, "is too large"),
    ],
)
def test_tasks_of_endless_size(task: Any, says: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Guards what a folder says of its own task, which is built to measure it."""
    data = {"class_path": "mull.training.data.TaskData", "init_args": {"task": task}}
    (folder / "training.yaml").write_text(json.dumps({"data": data}))
    assert says in refused(["evaluate", str(folder)], capfd)
