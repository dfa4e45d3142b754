"""A change on the way is made where it was asked, nowhere else, and what follows is computed as ever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mull
from mull.inference.tracing import Noise, Patch, Trace, difference
from mull.inference.tracing.trace import trace
from mull.models import LanguageModel

ROOT = Path(__file__).parents[3]
Make = Callable[..., LanguageModel]


def some_ids(seed: int, rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def kept(model: LanguageModel, ids: Tensor, iterations: int = 6, **options: Any) -> Trace:
    return trace(model, ids, iterations, keep_states=True, **options)


@torch.no_grad()
def test_all_states_of_another_run_are_its_continuation(make_model: Make) -> None:
    """Guards what a patch is: all states replaced after k iterations go on as forward(state=...) goes on from them."""
    model, ids = make_model("recurrent"), some_ids(0)
    other = kept(model, some_ids(1))
    for at in (1, 3, 5):
        found = trace(model, ids, 6, patch=Patch.of(other, iteration=at))
        assert other.states is not None
        assert torch.equal(found.logits, model(ids, 6 - at, state=other.states[:, at - 1]).logits)
    assert torch.equal(trace(model, ids, 6, patch=Patch.of(other, iteration=6)).logits, other_read(model, ids, other))
    start = torch.randn(2, 7, 24, dtype=torch.float64)
    assert torch.equal(trace(model, ids, 6, patch=Patch(0, None, start)).logits, model(ids, 6, state=start).logits)


def other_read(model: LanguageModel, ids: Tensor, other: Trace) -> Tensor:
    """The answers in another run's last states, read beside these tokens."""
    assert other.states is not None
    return model.read(other.states[:, -1], model.context(ids)).logits  # type: ignore[operator]


@torch.no_grad()
def test_a_patch_with_its_own_states_changes_nothing(make_model: Make) -> None:
    """Guards against changes beside the chosen place: a run's own states put in place of themselves, once or held."""
    model, ids = make_model("recurrent"), some_ids(0)
    clean = kept(model, ids)
    for options in ({"iteration": 3}, {"iteration": 2, "last": 6}, {"positions": [4, 1], "iteration": 1, "last": 4}):
        found = kept(model, ids, patch=Patch.of(clean, **options))
        same = difference(clean, found)
        assert torch.equal(found.logits, clean.logits) and not same.flipped.any() and (same.kl == 0).all()
        assert same.distance is not None and (same.distance == 0).all()


@torch.no_grad()
def test_a_patch_is_where_it_was_asked_and_causal(make_model: Make) -> None:
    """Guards iteration and position: before it nothing differs, there the states are the other run's, positions before
    it never differ, and positions behind it do."""
    model, ids = make_model("recurrent"), some_ids(0)
    clean, other = kept(model, ids), kept(model, some_ids(1))
    found = kept(model, ids, patch=Patch.of(other, [3], iteration=2, last=4))
    gone = difference(clean, found).distance
    assert gone is not None and found.states is not None and other.states is not None
    assert (gone[:, :1] == 0).all() and (gone[:, :, :3] == 0).all()
    assert torch.equal(found.states[:, 1:4, 3], other.states[:, 1:4, 3])
    assert not torch.equal(found.states[:, 4, 3], other.states[:, 4, 3])
    assert (gone[:, 1, 4:] == 0).all() and (gone[:, 2:, 3:] > 0).all()


@torch.no_grad()
def test_noise_is_of_the_size_that_was_asked(make_model: Make) -> None:
    """Guards noise: proportional to each state, repeatable, drawn anew at each iteration and seed; none at scale 0."""
    model, ids = make_model("recurrent"), some_ids(0, 3, 20)
    clean = kept(model, ids)
    noisy = kept(model, ids, patch=Noise(3, 0.1))
    assert noisy.states is not None and clean.states is not None
    added = noisy.states[:, 2] - clean.states[:, 2]
    share = (added.square().mean(-1) / clean.states[:, 2].square().mean(-1)).mean().sqrt()
    assert share == pytest.approx(0.1, rel=0.05)  # 1,440 draws: a standard deviation is 2 %
    assert torch.equal(noisy.logits, kept(model, ids, patch=Noise(3, 0.1)).logits)
    assert not torch.equal(noisy.logits, kept(model, ids, patch=Noise(3, 0.1, seed=1)).logits)
    assert not torch.equal(noisy.logits, kept(model, ids, patch=Noise(3, 0.1, until=4)).logits)
    assert torch.equal(clean.logits, kept(model, ids, patch=Noise(1, 0.0, until=6)).logits)
    first = kept(model, ids, patch=[Noise(3, 0.1, [0, 1]), Patch.of(clean, [0, 1], 3)])
    assert torch.equal(first.logits, clean.logits)  # in the order given: the patch undoes the noise


