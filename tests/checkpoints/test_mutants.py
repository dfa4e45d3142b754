"""Damaged and hostile copies of a shipped folder, in short; benchmarks/mutants.py has the long form with counts."""

import importlib.util
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mull.checkpoints import load_tokenizer, store

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "checkpoints" / "parity"


@pytest.fixture(scope="module")
def mutants() -> Iterator[ModuleType]:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_mutants_load_right_or_are_refused_in_one_line(mutants: ModuleType) -> None:
    found = [
        (kind, way, verdict) for kind, ways in mutants.run_mutants(30, 1, [PARITY]) for way, verdict in ways.items()
    ]
    assert {verdict for _, _, verdict in found} == {"right", "one line"}, Counter(found)
    assert {kind for kind, _, _ in found} == {change.__name__ for change in mutants.CHANGES}


@pytest.mark.parametrize(("name", "step"), [("config.json", 9), ("tokenizer.json", 31)])
def test_a_flipped_bit_is_one_line_or_no_change(name: str, step: int, mutants: ModuleType) -> None:
    """Guards values that stay sound when a bit flips. What loads in spite of it is the same, as 1E-06 is 1e-06."""
    counts = mutants.run_flips(PARITY, name, step)
    bits = 8 * (PARITY / name).stat().st_size
    assert set(counts) <= {"right", "one line"} and counts.total() == -(-bits // step), counts
    assert counts["right"] <= 3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: 1 / 0, "fault: ZeroDivisionError"),
        (lambda: print("word", file=sys.__stderr__, flush=True), "fault: printed"),
        (lambda: (_ for _ in ()).throw(ValueError("a\nb")), "fault: 3 characters"),
        (lambda: (_ for _ in ()).throw(ValueError("a" * 2_000)), "fault: 2000 characters"),
        (lambda: (_ for _ in ()).throw(SystemExit(3)), "fault: SystemExit"),
        (lambda: 3, "right"),
        (lambda: (_ for _ in ()).throw(ValueError("short")), "one line"),
    ],
)
def test_the_judge_sees_what_is_wrong(call: Any, says: str, mutants: ModuleType, tmp_path: Path) -> None:
    """Guards the guard: each kind of fault is one."""
    (tmp_path / "folder").mkdir()
    assert mutants.outcome(call, tmp_path / "folder")[0].startswith(says)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["config.json", "tokenizer.json", "training.yaml", "depth.json"]), st.binary(max_size=200))
def test_any_bytes_in_any_file(mutants: ModuleType, tmp_path: Path, name: str, data: bytes) -> None:
    """Guards against contents that nobody thought of."""
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PARITY, folder)
    (folder / name).write_bytes(data)
    verdicts = mutants.judge(folder, PARITY)
    assert set(verdicts.values()) <= {"right", "one line"}, verdicts
    assert verdicts["inspect"] == "one line"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(sorted(store.read_json(PARITY / "config.json"))), value=json_values)
def test_any_value_in_any_field(mutants: ModuleType, tmp_path: Path, field: str, value: Any) -> None:
    """Guards every field of config.json against every type, vouched for by a fresh checksum."""
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PARITY, folder)
    (folder / "config.json").write_text(mutants.json.dumps(store.read_json(PARITY / "config.json") | {field: value}))
    if field != "config_sha256":
        try:
            mutants.vouch(folder)
        except (ValueError, TypeError, AttributeError):  # not even a checksum can be made
            return
    assert set(mutants.judge(folder, PARITY).values()) <= {"right", "one line"}


def test_the_shipped_folders_are_vouched_for() -> None:
    """Guards the shipped folders: each has all three checksums, and they are right."""
    for folder in (PARITY, ROOT / "checkpoints" / "text", ROOT / "checkpoints" / "inner-thinking"):
        said = store.read_fields(folder)
        assert all(len(said[f"{name}_sha256"]) == 64 for name in ("config", "weights", "tokenizer"))
        assert load_tokenizer(folder).get_vocab_size() == said["vocab_size"]
        assert "checksums right: config.json, model.safetensors, tokenizer.json" in store.verify(folder)[1]
