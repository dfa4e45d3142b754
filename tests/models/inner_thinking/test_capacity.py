"""A capacity that is asked for is met; and what is no capacity, no configuration and no call is refused by name."""

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mull
from mull.models import InnerThinkingConfig, InnerThinkingTransformer
from mull.models.rules import RULES
from mull.models.selection import over_threshold

Make = Callable[..., InnerThinkingTransformer]
MakeConfig = Callable[..., InnerThinkingConfig]
Tokens = Callable[..., Tensor]
Fields = dict[str, Any]

ROOT = Path(__file__).parents[3]
LOOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("changes", [{}, {"gate": "tanh", "rule": "loop"}], ids=str)
def test_a_requested_capacity_is_met_within_two_points(make: Make, tokens: Tokens, changes: Fields) -> None:
    """On text that the calibration has not seen. Tokens of one row share their context, and with weights as wild as
    these their fate: were a row's tokens all alike, a share of 4,000 rows would err by 0.8 points (one sigma). Of a
    first position only the token matters: with many tokens no single logit holds much of the mass."""
    model = make(vocab_size=199, n_layers=2, **changes).float()
    model.calibrate(tokens(model.config, 4000, 4, seed=3))
    fresh = tokens(model.config, 4000, 4, seed=4)
    for capacity in (0.05, 0.5, 0.95):
        met = model(fresh, capacity=capacity).selected.double().mean(dim=(0, 1))
        assert (met - capacity).abs().max() < 0.02, (capacity, met)


def test_a_capacity_of_its_own_for_every_pass_is_met() -> None:
    """Guards thresholds against the passes before: behind 90 % of the tokens a router says other logits than behind
    10 %, and the threshold for 10 % behind 10 % is met by 1 to 3 %. Random routers say much the same after a pass, so
    this is a trained one, on English text: every other window calibrates."""
    model = mull.load(ROOT / "checkpoints" / "inner-thinking")
    text = b"".join((ROOT / "docs" / name).read_bytes() for name in ("reliability.md", "architecture.md"))
    windows = torch.tensor(list(text[: 64 * 64])).view(64, 64)
    model.calibrate(windows[::2])
    for capacity in ((0.9, 0.9, 0.1), (0.9, 0.1, 0.9), (0.2, 0.5, 0.8)):
        with torch.no_grad():
            met = model(windows[1::2], 4, capacity=capacity).selected.double().mean(dim=(0, 1))
        assert (met - torch.tensor(capacity)).abs().max() < 0.04, (capacity, met)
        assert (met[:, 2] / capacity[2] - 1).abs().max() < 0.3, (capacity, met)  # the third, as a ratio too


