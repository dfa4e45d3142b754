"""Folders and devices (tests/elsewhere.py): a model is loaded to a device, and saved from one, in both layouts. What is
stored depends on neither."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mull
from mull.checkpoints import huginn
from mull.checkpoints.store import verify
from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer
from mull.models.families import FAMILIES

SHAPE = {"vocab_size": 7, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_length": 16}
IDS = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0))
FIXTURE = Path(__file__).parents[1] / "fixtures" / "huginn-1-2-1"


def build(family: str) -> mull.models.LanguageModel:
    torch.manual_seed(0)
    return FAMILIES[family](FAMILIES[family].config_class(**SHAPE)).double().eval()


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_model_is_loaded_to_a_device(
    elsewhere: ModuleType, tmp_path: Path, family: str, dtype: torch.dtype | None, mapped: bool
) -> None:
    mull.save(build(family), tmp_path)
    here = mull.load(tmp_path, dtype=dtype)
    with elsewhere.second_device():
        there = mull.load(tmp_path, elsewhere.ELSEWHERE, dtype, mapped=mapped)
        assert there.device == elsewhere.ELSEWHERE and there.dtype == here.dtype
        for name, tensor in there.state_dict().items():
            assert isinstance(tensor, elsewhere.Elsewhere), f"{name} is left on the CPU"
            assert torch.equal(tensor.held, here.state_dict()[name])
        logits = there(elsewhere.Elsewhere(IDS)).logits
    torch.testing.assert_close(logits.held, here(IDS).logits)


def test_a_public_folder_is_loaded_to_a_device(elsewhere: ModuleType) -> None:
    here = mull.load(FIXTURE)
    with elsewhere.second_device():
        there = mull.load(FIXTURE, elsewhere.ELSEWHERE)
        assert all(torch.equal(x.held, here.state_dict()[name]) for name, x in there.state_dict().items())


@pytest.mark.parametrize("write", [mull.save, huginn.write], ids=["mull", "public"])
def test_a_model_is_saved_from_a_device_as_from_the_cpu(
    elsewhere: ModuleType, tmp_path: Path, write: Callable[[mull.models.LanguageModel, Path], None]
) -> None:
    """Byte for byte."""
    model = RecurrentDepthTransformer(RecurrentDepthConfig(**SHAPE)).eval()
    write(model, tmp_path / "here" / "x")
    with elsewhere.second_device():
        write(elsewhere.moved(model), tmp_path / "there" / "x")
        assert mull.load(tmp_path / "there" / "x", elsewhere.ELSEWHERE).device == elsewhere.ELSEWHERE
    files = sorted(file.name for file in (tmp_path / "here" / "x").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "there" / "x").iterdir())
    for file in files:
        assert (tmp_path / "here" / "x" / file).read_bytes() == (tmp_path / "there" / "x" / file).read_bytes(), file


def test_a_folder_is_verified_where_there_is_a_second_device(elsewhere: ModuleType, tmp_path: Path) -> None:
    mull.save(build("inner_thinking"), tmp_path)
    with elsewhere.second_device():
        assert "complete and finite" in verify(tmp_path)[1]
