"""What every way of writing owes its caller, whatever it does inside. A new decoder is in here by being registered."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.inference.decoders import DECODERS, Decoder, choose_decoder
from mull.inference.generate import Generation, generate, stream
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]
LIMIT = 6  # iterations, where there is a loop; as in conftest.py
STOP = [3, 5]


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def refusal(model: LanguageModel, way: Decoder | str, **options: Any) -> str:
    """The message of a call that must be refused before anything is computed; one line."""
    calls: list[int] = []
    hook = model.embedding.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError) as caught:
        stream(model, prompts(2, 4), **{"decode": way, **options})
    hook.remove()
    assert "\n" not in str(caught.value) and not calls
    return str(caught.value)


def depth(model: LanguageModel) -> int | None:
    return None if model.config.default_iterations is None else LIMIT


def write(model: LanguageModel, ids: Tensor, way: Decoder, n_new: int, **options: Any) -> Generation:
    """Greedy, without stop tokens, unless asked otherwise."""
    return generate(model, ids, depth(model), max_new_tokens=n_new, decode=way, **{"stop_tokens": (), **options})


def answers(result: Generation) -> list[list[int]]:
    """What each row wrote, without what fills it up."""
    lengths = (result.iterations > 0).sum(dim=1).tolist()
    return [row[:n] for row, n in zip(result.new_tokens.tolist(), lengths, strict=True)]


@pytest.mark.parametrize(("width", "n_new", "stop"), [(14, 9, STOP), (28, 99, [])], ids=["stopping", "to the limit"])
def test_a_row_is_the_same_alone_and_among_others(
    model: LanguageModel, way: Decoder, width: int, n_new: int, stop: list[int]
) -> None:
    """Other rows, padding on either side, rows that stop or reach the model's limit of 32 tokens sooner: text and
    iterations of a row are its own. The limit counts real tokens, so each row writes until it is full itself."""
    ids, mask = prompts(5, width), torch.ones(5, width, dtype=torch.int64)
    mask[1, :5] = mask[2, -5:] = mask[3, :4] = mask[3, -3:] = 0
    mask[4, 1 if stop else 20 :] = 0  # one token, or few enough to write the most of all
    together = write(model, ids, way, n_new, attention_mask=mask, stop_tokens=stop)
    assert torch.equal(together.tokens[:, :width], ids)
    lengths = mask.sum(dim=1).tolist()
    for row, text in enumerate(answers(together)):
        alone = write(model, ids[row, mask[row].bool()][None], way, n_new, stop_tokens=stop)
        assert text == answers(alone)[0]
        assert together.iterations[row, : len(text)].tolist() == alone.iterations[0].tolist()
        assert together.new_tokens[row, len(text) :].eq(text[-1]).all()
        if not stop:
            assert len(text) == 32 - lengths[row]


@pytest.mark.parametrize(("n_new", "stop"), [(9, STOP)], ids=["stopping"])  # greedy rows go to the limit, above
def test_a_drawn_row_is_the_same_alone_and_among_others(
    model: LanguageModel, way: Decoder, n_new: int, stop: list[int]
) -> None:
    """Where every row has a generator of its own, whichever rows end before it."""
    if "generators" not in way.understands:
        assert "one generator" in refusal(model, way, **GIVEN["generators"], iterations=depth(model))
        return
    ids, mask = prompts(5, 14), torch.ones(5, 14, dtype=torch.int64)
    mask[1, :5] = mask[2, 9:] = mask[4, 1:] = 0
    drawn = {"temperature": 1.5, "stop_tokens": stop}
    seeds = [torch.Generator().manual_seed(row) for row in range(5)]
    together = answers(write(model, ids, way, n_new, attention_mask=mask, generator=seeds, **drawn))
    assert len({len(text) for text in together}) > 1
    for row, text in enumerate(together):
        seed = torch.Generator().manual_seed(row)
        alone = write(model, ids[row, mask[row].bool()][None], way, n_new, generator=seed, **drawn)
        assert text == answers(alone)[0]


def test_stop_tokens_cut_the_text_that_would_be_written_without_them(model: LanguageModel, way: Decoder) -> None:
    """Each row up to its own first stop token, which it is filled up with at no iterations."""
    ids = prompts(6, 4, seed=3)
    free = write(model, ids, way, 12).new_tokens.tolist()
    stop = (free[0][3], free[1][1])
    ends = [next((i for i, token in enumerate(row) if token in stop), 11) for row in free]
    result = write(model, ids, way, 12, stop_tokens=stop)
    n_new = max(ends) + 1
    expected = [row[: end + 1] + [row[end]] * (n_new - end - 1) for row, end in zip(free, ends, strict=True)]
    assert result.new_tokens.tolist() == expected
    assert (result.iterations > 0).sum(dim=1).tolist() == [end + 1 for end in ends]


def test_a_row_that_stops_at_once_leaves_the_others_alone(far_model: LanguageModel, far_way: Decoder) -> None:
    """And when all of them stop at once, there is one column and nothing more is asked for."""
    model, way = far_model, far_way
    for seed in range(20):
        ids = prompts(3, 4, seed)
        free = write(model, ids, way, 6)
        first = free.new_tokens[0, 0].item()
        if first not in free.new_tokens[1, :2].tolist():
            break
    result = write(model, ids, way, 6, stop_tokens=[first])  # type: ignore[list-item]
    assert answers(result)[0] == [first] and len(answers(result)[1]) > 1
    for text, whole in zip(answers(result), answers(free), strict=True):
        assert text == whole[: len(text)]
    every = write(model, ids[:1].expand(3, -1), way, 6, stop_tokens=[first])  # type: ignore[list-item]
    assert every.new_tokens.tolist() == [[first]] * 3


def test_a_shorter_answer_is_the_beginning_of_a_longer_one(model: LanguageModel, way: Decoder) -> None:
    """And no token takes more iterations than were asked for, or none."""
    ids = prompts(3, 4)
    more = write(model, ids, way, 11)
    assert more.iterations.min() >= 1 and more.iterations.max() <= (depth(model) or 1)
    for n_new in (1, 2, 5):
        some = write(model, ids, way, n_new)
        assert some.new_tokens.shape == some.iterations.shape == (3, n_new)
        assert torch.equal(some.new_tokens, more.new_tokens[:, :n_new])
        assert torch.equal(some.iterations, more.iterations[:, :n_new])


def test_sampled_text_follows_the_seed_and_nothing_else(far_model: LanguageModel, far_way: Decoder) -> None:
    """35 draws over 11 tokens, none near certain: other seeds write the same with p < 1e-9."""
    model, way = far_model, far_way
    ids = prompts(7, 4)

    def run(seed: int, **filters: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return write(model, ids, way, 5, temperature=1.5, generator=generator, **filters).new_tokens

    before = torch.get_rng_state()
    one = run(5)
    torch.manual_seed(7)
    assert torch.equal(one, run(5)), "something else than the generator decides"
    torch.set_rng_state(before)
    run(6)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"
    assert not torch.equal(one, run(6))
    assert torch.equal(run(5, top_k=1), write(model, ids, way, 5).new_tokens)


def test_positions_stream_as_they_are_collected(far_model: LanguageModel, far_way: Decoder) -> None:
    """Nothing is computed before the first is asked for; what comes is whole tensors that can be trained on, and the
    caller's mode holds between them."""
    model, way = far_model, far_way
    model.train()
    calls: list[int] = []
    hook = model.embedding.register_forward_hook(lambda *_: calls.append(1))
    positions = stream(model, prompts(2, 4), depth(model), max_new_tokens=7, decode=way, stop_tokens=())
    assert not calls
    seen = []
    for position in positions:
        assert torch.is_grad_enabled() and not position.tokens.is_inference() and model.training
        assert position.tokens.shape == position.iterations.shape == (2,)
        seen.append(position)
    hook.remove()
    result = write(model, prompts(2, 4), way, 7)
    assert torch.equal(torch.stack([position.tokens for position in seen], dim=1), result.new_tokens)
    assert torch.equal(torch.stack([position.iterations for position in seen], dim=1), result.iterations)
    model(result.tokens, depth(model)).logits.sum().backward()
    assert model.embedding.weight.grad is not None


