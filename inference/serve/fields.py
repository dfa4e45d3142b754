"""The fields of a JSON object, each taken once and checked; what nobody has taken at the end is unknown, and refused.

A field whose value is null counts as not given, as in OpenAI's own clients.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from mull.checkpoints.files import shown
from mull.inference.serve.refusals import Refused, wrong

MAX_SEED = 2**62


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused for what is none: bytes that are no UTF-8, keys that come twice,
    NaN, endless numbers and nesting."""
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8: byte {error.start + 1} is 0x{body[error.start]:02x}") from None
    except RecursionError:
        raise Refused("the body is nested too deeply; send a flat object") from None
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"the body must be one JSON object, not {shown(found, 40)}")
    return found


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict. Raises `Refused` where a key comes twice: which one was meant is
    unknown."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("a key comes twice in the body; send each once")
    return found


def no_constant(word: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python's JSON parser would take for numbers."""
    raise Refused(f"{word} in the body is no number of JSON; send a finite one")


class Fields:
    """See the head of this file.

    Args:
        found: the object.
        known: every field that may be asked for, for the message about one that may not.
        where: what the object is, for messages; empty for the body.
    """

    def __init__(self, found: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
        self.found = {name: value for name, value in found.items() if value is not None}
        self.where = f" of {where}" if where else ""
        unknown = [name for name in found if name not in set(known)]
        if unknown:
            near = get_close_matches(unknown[0], known, 1)
            meant = f", do you mean {near[0]}?" if near else "; leave it out"
            raise Refused(f"unknown field {shown(unknown[0], 60)}{self.where}{meant}", param=shown(unknown[0], 60))

    def raw(self, name: str) -> Any:
        """The value as it came; None where it is not given."""
        return self.found.get(name)

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int | None:
        """An integer of a range."""
        value = self.found.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(name + self.where, value, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float | None:
        """A finite number of a range; its lower end is left out where it is written as a tiny number above it."""
        value = self.found.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:  # NaN too
            raise wrong(name + self.where, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.found.get(name, default)
        if not isinstance(value, bool):
            raise wrong(name + self.where, value, "true or false")
        return value

    def text(self, name: str, most: int = 1 << 20) -> str | None:
        """A text."""
        value = self.found.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > most:
            raise wrong(name + self.where, value, f"a text of at most {most:,} characters")
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A text, or a list of up to `most` texts; none of them empty or longer than `longest`."""
        value = self.found.get(name, [])
        listed = [value] if isinstance(value, str) else value
        good = isinstance(listed, list) and len(listed) <= most
        if not good or not all(isinstance(each, str) and 0 < len(each) <= longest for each in listed):
            raise wrong(name, value, f"a text or up to {most} texts, each of 1 to {longest} characters")
        return tuple(listed)

    def neutral(self, neutral: Mapping[str, Sequence[Any]], why: str) -> None:
        """Refuse fields that change an answer, unless they have a value by which they change nothing."""
        for name, harmless in neutral.items():
            value = self.found.get(name)
            if value is not None and not any(value == each and type(value) is type(each) for each in harmless):
                raise Refused(f"{name} {shown(value, 60)} is not supported: {why}; leave it out", param=name)
