"""The process reward beside the logits: it changes no answer, agrees on every path, and is saved with the rest."""

import dataclasses
import json

import pytest
import torch

import mull
from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.models import LanguageModel
from mull.models.families import FAMILIES

SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 40}
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))


def make(family: type[LanguageModel], **changes: object) -> LanguageModel:
    torch.manual_seed(3)
    model = family(family.config_class(**{**SHAPE, "value_head": True, **changes})).double().eval()  # type: ignore[arg-type]
    if model.value_head is not None:
        torch.nn.init.normal_(model.value_head.bias)
    return model


every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


@every_family
def test_the_reward_is_read_from_what_the_logits_are_read_from(family: type[LanguageModel]) -> None:
    """Tied logits are E . n and the reward is w . n + b of the same n: solve for n, and find the reward in it. Without
    the head nothing else changes."""
    model = make(family, vocab_size=40)
    out = model(IDS)
    assert model.value_head is not None and out.value.shape == IDS.shape
    normed = torch.linalg.lstsq(model.embedding.weight, out.logits.flatten(0, 1).T).solution.T
    expected = normed @ model.value_head.weight[0] + model.value_head.bias
    torch.testing.assert_close(out.value.flatten(), expected)
    model.value_head = None
    plain = model(IDS)
    assert plain.value is None and torch.equal(plain.logits, out.logits)
    assert model.value_parameters() == [] and make(family, value_head=False).value_parameters() == []


@every_family
def test_cached_padded_and_by_row_it_is_the_same(family: type[LanguageModel]) -> None:
    """Word by word behind a cache, beside padding, and with a count for each row: what one whole call says."""
    model = make(family)
    whole = model(IDS).value
    cache = model.new_cache(batch_size=2, max_length=9)
    said = torch.cat([model(IDS[:, t : t + 1], cache=cache).value for t in range(9)], dim=1)
    torch.testing.assert_close(said, whole)
    padded = torch.cat([torch.zeros_like(IDS[:, :3]), IDS], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 9)], dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).value[:, 3:], whole)
    if model.config.default_iterations is not None:
        rows = model(IDS, torch.tensor([1, 3]), read_at=()).value
        torch.testing.assert_close(rows, torch.stack([model(IDS, 1).value[0], model(IDS, 3).value[1]]))
        readings = model(IDS, 3, read_at=[1, 3]).readings
        assert all(torch.equal(readings[count].value, model(IDS, count).value) for count in (1, 3))


def test_an_exit_that_never_comes_says_the_same() -> None:
    model = make(FAMILIES["recurrent_depth"])
    out = think_until(model, IDS, 3, parse("fixed:99"))
    torch.testing.assert_close(out.value, model(IDS, 3).value)


@every_family
def test_it_is_saved_and_a_folder_from_before_has_none(family: type[LanguageModel], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Guards the weights of the head, and folders whose config.json has no such field."""
    model = make(family).float()
    mull.save(model, tmp_path / "with")
    assert torch.equal(mull.load(tmp_path / "with")(IDS).value, model(IDS).value)
    without = make(family, value_head=False).float()
    mull.save(without, tmp_path / "before")
    file = tmp_path / "before" / "config.json"
    fields = json.loads(file.read_text())
    del fields["value_head"], fields["config_sha256"]
    file.write_text(json.dumps(fields))
    older = mull.load(tmp_path / "before")
    assert older.config == without.config and older(IDS).value is None


@every_family
def test_what_it_costs_is_counted(family: type[LanguageModel]) -> None:
    """Parameters as the module has them, and one product of the width for each answer."""
    config = make(family).config
    plain = dataclasses.replace(config, value_head=False)
    assert config.parameters == plain.parameters + config.d_model + 1
    assert config.parameters == sum(p.numel() for p in make(family).parameters())
    assert config.flops_per_token(None, 9) - plain.flops_per_token(None, 9) == 2 * config.d_model
    assert config.reading().flops(9) - plain.reading().flops(9) == 2 * config.d_model