def test_half_precision_keys_are_taken(model: LanguageModel, way: Decoder) -> None:
    """Not the same text, but one: cache_dtype is no option that a decoder may forget."""
    result = write(model.float(), prompts(2, 4), way, 9, cache_dtype=torch.bfloat16)
    assert result.new_tokens.shape == (2, 9)


GIVEN: dict[str, dict[str, Any]] = {  # an example of every option of `Decoder.understands`
    "warm_start": {"warm_start": True},
    "ring": {"policy": "shared", "ring": 2},
    "capacity": {"capacity": 0.5},
    "counts": {"iterations": torch.tensor([2, LIMIT])},
    "generators": {"generator": [torch.Generator(), torch.Generator().manual_seed(1)], "temperature": 1.0},
}
REFUSED = {"counts": "one count of iterations", "generators": "from one generator, not from one each"}


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_is_understood_or_refused_and_never_ignored(
    model: LanguageModel, way: Decoder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Understood: other logits come out. Refused, by the decoder or for the model: one line that names the option."""
    seen: list[float] = []
    monkeypatch.setattr("mull.inference.sampling.check_logits", lambda logits: seen.append(logits.sum().item()))

    def logits(**options: Any) -> list[float]:
        seen.clear()
        generate(model, prompts(2, 4), **{"iterations": depth(model), "decode": way, "max_new_tokens": 5, **options})
        return list(seen)

    options, plain = GIVEN[name], {"policy": "shared"} if name == "ring" else {}
    family = type(model).__name__
    if name not in way.understands:
        message = refusal(model, way, **{key: value for key, value in options.items() if key != "policy"})
        word = REFUSED.get(name, f"does not understand {name}=")
        assert f"decode '{way.name}'" in message and word in message
    elif (name, family) in UNABLE:
        with pytest.raises(ValueError, match=f"{family}.*{UNABLE[name, family]}"):
            logits(**options)
    elif (name, family) not in WITHOUT_EFFECT:
        assert logits(**options) != logits(**plain)


UNABLE = {  # what a model says to an option that the decoder understands, behind its name
    ("capacity", "RecurrentDepthTransformer"): "has no routed passes: capacity=0.5 is refused, leave it out",
    ("capacity", "Transformer"): "has no routed passes: capacity=0.5 is refused, leave it out",
    ("warm_start", "InnerThinkingTransformer"): "",
    ("warm_start", "Transformer"): "",
    ("counts", "Transformer"): "has no loop",
}
WITHOUT_EFFECT = {("ring", "Transformer")}  # one iteration has one set of keys


def test_every_option_of_every_decoder_is_known_here() -> None:
    assert set().union(*(kind.understands for kind in DECODERS.values())) == set(GIVEN)


@pytest.mark.parametrize("policy", ["full", "deepest", "shared", "sometimes"])
def test_a_policy_is_followed_or_refused(model: LanguageModel, way: Decoder, policy: str) -> None:
    if policy in way.policies:
        assert write(model, prompts(2, 4), way, 5, policy=policy).new_tokens.shape == (2, 5)
        return
    message = refusal(model, way, policy=policy, iterations=depth(model))
    assert f"decode '{way.name}'" in message and policy in message and " or ".join(way.policies) in message


def test_a_family_that_a_decoder_does_not_go_with_is_refused(refused: tuple[Decoder, LanguageModel]) -> None:
    way, model = refused
    message = refusal(model, way, iterations=depth(model))
    assert "needs " in message and type(model).__name__ in message


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("wrong", [",hurry=1", ":1:2:3:4:5:6:7:8:9", ",="])
def test_a_misspelt_decoder_is_refused_with_an_example(make_model: MakeModel, name: str, wrong: str) -> None:
    message = refusal(make_model("recurrent_depth"), name + wrong)
    assert name in message or "exit" in message  # what stands behind `adaptive:` is an exit rule
    assert re.search(r"; write \S+$| as in \S+", message), message


def test_an_unknown_decoder_is_refused_with_those_there_are(make_model: MakeModel) -> None:
    message = refusal(make_model("recurrent_depth"), "beam:4")
    assert message.startswith("decode 'beam' is not known; known are ")
    assert all(name in message and kind.example in message for name, kind in DECODERS.items())


def test_every_decoder_is_written_by_its_name_and_says_what_it_is() -> None:
    for name, kind in DECODERS.items():
        assert kind.name == name and kind.example.split(":")[0] == name and kind.__doc__
        assert type(choose_decoder(kind.example, None)) is kind
    assert choose_decoder(None, None) == DECODERS["plain"]()
    assert choose_decoder(None, "latent:0.03") == choose_decoder("adaptive:latent:0.03", None)
