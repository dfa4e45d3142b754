"""Contexts: gathering some tokens of a call, computing with them, and scattering them back, against the whole call."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mull.models import LanguageModel, RecurrentDepthConfig, positions
from mull.models.cache import Cache
from mull.models.layers import rotation_angles
from mull.models.placing import place
from mull.models.positions import Context

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]

WIDTH = 4  # of a head


def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as it is written: q (B, T, H, W), k and v (B, H, S, W); causal where there is no mask."""
    scores = torch.einsum("bthw,bhsw->bhts", q, k)
    if mask is None and q.shape[1] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    return torch.einsum("bhts,bhsw->bthw", scores.softmax(dim=-1), v)


@dataclass
class Call:
    """A whole call: its context, which of its tokens are real, (B, T) bool, and the keys that its queries may see."""

    context: Context
    valid: Tensor
    keys: Tensor
    values: Tensor


@st.composite
def calls(draw: st.DrawFn, cached: bool | None = None) -> Call:
    """Any call: rows and positions in odd numbers, with and without padding, a cache, and rows of different lengths."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    torch.manual_seed(draw(st.integers(0, 99)))
    cache, valid = None, None
    if draw(st.booleans()) if cached is None else cached:
        cache = Cache(rows, 2, 32, WIDTH, torch.device("cpu"), torch.float64, "deepest")
        even = draw(st.booleans())
        cache.lengths = [draw(st.integers(0, 5))] * rows if even else [draw(st.integers(0, 5)) for _ in range(rows)]
    if draw(st.booleans()):
        valid = torch.rand(rows, length) < 0.7
        valid[:, draw(st.integers(0, length - 1))] = True

    def rotation(at: Tensor) -> Tensor:
        return rotation_angles(at, WIDTH, 100.0, torch.float64)

    context = place((rows, length), torch.device("cpu"), valid, cache, rotation)
    keys, values = torch.randn(2, rows, 2, context.end, WIDTH, dtype=torch.float64)
    return Call(context, torch.ones(rows, length, dtype=torch.bool) if valid is None else valid, keys, values)


def assert_part_of(some: Context, call: Call, among: Tensor) -> None:
    """`some` holds just the tokens `among` (B, T) of the whole call, in its own order; what it computes is theirs."""
    whole, (rows, length) = call.context, among.shape
    own = some.tokens[: some.taken]
    assert sorted(own.tolist()) == among.flatten().nonzero().flatten().tolist()
    assert (some.tokens[some.taken :] == own[-1]).all() if some.taken else len(some.tokens) == 0

    everywhere = whole.positions.expand(rows, length)
    assert torch.equal(some.positions, everywhere.flatten()[some.tokens][None])
    rotation = whole.rotation.expand(rows, length, 1, WIDTH // 2, 2).flatten(0, 1)
    assert torch.equal(some.rotation, rotation[some.tokens][None])

    x = torch.randn(rows, length, 3, 2, dtype=torch.float64)
    part = some.gather(x)
    assert torch.equal(part, x.flatten(0, 1)[some.tokens][None])
    assert torch.equal(some.scatter(x, part), x)  # there and back
    new = torch.randn_like(part)
    written = some.scatter(x, new)
    assert torch.equal(written[~among], x[~among])
    assert torch.equal(some.gather(written)[:, : some.taken], new[:, : some.taken])
    in_place = x.clone()
    assert torch.equal(some.scatter(in_place, new, in_place=True), written) and torch.equal(in_place, written)
    assert some.scatter(x.float(), new).dtype == torch.float32  # in the type of what is written to

    queries = torch.randn(rows, length, 2, WIDTH, dtype=torch.float64)
    if some.taken:
        answers = whole.attend(look, queries, call.keys, call.values)
        found = some.attend(look, some.gather(queries), call.keys, call.values)
        torch.testing.assert_close(found, some.gather(answers), rtol=1e-12, atol=1e-12)


@given(data=st.data(), block=st.sampled_from((1, 8, 3)), segment=st.sampled_from((256, 5, 1)))
def test_picked_tokens_are_those_of_the_whole_call(data: st.DataObject, block: int, segment: int) -> None:
    """Positions, rotation, round trip and attention, in whole blocks and in any segments; padding may be picked too."""
    call = data.draw(calls())
    share = data.draw(st.sampled_from((0.0, 0.2, 0.7, 1.0)))
    selected = torch.rand(call.valid.shape) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "SEGMENT", segment)
        some = call.context.pick(selected, block)
        if some is None:
            assert selected.all() and (block == 1 or selected.shape[1] % block == 0)
            return
        assert len(some.tokens) % block == 0 and len(some.tokens) - some.taken < block
        assert all(group.width % block == 0 for group in some.groups)
        assert_part_of(some, call, selected)


@given(data=st.data())
def test_narrowed_tokens_are_those_of_the_whole_call(data: st.DataObject) -> None:
    """Positions, rotation, round trip, attention, and the place in the cache where their keys go."""
    call = data.draw(calls(cached=True))
    among = call.valid & (torch.rand(call.valid.shape) < data.draw(st.sampled_from((0.2, 0.7, 1.0))))
    among[0] |= call.valid[0] & ~among.any()  # one token at least
    some = call.context.narrow(among.flatten().nonzero().flatten())
    assert_part_of(some, call, among)
    rows, columns = call.context.cells()
    stored = dict(zip(call.valid.flatten().nonzero().flatten().tolist(), zip(rows, columns, strict=True), strict=True))
    assert [stored[token] for token in some.tokens.tolist()] == list(zip(*some.cells(), strict=True))


def test_all_tokens_together_need_no_gathering() -> None:
    """Unless they would be summed otherwise than all but one are: six as eight."""
    context = place((2, 3), torch.device("cpu"), None, None, lambda _: None)
    everyone = torch.ones(2, 3, dtype=torch.bool)
    assert context.pick(everyone) is None
    assert context.pick(everyone, block=8) is not None
    assert context.pick(everyone, block=3) is None
    some = context.pick(torch.tensor([[False, True, True], [False, False, True]]))
    assert some is not None and some.tokens.tolist() == [1, 2, 5] and some.taken == 3
    x = torch.arange(6.0).view(2, 3)
    assert some.scatter(x, -torch.ones(1, 3)).tolist() == [[0, -1, -1], [3, 4, -1]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3, 1), (1, 1)])
def test_nested_parts_are_gathered_one_by_one(shape: tuple[int, int]) -> None:
    """Tensors by token, tensors for all tokens alike, None, and tuples of such. What is alike for all may stay as it is
    or be said once for each: a product with what is by token is the same. Also where the call has just one token."""
    context = place(shape, torch.device("cpu"), None, None, lambda _: None)
    flat = torch.arange(shape[0] * shape[1]).view(shape)
    some = context.pick(flat % 2 == 0, block=8)
    assert some is not None
    by_token, alike = torch.randn(*shape, 3, 2), torch.randn(1, 1, 3, 2)
    assert some.gather(None) is None and some.gather(()) == ()
    gathered = some.gather((by_token, (None, alike, (flat,)), alike))
    assert gathered[1][0] is None and len(gathered) == 3 and len(gathered[1]) == 3
    assert torch.equal(gathered[0], by_token.flatten(0, 1)[some.tokens][None])
    assert torch.equal(gathered[1][2][0], some.tokens[None])
    for found in (gathered[1][1], gathered[2]):
        assert torch.equal(found * gathered[0], alike * gathered[0])
