"""Saved and opened again in other processes: the same logits to the bit."""

import hashlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("processes part by fork", allow_module_level=True)


def said(model: Any, tokenizer: Any) -> str:
    inputs = tokenizer(["Tom has 3 apples.", "Ann"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return hashlib.sha256(model(**inputs, iterations=6).logits.numpy().tobytes()).hexdigest()


def said_by(folder: Path, left_over: float) -> str:
    """What the model of a folder says in this process, whose memory holds other numbers than that of the next one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    freed = [torch.full((2**size,), left_over) for size in [*range(4, 19)] * 4]
    del freed
    return said(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def test_three_processes(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """Guards loading against what a process happens to hold in memory, which a buffer that nobody fills would show."""
    model, tokenizer = opened("inner-thinking")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = [pool.apply(said_by, (tmp_path, number)) for number in (3.0, 7.0, torch.nan)]
    assert found == [said(model, tokenizer)] * 3
