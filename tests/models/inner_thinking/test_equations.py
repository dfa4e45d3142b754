"""The equations against their slow twin, forward and backward, at every rule; and what a fresh layer starts as."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mull.checkpoints.migrations import upgraded
from mull.models import InnerThinkingConfig, InnerThinkingTransformer, LanguageModel, positions
from mull.models.rules import RULES
from mull.models.selection import check_capacity, over_threshold, top_k

Build = Callable[..., LanguageModel]
Make = Callable[..., InnerThinkingTransformer]
MakeConfig = Callable[..., InnerThinkingConfig]
Tokens = Callable[..., Tensor]
Twin = Callable[..., Tensor]
Fields = dict[str, Any]

LOOSE = {"rtol": 1e-10, "atol": 1e-10}
WRITTEN: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {  # rule -> who takes a pass, who skips it
    "paper": lambda y, f, w, phi: (y + phi * w * f, y),
    "paper_literal": lambda y, f, w, phi: (y + phi * w * f, y + phi * y),
    "paper_symmetric": lambda y, f, w, phi: (y + phi * w * f, y + phi * w * y),
    "update": lambda y, f, w, phi: (y + phi * w * (f - y), y),
    "loop": lambda y, f, w, phi: (phi * w * f, y),
    "loop_symmetric": lambda y, f, w, phi: (phi * w * f, phi * w * y),
}


def written_pass(rule: str) -> Callable[..., Tensor]:
    """A pass as the head of rules.py writes it; by the rule's own words if it is not written here."""

    def one_pass(y: Tensor, f: Tensor, w: Tensor, selected: Tensor, phi: Tensor | float) -> Tensor:
        if rule in WRITTEN:
            return torch.where(selected, *WRITTEN[rule](y, f, w, phi))
        return torch.where(selected, RULES[rule].taken(y, f, w, phi), RULES[rule].skipped(y, w, phi))

    return one_pass


def first_scale(config: InnerThinkingConfig) -> float:
    """Where phi starts: where the configuration says, otherwise where the rule does."""
    start = RULES[config.rule].start(config.routing, config.mean_iterations)
    return start if config.step_start is None else config.step_start


def gradients(logits: Tensor, model: InnerThinkingTransformer) -> tuple[Tensor, ...]:
    """One per parameter; zeros where the answer does not depend on it."""
    parameters = list(model.parameters())
    return torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("training", [False, True])
def test_gathering_equals_computing_everything(
    make: Make,
    tokens: Tokens,
    slow_twin: Twin,
    capacities: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    variant: Fields,
    training: bool,
) -> None:
    """The fast path against its slow obvious twin, forward and gradients, at every option value; the queries come in
    several segments, the last of them short."""
    monkeypatch.setattr(positions, "SEGMENT", 7)
    model = make(**variant).train(training)
    ids, select = tokens(model.config, 3, 20), top_k if training else over_threshold
    one_pass, scale = written_pass(model.config.rule), first_scale(model.config)
    for capacity in capacities(model, 4):
        shares = check_capacity(1.0 if capacity is None else capacity, 3)
        out = model(ids, 4, capacity=capacity)
        twin = slow_twin(model, ids, 4, shares, select, one_pass, scale)
        torch.testing.assert_close(out.logits, twin, **LOOSE)
        fast, slow = gradients(out.logits, model), gradients(twin, model)
        torch.testing.assert_close(fast, slow, **LOOSE)


def test_more_passes_than_trained_use_the_last_router(
    build: Build, make_config: MakeConfig, tokens: Tokens, slow_twin: Twin, variant: Fields
) -> None:
    """And the last thresholds and phi; a model of no more than one pass has no second row of anything."""
    for trained in (1, 2):
        changes = {"thinking_layers": (1,), **variant, "mean_iterations": trained}
        model = build(make_config(**changes))
        ids = tokens(model.config, 2, 9)
        fast = model(ids, 5, capacity=0.5 if model.config.routing else None).logits
        twin = slow_twin(
            model, ids, 5, (0.5,) * 4, over_threshold, written_pass(model.config.rule), first_scale(model.config)
        )
        torch.testing.assert_close(fast, twin, **LOOSE)


# ------------------------------------------------------------------------------------------ the fields before `rule`

