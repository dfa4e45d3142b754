"""Speculation: the same text, sooner. Greedy output bit for bit, sampled output by its distribution."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference.decoders.speculative import accept
from mull.inference.generate import generate
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 6),
    n_new=st.integers(1, 12),
    drafted=st.integers(1, 4),
    tokens=st.integers(1, 7),
    seed=st.integers(0, 99),
    padded=st.booleans(),
    stops=st.booleans(),
)
def test_greedy_output_is_that_of_plain_decoding(
    make_model: MakeModel, rows: int, length: int, n_new: int, drafted: int, tokens: int, seed: int, padded: bool,
    stops: bool,
) -> None:  # fmt: skip
    """Any shape, padding on either side, rows that stop at different places."""
    model, ids = make_model("recurrent", seed % 5), prompts(rows, length, seed)
    mask = torch.ones_like(ids)
    if padded and length > 2:
        mask[0, 0] = mask[-1, -1] = 0
    options = {"attention_mask": mask, "stop_tokens": [1, 4] if stops else [], "max_new_tokens": n_new}
    plain = generate(model, ids, 5, **options)  # type: ignore[arg-type]
    quick = generate(model, ids, 5, **options, decode=f"speculate:{drafted}:{tokens}")  # type: ignore[arg-type]
    assert torch.equal(quick.tokens, plain.tokens)
    assert torch.equal(quick.iterations, plain.iterations)


def test_the_models_limit_is_kept(make_model: MakeModel) -> None:
    """max_length 32: drafts that would run over it are cut, and the text ends where plain decoding ends."""
    model, ids = make_model("recurrent"), prompts(2, 20)
    quick = generate(model, ids, 4, max_new_tokens=99, stop_tokens=(), decode="speculate:1:9")
    assert quick.tokens.shape == (2, 32)
    assert torch.equal(quick.tokens, generate(model, ids, 4, max_new_tokens=99, stop_tokens=()).tokens)


def test_work_is_saved(make_model: MakeModel) -> None:
    """A model that has come to rest after 2 iterations: drafts are right, and full depth is reached in few calls."""
    model, calls = make_model("recurrent"), []
    model.core[0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index, union-attr]
    generate(model, prompts(1, 4), 12, max_new_tokens=25, stop_tokens=())
    plain = len(calls)
    calls.clear()
    generate(model, prompts(1, 4), 12, max_new_tokens=25, stop_tokens=(), decode="speculate:6:6")
    assert len(calls) < plain


def test_accepting_and_refusing_follows_the_wanted_distribution() -> None:
    """Leviathan et al.: whatever q proposed, what is kept is distributed as p. 200,000 draws, four sigma each."""
    generator = torch.Generator().manual_seed(0)
    q, p = torch.tensor([0.7, 0.1, 0.2, 0.0]), torch.tensor([0.2, 0.5, 0.1, 0.2])
    n = 200_000
    proposed = torch.multinomial(q, n, replacement=True, generator=generator)[:, None]
    accepted, then = accept(
        proposed,
        q.expand(n, 1, 4),
        p.expand(n, 2, 4),
        lambda rows: torch.multinomial(rows, 1, generator=generator).squeeze(-1),
        lambda rows, k: torch.rand(rows, k, generator=generator),
    )
    first = torch.where(accepted > 0, proposed[:, 0], then)
    share = torch.bincount(first, minlength=4) / n
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all(), share
    assert accepted.float().mean().item() == pytest.approx(torch.minimum(p, q).sum().item(), abs=0.005)


def test_sampled_text_is_distributed_as_plain_sampling(make_model: MakeModel) -> None:
    """Pairs of sampled tokens of 4,000 rows, speculated and plain: a chi-square test of homogeneity."""
    model, rows = make_model("recurrent").float(), 4000
    ids = prompts(1, 3).expand(rows, 3)
    counts = []
    for seed, decode in ((1, None), (2, "speculate:1:2")):
        generator = torch.Generator().manual_seed(seed)
        drawn = generate(model, ids, 4, None, 2, 1.0, generator, top_k=4, stop_tokens=(), decode=decode).new_tokens
        counts.append(torch.bincount(drawn[:, 0] * 11 + drawn[:, 1], minlength=121).double())
    both = counts[0] + counts[1]
    seen = both > 10
    chi2 = sum((((c - both / 2) ** 2) / (both / 2))[seen].sum().item() for c in counts)
    freedom = int(seen.sum()) - 1
    assert freedom > 5
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5, (chi2, freedom)


def test_a_transformer_cannot_draft(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="decode 'speculate' needs a model of kind IteratedModel, not a Transformer"):
        generate(make_model("transformer"), prompts(1, 3), decode="speculate:1:2")
    with pytest.raises(ValueError, match="one count of iterations for all rows"):
        generate(make_model("recurrent"), prompts(2, 3), torch.tensor([2, 3]), decode="speculate:1:2")
