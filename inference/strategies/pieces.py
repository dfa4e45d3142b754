"""Texts in pieces: the tokens that a server tells of, laid over the text that it gives, or words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mull.inference.text import UNDECIDED

Piece = tuple[str, float | None]  # a part of a text, and its log-probability where it is told


def words(text: str) -> list[str]:
    """A text in words, each with the blanks before it; the last one with those behind it."""
    return re.findall(r"\s*\S+(?:\s+$)?|\s+$", text)


def pieces_of(told: Sequence[tuple[str, float]], text: str) -> tuple[Piece, ...]:
    """The text in the tokens that are told, if they make it up; in words, of which nothing is known, if not.

    Servers differ in whether the blanks between words are part of tokens: they are put where they belong. A token that
    the text leaves out, the stop or the end, has at most the blanks before it; a part of a character has no text.
    """
    found, at, parted = list[Piece](), 0, False
    for token, chance in told:
        start = text.find(token, at)
        if UNDECIDED in token:
            end, parted = at, True
        elif start >= 0 and (parted or not text[at:start].strip()):
            end, parted = start + len(token), False
        elif parted or token.lstrip().startswith(text[at:].strip()):  # left out, or all but its beginning
            end = len(text)
        else:
            break
        found.append((text[at:end], chance))
        at = end
    if not found or len(found) < len(told) or (text[at:].strip() and not parted):
        return tuple((word, None) for word in words(text))
    return (*found[:-1], (found[-1][0] + text[at:], found[-1][1]))


def up_to(behind: str, pieces: Sequence[Piece], marks: Sequence[str]) -> tuple[list[Piece], bool]:
    """The pieces up to the end of the first mark that they complete behind a text, and whether there is one."""
    whole = behind + "".join(text for text, _ in pieces)
    ends = []
    for mark in marks:
        at = whole.find(mark, max(0, len(behind) - len(mark) + 1))
        if at >= 0:
            ends.append(at + len(mark) - len(behind))
    if not ends:
        return list(pieces), False
    kept, length, end = [], 0, min(ends)
    for text, chance in pieces:
        if length >= end:
            break
        kept.append((text[: end - length], chance))
        length += len(text)
    return kept, True