SWITCHES = {
    "skipped": ("hold", "literal"),
    "weighting": ("selected", "symmetric"),
    "residual_thinking": (True, False),
    "accumulated": ("answer", "update"),
}
OLD = [dict(zip(SWITCHES, values, strict=True)) for values in product(*SWITCHES.values())]


def old_pass(old: Fields) -> Callable[..., Tensor]:
    """A pass as the four switches made it, copied from the tests of the version that had them."""

    def one_pass(y: Tensor, f: Tensor, w: Tensor, selected: Tensor, phi: Tensor | float) -> Tensor:
        gained = torch.where(selected, w * f, w * y if old["weighting"] == "symmetric" else y)
        kept = ~selected & (old["weighting"] == "selected")
        if old["accumulated"] == "update" and old["residual_thinking"]:
            return torch.where(selected, y + phi * w * (f - y), y)
        if old["residual_thinking"]:
            return torch.where(kept & (old["skipped"] == "hold"), y, y + phi * gained)
        return torch.where(kept, y, phi * gained)

    return one_pass


def old_first_scale(old: Fields, routing: bool, passes: int, step_start: float | None) -> float:
    """Where phi started, copied from the version that had the four switches."""
    updates = old["residual_thinking"] and old["accumulated"] == "update"
    if step_start is not None:
        return step_start
    typical = 0.5 if routing and (old["skipped"] == "hold" or updates) else 1.0
    if not old["residual_thinking"] or updates:
        return 1 / typical
    return 0.5 / typical / max(1, passes - 1)


@pytest.mark.parametrize("old", OLD, ids=lambda old: "-".join(map(str, old.values())))
@pytest.mark.parametrize("routing", [True, False])
def test_an_old_folder_is_the_same_function(
    build: Build, make_config: MakeConfig, tokens: Tokens, slow_twin: Twin, old: Fields, routing: bool
) -> None:
    """Every combination of the four old switches: the upgraded model computes the old equations, with phi where it
    started then (a learned phi starts there too), with and without a start of the configuration's own."""
    for step_start, passes in product((None, 0.3), (1, 2, 4)):
        saved = {"mean_iterations": passes, "step_start": step_start, "routing": routing, "step_encoding": False}
        fields = upgraded("inner_thinking", {**saved, **old})
        assert not fields.keys() & SWITCHES.keys()
        model = build(make_config(**fields))
        ids = tokens(model.config, 2, 9)
        scale = old_first_scale(old, routing, passes, step_start)
        shares = check_capacity(0.5 if routing else 1.0, 3)  # half the tokens without calibration, or nearly
        twin = slow_twin(model, ids, 4, shares, over_threshold, old_pass(old), scale)
        torch.testing.assert_close(model(ids, 4, capacity=shares if routing else None).logits, twin, **LOOSE)
        fresh = InnerThinkingTransformer(make_config(**{**fields, "step_encoding": True})).layers[1].step_encoding
        assert torch.equal(fresh[0], torch.ones(24))
        torch.testing.assert_close(fresh[1:], torch.full((passes - 1, 24), scale))


def test_fields_of_this_version_are_left_as_they_are(make_config: MakeConfig) -> None:
    new = {"rule": "update", "mean_iterations": 3, "window": 3, "causal": True, "board": False, "value_head": False}
    assert upgraded("inner_thinking", new) == new
    later = ("causal", "board", "value_head")  # there was no other order then, and no such head
    before = {name: value for name, value in new.items() if name not in later}
    assert upgraded("inner_thinking", before) == new
    saved = {**{name: values[0] for name, values in SWITCHES.items()}, "mean_iterations": 3}
    assert make_config(**upgraded("inner_thinking", saved)).rule == "paper"
    assert "skipped" in saved  # the caller's own mapping is left alone


# ------------------------------------------------------------------------------------------------ special cases


def test_loop_is_the_layer_again_and_again(make: Make, tokens: Tokens) -> None:
    """Routing, connection and step encoding off: x = f(x), R times."""
    model = make(rule="loop", routing=False, step_encoding=False)
    ids = tokens(model.config, 2, 9)
    context, x = model.context(ids), model.embed(ids)
    for index, times in ((0, 1), (1, 3), (2, 1)):
        for _ in range(times):
            x = model.layers[index](x, context, (index, 0))
    torch.testing.assert_close(model(ids, 3).logits, model.logits(x), **LOOSE)
    assert not model.state_dict().keys() & {"layers.1.router", "layers.1.thresholds", "layers.1.step_encoding"}


