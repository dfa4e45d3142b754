"""Adaptive decoding, and an exit rule of one's own. The rules themselves are tested one folder up."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import mull
from mull.inference.decoders import choose_decoder
from mull.inference.decoders.adaptive import Adaptive
from mull.inference.exits import EXITS, Exit, Latent, Thought, exit_rule
from mull.inference.measure.evaluate import evaluate
from mull.models import LanguageModel
from mull.models.output import norm

MakeModel = Callable[..., LanguageModel]
IDS = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def exits() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(EXITS)
    yield
    EXITS.clear()
    EXITS.update(before)


def test_an_exit_is_short_for_this_decoder(make_model: MakeModel) -> None:
    """As text, as a rule, as a decoder and as the decoder's text: one and the same."""
    model, rule = make_model("recurrent"), Latent(0.3, minimum=2)
    ways = [
        {"exit": rule},
        {"exit": "latent:0.3,minimum=2"},
        {"decode": Adaptive(rule)},
        {"decode": "adaptive:latent:0.3,minimum=2"},
    ]
    results = [mull.generate(model, IDS, 6, max_new_tokens=8, stop_tokens=(), **way) for way in ways]  # type: ignore[arg-type]
    assert len(results[0].iterations.unique()) > 1, "everything left at once, which shows nothing"
    for result in results[1:]:
        assert torch.equal(result.tokens, results[0].tokens)
        assert torch.equal(result.iterations, results[0].iterations)


def test_a_rule_that_never_leaves_is_plain_decoding(make_model: MakeModel) -> None:
    model = make_model("recurrent")
    plain = mull.generate(model, IDS, 6, max_new_tokens=8, stop_tokens=())
    never = mull.generate(model, IDS, 6, decode="adaptive:latent:-1", max_new_tokens=8, stop_tokens=())
    assert torch.equal(plain.tokens, never.tokens) and torch.equal(plain.iterations, never.iterations)


@pytest.mark.usefixtures("exits")
def test_a_rule_of_ones_own_is_known_once_it_is_registered(make_model: MakeModel) -> None:
    """Its value, its memory, its own field and its threshold: written out as text, in generation and in evaluation."""

    @exit_rule
    @dataclass(frozen=True)
    class Calm(Exit):
        """The mean of the last relative changes, where older ones count less and less."""

        share: float = 0.5  # of the mean that stays

        name, example = "calm", "calm:0.2"

        def value(self, thought: Thought) -> Tensor:
            change = norm(thought.state - thought.previous) / norm(thought.state)
            before = self.recall(thought, "mean", change, math.inf)
            mean = torch.where(before.isinf(), change, torch.lerp(change, before, self.share))
            thought.memory["mean"] = mean
            return mean

    model = make_model("recurrent")
    options = {"max_new_tokens": 8, "stop_tokens": ()}
    calm = mull.generate(model, IDS, 6, exit="calm:0.5,share=0.6", **options)  # type: ignore[arg-type]
    assert torch.equal(calm.iterations, mull.generate(model, IDS, 6, exit=Calm(0.5, share=0.6), **options).iterations)  # type: ignore[arg-type]
    assert len(calm.iterations.unique()) > 1 and calm.iterations.max() <= 6
    # without memory it is the rule that there is already
    hasty, latent = (mull.generate(model, IDS, 6, exit=text, **options) for text in ("calm:0.3,share=0", "latent:0.3"))  # type: ignore[arg-type]
    assert torch.equal(hasty.iterations, latent.iterations) and torch.equal(hasty.tokens, latent.tokens)
    rows = [evaluate(model, {None: [(IDS, IDS)]}, [6], exit=text)[0] for text in ("calm:0.3,share=0", "latent:0.3")]
    assert rows[0].mean_iterations == rows[1].mean_iterations < 6  # type: ignore[operator]
    with pytest.raises(
        ValueError, match=r"exit calm: option 'speed=1' is not known; give threshold=.*share= as in calm"
    ):
        choose_decoder(None, "calm:0.2,speed=1")
    with pytest.raises(ValueError, match=r"exit 'clam' is not known; known are latent.*calm"):
        choose_decoder("adaptive:clam:1", None)


@pytest.mark.usefixtures("exits")
def test_a_name_stands_for_one_rule() -> None:
    class Other(Latent):
        """Another rule of a name that is taken."""

    with pytest.raises(
        ValueError, match=r"exit 'latent' is there already, .*mull\.inference\.exits\.Latent.*; choose another name"
    ):
        exit_rule(Other)
    assert EXITS["latent"] is Latent
