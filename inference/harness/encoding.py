"""Texts of a task as token ids, by the one rule of inference/text.py, and cut to what the model can hold.

The harness gives a context and a continuation as two texts. Blanks at the end of the context go to the continuation,
and both are tokenized together: (context, whole[len(context):]) where the tokens of the context begin those of the
whole, as in the harness's own models. Where the tokenizer merges across the border, what is scored begins with the
first token that is not the context's own, so that the model reads the text as it would be written.

What has nothing before it follows what a document follows: the tokens that the tokenizer puts in front of a text,
<start> for example, or else the end token of the document before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile

from mull.inference.harness.scoring import Pair
from mull.inference.text import control_tokens, encode, shortened
from mull.models import LanguageModel


class Encoder:
    """Makes token ids of the texts of requests.

    Args:
        model: a model with a tokenizer.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.tokenizer, self.limit = model.tokenizer, model.config.max_length
        self.stop_tokens = model.config.stop_tokens
        self.contexts: dict[str, list[int]] = {}  # the choices of a question have one context

    @cached_property
    def end(self) -> list[int]:
        """The end token of a document, which no text spells; empty where the tokenizer has none."""
        return [token for token in self.stop_tokens if token in control_tokens(self.tokenizer)][:1]

    def context(self, text: str) -> list[int]:
        if text not in self.contexts:
            self.contexts[text] = encode(self.tokenizer, text)
        return self.contexts[text]

    def beginning(self, text: str) -> Pair:
        """A text that has nothing before it: what it follows, and its own tokens."""
        whole, scored = encode(self.tokenizer, text), encode(self.tokenizer, text, opening=False)
        before = whole[: len(whole) - len(scored)] or self.end
        if not before:
            raise ValueError(
                f"nothing stands before {shortened(text)}, and the tokenizer has neither a start nor an end token that "
                "its first token could follow: give the task a context (doc_to_text)"
            )
        return Pair(before, scored)

    def pair(self, context: str, continuation: str) -> Pair:
        """A context and its continuation. Raises ValueError for a continuation that is empty, or has no token."""
        if not continuation:
            raise ValueError(f"an empty continuation of {shortened(context)}: give it a symbol")
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if not kept:
            return self.beginning(continuation)
        alone, whole = self.context(kept), encode(self.tokenizer, kept + continuation)
        common = len(list(takewhile(lambda two: two[0] == two[1], zip(alone, whole, strict=False))))
        if common == 0:  # not even the first token is the context's own
            return self.beginning(kept + continuation)
        if common == len(whole):
            raise ValueError(f"the continuation {shortened(continuation)} has no token behind {shortened(kept)}")
        return Pair(whole[:common], whole[common:])

    def cut(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The same pairs, the leftmost tokens of their contexts left out where a row would be too long for the model;
        one warning says of how many. Raises ValueError for a continuation that is too long by itself."""
        kept = []
        for context, scored in pairs:
            if len(scored) > self.limit:
                raise ValueError(
                    f"a continuation has {len(scored)} tokens, and the model's max_length is {self.limit}: shorten it, "
                    "or make the task one of output_type loglikelihood_rolling, which goes through long texts"
                )
            kept.append(Pair(context[max(0, len(context) + len(scored) - 1 - self.limit) :], scored))
        self.warn(sum(len(new.context) < len(old.context) for new, old in zip(kept, pairs, strict=True)), len(pairs))
        return kept

    def warn(self, cut: int, of: int, room: str = "") -> None:
        if cut:
            warnings.warn(
                f"{cut} of {of} requests are longer than the model's max_length of {self.limit} tokens{room}: "
                "the first tokens of their contexts are left out",
                stacklevel=2,
            )

    def windows(self, text: str) -> list[Pair]:
        """A whole text in windows of up to max_length: each token is scored once, with as much before it as fits into
        the window it is in; the last window is filled up from the left."""
        if not text:
            return []
        before, tokens = self.beginning(text)
        whole, start = [*before, *tokens], len(before)
        pairs: list[Pair] = []
        while start < len(whole):
            free = self.limit - len(before) + 1 if not pairs else self.limit
            end = min(len(whole), start + free)
            pairs.append(Pair(whole[max(0, end - 1 - self.limit) : start], whole[start:end]))
            start = end
        return pairs

    def prompts(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """The token ids of prompts, cut from the left so that `most` new tokens fit behind; one warning says of how
        many. Raises ValueError where so many tokens leave no room."""
        room = self.limit - most
        if room < 1:
            raise ValueError(
                f"max_gen_toks {most} leaves no room for a prompt in the model's max_length of {self.limit}: give at "
                f"most {self.limit - 1} (generation_kwargs of the task)"
            )
        whole = [self.context(text) if text or not self.end else self.end for text in texts]
        self.warn(sum(len(ids) > room for ids in whole), len(whole), f" with {most} new ones")
        return [ids[-room:] for ids in whole]
