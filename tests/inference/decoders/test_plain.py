"""Plain decoding against its slow twin, the whole model run again without a cache for every token."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference.generate import generate
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
