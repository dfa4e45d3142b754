"""Loading takes little more memory than the weights: measured in a process of its own, over a model large enough to
stand out from the interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mull.checkpoints import huginn
from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer

PEAK = """
import sys, torch, mull, mull.checkpoints.store
def peak(field):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(field))
folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
before = peak("VmRSS:")
model = mull.load(folder, dtype=dtype)
with torch.no_grad():
    assert all(p.dtype == dtype and p.sum() == p.sum() for p in model.parameters())  # maps what was not read yet
print((peak("VmHWM:") - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public folder of 150 MB in three shards with an index, as large checkpoints come."""
    folder = tmp_path_factory.mktemp("public")
    config = RecurrentDepthConfig(vocab_size=64, d_model=512, n_heads=8, n_prelude=2, n_core=8, n_coda=2, max_length=16)
    huginn.write(RecurrentDepthTransformer(config), folder)
    weights = load_file(folder / huginn.WEIGHTS)
    placed = {name: f"model-{place % 3}.safetensors" for place, name in enumerate(sorted(weights))}
    for file in sorted(set(placed.values())):
        save_file({name: weights[name] for name in weights if placed[name] == file}, folder / file)
    (folder / huginn.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / huginn.WEIGHTS).unlink()
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_stays_within_a_fifth_above_the_weights(sharded: Path, dtype: str) -> None:
    """As stored, and converted: the stored weights must not stay beside the converted ones."""
    run = subprocess.run([sys.executable, "-c", PEAK, str(sharded), dtype], capture_output=True, text=True, check=True)
    assert 0.9 < float(run.stdout) < 1.2
