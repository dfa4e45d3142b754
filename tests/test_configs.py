"""Every YAML of configs/ is a run that works: two tiny steps, a folder, a reload, a generation."""

from pathlib import Path

import pytest
import torch

import mull
from mull.checkpoints import load_tokenizer
from mull.training.run import train

CONFIGS = Path(__file__).parents[1] / "configs"


def small(name: str, tmp_path: Path) -> list[str]:
    """Overrides that keep what a configuration is and make it tiny."""
    overrides = {
        "output": tmp_path / "run",
        "threads": 1,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,
        "trainer.enable_progress_bar": "false",
        "model.network.init_args.config.d_model": 16,
        "model.network.init_args.config.d_ff": 24,
        "model.network.init_args.config.n_heads": 2,
        "data.init_args.batch_size": 2,
    }
    if name.startswith(("text", "inner_thinking")):
        text = tmp_path / "some.txt"
        text.write_text("".join(f"Line {i} of a text about the number {i * i}.\n" for i in range(1200)))
        overrides |= {
            "data.init_args.paths": f"[{text}]",
            "data.init_args.fields": "null",
            "data.init_args.length": 16,
            "data.init_args.validation_windows": 2,
            "data.init_args.held_out": 0.3,
            "data.init_args.cache": tmp_path / "cache",
        }
    else:
        overrides["data.init_args.validation_examples"] = 2
    return [word for key, value in overrides.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_trains_saves_loads_and_generates(config: Path, tmp_path: Path) -> None:
    """A configuration that no longer runs is noticed here and not by the newcomer."""
    folder = train(["--config", str(config), *small(config.stem, tmp_path)])
    written = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.yaml", "depth.json", "README.md"} <= written
    model = mull.load(folder)
    prompt = torch.tensor([load_tokenizer(folder).encode("1 0 1").ids])
    iterations = None if isinstance(model, mull.Transformer) else 2
    result = mull.generate(model, prompt, iterations=iterations, max_new_tokens=2)
    assert result.tokens.shape[1] > prompt.shape[1]
    assert torch.isfinite(model(prompt, iterations=iterations).logits).all()
