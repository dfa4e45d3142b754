"""The public recurrent-depth reference: its golden outputs, on its weights, from this library's model.

Proves every choice in the architecture at once: pair layout of the rotation, bias before rotation, gate before up,
[state ; injected] order, the norms of a layer, the final norm used twice, the embedding's scale.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mull

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "tests/fixtures/huginn-1-2-1", ROOT.parent / "shared/golden/huginn-2-4-2"]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    if not request.param.exists():
        pytest.skip(f"{request.param} is not here")
    return mull.load(request.param), load_file(request.param / "golden.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("iterations", [1, 4, 9])
def test_logits_and_latents(golden, iterations):
    model, expected = golden
    out = model(expected["input_ids"], iterations)
    torch.testing.assert_close(out.logits, expected[f"logits_r{iterations}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.final_norm(out.state), expected[f"latent_r{iterations}"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_logits_from_a_given_state(golden):
    model, expected = golden
    out = model(expected["input_ids"], 4, state=expected["state0"])
    torch.testing.assert_close(out.logits, expected["logits_state0_r4"], rtol=0, atol=1e-4)
    assert (out.logits - expected["logits_r4"]).abs().max() > 1e-2  # the given state matters


@torch.no_grad()
def test_greedy_tokens(golden):
    """Token by token with a cache, and all at once given the tokens before."""
    model, expected = golden
    name = next(name for name in expected if name.startswith("greedy_r4_prompt"))
    whole, prompt = expected[name], int(name.removeprefix("greedy_r4_prompt"))
    best = model(whole, 4).logits.argmax(dim=-1)
    assert torch.equal(best[:, prompt - 1 : -1], whole[:, prompt:])

    cache, ids = model.new_cache(*whole.shape), whole[:, :prompt]
    new = model(ids, 4, cache=cache).logits[:, -1:].argmax(dim=-1)
    while (ids := torch.cat([ids, new], dim=1)).shape[1] < whole.shape[1]:
        new = model(new, 4, cache=cache).logits.argmax(dim=-1)
    assert torch.equal(ids, whole)