@torch.no_grad()
def test_a_prefix_of_other_bits_turns_every_later_parity() -> None:
    """Guards patching end to end, on the shipped model: the states of the first 8 bits, held from iteration 8 to the
    end as they are in a run whose first bit is the other one, turn every later answer round, though the bits that are
    read say otherwise; put in once, they are mended by the loop, which reads its input again."""
    model = mull.load(ROOT / "checkpoints/parity")
    bits = torch.randint(2, (8, 24), generator=torch.Generator().manual_seed(0))
    other = bits.clone()
    other[:, 0] = 1 - other[:, 0]
    start = torch.full((8, 1), 4)
    labels = torch.cat([torch.full((8, 1), -100), 2 + bits.cumsum(1) % 2], dim=1)
    ids = torch.cat([start, bits], 1)
    clean = trace(model, ids, 24, labels=labels)
    donor = kept(model, torch.cat([start, other], 1), 24)
    assert (clean.answers["coda"].rank[:, -1, 1:] == 1).all()  # right everywhere
    prefix = range(9)
    held = difference(clean, trace(model, ids, 24, labels=labels, patch=Patch.of(donor, prefix, 8, last=24)))
    assert held.flipped[:, -1, 1:].all() and not held.flipped[:, -1, 0].any()
    assert (held.truth[:, -1, 1:] < -0.9).all() and (held.kl[:, 1:] > 1).all()
    once = difference(clean, trace(model, ids, 24, patch=Patch.of(donor, prefix, 8)))
    assert once.flipped[:, 7, 1:9].all() and not once.flipped[:, -1].any()
    late = difference(clean, trace(model, ids, 24, patch=Patch.of(donor, prefix, 24)))
    assert late.flipped[:, -1, 1:9].all() and not late.flipped[:, -1, 9:].any()  # too late for others to read


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patch(7, [0], torch.zeros(2, 1, 24)), "ends at 6"),
        (Patch(5, [0], torch.zeros(2, 3, 1, 24)), "iterations 5 .. 7, and the run ends at 6"),
        (Patch(-1, [0], torch.zeros(2, 1, 24)), "Patch: iteration must be at least 0, not -1"),
        (Patch(1.5, [0], torch.zeros(2, 1, 24)), "iteration must be an integer of at least 0, not 1.5"),  # type: ignore
        (Patch(1, [0.5], torch.zeros(2, 1, 24)), "position 0.5 is no integer"),  # type: ignore[list-item]
        (Patch(1, 3, torch.zeros(2, 1, 24)), r"positions must be a list, not 3; write one as \[3\]"),  # type: ignore
        ([Noise(1, 0.1), "noise"], "patch must be a Patch, a Noise or a list of such, not str"),
        (3, "patch must be a Patch, a Noise or a list of such, not int"),
        (Patch(1, [7], torch.zeros(2, 1, 24)), "position 7 lies outside 0 .. 6"),
        (Patch(1, [], torch.zeros(2, 0, 24)), "one position or more"),
        (Patch(1, [2, 2], torch.zeros(2, 2, 24)), "each once"),
        (Patch(1, [2], torch.zeros(2, 2, 24)), r"states must have shape \(2, 1, 24\)"),
        (Patch(1, None, torch.zeros(3, 7, 24)), r"states must have shape \(2, 7, 24\)"),
        (Noise(3, 0.1, until=2), "iterations 3 .. 2 are none"),
    ],
)
def test_changes_that_cannot_be_made(make_model: Make, patch: Patch, message: str) -> None:
    """Guards one clear line before anything is computed."""
    with pytest.raises(ValueError, match=message):
        trace(make_model("recurrent"), some_ids(0), 6, patch=patch)


NO_NOISE: list[tuple[dict[str, Any], str]] = [
    ({"scale": -1}, "scale must be a finite number, 0 or more, not -1"),
    ({"scale": float("inf")}, "scale must be a finite number, 0 or more, not inf"),
    ({"scale": float("nan")}, "not nan"),
    ({"scale": "1"}, "not '1'"),
    ({"iteration": 1.5}, "Noise: iteration must be an integer of at least 0, not 1.5"),
    ({"iteration": "1"}, "Noise: iteration must be an integer of at least 0, not '1'"),
    ({"until": 2.5}, "Noise: last must be an integer of at least 0, not 2.5"),
    ({"seed": 0.5}, "Noise: seed must be an integer"),
    ({"seed": 10**30}, "Noise: seed 1000000000000000000000000000000 is above the limit of 1,099,511,627,776"),
]


def test_other_refusals(make_model: Make) -> None:
    """Guards what has no meaning: a patch beside exits, in inner thinking, from a trace without states, and more."""
    model = make_model("recurrent")
    bare = trace(model, some_ids(0), 4)
    full = kept(model, some_ids(0), 4)
    with pytest.raises(ValueError, match="leave out exits or patch"):
        trace(model, some_ids(0), 4, exits=["latent:0.1"], patch=Noise(1, 0.1))
    with pytest.raises(ValueError, match="patch needs a model with a core"):
        trace(make_model("inner_thinking"), some_ids(0), 3, patch=Noise(1, 0.1))
    with pytest.raises(ValueError, match="keep_states=True"):
        Patch.of(bare)
    with pytest.raises(ValueError, match="last=5 is beyond the 4 iterations"):
        Patch.of(full, last=5)
    with pytest.raises(ValueError, match="last=1 comes before iteration=3"):
        Patch.of(full, iteration=3, last=1)
    with pytest.raises(ValueError, match=r"position 9 lies outside 0 .. 6"):
        Patch.of(full, [9])
    for given, says in NO_NOISE:
        with pytest.raises(ValueError, match=says):
            Noise(**{"iteration": 1, "scale": 0.1, **given})
    with pytest.raises(ValueError, match="states must be a tensor, not list"):
        Patch(1, None, [0.5])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not match"):
        difference(bare, trace(model, some_ids(0), 3))
    with pytest.raises(ValueError, match="no answers through the lens 'logit'"):
        difference(bare, full, "logit")
