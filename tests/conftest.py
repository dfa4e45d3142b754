"""What every test shares: one thread, hypothesis without chance, deadlines or files, and a second device."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two threads on a small shared machine can be 20 times slower than one
settings.register_profile("mull", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("mull")


@pytest.fixture(scope="session")
def elsewhere() -> ModuleType:
    """A second device for machines that have none: elsewhere.py."""
    spec = importlib.util.spec_from_file_location("elsewhere", Path(__file__).with_name("elsewhere.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["elsewhere"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
