"""Saved and opened again in fresh processes: the same logits to the bit."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import sys, hashlib, os, torch
torch.set_num_threads(1)
import mull.inference.hugging_face
from transformers import AutoModelForCausalLM, AutoTokenizer
for _ in range(3):
    child = os.fork()
    if child == 0:
        break
    assert os.waitpid(child, 0)[1] == 0
else:
    sys.exit()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer(["Tom has 3 apples.", "Ann"], return_tensors="pt", padding=True)
print(hashlib.sha256(model(**inputs, iterations=6).logits.detach().numpy().tobytes()).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes part by fork")
def test_three_fresh_processes(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """Guards loading against what a process happens to hold in memory, which a buffer that nobody fills would show. The
    three part where transformers has been imported and nothing has been opened: its start is paid for once."""
    model, tokenizer = opened("inner-thinking")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = tokenizer(["Tom has 3 apples.", "Ann"], return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = hashlib.sha256(model(**inputs, iterations=6).logits.numpy().tobytes()).hexdigest()
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [wanted] * 3
