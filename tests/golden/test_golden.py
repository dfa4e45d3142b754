"""Golden numbers: what models, caches, exits, decoders and ten steps of training said when they were recorded.

They guard against a change that nobody meant. Tests elsewhere compare one way of computing with another, and both can
drift together; these compare with the past. The cases are in cases.py; the record is golden.json.gz, which record.py
writes. The rule: a refactoring leaves the record alone; a commit that changes a number on purpose says which and why.
"""

import gzip
import importlib.util
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest


def load_cases() -> ModuleType:
    """cases.py, which is a file beside this one and in no package."""
    spec = importlib.util.spec_from_file_location("golden_cases", Path(__file__).with_name("cases.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


cases = load_cases()
CASES = cases.every_case()
RECORD: dict[str, dict[str, list[Any]]] = json.loads(
    gzip.decompress(Path(__file__).with_name("golden.json.gz").read_bytes())
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """Guards the numbers of one case: integers exactly, floats to the tolerance of the case (1e-9 for most)."""
    case = CASES[name]
    assert cases.differences(cases.condensed(case.compute()), RECORD[name], case) == []


def test_every_case_is_recorded() -> None:
    """Guards against a record that has fallen behind the cases, and cases that have silently gone."""
    assert {*CASES} == {*RECORD} and len(CASES) > 600


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_value_of_every_option_has_a_case(family: str) -> None:
    """Guards the list of models: options are written out there, and a new value must be added by hand."""
    config = cases.FAMILIES[family][0]
    hints = {f.name: get_type_hints(config)[f.name] for f in fields(config)}
    closed = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    closed |= {name: (False, True) for name, hint in hints.items() if hint is bool}
    closed |= {name: tuple(registry) for name, registry in config.choices.items()}
    made = [cases.config_of(name) for name in cases.MODELS if name.startswith(family)]
    missing = [
        f"{name}={value}"
        for name, values in closed.items()
        for value in values
        if value not in {getattr(each, name) for each in made}
    ]
    assert closed and missing == []


def test_the_texts_are_alive() -> None:
    """Guards the guard: texts of one token, and exits that all leave at once or never, would hide most mistakes."""
    texts = {name: case["tokens"] for name, case in RECORD.items() if "tokens" in case}
    assert len(texts) > 100 and all(len({*tokens}) >= 6 for tokens in texts.values())
    depths = {name: {*case["iterations"]} - {0} for name, case in RECORD.items() if name.startswith("exits/")}
    assert all(len(used) >= 3 for name, used in depths.items() if not name.startswith("exits/fixed"))
    stopped = [name for name, case in RECORD.items() if "tokens" in case and 0 in case["iterations"]]
    assert len(stopped) > 40
