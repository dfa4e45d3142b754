"""A looped family written from the outside, in one file (tests/examples/ouro.py), gets all that mull's own have."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import mull
from mull.models import IteratedModel
from mull.models.families import FAMILIES
from mull.models.roles import parameter_roles

FILE = Path(__file__).parents[1] / "examples" / "ouro.py"
LOOSE = {"rtol": 1e-10, "atol": 1e-10}
Make = Callable[..., IteratedModel]


@pytest.fixture(scope="module")
def ouro() -> Iterator[ModuleType]:
    """The file, imported; the family is taken out of the registry again afterwards."""
    spec = importlib.util.spec_from_file_location("ouro_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    yield module
    del FAMILIES["ouro"], sys.modules[spec.name]


@pytest.fixture(scope="module")
def model(ouro: ModuleType) -> IteratedModel:
    """Strong attention and a head of its own, so that the next token depends on all tokens."""
    torch.manual_seed(0)
    config = ouro.OuroConfig(vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, max_length=48, tie_embeddings=False)
    made = ouro.OuroTransformer(config).double().eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(("attention.out.weight", "attention.qkv.weight")):
                weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))


def test_it_is_short() -> None:
    """A family costs one file of at most 120 lines."""
    assert len(FILE.read_text().splitlines()) <= 120


def test_the_equations(model: IteratedModel, ids: Tensor) -> None:
    """s_t = norm(Layers(s_{t-1})), logits = head(s_t), gate = w . s_t + b: the loop written out."""
    context = model.context(ids)
    state = model.embed(ids)
    for _ in range(5):
        for layer in model.layers:  # type: ignore[union-attr]
            state = layer(state, context, (0, 0))
        state = model.final_norm(state)
    out = model(ids, iterations=5)
    torch.testing.assert_close(out.state, state, **LOOSE)
    torch.testing.assert_close(out.logits, state @ model.head.weight.T, **LOOSE)  # type: ignore[union-attr]
    torch.testing.assert_close(out.exit_logit, model.exit_gate(state).squeeze(-1), **LOOSE)  # type: ignore[operator]


def test_cached_equals_uncached_with_counts_by_row(model: IteratedModel, ids: Tensor) -> None:
    counts = torch.tensor([5, 3])
    cache = model.new_cache(2, 7)
    parts = [model(part, iterations=counts, cache=cache).logits for part in (ids[:, :4], ids[:, 4:5], ids[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids, iterations=counts).logits, **LOOSE)


def test_every_count_comes_out_of_one_sweep(model: IteratedModel, ids: Tensor) -> None:
    for count, reading in model.sweep(ids, [1, 3, 6]):
        torch.testing.assert_close(reading.logits, model(ids, iterations=count).logits, **LOOSE)


def test_it_is_decoded_in_every_way(model: IteratedModel, ids: Tensor) -> None:
    """Drafts write the same text as plain decoding, and the exit gate spares iterations."""
    plain = mull.generate(model, ids, 8, max_new_tokens=10)
    assert torch.equal(plain.tokens, mull.generate(model, ids, 8, max_new_tokens=10, decode="speculate:3:4").tokens)
    gated = mull.generate(model, ids, 8, max_new_tokens=10, exit="gate:0.3")
    assert int(gated.iterations.min()) >= 1 and int(gated.iterations.max()) < 8


def test_cost_roles_and_folder(model: IteratedModel, ids: Tensor, tmp_path: Path) -> None:
    """Parameters are counted, the gate is no matrix of a layer, and a folder brings it back."""
    assert model.config.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name: role for name, _, role in parameter_roles(model)}["exit_gate.weight"] == "table"
    mull.save(model, tmp_path / "folder")
    loaded = mull.load(tmp_path / "folder")
    torch.testing.assert_close(loaded(ids, iterations=4).logits, model(ids, iterations=4).logits, **LOOSE)