def test_capacity_one_with_open_gates_equals_no_routing(make: Make, tokens: Tokens) -> None:
    """With w = 1 for every token, routing changes nothing: equation 4 of the paper."""
    routed, plain = make(step_encoding=False), make(step_encoding=False, routing=False)
    with torch.no_grad():
        routed.load_state_dict({**routed.state_dict(), **plain.state_dict()})
        for name, parameter in routed.named_parameters():
            if name.endswith("router"):
                parameter.zero_()  # w = 1/2 everywhere, and phi starts twice as large to make up for it
    ids = tokens(routed.config, 2, 9)
    torch.testing.assert_close(routed(ids, 4, capacity=1.0).logits, plain(ids, 4).logits, **LOOSE)


def assert_sane(config: InnerThinkingConfig) -> None:
    """One thinking layer of a fresh model leaves a stream that is neither twice nor half of what one pass makes."""
    torch.manual_seed(0)
    model, index = InnerThinkingTransformer(config), config.thinking[0]
    ids = torch.randint(11, (2, 50))
    context, x = model.context(ids), model.embed(ids)
    once = model.layers[index](x, context, (0, 0))
    plan = model.plan(config.mean_iterations, None, "top_k", None, None)
    after, _ = model.layers[index].think(x, context, index, plan)
    assert 0.5 < after.norm() / once.norm() < 2


@torch.no_grad()
def test_a_fresh_stream_neither_doubles_nor_vanishes(make_config: MakeConfig, variant: Fields) -> None:
    """At every option value; where results add up, at any number of passes."""
    replaces = variant.get("rule", "paper").startswith("loop")
    for iterations in (2, 4) if replaces else (2, 4, 16):
        assert_sane(make_config(**{"d_model": 96, **variant, "mean_iterations": iterations}))


@torch.no_grad()
@pytest.mark.parametrize("old", [old for old in OLD if old["residual_thinking"]], ids=str)
def test_a_fresh_stream_of_an_old_configuration_is_as_sane(make_config: MakeConfig, old: Fields) -> None:
    """`skipped: literal` had starts of its own."""
    for iterations in (2, 4, 16):
        assert_sane(make_config(d_model=96, **upgraded("inner_thinking", {**old, "mean_iterations": iterations})))


# ------------------------------------------------------------------------------------------------ what training reads


def test_the_auxiliary_loss_teaches_the_router_alone_when_detached(make: Make, tokens: Tokens) -> None:
    for detached in (False, True):
        model = make(detached_auxiliary=detached).train()
        ids = tokens(model.config, 2, 20)
        model(ids).auxiliary_loss.backward()
        learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert "layers.1.router" in learned
        assert (learned == {"layers.1.router"}) is detached
        assert model.eval()(ids).auxiliary_loss is None
        assert make(routing=False).train()(ids).auxiliary_loss is None


def test_the_auxiliary_loss_is_the_cross_entropy_of_the_decisions(make: Make, tokens: Tokens) -> None:
    model = make(mean_iterations=2).train()
    ids = tokens(model.config, 2, 20)
    out, context = model(ids, capacity=0.5), model.context(ids)
    x = model.layers[0](model.embed(ids), context, (0, 0))
    y = model.layers[1].step_encoding[0] * model.layers[1](x, context, (1, 0))
    p = torch.sigmoid(F.rms_norm(y, (24,), eps=1e-6) @ model.layers[1].router[0])
    selected = out.selected[..., 0, 0]
    expected = -(selected * p.log() + ~selected * (1 - p).log()).mean()
    torch.testing.assert_close(out.auxiliary_loss.double(), expected, rtol=1e-5, atol=1e-6)  # taken in fp32


def test_readings_are_runs_at_their_counts(make: Make, tokens: Tokens) -> None:
    model = make()
    ids = tokens(model.config, 2, 9)
    out = model(ids, 4, capacity=(0.9, 0.0, 0.4), read_at=[1, 3, 4])
    for count, capacity in ((1, ()), (3, (0.9, 0.0)), (4, (0.9, 0.0, 0.4))):
        assert torch.equal(out.readings[count].logits, model(ids, count, capacity=capacity).logits)
    swept = dict(model.sweep(ids, [1, 4], capacity=(0.9, 0.0, 0.4)))
    assert torch.equal(swept[4].logits, out.logits) and torch.equal(swept[1].logits, out.readings[1].logits)
