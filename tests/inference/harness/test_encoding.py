"""Texts of a task become the tokens that the model would write them in, and what is too long is cut from the left."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from mull.inference.harness.encoding import Encoder
from mull.inference.harness.scoring import Pair

A, B, C, BLANK, BC, END, START = range(7)


def encoder(max_length: int = 8, stop: tuple[int, ...] = (END,), start: bool = False) -> Encoder:
    """Of a tokenizer that knows a, b, c and a blank, and writes "bc" as one token."""
    tokenizer = Tokenizer(BPE({"a": A, "b": B, "c": C, " ": BLANK, "bc": BC}, [("b", "c")]))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<start>", special=True)])
    if start:
        tokenizer.post_processor = TemplateProcessing("<start> $A", special_tokens=[("<start>", START)])
    config = SimpleNamespace(max_length=max_length, stop_tokens=stop)
    model: Any = SimpleNamespace(tokenizer=tokenizer, config=config)
    return Encoder(model)


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("ab", "a", Pair([A, B], [A])),
        ("ab", " c", Pair([A, B], [BLANK, C])),
        ("ab ", "c", Pair([A, B], [BLANK, C])),  # blanks go to the continuation
        ("ab", "ca", Pair([A], [BC, A])),  # merged across the border: the pair reads as it would be written
        ("b", "c", Pair([END], [BC])),  # not even the first token is the context's own
        ("", "ab", Pair([END], [A, B])),
        (" ", "ab", Pair([END], [BLANK, A, B])),
    ],
)
def test_a_pair_is_tokenized_together(context: str, continuation: str, expected: Pair) -> None:
    """Guards the border between context and continuation, and what a text follows that has nothing before it."""
    assert encoder().pair(context, continuation) == expected
    opened = encoder(start=True).pair(context, continuation)
    assert opened.context[0] == START and opened.scored == expected.scored


def test_texts_with_nothing_before_them() -> None:
    """Guards the prefix: a template's start token, else the end token, else one line."""
    assert encoder(start=True).beginning("ab") == Pair([START], [A, B])
    assert encoder(start=True).windows("ab") == [Pair([START], [A, B])]
    with pytest.raises(ValueError, match="neither a start nor an end token"):
        encoder(stop=()).pair("", "a")
    with pytest.raises(ValueError, match="an empty continuation of 'a'"):
        encoder().pair("a", "")


def test_long_contexts_are_cut_from_the_left_with_one_warning() -> None:
    """Guards truncation: the rightmost tokens stay, so that a row has max_length positions; one warning for all."""
    made = encoder(max_length=4)
    with pytest.warns(UserWarning, match="2 of 3 requests are longer than the model's max_length of 4") as said:
        kept = made.cut([Pair([A, A, B, B, C], [A, B]), Pair([A, B], [A]), Pair([A, B, A, B], [C, C])])
    assert len(said) == 1
    assert kept == [Pair([B, B, C], [A, B]), Pair([A, B], [A]), Pair([B, A, B], [C, C])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.cut([Pair([A, B, A], [C, C])]) == [Pair([A, B, A], [C, C])]
    with pytest.raises(ValueError, match="a continuation has 5 tokens, and the model's max_length is 4"):
        made.cut([Pair([A], [B] * 5)])


def test_prompts_leave_room_for_the_answer() -> None:
    made = encoder(max_length=4)
    with pytest.warns(UserWarning, match="with 2 new ones") as said:
        assert made.prompts(["aabc", "a"], 2) == [[A, BC], [A]]
    assert len(said) == 1
    with pytest.raises(ValueError, match="max_gen_toks 4 leaves no room"):
        made.prompts(["a"], 4)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 9, 11])
def test_windows_are_the_harness_own(length: int) -> None:
    """Guards rolling: windows of a text are those of lm_eval's own models, and each token is scored once."""
    utils = pytest.importorskip("lm_eval.utils")
    ids = [(A, B, C)[n * n % 3] if n % 2 else A for n in range(length)]
    text = "".join("abc"[n] for n in ids)
    found = encoder(max_length=4).windows(text)
    theirs: Callable[..., Any] = utils.get_rolling_token_windows
    windows = theirs(token_list=ids, prefix_token=END, max_seq_len=4, context_len=1)
    assert found == [Pair(*utils.make_disjoint_window(window)) for window in windows]
    assert [token for window in found for token in window.scored] == ids
