"""Generation against its slow twin, the whole model run again without a cache for every token; and its edges."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference.generate import generate, stream
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]
DEPTHS = [("recurrent", 1), ("recurrent", 2), ("recurrent", 5), ("recurrent", None), ("transformer", None)]


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def naive(model: LanguageModel, tokens: Tensor, n_new: int, iterations: int | Tensor | None = None) -> Tensor:
    with torch.no_grad():
        for _ in range(n_new):
            logits = model(tokens, iterations).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


@pytest.mark.parametrize(("family", "iterations"), DEPTHS)
def test_cached_equals_naive(make_model: MakeModel, family: str, iterations: int | None) -> None:
    """In fp64 the logits differ by rounding alone: a wrong position, mask or cache slot changes them far more."""
    model, prompt, seen = make_model(family), prompts(4, 5), []
    hook = model.register_forward_hook(lambda _model, _inputs, out: seen.append(out.logits[:, -1]))
    result = generate(model, prompt, iterations, max_new_tokens=9)
    hook.remove()
    assert torch.equal(result.tokens, naive(model, prompt, 9, iterations))
    assert len(result.new_tokens.unique()) > 3, "the model repeats itself, and would hide an error"
    with torch.no_grad():
        logits = model(result.tokens, iterations).logits[:, 4:-1]
    torch.testing.assert_close(torch.stack(seen, dim=1), logits, rtol=0, atol=1e-11)
    assert torch.equal(result.iterations, torch.full((4, 9), 1 if family == "transformer" else iterations or 3))
    assert torch.equal(result.new_tokens, result.tokens[:, 5:])


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 8), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99),
    st.sampled_from(["rotary", "none"]), st.sampled_from(["sandwich", "pre_norm"]),
)  # fmt: skip
def test_cached_equals_naive_for_any_shape(
    make_model: MakeModel, rows: int, length: int, n_new: int, iterations: int, seed: int, positions: str, wiring: str
) -> None:
    model, prompt = make_model("recurrent", seed, positions=positions, wiring=wiring), prompts(rows, length, seed)
    result = generate(model, prompt, iterations, max_new_tokens=n_new)
    assert torch.equal(result.tokens, naive(model, prompt, n_new, iterations))


@pytest.mark.parametrize(("family", "iterations"), DEPTHS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(make_model: MakeModel, family: str, iterations: int | None, side: str) -> None:
    """Rows of lengths 1, 4 and 7 in one batch give what each gives alone: guards positions, masks, the column that the
    first new token is read from, and the padding that stays in the middle of the cache."""
    model, lengths = make_model(family, 4), [1, 4, 7]
    ids, mask = torch.full((3, 7), 9), torch.zeros(3, 7, dtype=torch.int64)
    for row, length in enumerate(lengths):
        place = slice(7 - length, 7) if side == "left" else slice(0, length)
        ids[row, place], mask[row, place] = prompts(1, length, seed=row)[0], 1
    result = generate(model, ids, iterations, max_new_tokens=8, attention_mask=mask)
    assert torch.equal(result.tokens[:, :7], ids)
    for row, length in enumerate(lengths):
        alone = generate(model, prompts(1, length, seed=row), iterations, max_new_tokens=8)
        assert torch.equal(result.new_tokens[row], alone.new_tokens[0])


def test_rows_with_counts_of_their_own_equal_single_runs(make_model: MakeModel) -> None:
    model, prompt = make_model("recurrent", 2), prompts(3, 4)
    result = generate(model, prompt, torch.tensor([1, 5, 2]), max_new_tokens=7)
    for row, depth in enumerate([1, 5, 2]):
        assert torch.equal(result.tokens[row : row + 1], naive(model, prompt[row : row + 1], 7, depth))
        assert result.iterations[row].tolist() == [depth] * 7


def test_stop_tokens_end_rows_and_fill_them(make_model: MakeModel) -> None:
    """Each row is cut where its own unstopped text first meets a stop token, and filled with that token."""
    model, prompt = make_model("recurrent", 1), prompts(6, 4, seed=3)
    free = generate(model, prompt, 2, max_new_tokens=12, stop_tokens=()).new_tokens.tolist()
    stop = (free[0][3], free[1][1])
    ends = [next((i for i, token in enumerate(row) if token in stop), 11) for row in free]
    assert len(set(ends)) > 1, "the test needs rows that stop at different places"
    result = generate(model, prompt, 2, max_new_tokens=12, stop_tokens=stop)
    n_new = max(ends) + 1
    expected = [row[: end + 1] + [row[end]] * (n_new - end - 1) for row, end in zip(free, ends, strict=True)]
    assert result.new_tokens.tolist() == expected
    assert (result.iterations > 0).sum(dim=1).tolist() == [end + 1 for end in ends]


def test_stop_tokens_come_from_the_config_unless_given(make_model: MakeModel) -> None:
    prompt = prompts(1, 4)
    first = int(generate(make_model("recurrent"), prompt, max_new_tokens=1).new_tokens)
    model = make_model("recurrent", stop_tokens=(first,))
    assert generate(model, prompt, max_new_tokens=5).new_tokens.tolist() == [[first]]
    assert generate(model, prompt, max_new_tokens=5, stop_tokens=()).new_tokens.shape == (1, 5)


def test_text_ends_at_the_models_limit(make_model: MakeModel) -> None:
    model = make_model("recurrent", max_length=8)
    result = generate(model, prompts(2, 5), max_new_tokens=64)
    assert result.tokens.shape == (2, 8)
    assert generate(model, prompts(2, 7), max_new_tokens=64).tokens.shape == (2, 8)
    assert torch.equal(result.tokens, naive(model, prompts(2, 5), 3))


def test_stream_yields_what_generate_returns_as_it_comes(make_model: MakeModel) -> None:
    model, prompt = make_model("recurrent"), prompts(2, 3)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    positions = stream(model, prompt, 2, max_new_tokens=6, stop_tokens=())
    assert not calls
    seen = [next(positions)]
    assert len(calls) == 1, "the first token needs the prefill and nothing more"
    seen += positions
    assert len(calls) == 6, "the last token is never read"
    result = generate(model, prompt, 2, max_new_tokens=6, stop_tokens=())
    assert torch.equal(torch.stack([p.tokens for p in seen], dim=1), result.new_tokens)
    assert torch.equal(torch.stack([p.iterations for p in seen], dim=1), result.iterations)


def test_sampled_text_is_reproducible_and_uses_the_filters(make_model: MakeModel) -> None:
    model, prompt = make_model("recurrent"), prompts(4, 3)

    def run(seed: int, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompt, 2, None, 8, 1.0, generator, **options).new_tokens

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))  # 32 draws over 11 tokens, none near certain: equal with p < 1e-9
    greedy = generate(model, prompt, 2, max_new_tokens=8).new_tokens
    for filters in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert torch.equal(run(5, **filters), greedy)


def test_the_callers_model_and_gradient_mode_are_left_alone(make_model: MakeModel) -> None:
    """Tokens can be trained on afterwards (no inference tensors), and the mode holds between streamed tokens."""
    model, prompt = make_model("recurrent").train(), prompts(2, 3)
    for position in stream(model, prompt, 2, max_new_tokens=3):
        assert torch.is_grad_enabled()
        assert not position.tokens.is_inference()
    result = generate(model, prompt, 2, max_new_tokens=3)
    assert model.training
    model(result.tokens, 2).logits.sum().backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit": "latnt:0.03"}, "exit 'latnt' is not known; known are latent, "),
        ({"exit": "latent:soon"}, "the threshold 'soon' is no number"),
        ({"exit": "gate:0.5"}, "needs a model with an exit gate"),
        ({"exit": "latent:0.1", "policy": "full"}, "an exit rule needs a cache of policy deepest or shared"),
        ({"speculate": "2"}, "speculate '2' is not ITERATIONS:TOKENS"),
        ({"speculate": "9:4"}, "a draft at 9 iterations must be shallower than decoding at 3"),
        ({"speculate": "1:0"}, "speculation must draft at least 1 token, not 0"),
        ({"speculate": "1:2", "exit": "latent:0.1"}, "it goes with no exit rule"),
        ({"prompt_ids": torch.zeros(1, 0, dtype=torch.int64)}, "the prompt is empty; give at least one token"),
        ({"prompt_ids": torch.zeros(3, dtype=torch.int64)}, "prompt_ids must be integers of shape (batch, positions)"),
        ({"prompt_ids": torch.zeros(1, 3)}, "prompt_ids must be integers"),
        ({"prompt_ids": torch.zeros(1, 33, dtype=torch.int64)}, "33 positions, and the model's max_length is 32"),
        ({"prompt_ids": torch.zeros(1, 32, dtype=torch.int64)}, "shorten the prompt to 31 or less"),
        ({"prompt_ids": torch.tensor([[1, 11]])}, "token id 11 lies outside the vocabulary of 11 (0 .. 10)"),
        ({"prompt_ids": torch.tensor([[1, -1]])}, "token id -1 lies outside"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer of at least 1, not 2.5"),
        ({"attention_mask": torch.ones(2, 2)}, "attention_mask has shape (2, 2), prompt_ids (2, 4)"),
        ({"attention_mask": torch.tensor([[1] * 4, [0] * 4])}, "row 1 of the prompt is empty"),
        ({"stop_tokens": [3, 11]}, "stop token 11 lies outside the vocabulary of 11"),
        ({"temperature": 0.7}, "needs a generator"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 2.0}, "top_p 2.0"),
    ],
)
def test_bad_values_are_refused_in_one_line_before_the_first_token(
    make_model: MakeModel, options: dict[str, Any], message: str
) -> None:
    arguments = {"prompt_ids": prompts(2, 4), **options}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        stream(make_model("recurrent"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "iterations"), [("recurrent", 0), ("recurrent", -1), ("transformer", 4)])
def test_bad_iterations_are_refused(make_model: MakeModel, family: str, iterations: int) -> None:
    with pytest.raises(ValueError, match=f"{iterations}"):
        generate(make_model(family), prompts(1, 4), iterations)
