"""Text with marks in it as token ids, and back: a mark stands for its own token, which no other text spells."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from mull.inference.strategies.solver import Key, Marks, seed_of
from mull.inference.text import UNDECIDED, control_tokens, decode, encode, minus, unknown_token


class Spelling:
    """How a tokenizer spells texts with these marks.

    Attributes:
        ids: of the marks that it has a token for.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Marks) -> None:
        self.tokenizer = tokenizer
        texts = [text for name, text in vars(marks).items() if name != "between"]
        known = [(text, tokenizer.token_to_id(text)) for text in texts if text]
        self.ids: dict[str, int] = {text: token for text, token in known if token is not None}
        self.absent = [text for text, token in known if token is None]
        self.names = {token: text for text, token in self.ids.items()}
        self.control = control_tokens(tokenizer) - self.names.keys()
        self.words = tokenizer.decoder is None  # they stand between blanks

    def encoded(self, text: str, opening: bool) -> list[int]:
        """The ids of a text, with what the tokenizer puts before a text or without. Raises ValueError for a mark that
        it has no token for, and for symbols that it does not know."""
        for mark in self.absent:
            if mark in text:
                self.mark(mark)  # says so
        marks = "|".join(re.escape(mark) for mark in sorted(self.ids, key=len, reverse=True))
        ids: list[int] = []
        for place, part in enumerate(re.split(f"({marks})", text)):
            if part in self.ids:
                ids.append(self.ids[part])
            elif part.strip():
                ids += encode(self.tokenizer, part, opening=opening and place == 0)
        return ids

    def piece(self, before: Sequence[int], token: int) -> str:
        """The text of a token as it stands behind others."""
        if token in self.names:
            return f" {self.names[token]}" if self.words else self.names[token]
        if token in self.control:
            return ""
        if self.words:
            return f" {self.tokenizer.id_to_token(token)}"
        plain = [each for each in before if each not in self.names]
        whole, start = (decode(self.tokenizer, ids).rstrip(UNDECIDED) for ids in ([*plain, token], plain))
        return minus(whole, start)  # what has begun of a character comes with its last byte

    def mark(self, text: str) -> int:
        """The token that a mark is. Raises ValueError where it is none."""
        if text not in self.ids:
            raise ValueError(
                f"the tokenizer of this model has no token {text}, so it was trained without it; its marks are "
                f"{' '.join(self.ids)}"
            )
        return self.ids[text]

    def random(self, key: Key) -> str:
        """A token drawn from all that are neither marks nor control tokens, as text."""
        hidden = {*self.control, *self.names, unknown_token(self.tokenizer)}
        known = sorted(token for token in self.tokenizer.get_vocab().values() if token not in hidden)
        return decode(self.tokenizer, [known[seed_of(key, 0) % len(known)]])
