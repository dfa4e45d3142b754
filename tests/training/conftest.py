"""The harness that kills runs, benchmarks/reliability.py, for the tests that use a short form of it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def reliability() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def without_cards(request: pytest.FixtureRequest) -> None:
    """Cards are made in full where they are looked at, and in short everywhere else."""
    if request.path.stem not in ("test_export", "test_shipped"):
        request.getfixturevalue("short_cards")
