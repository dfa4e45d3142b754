"""What every test shares: one thread, little collecting of garbage, no waiting for the disk, hypothesis without chance,
deadlines or files, and a second device."""

import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import settings

# A million objects of torch, Lightning and the rest are alive all the time: to look through them for garbage as often
# as Python does by itself takes a sixth of the tests' time.
gc.set_threshold(100_000, 20, 50)
# Waiting for the disk is a quarter of a small run's time, and no test ends in a power cut. What is called in its place
# refuses a file that is not open, as it does. Tests of what is written through, and when, put their own function here.
os.fsync = os.fstat
torch.set_num_threads(1)  # two threads on a small shared machine can be 20 times slower than one
# torch keeps every seed for devices that may still be found, with a trace of the whole stack: that takes as long as to
# build a small model. Devices that are not there miss nothing.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda _: None
settings.register_profile("mull", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("mull")

# What starts processes and trains, the longest first: a file is one worker's, and one that comes last is waited for.
LONGEST = ("training/test_stops", "test_docs", "test_extending", "training/", "test_wheel", "test_configs", "inference")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((i for i, beginning in enumerate(LONGEST) if file.startswith(beginning)), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    if "mull.training.cli" in sys.modules:
        keep_parsers()
    lookup: Any = sys.modules.get("lightning.fabric.utilities.registry")
    if lookup is not None:  # each trainer looks through all that is installed, which stays the same
        lookup.entry_points = functools.cache(lookup.entry_points)
    gc.collect()
    gc.freeze()


def keep_parsers() -> None:
    """To build the parser of `mull train` takes a quarter of the time that reading a configuration takes: runs of one
    process share it. Nothing of a run is left in it, and what a class_path may name is looked up whenever one is read;
    a page of help is written into it, and it is not taken again."""
    from mull.training.cli import TrainingCLI

    build, kept = TrainingCLI.setup_parser, dict[str, Any]()

    def take(self: TrainingCLI, *how: Any) -> None:
        known = kept.get(repr(how))
        if known is None or known.usage is not None:
            build(self, *how)
            known = kept[repr(how)] = self.parser
        self.parser = known

    TrainingCLI.setup_parser = take  # type: ignore[assignment]


@pytest.fixture(scope="module")
def short_cards() -> Iterator[None]:
    """For whoever trains and looks at no card: its example is of two tokens, and its picture is not drawn."""
    import mull.training.measuring  # takes the picture along when it is first imported, and would keep this one  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.training.export.LONGEST_ANSWER", 2)
        patch.setattr("mull.training.export.picture_of", lambda *_: b"no picture")
        yield


@pytest.fixture(scope="session")
def elsewhere() -> ModuleType:
    """A second device for machines that have none: elsewhere.py."""
    spec = importlib.util.spec_from_file_location("elsewhere", Path(__file__).with_name("elsewhere.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["elsewhere"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
