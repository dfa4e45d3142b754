"""Prompts as people have them: a file of lines or records, a text, a list of texts or of ids, an array.

`as_prompts` makes of any of these what a model reads, (B, P) token ids with a mask where rows are of different lengths;
`read_prompts` reads a file.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from mull.inference.text import encode
from mull.models import LanguageModel
from mull.models.arguments import as_valid

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OWN = ("line", "text", "tokens", "iterations", "settled")  # fields of an answer beside those of its record
PromptLike = str | Sequence[str] | Sequence[Sequence[int]] | Tensor  # also numpy arrays of integers


class Prompts(NamedTuple):
    """`ids` (B, P) int64, and `mask` (B, P), 0 at padding; None where there is none."""

    ids: Tensor
    mask: Tensor | None


class Endless(ValueError):
    """A number of a record that no JSON can say again."""


class Line(NamedTuple):
    """A prompt of a file: the number of its line, its text and the record it stands in; or what is wrong with it."""

    number: int
    prompt: str
    record: Mapping[str, Any]
    wrong: str | None = None


# ---------------------------------------------------------------------------------------------------------- in Python


def as_prompts(model: LanguageModel, prompts: Any, attention_mask: Any = None) -> Prompts:
    """Token ids and mask of a call.

    Args:
        model: the model that is to read them; `model.tokenizer` reads text.
        prompts: a text, a list of texts, (B, P) integers of any type as tensor, array or lists; lists of different
            lengths are padded on the left.
        attention_mask: for ids of one length; 1 is a token and 0 is padding.

    Raises:
        ValueError: none of these, text without a tokenizer, or a mask that is no mask of these ids.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    rows = list(prompts) if isinstance(prompts, list | tuple) else []
    if rows and all(isinstance(row, str) for row in rows):
        rows = [named_row(number, len(rows), model, row) for number, row in enumerate(rows)]
    if rows and all(isinstance(row, list | tuple) for row in rows) and len({len(row) for row in rows}) > 1:
        for number, row in enumerate(rows):
            if not row:
                raise ValueError(f"row {number} of the prompts is empty; give at least one token, or leave it out")
        prompts, mask = padded([integers(row, "prompt_ids").tolist() for row in rows])
        if attention_mask is not None:
            raise ValueError("attention_mask is for ids of one length; prompts of different lengths have their own")
        return Prompts(prompts, mask)
    if rows and isinstance(prompts[0], str):
        if attention_mask is not None:
            raise ValueError("attention_mask is for ids; text has its own")
        prompts = rows
    return Prompts(integers(prompts, "prompt_ids"), as_mask(attention_mask))


def named_row(number: int, of: int, model: LanguageModel, text: str) -> list[int]:
    """The token ids of a prompt; errors say which of several it is.

    Args:
        number: of the prompt, from 0.
        of: how many prompts there are.
        model: whose tokenizer reads it.
        text: of the prompt.

    Raises:
        ValueError: the model has no tokenizer, or its tokenizer cannot read the text.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"the model has no tokenizer, so it cannot read {text[:40]!r}: give ids, or set model.tokenizer "
            "(mull.load does where the folder holds a tokenizer.json)"
        )
    try:
        return encode(model.tokenizer, text)
    except ValueError as error:
        raise ValueError(f"prompt {number} of {of} (from 0): {error}" if of > 1 else str(error)) from None


def padded(rows: Sequence[list[int]]) -> Prompts:
    """Rows of ids of any lengths as (B, P), padded on the left with token 0, and the mask that hides it."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return Prompts(ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]))


def integers(values: Any, name: str) -> Tensor:
    """Ids of any integer type as int64."""
    wanted = f"{name} must be integers of shape (batch, positions)"
    if not isinstance(values, Tensor):
        if isinstance(values, str | bytes) or values is None:
            raise ValueError(f"{wanted}, not {type(values).__name__}; text is a str or a list of str")
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:  # numpy, torch: no numbers, or rows that do not fit
            raise ValueError(f"{wanted}, or text; got {type(values).__name__}: {str(error).splitlines()[0]}") from None
    if (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool) and values.numel():
        raise ValueError(f"{wanted}, not {values.dtype} of shape {tuple(values.shape)}")
    return values.to(torch.int64)


def as_mask(mask: Any) -> Tensor | None:
    """A mask of ones and zeros, of any type, as a boolean tensor."""
    return None if mask is None else as_valid(mask)


# ------------------------------------------------------------------------------------------------------------- files


def read_prompts(path: str) -> list[Line]:
    """The prompts of a file, or of standard input for `-`. Lines that hold nothing but blanks are left out.

    A .jsonl file has one record a line, {"prompt": "..."}, whose other fields go through to the answer; they have other
    names than those of the answer, `OWN`. Of any other file a line is a prompt as it stands. Lines end at \\n or
    \\r\\n and nowhere else.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no prompt.
    """
    content = standard_input() if path == "-" else Path(path).expanduser().read_bytes()
    lines = []
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        text = line.removesuffix(b"\r")
        if text.strip():
            lines.append(read_line(number, text, records=path.lower().endswith(".jsonl")))
    if not lines:
        raise ValueError(f"{'standard input' if path == '-' else path} holds no prompt; give one a line")
    return lines


def standard_input() -> bytes:
    """All of standard input; tests put a text in its place, which has no bytes."""
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if buffer is None else buffer.read()


def read_line(number: int, line: bytes, records: bool) -> Line:
    """A line of a file of prompts; what is wrong with it is kept in the `Line` and not raised.

    Args:
        number: of the line, for messages.
        line: its bytes, UTF-8 where they are right.
        records: it is a JSON object with the text under `prompt`, and not the text itself.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8; convert the file"
        return Line(number, "", {}, wrong)
    if not records:
        return Line(number, text, {})
    try:
        record = json.loads(text, parse_float=finite, parse_constant=endless)
    except Endless as error:
        return Line(number, "", {}, str(error))
    except (ValueError, RecursionError) as error:
        return Line(number, "", {}, f'not JSON ({error}); write {{"prompt": "..."}}')
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        return Line(number, "", {}, 'no record with a text named prompt; write {"prompt": "..."}')
    taken = [name for name in OWN if name in record]
    if taken:
        return Line(number, "", {}, f"the answer has a field {taken[0]} of its own: rename that of the record")
    return Line(number, record["prompt"], record)


def finite(word: str) -> float:
    """The number of a record that is written with a point or an exponent; raises `Endless` for one that overflows."""
    value = float(word)
    return value if math.isfinite(value) else endless(word)


def endless(word: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and writes as JSON, and nobody else does."""
    raise Endless(f"{word[:20]} is no number that the answer could hand on as JSON; give a finite one, or null")
