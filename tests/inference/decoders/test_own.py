"""A decoder of one's own: contrast.py, a file of 40 lines at most, is all that it takes. Documentation shows it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mull
from mull.inference.decoders import DECODERS, Decoder, Request, choose_decoder, decoder
from mull.inference.rounds import Round, Rounds
from mull.inference.session import Session
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]
IDS = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))


def twin(model: LanguageModel, prompt: Tensor, few: int, many: int, weight: float, n_new: int) -> list[int]:
    """One row (1, P): two caches, a token at a time."""
    caches, text = [model.new_cache(1, 32, "deepest") for _ in range(2)], []
    with torch.no_grad():
        for cache in caches:
            logits = model(prompt, many, cache=cache).logits[0, -1]
        while True:
            text.append(int(logits.argmax()))
            if len(text) == n_new:
                return text
            token = torch.tensor([text[-1:]])
            first, last = (model(token, n, cache=c).logits[0, -1] for n, c in zip((few, many), caches, strict=True))
            logits = last + weight * (last - first)


@pytest.mark.parametrize(("few", "weight"), [(1, 0.5), (2, 3.0), (3, 0.0)])
@pytest.mark.usefixtures("contrast")
def test_it_writes_what_its_slow_twin_writes(make_model: MakeModel, few: int, weight: float) -> None:
    """By its name, through the same door as every other: rows that stop at different places included."""
    model = make_model("recurrent", 2)
    result = mull.generate(model, IDS, 6, decode=f"contrast:{few},weight={weight}", max_new_tokens=9, stop_tokens=[3])
    for row in range(3):
        text = twin(model, IDS[row : row + 1], few, 6, weight, 9)
        text = text[: text.index(3) + 1] if 3 in text else text
        assert result.new_tokens[row, : len(text)].tolist() == text
        assert (result.iterations[row] > 0).sum() == len(text)
    plain = mull.generate(model, IDS, 6, max_new_tokens=9, stop_tokens=[3])
    assert torch.equal(plain.tokens, result.tokens) == (weight == 0), "the weight does nothing here"


@pytest.mark.usefixtures("contrast")
def test_it_is_short_and_refused_in_its_own_words(make_model: MakeModel) -> None:
    source = Path(__file__).with_name("contrast.py").read_text()
    assert len(source.splitlines()) <= 40
    with pytest.raises(ValueError, match=r"decode contrast: iterations 'x' is not an integer; write contrast:1:0.5"):
        choose_decoder("contrast:x", None)
    with pytest.raises(ValueError, match=r"decode 'contrast' needs .*, not a Transformer"):
        mull.generate(make_model("transformer"), IDS, decode="contrast:1")
    with pytest.raises(ValueError, match="decode 'contrast' needs a cache of policy deepest, not full; leave "):
        mull.generate(make_model("recurrent"), IDS, decode="contrast:1", policy="full")


def test_drafts_need_a_session_only(make_model: MakeModel) -> None:
    """A decoder that reads several guesses at once and cuts what was wrong: plain decoding's text, in fewer calls."""

    class Stutter(Decoder):
        """Guesses that the last token comes again and again."""

        name = example = "stutter"
        policies = ("full",)

        def rounds(self, session: Session, last: Tensor, request: Request) -> Rounds:
            while True:
                guesses = last[:, None].expand(-1, min(4, session.room))
                out = session.think(guesses, None)
                tokens = request.draw.choose(out.logits.flatten(0, 1)).view(guesses.shape)
                right = (tokens[:, :-1] == guesses[:, 1:]).long().cumprod(dim=1).sum(dim=1)
                wrong = guesses.shape[1] - 1 - right
                session.cut([length - n for length, n in zip(session.lengths, wrong.tolist(), strict=True)])
                last = tokens.gather(1, right[:, None])[:, 0]
                keep = yield Round(tokens, right + 1, out.iterations)
                if keep is not None:
                    session, last = session.fork(keep), last[keep]

    decoder(Stutter)
    try:
        for seed in range(5):
            model, calls = make_model("recurrent", seed), []
            plain = mull.generate(model, IDS, 4, max_new_tokens=20, stop_tokens=[3])
            model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            result = mull.generate(model, IDS, 4, max_new_tokens=20, stop_tokens=[3], decode="stutter")
            assert torch.equal(result.tokens, plain.tokens) and torch.equal(result.iterations, plain.iterations)
            assert len(calls) <= plain.new_tokens.shape[1]
    finally:
        del DECODERS["stutter"]
