"""Inner thinking: the paper's equations against a slow twin, causality, calibration, caches, and what its options say.

The general equivalences (padding, batches, caches in chunks, gradients) run for this family too, in the other files of
this folder. fp64; bit for bit where nothing may change at all.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import mull
from mull.models import InnerThinkingConfig, InnerThinkingTransformer, routing
from mull.models.layers import Attention
from mull.models.routing import check_capacity, expected_thresholds, over_threshold, top_k

LOOSE = {"rtol": 1e-10, "atol": 1e-10}
SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 200, "n_layers": 3}
LOOP = {"routing": False, "residual_thinking": False, "step_encoding": False}
VARIANTS = [
    {},
    {"skipped": "literal"},
    {"gate": "tanh"},
    {"weighting": "symmetric"},
    {"weighting": "symmetric", "skipped": "literal"},
    {"residual_thinking": False},
    {"residual_thinking": False, "weighting": "symmetric"},
    {"accumulated": "update"},
    {"accumulated": "update", "weighting": "symmetric", "skipped": "literal"},
    {"step_encoding": False},
    {"routing": False},
    {"detached_auxiliary": True},
    {"router_temperature": 3.0},
    {"step_encoding": False, "step_start": 0.1},
    {"wiring": "sandwich", "qk_norm": True, "rotary_layout": "half"},
    {"positions": "none", "qk_bias": False},
    {"thinking_layers": (0, 1, 2), "mean_iterations": 3},
    LOOP,
]
CAPACITIES = [0.0, 0.2, 0.5, 0.9, 1.0, (0.9, 0.0, 0.4)]


@pytest.fixture
def make(build, tokens):
    """(options of the configuration) -> a calibrated model in fp64 and eval mode whose every weight matters."""

    def make(**changes):
        model = build(InnerThinkingConfig(**SHAPE | changes))
        model.calibrate(tokens(model.config, 8, 100, seed=7))
        return model

    return make


def capacity_of(model, capacity):
    """A capacity that this model takes."""
    if not model.config.routing:
        return None
    return capacity[: model.config.mean_iterations - 1] if isinstance(capacity, tuple) else capacity


def slow_twin(model, ids, iterations, capacity, select):
    """The head of the module as it is written: every pass over all tokens, and `where` in the end."""
    config, frame = model.config, model.frame(ids, None, None, iterations)
    x = model.embed(ids)
    for index, layer in enumerate(model.layers):
        if index not in config.thinking:
            x = layer(x, frame, (index, 0))
            continue
        phi = [1.0] + [config.step_start or config.first_scale] * 99
        if layer.step_encoding is not None:
            phi = [layer.step_encoding[min(t, len(layer.step_encoding) - 1)] for t in range(iterations)]
        y = phi[0] * layer(x, frame, (index, 0))
        for t in range(1, iterations):
            f = layer(y, frame, (index, t))
            if config.routing:
                row = min(t, len(layer.router)) - 1
                logits = (y / (y.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()) @ layer.router[row]
                logits = logits / config.router_temperature
                w = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[config.gate](logits)[..., None]
                selected = select(logits, None, capacity[t - 1], layer.thresholds[row])[..., None]
                selected = selected & (capacity[t - 1] > 0)
            else:
                w, selected = torch.ones_like(y[..., :1]), torch.ones_like(y[..., :1], dtype=torch.bool)
            gained = torch.where(selected, w * f, w * y if config.weighting == "symmetric" else y)
            kept = ~selected & (config.weighting == "selected")
            if config.accumulated == "update" and config.residual_thinking:
                y = torch.where(selected, y + phi[t] * w * (f - y), y)
            elif config.residual_thinking:
                new = y + phi[t] * gained
                y = torch.where(kept & (config.skipped == "hold"), y, new)
            else:
                y = torch.where(kept, y, phi[t] * gained)
        x = y
    return model.logits(x)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_gathering_equals_computing_everything(make, tokens, monkeypatch, changes, training):
    """The fast path against its slow obvious twin, forward and gradients, at every option value; the queries come in
    several segments, the last of them short."""
    monkeypatch.setattr(routing, "SEGMENT", 7)
    model = make(**changes).train(training)
    ids = tokens(model.config, 3, 20)
    for capacity in CAPACITIES:
        shares = check_capacity(1.0 if not model.config.routing else capacity, 3)
        out = model(ids, 4, capacity=shares if model.config.routing else None)
        twin = slow_twin(model, ids, 4, shares, top_k if training else over_threshold)
        torch.testing.assert_close(out.logits, twin, **LOOSE)
        fast, slow = gradients(out.logits, model), gradients(twin, model)
        torch.testing.assert_close(fast, slow, **LOOSE)


def gradients(logits, model):
    """One per parameter; zeros where the answer does not depend on it."""
    parameters = list(model.parameters())
    return torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_suffix_leaves_the_prefix_bit_equal(make, tokens, changes):
    model = make(**changes)
    ids = tokens(model.config, 2, 24)
    for capacity in CAPACITIES:
        capacity = capacity_of(model, capacity)
        before = model(ids, capacity=capacity)
        for seed in range(5):
            split = 4 + 4 * seed
            other = torch.cat([ids[:, :split], tokens(model.config, 2, 24 - split, seed=90 + seed)], dim=1)
            after = model(other, capacity=capacity)
            assert torch.equal(after.logits[:, :split], before.logits[:, :split])
            assert torch.equal(after.selected[:, :split], before.selected[:, :split])


def test_a_suffix_changes_the_prefix_where_top_k_is_forced(make, tokens):
    """What the threshold is for: the same test fails with the selection of training."""
    model = make()
    ids = tokens(model.config, 2, 24)
    before = model(ids, capacity=0.5, selection="top_k").logits
    others = [torch.cat([ids[:, :12], tokens(model.config, 2, 12, seed=s)], dim=1) for s in range(5)]
    after = [model(other, capacity=0.5, selection="top_k").logits for other in others]
    assert not all(torch.equal(logits[:, :12], before[:, :12]) for logits in after)


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cached_equals_uncached_at_every_capacity(make, tokens, changes, rows):
    """Of several rows, and of one, whose positions are decided one by one; what the routers say is the same too."""
    model = make(**changes)
    ids = tokens(model.config, rows, 15)
    for capacity in CAPACITIES:
        capacity = capacity_of(model, capacity)
        cache, whole = model.new_cache(rows, 15), model(ids, capacity=capacity)
        bounds = [0, 5, 8, *range(9, 16)]  # prefill, a second chunk, then position by position
        parts = [model(ids[:, a:b], capacity=capacity, cache=cache) for a, b in pairwise(bounds)]
        torch.testing.assert_close(torch.cat([part.logits for part in parts], dim=1), whole.logits, **LOOSE)
        assert torch.equal(torch.cat([part.selected for part in parts], dim=1), whole.selected)
        assert all(part.selected.shape == (rows, 1, *whole.selected.shape[2:]) for part in parts[2:])
        if whole.router_logits is not None:  # of a pass that is never taken the general way need not ask
            asked = whole.router_logits.isfinite()
            said = torch.cat([part.router_logits for part in parts], dim=1)
            torch.testing.assert_close(said[asked], whole.router_logits[asked], **LOOSE)


def test_a_position_alone_costs_the_passes_it_takes(make, tokens, monkeypatch):
    """Decoding one row: queries once for each pass that is taken; keys and values once for each state that meets a
    pass, and none of it where the capacity is 0."""
    model, calls = make(), []
    ids, cache = tokens(model.config, 1, 30), model.new_cache(1, 30)
    for name in ("queries", "keys_values"):
        real = getattr(Attention, name)
        monkeypatch.setattr(
            Attention, name, lambda self, *args, real=real, name=name: calls.append(name) or real(self, *args)
        )
    for t in range(30):
        calls.clear()
        selected = model(ids[:, t : t + 1], capacity=(0.5, 0.0, 0.4), cache=cache).selected[0, 0, 0].tolist()
        assert calls.count("queries") == sum(selected)
        assert calls.count("keys_values") == 1 + selected[0]  # the state before the first pass, and the one it made


def test_a_suffix_leaves_the_prefix_bit_equal_in_the_shortest_rows(make, tokens):
    """Where all tokens may be selected, and are fewer than a block."""
    model = make()
    for length, seed in ((length, seed) for length in (2, 3) for seed in range(40)):
        ids = tokens(model.config, 1, length, seed=seed)
        other = torch.cat([ids[:, :-1], (ids[:, -1:] + 1 + seed % 9) % 11], dim=1)
        before, after = (model(some, capacity=0.5).logits[:, :-1] for some in (ids, other))
        assert torch.equal(before, after)


def test_a_suffix_leaves_the_prefix_bit_equal_where_all_may_be_selected(make, tokens, monkeypatch):
    """All tokens together must not go another way, in other segments, than all but one."""
    monkeypatch.setattr(routing, "SEGMENT", 7)
    model, everybody = make(), set()
    for seed in range(30):
        ids = tokens(model.config, 1, 16, seed=seed)
        split = 3 + seed % 12
        other = torch.cat([ids[:, :split], tokens(model.config, 1, 16 - split, seed=90 + seed)], dim=1)
        before, after = (model(some, capacity=0.97) for some in (ids, other))
        everybody |= {bool(out.selected[0, ..., t].all()) for out in (before, after) for t in range(3)}
        assert torch.equal(before.logits[:, :split], after.logits[:, :split])
    assert everybody == {True, False}  # both happened


@pytest.mark.parametrize("shape", [(8, 2), (8, 3), (1, 8), (4, 6)])
def test_the_last_token_that_skips_leaves_the_others_bit_equal(make, tokens, monkeypatch, shape):
    """All tokens of a batch may be whole blocks while the queries of a row are not."""
    model = make(accumulated="update")
    ids, answers = tokens(model.config, *shape), []
    for skips in (False, True):

        def select(logits, *_, skips=skips):
            selected = torch.ones_like(logits, dtype=torch.bool)
            selected[-1, -1] = not skips
            return selected

        monkeypatch.setitem(routing.SELECTIONS, "threshold", select)
        answers.append(model(ids, capacity=0.9).logits.flatten(0, 1)[:-1])
    assert torch.equal(*answers)


@pytest.mark.parametrize("segment", [256, 50])
def test_a_suffix_leaves_the_prefix_bit_equal_in_longer_rows(make, tokens, monkeypatch, segment):
    """Where other rows and later tokens change how many are gathered by hundreds."""
    monkeypatch.setattr(routing, "SEGMENT", segment)
    model = make(accumulated="update")
    ids = tokens(model.config, 4, 190)
    before = model(ids, capacity=0.5)
    for seed, split in enumerate((30, 77, 150)):
        other = torch.cat([ids[:, :split], tokens(model.config, 4, 190 - split, seed=90 + seed)], dim=1)
        after = model(other, capacity=0.5)
        assert torch.equal(after.logits[:, :split], before.logits[:, :split])


@pytest.mark.parametrize("capacity", [0.3, (0.9, 0.0, 0.4)])
def test_batched_and_padded_equal_single(make, tokens, capacity):
    """Each row selects for itself: in eval by threshold, in training by its own number of tokens."""
    for training in (False, True):
        model = make().train(training)
        rows = [tokens(model.config, 1, n, seed=n)[0] for n in (20, 9, 1)]
        ids, mask = torch.zeros(3, 24, dtype=torch.int64), torch.zeros(3, 24, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, 2 : 2 + len(row)], mask[i, 2 : 2 + len(row)] = row, 1
        out = model(ids, capacity=capacity, attention_mask=mask)
        assert not out.selected[mask == 0].any()
        for i, row in enumerate(rows):
            alone = model(row[None], capacity=capacity)
            torch.testing.assert_close(out.logits[i, 2 : 2 + len(row)], alone.logits[0], **LOOSE)
            assert torch.equal(out.selected[i, 2 : 2 + len(row)], alone.selected[0])


def test_rows_with_a_count_of_their_own(make, tokens):
    model = make(skipped="literal")
    ids, counts = tokens(model.config, 3, 12), torch.tensor([1, 4, 2])
    out = model(ids, counts, capacity=0.6)
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(out.logits[row], model(ids[row : row + 1], count, capacity=0.6).logits[0], **LOOSE)
    assert (out.iterations.amax(dim=1) <= counts).all() and (out.iterations >= 1).all()


@pytest.mark.parametrize(
    "changes", [{}, {"gate": "tanh"}, {"skipped": "literal"}, {"residual_thinking": False}], ids=str
)
def test_a_requested_capacity_is_met_within_two_points(make, tokens, changes):
    """On text that the calibration has not seen. Tokens of one row share their context, and with weights as wild as
    these their fate: were a row's tokens all alike, a share of 4,000 rows would err by 0.8 points (one sigma). Of a
    first position only the token matters: with many tokens no single logit holds much of the mass."""
    model = make(vocab_size=199, **changes)
    model.calibrate(tokens(model.config, 4000, 6, seed=3))
    fresh = tokens(model.config, 4000, 6, seed=4)
    for capacity in (0.05, 0.3, 0.55, 0.7, 0.95):
        met = model(fresh, capacity=capacity).selected.double().mean(dim=(0, 1))
        assert (met - capacity).abs().max() < 0.02, (capacity, met)


def test_top_k_takes_the_share_exactly(make, tokens):
    model = make().train()
    selected = model(tokens(model.config, 2, 20), capacity=(0.5, 0.15, 1.0)).selected
    assert selected.sum(dim=1).tolist() == [[[10, 3, 20]]] * 2


def test_a_fresh_router_nearly_meets_a_capacity_without_calibration():
    """Its logits are normal with variance 2/5, where the table starts; the mean over 200 routers errs by little."""
    torch.manual_seed(0)
    config = InnerThinkingConfig(**SHAPE | {"d_model": 96, "mean_iterations": 201})
    thresholds = expected_thresholds()
    assert abs(thresholds[5]) < 1e-6 and (thresholds.diff() < 0).all()
    logits = InnerThinkingTransformer(config).layers[1].logits
    states = torch.randn(1, 2000, 96)
    met = torch.stack([over_threshold(logits(states, t), None, 0.3, thresholds).double().mean() for t in range(200)])
    assert abs(met.mean() - 0.3) < 0.01


def test_loop_is_the_layer_again_and_again(make, tokens):
    """Routing, connection and step encoding off: x = f(x), R times."""
    model = make(**LOOP)
    ids = tokens(model.config, 2, 9)
    frame, x = model.frame(ids, None, None, 3), model.embed(ids)
    for index, times in ((0, 1), (1, 3), (2, 1)):
        for _ in range(times):
            x = model.layers[index](x, frame, (index, 0))
    torch.testing.assert_close(model(ids, 3).logits, model.logits(x), **LOOSE)
    assert not model.state_dict().keys() & {"layers.1.router", "layers.1.thresholds", "layers.1.step_encoding"}


def test_capacity_one_with_open_gates_equals_no_routing(make, tokens):
    """With w = 1 for every token, routing changes nothing: equation 4 of the paper."""
    routed, plain = make(step_encoding=False), make(step_encoding=False, routing=False)
    with torch.no_grad():
        routed.load_state_dict({**routed.state_dict(), **plain.state_dict()})
        for name, parameter in routed.named_parameters():
            if name.endswith("router"):
                parameter.zero_()  # w = 1/2 everywhere, and phi starts twice as large to make up for it
    ids = tokens(routed.config, 2, 9)
    torch.testing.assert_close(routed(ids, 4, capacity=1.0).logits, plain(ids, 4).logits, **LOOSE)


@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_fresh_stream_neither_doubles_nor_vanishes(changes):
    """One thinking layer of a fresh model, at every option value; with the connection at any number of passes."""
    for iterations in (2, 4, 16) if changes.get("residual_thinking", True) else (2, 4):
        torch.manual_seed(0)
        config = InnerThinkingConfig(**{**SHAPE, "d_model": 96, **changes, "mean_iterations": iterations})
        model, index = InnerThinkingTransformer(config), config.thinking[0]
        ids = torch.randint(11, (2, 50))
        frame, x = model.frame(ids, None, None, iterations), model.embed(ids)
        once = model.layers[index](x, frame, (0, 0))
        after, _ = model.layers[index].think(x, frame, index, model.plan(iterations, None, "top_k", None, None))
        assert 0.5 < after.norm() / once.norm() < 2


def test_held_tokens_keep_their_keys(make, tokens):
    """Reuse is exact: with hold, the cached keys of a token that skipped a pass are those of the pass before."""
    model = make()
    ids, cache = tokens(model.config, 1, 12), model.new_cache(1, 12)
    selected = model(ids, capacity=0.5, cache=cache).selected[0, :, 0]  # (T, passes)
    for t in (1, 2):
        same = (cache.views[1, t][0][:, :, :12] == cache.views[1, t + 1][0][:, :, :12]).all(dim=-1).all(dim=1)[0]
        assert torch.equal(same, ~selected[:, t - 1])


def test_a_pass_of_capacity_zero_costs_and_keeps_nothing(make, tokens):
    model = make()
    cache = model.new_cache(1, 12)
    out = model(tokens(model.config, 1, 12), 4, capacity=(0.0, 0.5, 0.0), cache=cache)
    assert [bool(cache.layers[1][:, t].any()) for t in range(4)] == [True, False, True, False]  # what was written
    assert not out.selected[..., 0].any() and not out.selected[..., 2].any() and out.selected[..., 1].any()


def test_the_auxiliary_loss_teaches_the_router_alone_when_detached(make, tokens):
    ids = None
    for detached in (False, True):
        model = make(detached_auxiliary=detached).train()
        ids = tokens(model.config, 2, 20)
        model(ids).auxiliary_loss.backward()
        learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert "layers.1.router" in learned
        assert (learned == {"layers.1.router"}) is detached
    assert model.eval()(ids).auxiliary_loss is None
    assert make(routing=False).train()(ids).auxiliary_loss is None


def test_the_auxiliary_loss_is_the_cross_entropy_of_the_decisions(make, tokens):
    model = make(mean_iterations=2).train()
    ids = tokens(model.config, 2, 20)
    out = model(ids, capacity=0.5)
    x, frame = (
        model.layers[0](model.embed(ids), model.frame(ids, None, None, 2), (0, 0)),
        model.frame(ids, None, None, 2),
    )
    y = model.layers[1].step_encoding[0] * model.layers[1](x, frame, (1, 0))
    p = torch.sigmoid(F.rms_norm(y, (24,), eps=1e-6) @ model.layers[1].router[0])
    selected = out.selected[..., 0, 0]
    expected = -(selected * p.log() + ~selected * (1 - p).log()).mean()
    torch.testing.assert_close(out.auxiliary_loss.double(), expected, rtol=1e-5, atol=1e-6)  # taken in fp32


def test_readings_are_runs_at_their_counts(make, tokens):
    model = make()
    ids = tokens(model.config, 2, 9)
    out = model(ids, 4, capacity=(0.9, 0.0, 0.4), read_at=[1, 3, 4])
    for count, capacity in ((1, ()), (3, (0.9, 0.0)), (4, (0.9, 0.0, 0.4))):
        assert torch.equal(out.readings[count].logits, model(ids, count, capacity=capacity).logits)
    swept = dict(model.sweep(ids, [1, 4], capacity=(0.9, 0.0, 0.4)))
    assert torch.equal(swept[4].logits, out.logits) and torch.equal(swept[1].logits, out.readings[1].logits)


def test_more_passes_than_trained_use_the_last_router(make, tokens):
    model = make(mean_iterations=2)
    ids = tokens(model.config, 2, 9)
    torch.testing.assert_close(
        model(ids, 5, capacity=0.5).logits, slow_twin(model, ids, 5, (0.5,) * 4, over_threshold), **LOOSE
    )


def test_a_folder_round_trip_keeps_thresholds_and_answers(make, tokens, tmp_path):
    model = make(thinking_layers=(0, 2), capacity=0.6)
    mull.save(model, tmp_path / "saved")
    loaded = mull.load(tmp_path / "saved")
    assert loaded.config == model.config and isinstance(loaded, InnerThinkingTransformer)
    ids = tokens(model.config, 2, 9)
    for capacity in (
        None,
        0.25,
        (0.9, 0.0, 0.4),
    ):  # a mapped file lies elsewhere in memory: sums differ in the last bit
        torch.testing.assert_close(loaded(ids, capacity=capacity).logits, model(ids, capacity=capacity).logits, **LOOSE)
    assert torch.equal(loaded.layers[2].thresholds, model.layers[2].thresholds)


def test_thinking_layers_are_every_other_one():
    def chosen(n_layers):
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
], ids=str)  # fmt: skip
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        InnerThinkingConfig(**SHAPE | changes)


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
def test_bad_calls_are_refused(make, tokens, arguments, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        model(tokens(model.config, 2, 5), **arguments)


def test_a_cache_refuses_another_capacity_depth_or_selection(make, tokens):
    model = make()
    ids, cache = tokens(model.config, 1, 5), model.new_cache(1, 9)
    with pytest.raises(ValueError, match="top_k looks at tokens that a cached call does not have yet"):
        model(ids, cache=cache, selection="top_k")
    with pytest.raises(ValueError, match="read_at cannot be used with a cache"):
        model(ids, cache=cache, read_at=[1])
    model(ids, capacity=0.5, cache=cache)
    with pytest.raises(ValueError, match=r"filled at capacity=\(0.5, 0.5, 0.5\) and cannot continue at \(0.7"):
        model(ids[:, :1], cache=cache)
    with pytest.raises(ValueError, match="filled at iterations=4 and cannot continue at 3"):
        model(ids[:, :1], 3, capacity=0.5, cache=cache)


def test_a_model_without_routing_refuses_a_capacity(make, tokens):
    model = make(routing=False)
    with pytest.raises(ValueError, match=r"routes nothing: capacity=0\.5 is refused"):
        model(tokens(model.config, 1, 5), capacity=0.5)
