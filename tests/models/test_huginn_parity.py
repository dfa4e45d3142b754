"""The public recurrent-depth reference: its golden outputs, on its weights, from this library's model.

Proves every choice in the architecture at once: pair layout of the rotation, bias before rotation, gate before up,
[state ; injected] order, the norms of a layer, the final norm used twice, the embedding's scale.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "tests/fixtures/huginn-1-2-1", ROOT.parent / "shared/golden/huginn-2-4-2"]

NAMES = {  # of the reference -> of mull
    "transformer.wte": "embedding",
    "transformer.ln_f": "final_norm",
    "transformer.adapter": "injection.adapter",
    "transformer.core_block": "core",
    "transformer.prelude": "prelude",
    "transformer.coda": "coda",
    "attn.Wqkv": "attention.qkv",
    "attn.proj": "attention.out",
    "attn.qk_bias": "attention.qk_bias",
    "mlp.fc": "mlp.gate_up",
    "mlp.proj": "mlp.down",
    "norm_1": "attention_norm",
    "norm_2": "attention_post_norm",
    "norm_3": "mlp_norm",
    "norm_4": "mlp_post_norm",
}


def load(folder):
    said = json.loads((folder / "config.json").read_text())
    config = RecurrentDepthConfig(
        vocab_size=said["padded_vocab_size"],
        d_model=said["n_embd"],
        n_heads=said["n_heads"],
        d_ff=said["intermediate_size"],
        max_length=said["block_size"],
        norm_eps=said["norm_eps"],
        rope_base=said["rope_base"],
        n_prelude=said["n_layers_in_prelude"],
        n_core=said["n_layers_in_recurrent_block"],
        n_coda=said["n_layers_in_coda"],
        mean_iterations=said["mean_recurrence"],
    )
    weights = load_file(folder / "model.safetensors")
    weights.pop("freqs_cis")
    renamed = {}
    for name, weight in weights.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = weight.flatten(0, 2) if name.endswith("qk_bias") else weight
    model = RecurrentDepthTransformer(config)
    model.load_state_dict(renamed, strict=True)
    return model.eval()


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    if not request.param.exists():
        pytest.skip(f"{request.param} is not here")
    return load(request.param), load_file(request.param / "golden.safetensors")


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
