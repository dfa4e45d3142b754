"""What options of the command line may say: counts, shares, limits, number types; and options that several commands
have.

A kind of value is a function of the text that was typed; its ValueError names the value, the limit and the remedy.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mull.checkpoints.files import file_in_the_way, path_of

CacheDtype = Literal["same", "float32", "bfloat16"]
Dtype = Literal["same", "float64", "float32", "bfloat16", "float16"]
MAX_ASKED = 1_000_000  # more iterations or a higher difficulty end with nobody waiting


def counts(text: str | list[int]) -> list[int]:
    """`1,2,4` as a sorted list of integers of at least 1."""
    values = []
    for word in text if isinstance(text, list) else str(text).split(","):
        try:
            values.append(int(word))
        except ValueError:
            raise ValueError(f"{word!r} is no integer; write counts as 1,2,4") from None
    if min(values) < 1:
        raise ValueError(f"{min(values)} is below the limit of 1; write counts as 1,2,4")
    if max(values) > MAX_ASKED:
        raise ValueError(f"{max(values)} is above the limit of {MAX_ASKED:,}; write counts as 1,2,4")
    return sorted(set(values))


def shares(text: str | float | tuple[float, ...]) -> float | tuple[float, ...]:
    """`0.5`, or `0.9,0,0.9` with one share for each routed pass, from 0 to 1 each."""
    values = []
    for word in text if isinstance(text, tuple) else str(text).split(","):
        try:
            values.append(float(word))
        except ValueError:
            raise ValueError(
                f"{word!r} is no number; write a share as 0.5, or one for each routed pass as 0.9,0,0.9"
            ) from None
        if not 0 <= values[-1] <= 1:
            raise ValueError(f"{word} lies outside 0 .. 1; a capacity is the share of tokens that take a routed pass")
    return values[0] if len(values) == 1 else tuple(values)


counts.__name__ = f"list of integers from 1 to {MAX_ASKED:,}, as 1,2,4;"
shares.__name__ = "share from 0 to 1, as 0.5, or one for each routed pass, as 0.9,0,0.9;"


def at_least(limit: int, most: int = 2**63 - 1) -> Callable[[Any], int]:
    """A type of command-line options: integers from `limit` to `most`, both included; others raise a ValueError."""
    highest = "2^63 - 1" if most == 2**63 - 1 else f"{most:,}"

    def parse(text: Any) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is no integer; give one of at least {limit}") from None
        if value < limit:
            raise ValueError(f"{value} is below the limit of {limit}")
        if value > most:
            raise ValueError(f"{value} is above the limit of {highest}")
        return value

    parse.__name__ = f"integer from {limit} to {highest};"
    return parse


def add_likeliest(parser: Any) -> None:
    """Options that leave the likeliest tokens to be drawn from."""
    parser.add_argument("--top-k", type=at_least(1), help="sample among the k likeliest")
    parser.add_argument("--top-p", type=float | None, help="sample among the likeliest that make up this mass")
    parser.add_argument("--min-p", type=float | None, help="sample among those at least so many times the likeliest")


def add_device(parser: Any) -> None:
    """Options that say on which device to compute, and in which number type."""
    parser.add_argument("--dtype", type=Dtype, default="same", help="of the weights; same: as they are stored")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")


def output_folder(given: str) -> Path:
    """The folder of --output. Raises a ValueError for an empty path, and where a file stands in the way."""
    folder = path_of(given, "--output")
    blocking = file_in_the_way(folder)
    if blocking is not None:
        raise ValueError(f"{blocking} is a file; name a folder with --output")
    return folder
