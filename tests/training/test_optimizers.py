"""Optimizers: which parameter goes where, two optimizers as one, and the schedule."""

import copy
import io
import math
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from mull.models import RecurrentDepthConfig, RecurrentDepthTransformer, Transformer, TransformerConfig
from mull.training.optimizers import AdamW, MuonAdamW, Together, parameter_groups, warmup_stable_decay

FAMILIES = {RecurrentDepthConfig: RecurrentDepthTransformer, TransformerConfig: Transformer}
SMALL = dict(vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, d_ff=20, max_length=64)


def options(family):
    """(field, value) for each value of each closed option, read off the annotations."""
    hints = {f.name: get_type_hints(family)[f.name] for f in fields(family)}
    return [
        (name, value)
        for name, hint in hints.items()
        for value in (get_args(hint) if get_origin(hint) is Literal else (False, True) if hint is bool else ())
    ]


CHOICES = [(family, field, value) for family in FAMILIES for field, value in options(family)]


def build(family=RecurrentDepthConfig, seed=0, **chosen):
    torch.manual_seed(seed)
    return FAMILIES[family](family(**SMALL, **chosen))


def train_steps(network, optimizer, steps, schedule=None, first=0):
    """Steps with gradients that depend on the step's number only."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def assert_equal(one, other):
    differing = [
        n for (n, a), b in zip(one.named_parameters(), other.parameters(), strict=True) if not torch.equal(a, b)
    ]
    assert differing == []


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: AdamW(lr=-1), "lr must be a number of at least 0, not -1"),
        (lambda: AdamW(lr=math.nan), "lr must be a number of at least 0, not nan"),
        (lambda: AdamW(weight_decay=math.inf), "weight_decay must be a number of at least 0, not inf"),
        (lambda: AdamW(betas=(0.9, 1.0)), r"betas must lie at 0 or above and below 1, not 0.9, 1.0"),
        (lambda: MuonAdamW(matrix_lr=-0.1), "matrix_lr must be a number of at least 0, not -0.1"),
        (lambda: MuonAdamW(momentum=1.5), "momentum must lie at 0 or above and below 1, not 1.5"),
        (lambda: MuonAdamW(lr=math.inf), "lr must be a number of at least 0, not inf"),
    ],
)
def test_a_number_that_trains_nothing_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(("family", "field", "value"), CHOICES, ids=lambda c: getattr(c, "model_type", str(c)))
@pytest.mark.parametrize("recipe", [AdamW(), MuonAdamW()], ids=["adamw", "muon"])
def test_every_parameter_is_optimized_exactly_once(family, field, value, recipe):
    """Guards the partition for each value of each option: no parameter left out, none stepped twice."""
    network = build(family, **({"causal": False} if (field, value) == ("board", True) else {}), **{field: value})
    expected = sorted(id(p) for p in network.parameters())
    assert sorted(id(p) for group in parameter_groups(network) for p in group) == expected
    assert sorted(id(p) for g in recipe.build(network).param_groups for p in g["params"]) == expected


def test_groups_hold_what_they_say():
    """Guards the sorting: decay and Muon must not touch norms, biases or a matrix that starts as the identity."""
    network = build(injection="diagonal", tie_embeddings=False, exit_gate=True, qk_norm=True)
    names = {id(p): name for name, p in network.named_parameters()}
    matrices, embeddings, vectors = ({names[id(p)] for p in group} for group in parameter_groups(network))
    assert embeddings == {"embedding.weight", "head.weight", "exit_gate.weight"}
    assert {"injection.write", "exit_gate.bias", "final_norm.weight"} <= vectors
    assert all("norm" in n or "bias" in n or n.startswith("injection.") for n in vectors)
    assert matrices and all(n.startswith(("prelude.", "core.", "coda.")) for n in matrices)
    assert {n for n in names.values() if n.endswith(("out.weight", "down.weight"))} <= matrices


@pytest.mark.parametrize("recipe", [AdamW(weight_decay=0.3), MuonAdamW(weight_decay=0.3)], ids=["adamw", "muon"])
def test_vectors_do_not_decay_and_the_rest_does(recipe):
    """Guards the decay of each group."""
    network = build()
    vectors = {id(p) for p in parameter_groups(network)[2]}
    decay = {id(p): g["weight_decay"] for g in recipe.build(network).param_groups for p in g["params"]}
    assert all(decay[i] == (0.0 if i in vectors else 0.3) for i in decay)


def test_muon_steps_matrices_and_adamw_the_rest_as_each_would_alone():
    """Guards MuonAdamW against the two optimizers of torch, run apart with every setting passed on, bit for bit."""
    network = build(seed=1)
    alone = copy.deepcopy(network)
    matrices, embeddings, vectors = parameter_groups(alone)
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": embeddings, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.9),
    )
    together = MuonAdamW(0.02, 0.9, lr=0.01, betas=(0.8, 0.9), weight_decay=0.2, orthogonalize_in="bfloat16").build(
        network
    )
    train_steps(network, together, 3)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for parameter in alone.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step()
        adamw.step()
    assert_equal(network, alone)


def test_together_clears_all_gradients_and_runs_its_closure_once():
    """Guards what the trainer relies on: zero_grad reaches every group, the closure runs once, with gradients on."""
    network = build()
    optimizer = MuonAdamW().build(network)
    train_steps(network, optimizer, 1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())
    calls = []
    with torch.no_grad():
        assert optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or 7) == 7
    assert calls == [True]


@pytest.mark.parametrize("recipe", [AdamW(), MuonAdamW()], ids=["adamw", "muon"])
def test_a_saved_optimizer_goes_on_bit_for_bit_under_its_schedule(recipe):
    """Guards resume: state through weights_only loading, and the learning rate still reaching the inner optimizers."""

    def start():
        network = build(seed=2)
        optimizer = recipe.build(network)
        return (
            network,
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: warmup_stable_decay(s, 8, 2, 0.5)),
        )

    whole, optimizer, schedule = start()
    train_steps(whole, optimizer, 4, schedule)
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
    train_steps(whole, optimizer, 3, schedule, first=4)

    file.seek(0)
    weights, optimizer_state, schedule_state = torch.load(file, weights_only=True)
    resumed, optimizer, schedule = start()
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(schedule_state)
    train_steps(resumed, optimizer, 3, schedule, first=4)
    assert_equal(whole, resumed)
    inner = optimizer.optimizers if isinstance(optimizer, Together) else [optimizer]
    for group in (group for each in inner for group in each.param_groups):
        assert group["lr"] == pytest.approx(group["initial_lr"] * 0.25)  # step 7 of 8, in the decay of 4


@pytest.mark.parametrize(
    ("step", "warmup", "share", "factor"),
    [
        (0, 10, 0.2, 0.1),  # the first step is no wasted step
        (9, 10, 0.2, 1.0),  # the climb ends with its last step
        (0, 0, 0.2, 1.0),  # no warm-up
        (80, 10, 0.2, 1.0),  # the fall begins from the plateau
        (90, 10, 0.2, 0.5),
        (99, 10, 0.2, 0.05),  # the last step still moves
        (100, 10, 0.2, 0.0),  # what the schedule says after the last step
        (99, 10, 0.0, 1.0),  # no decay
        (0, 10, 1.0, 0.1),
        (50, 10, 1.0, 0.5),
    ],
)
def test_schedule_at_its_corners(step, warmup, share, factor):
    """Guards warm-up, plateau and decay of 100 steps at every corner."""
    assert warmup_stable_decay(step, 100, warmup, share) == pytest.approx(factor)
