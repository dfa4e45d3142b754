"""Generation at its edges: where text ends, what is refused, and what a caller is left with."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mull.inference.generate import generate, stream
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def naive(model: LanguageModel, tokens: Tensor, n_new: int, iterations: int | Tensor | None = None) -> Tensor:
    with torch.no_grad():
        for _ in range(n_new):
            logits = model(tokens, iterations).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return tokens


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


def test_the_limit_counts_the_tokens_of_a_row(make_model: MakeModel) -> None:
    """Not its padding: a short row goes on where a long one is full, and padding may be wider than the limit."""
    model = make_model("recurrent", max_length=8)
    ids, mask = prompts(3, 12), torch.zeros(3, 12, dtype=torch.int64)
    mask[0, 5:] = mask[1, 2:5] = mask[2, 11:] = 1
    result = generate(model, ids, max_new_tokens=64, attention_mask=mask)
    assert (result.iterations > 0).sum(dim=1).tolist() == [1, 5, 7]
    assert result.tokens.shape == (3, 12 + 7)
    for row, n_new in enumerate([1, 5, 7]):
        alone = naive(model, ids[row, mask[row].bool()][None], n_new)
        assert torch.equal(result.new_tokens[row, :n_new], alone[0, -n_new:])
    assert generate(model, ids, max_new_tokens=3, attention_mask=mask).new_tokens.shape == (3, 3)


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
        ({"exit": "latent:soon"}, "exit latent: threshold 'soon' is not a number; write latent:0.03"),
        ({"exit": "gate:0.5"}, "needs a model with an exit gate"),
        (
            {"exit": "latent:0.1", "policy": "full"},
            "decode 'adaptive' needs a cache of policy deepest or shared, not full; leave policy out",
        ),
        ({"decode": "speculate:2"}, "decode speculate lacks tokens; write speculate:4:16"),
        ({"decode": "speculate:9:4"}, "a draft at 9 iterations must be shallower than decoding at 3"),
        ({"decode": "speculate:1:0"}, "speculate: tokens must be at least 1, not 0"),
        ({"decode": "speculate:1:2", "exit": "latent:0.1"}, "a call has one decoder: exit='latent:0.1'"),
        ({"prompt_ids": torch.zeros(1, 0, dtype=torch.int64)}, "the prompt is empty; give at least one token"),
        ({"prompt_ids": torch.zeros(3, dtype=torch.int64)}, "prompt_ids must be integers of shape (batch, positions)"),
        ({"prompt_ids": torch.zeros(1, 3)}, "prompt_ids must be integers"),
        ({"prompt_ids": torch.zeros(1, 33, dtype=torch.int64)}, "33 positions, and the model's max_length is 32"),
        ({"prompt_ids": torch.zeros(1, 32, dtype=torch.int64)}, "shorten the prompt to 31 or less"),
        ({"prompt_ids": torch.tensor([[1, 11]])}, "token id 11 lies outside the vocabulary of 11 (0 .. 10)"),
        ({"prompt_ids": torch.tensor([[1, -1]])}, "token id -1 lies outside"),
        (
            {"prompt_ids": torch.zeros(2, 40, dtype=torch.int64), "attention_mask": torch.ones(2, 40)},
            "40 positions, and the model's max_length is 32, prompt and answer together; shorten the prompt to 31",
        ),
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
