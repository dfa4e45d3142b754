"""What routers do, against the model's own decisions and logits."""

import math

import pytest
import torch

from mull.inference.measure.routers import router_table, router_uses
from mull.models import InnerThinkingConfig, InnerThinkingTransformer


def model_and_ids(**changes: object) -> tuple[InnerThinkingTransformer, torch.Tensor]:
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "d_model": 16, "n_heads": 2, "n_layers": 4}
    model = InnerThinkingTransformer(InnerThinkingConfig(**shape | changes)).eval()  # type: ignore[arg-type]
    return model, torch.randint(11, (5, 9))


def test_uses_are_means_over_all_tokens_however_they_are_batched() -> None:
    """Met, entropy and dead tokens, of passes with capacities of their own; one of them is not asked for."""
    model, ids = model_and_ids()
    uses = router_uses(model, [(ids[:2], ids[:2]), (ids[2:], ids[2:])], 4, capacity=(0.3, 0.0, 0.1))
    with torch.no_grad():
        out = model(ids, 4, capacity=(0.3, 0.0, 0.1))
    assert [(use.layer, use.number, use.asked) for use in uses.passes] == [
        (layer, t, c) for layer in (1, 3) for t, c in ((1, 0.3), (2, 0.0), (3, 0.1))
    ]
    selected, p = out.selected, torch.sigmoid(out.router_logits.double())
    assert [use.met for use in uses.passes] == pytest.approx(selected.double().mean((0, 1)).flatten().tolist())
    assert uses.dead == pytest.approx(float((~selected.flatten(2).any(2)).double().mean())) and 0 < uses.dead < 1
    for place, use in enumerate(uses.passes):
        q = p.flatten(0, 1).flatten(1)[:, place]
        if use.asked == 0:
            assert use.entropy == use.met == 0
        else:
            expected = float(torch.distributions.Bernoulli(q).entropy().mean())
            assert use.entropy == pytest.approx(expected) and 0 < use.entropy < math.log(2)


def test_the_table_holds_every_pass() -> None:
    model, ids = model_and_ids()
    table = router_table(router_uses(model, [(ids, ids)], 3))
    assert table.row_count == 4 and "take no routed pass" in str(table.caption)


@pytest.mark.parametrize(("changes", "iterations"), [({"routing": False}, 3), ({}, 1)])
def test_nothing_routed_is_refused(changes: dict[str, bool], iterations: int) -> None:
    model, ids = model_and_ids(**changes)
    with pytest.raises(ValueError, match="nothing is routed"):
        router_uses(model, [(ids, ids)], iterations)