def test_thresholds_of_before_hold_behind_any_capacity(make: Make, tokens: Tokens, tmp_path: Path) -> None:
    """Guards folders of the version whose thresholds were (passes, capacities): they load, and answer as they did."""
    model = make()
    for layer in (model.layers[index] for index in model.config.thinking):
        layer.thresholds.copy_(layer.thresholds[:, 5:6].expand_as(layer.thresholds))  # whatever was before
    mull.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    small = {n: t[:, 5].contiguous() if n.endswith("thresholds") else t for n, t in tensors.items()}
    assert small.keys() == tensors.keys() and any(small[name].shape != tensors[name].shape for name in small)
    save_file(small, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["weights_sha256"] = sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    del config["config_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = tokens(model.config, 2, 9)
    for capacity in (0.5, (0.9, 0.3, 0.4)):
        torch.testing.assert_close(
            mull.load(tmp_path)(ids, capacity=capacity).logits, model(ids, capacity=capacity).logits
        )
    small = {n: t[:, :3].contiguous() if n.endswith("thresholds") else t for n, t in small.items()}
    save_file(small, tmp_path / "model.safetensors")
    config["weights_sha256"] = sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="thresholds has shape"):
        mull.load(tmp_path)


def test_top_k_takes_the_share_exactly(make: Make, tokens: Tokens) -> None:
    model = make().train()
    selected = model(tokens(model.config, 2, 20), capacity=(0.5, 0.15, 1.0)).selected
    assert selected.sum(dim=1).tolist() == [[[10, 3, 20]]] * 2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_fresh_router_nearly_meets_a_capacity_uncalibrated(make_config: MakeConfig, temperature: float) -> None:
    """Its logits are normal with variance 2/5 over the square of its temperature, where the table starts; the mean over
    200 routers errs by little."""
    torch.manual_seed(0)
    config = make_config(d_model=96, mean_iterations=201, router_temperature=temperature)
    layer = InnerThinkingTransformer(config).layers[1]
    logits, thresholds = layer.logits, layer.thresholds[0, 0]
    assert abs(thresholds[5]) < 1e-6 and (thresholds.diff() < 0).all()
    states = torch.randn(1, 2000, 96)
    met = torch.stack([over_threshold(logits(states, t), None, 0.3, thresholds).double().mean() for t in range(200)])
    assert abs(met.mean() - 0.3) < 0.01


def test_calibration_counts_tokens_and_not_padding(make: Make, tokens: Tokens) -> None:
    """Thresholds of a padded batch are those of its rows side by side, whatever the padding holds."""
    model, ids = make(), tokens(make().config, 8, 40, seed=5)
    model.calibrate(ids)
    exact = model.layers[1].thresholds.clone()
    padded = torch.cat([ids, torch.zeros(8, 7, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(8, 7, dtype=torch.int64)], dim=1)
    model.calibrate(padded, mask)
    torch.testing.assert_close(model.layers[1].thresholds, exact)
    model.calibrate(padded)
    assert (model.layers[1].thresholds - exact).abs().max() > 1e-3


def test_a_folder_round_trip_keeps_thresholds_and_answers(make: Make, tokens: Tokens, tmp_path: Path) -> None:
    """To rounding: a mapped file lies elsewhere in memory, and sums differ in the last bit."""
    model = make(thinking_layers=(0, 2), capacity=0.6)
    mull.save(model, tmp_path / "saved")
    loaded = mull.load(tmp_path / "saved")
    assert loaded.config == model.config and isinstance(loaded, InnerThinkingTransformer)
    ids = tokens(model.config, 2, 9)
    for capacity in (None, 0.25, (0.9, 0.0, 0.4)):
        torch.testing.assert_close(loaded(ids, capacity=capacity).logits, model(ids, capacity=capacity).logits, **LOOSE)
    assert torch.equal(loaded.layers[2].thresholds, model.layers[2].thresholds)


# ------------------------------------------------------------------------------------------------ refusals


def test_thinking_layers_are_every_other_one() -> None:
    def chosen(n_layers: int) -> tuple[int, ...]:
        return InnerThinkingConfig(vocab_size=3, d_model=8, n_heads=2, n_layers=n_layers).thinking

    assert [chosen(n) for n in (1, 2, 5, 8)] == [(0,), (1,), (1, 3), (1, 3, 5, 7)]


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_layers": 0}, "n_layers must be at least 1, not 0"),
    ({"mean_iterations": 0}, "mean_iterations must be at least 1, not 0"),
    ({"capacity": 0.0}, "capacity must lie above 0 and at most at 1, not 0.0"),
    ({"capacity": 1.5}, "capacity must lie above 0 and at most at 1, not 1.5"),
    ({"router_temperature": 0.0}, "router_temperature must be positive, not 0.0"),
    ({"thinking_layers": (1, 3)}, r"thinking_layers must name layers from 0 to 2, .* not \[1, 3\]"),
    ({"thinking_layers": (1, 0)}, r"ascending and at least one, not \[1, 0\]"),
    ({"thinking_layers": ()}, r"at least one, not \[\]"),
    ({"rule": "sum"}, f"rule must be one of {', '.join(map(repr, RULES))}, not 'sum'"),
    ({"rule": 3}, "rule must be str, not 3"),
], ids=str)  # fmt: skip
def test_bad_configurations_are_refused(make_config: MakeConfig, changes: Fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"capacity": 1.2}, "capacity 1.2 lies outside 0 .. 1"),
    ({"capacity": -0.1}, "capacity -0.1 lies outside 0 .. 1"),
    ({"capacity": math.nan}, "capacity nan lies outside 0 .. 1"),
    ({"capacity": (0.5, 0.5)}, "capacity names 2 routed passes and there are 3"),
    ({"capacity": "half"}, "capacity must be a number from 0 to 1"),
    ({"capacity": True}, "capacity must be a number from 0 to 1"),
    ({"selection": "best"}, "selection must be one of 'top_k', 'threshold', not 'best'"),
    ({"iterations": 0}, "iterations must be at least 1, not 0"),
    ({"read_at": [5]}, r"read_at \[5\] lies outside 1 .. iterations=4"),
    ({"iterations": torch.tensor([1, 2]), "read_at": [1]}, "read_at needs one iteration count for all rows"),
], ids=str)  # fmt: skip
def test_bad_calls_are_refused(make: Make, tokens: Tokens, arguments: Fields, message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message):
        model(tokens(model.config, 2, 5), **arguments)


def test_a_model_without_routing_refuses_a_capacity(make: Make, tokens: Tokens) -> None:
    model = make(routing=False)
    with pytest.raises(ValueError, match=r"routes nothing: capacity=0\.5 is refused"):
        model(tokens(model.config, 1, 5), capacity=0.5)
