"""The start of the weights: each kind of matrix has its std, and the signal stays sane however long the loop runs.

The std of a sample of n errs by at most 1 / sqrt(2 n) of itself (one sigma; a cut normal errs less): five are allowed.
"""

import math

import pytest
import torch

from mull.models import (
    InnerThinkingConfig,
    LanguageModel,
    ModelConfig,
    RecurrentDepthConfig,
    TransformerConfig,
)
from mull.models.families import FAMILIES
from mull.models.injection import INJECTIONS

WIDE = {"vocab_size": 300, "d_model": 96, "n_heads": 6, "n_kv_heads": 2, "tie_embeddings": False}
CUT = math.sqrt(
    1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2))
)  # std after the cut: 0.987


def started(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    return FAMILIES[config.model_type](config)


@pytest.mark.parametrize(("config", "layers"), [
    (RecurrentDepthConfig(**WIDE, n_prelude=2, n_core=3, n_coda=1, mean_iterations=5), 2 + 5 * 3 + 1),
    (RecurrentDepthConfig(**WIDE, injection="diagonal", exit_gate=True, qk_norm=True, wiring="pre_norm"), 10),
    (TransformerConfig(**WIDE, n_layers=7), 7),
    (InnerThinkingConfig(**WIDE, n_layers=5, mean_iterations=3), 5 + 2 * 2),
], ids=["concat", "diagonal", "transformer", "inner thinking"])  # fmt: skip
def test_every_parameter_starts_as_documented(config: ModelConfig, layers: int) -> None:
    assert config.effective_depth == layers
    std = math.sqrt(2 / (5 * 96))
    for name, parameter in started(config).named_parameters():
        if name in ("injection.log_rate", "injection.raw_dt", "injection.write"):
            continue  # next test
        if name.endswith("step_encoding"):
            assert (parameter[0] == 1).all() and (parameter[1:] == 0.5).all(), name  # 1 / (passes - 1)
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            to_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
            sigma = std / math.sqrt(2 * layers) if to_stream else std
            tolerance = 5 / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() / (CUT * sigma) - 1) < tolerance, name
            assert abs(parameter.mean().item()) < 5 * sigma / math.sqrt(parameter.numel()), name
            assert parameter.abs().max() <= 3 * sigma * (1 + 1e-6), name


def test_the_diagonal_injection_starts_with_decay_sqrt_one_fifth_and_the_identity() -> None:
    injection = started(RecurrentDepthConfig(vocab_size=5, d_model=8, injection="diagonal")).injection
    state, nothing = torch.randn(2, 3, 8), torch.zeros(2, 3, 8)
    torch.testing.assert_close(injection(state, injection.prepare(nothing)), state * math.sqrt(1 / 5))
    assert torch.equal(injection.write, torch.eye(8))


@torch.no_grad()
@pytest.mark.parametrize("wiring", ["sandwich", "pre_norm"])
@pytest.mark.parametrize("injection", list(INJECTIONS))
def test_the_signal_of_a_fresh_model_stays_sane_for_64_iterations(wiring: str, injection: str) -> None:
    """A sandwich's state has rms 1 whatever happens. Without it, adding an input to the state 64 times grows it 64-fold
    at most; an injection that decays or mixes keeps it near 1. Logits are normed, so they start near std 1 always."""
    config = RecurrentDepthConfig(vocab_size=50, d_model=48, n_core=2, n_coda=2, wiring=wiring, injection=injection)
    model = started(config)
    out = model(torch.randint(50, (2, 16)), iterations=64, read_at=[1, 8, 64])
    rms = out.state.square().mean().sqrt().item()
    if wiring == "sandwich":
        assert rms == pytest.approx(1, abs=1e-3)
    else:
        assert 0.2 < rms < (64 if injection == "add" else 2)
    for reading in out.readings.values():
        assert 0.3 < reading.logits.std() < 1.5
        assert reading.logits.std(dim=(0, 1)).mean() > 0.2  # positions still differ
