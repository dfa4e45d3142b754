"""Text in, text out: the one rule by which text becomes token ids, and the one by which ids become text again.

    ids    = what the tokenizer puts before a text, if anything, then the text, and nothing behind it
    answer = decode(prompt + answer) minus decode(prompt)

The first is for prompts and for the documents of a corpus alike (training/data/text.py). What stands before a text is
said by the template of the tokenizer, which is stored in the checkpoint folder with it: the tokenizer of a corpus has
none, so neither has a prompt for its model; that of a task puts <start> there, so a prompt gets it too. A template
such as `[CLS] $A [SEP]` never ends a prompt, since the model is to write on. Words like "<end>" in a text are text:
nobody types a control token.

The second keeps what decoding an answer alone would lose: the blank before its first word, and a character whose
bytes lie partly in the prompt.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from re import fullmatch

import torch
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE, Unigram
from torch import Tensor

from mull.checkpoints.files import is_panic

UNDECIDED = "\ufffd"  # what a decoder shows where bytes are no character (yet)
FEW = 64  # a vocabulary of so many tokens or fewer is named when a symbol is not in it


def encode(tokenizer: Tokenizer, text: str, opening: bool = True) -> list[int]:
    """The token ids of a prompt.

    Args:
        tokenizer: any; it is left as it is.
        text: the prompt.
        opening: whether the prompt gets what the tokenizer puts before a text; False for text that goes on.

    Raises:
        ValueError: the prompt is empty, is not UTF-8, or holds what the tokenizer has no token for.
    """
    check_text(text)
    with trouble_reading(f"the prompt {shortened(text)}"), literally(tokenizer) as reader:
        encoding = reader.encode(text)
    start, end = body(encoding)
    check_known(tokenizer, text, encoding, start, end)
    if start == end:
        raise ValueError(f"the prompt is empty: of {shortened(text)} the tokenizer keeps nothing; give a symbol")
    return encoding.ids[0 if opening else start : end]


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The token ids of texts as a corpus has them: what `encode` makes of each without the opening, and unchecked."""
    with trouble_reading(f"the text {shortened(''.join(texts[:1]))}, or behind it"), literally(tokenizer) as reader:
        return [encoding.ids for encoding in reader.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def trouble_reading(what: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises into a ValueError: bare Exceptions, for example of WordLevel without an unknown
    token, and panics, for example of a template that names a token which it does not define."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"the tokenizer cannot read {what}: {error}; mend its tokenizer.json") from error


@contextmanager
def literally(tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    """A tokenizer that cuts nothing off and reads names of control tokens as text; the given one is left as it was."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        yield tokenizer
    finally:
        tokenizer.encode_special_tokens = before


def body(encoding: Encoding) -> tuple[int, int]:
    """Where the tokens of the text itself begin and end, between those that a template puts around it."""
    own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    return (own[0], own[-1] + 1) if own else (0, 0)


def check_text(text: str) -> None:
    """Raise a ValueError for a text that is empty, or that no UTF-8 spells."""
    if not isinstance(text, str):
        raise ValueError(f"a prompt is text, not {type(text).__name__}: {shortened(repr(text))}")
    if not text:
        raise ValueError("the prompt is empty; give at least one symbol")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # a shell hands over bytes that are no UTF-8 as such surrogates; JSON can spell them too
        found = ord(text[error.start])
        what = f"byte 0x{found - 0xDC00:02x}" if 0xDC80 <= found <= 0xDCFF else f"half a character, U+{found:04X},"
        raise ValueError(f"the prompt is not UTF-8 text: {what} at character {error.start + 1}; convert it") from None


def check_known(tokenizer: Tokenizer, text: str, encoding: Encoding, start: int, end: int) -> None:
    """Raise a ValueError, which names the symbol, where the tokenizer has no token for a part of the text."""
    ids, unknown = encoding.ids, unknown_token(tokenizer)
    control = control_tokens(tokenizer)
    for place in range(start, end):
        if ids[place] == unknown or ids[place] in control:
            first, last = encoding.offsets[place]
            symbol = text[first:last] or encoding.tokens[place]
            raise ValueError(
                f"the prompt holds the unknown symbol {shortened(symbol)}"
                f"{' (a control token, which no text spells)' if ids[place] != unknown else ''}; {remedy(tokenizer)}"
            )
    dropped = next((symbol for symbol in dict.fromkeys(text) if drops(tokenizer, symbol)), None)
    if dropped is not None:
        raise ValueError(f"the prompt holds the unknown symbol {dropped!r}; {remedy(tokenizer)}")


def control_tokens(tokenizer: Tokenizer) -> set[int]:
    """The ids that stand for no text, such as that of <end>; decoding leaves them out."""
    return {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what a tokenizer does not know, whatever its name; None if it has none."""
    model = tokenizer.model
    if isinstance(model, Unigram):  # says its unknown id nowhere else
        return json.loads(model.__getstate__())["unk_id"]
    name = getattr(model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)


def drops(tokenizer: Tokenizer, symbol: str) -> bool:
    """Whether a tokenizer leaves a symbol out without a word: byte-pair encoding does where it has no unknown token.
    A normalizer may drop symbols on purpose."""
    model = tokenizer.model
    if not isinstance(model, BPE) or model.unk_token is not None or tokenizer.normalizer is not None:
        return False
    return not symbol.isspace() and not tokenizer.encode(symbol, add_special_tokens=False).ids


def remedy(tokenizer: Tokenizer) -> str:
    """What to do about a symbol that a tokenizer does not know: its symbols where they are few, else a hint."""
    hidden = control_tokens(tokenizer) | {unknown_token(tokenizer)}
    known = sorted(symbol for symbol, token in tokenizer.get_vocab().items() if token not in hidden)
    if len(known) > FEW:
        return "the model's tokenizer has no token for it: leave it out or spell it otherwise"
    return f"known are {' '.join(known)}, with blanks between them"


def shortened(text: str, most: int = 40) -> str:
    """A text in quotes for messages, cut to `most` characters with dots at the end."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, without control tokens."""
    with trouble_reading("its own tokens"):
        return tokenizer.decode(list(ids), skip_special_tokens=True)


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of an answer as it stands behind its prompt, up to the first of the stop strings."""
    text = minus(decode(tokenizer, [*prompt, *answer]), decode(tokenizer, prompt))
    at = first_of(stop, text)
    return text if at is None else text[:at]


def minus(whole: str, beginning: str) -> str:
    """What follows a beginning; from where they part, if the whole does not begin so."""
    if whole.startswith(beginning):
        return whole[len(beginning) :]
    parts = zip(whole, beginning, strict=False)
    return whole[next((at for at, (one, other) in enumerate(parts) if one != other), len(whole)) :]


def first_of(stop: Sequence[str], text: str) -> int | None:
    """Where the first of the stop strings begins in a text; None if there is none in it."""
    found = [at for at in (text.find(each) for each in stop) if at >= 0]
    return min(found, default=None)


class TextStream:
    """The text of an answer as its tokens come. What was shown never changes, and is `continuation` at the end.

        stream = TextStream(tokenizer, prompt_ids)
        for token in answer: print(stream.add(token), end="")
        print(stream.rest())

    Text is shown as soon as no later token can change it: not the beginning of a character, nor what may turn out to be
    a stop string.

    Attributes:
        ended: whether a stop string was met; what follows is not shown.
        met: which one; None as long as none was.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop, self.control = tokenizer, tuple(stop), control_tokens(tokenizer)
        self.prompt = [token for token in prompt if token not in self.control]  # they are not shown, nor do they part
        self.answer: list[int] = []
        self.shown = ""
        self.ended = False
        self.met: str | None = None

    def add(self, token: int) -> str:
        """Take the next token; return what can be shown of it and of those before."""
        if self.ended or token in self.control:
            return ""
        self.answer.append(token)
        text = self.certain()
        at = first_of(self.stop, text)
        if at is not None:
            self.ended, self.met = True, next(each for each in self.stop if text.startswith(each, at))
            return self.show(text[:at])
        begun = max((n for each in self.stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0)
        return self.show(text[: len(text) - begun])

    def rest(self) -> str:
        """What was held back; the answer has ended."""
        return "" if self.ended else self.show(continuation(self.tokenizer, self.prompt, self.answer, self.stop))

    def certain(self) -> str:
        """The text that no later token changes."""
        ids = self.prompt + self.answer
        end = len(ids)
        while end and fullmatch("<0x[0-9A-F]{2}>", self.tokenizer.id_to_token(ids[end - 1]) or ""):
            end -= 1  # bytes in a row are decoded together, and one that is no character spoils those before it
        if end < len(self.prompt):
            return ""
        text = continuation(self.tokenizer, self.prompt, ids[len(self.prompt) : end])
        return text.removesuffix(UNDECIDED)

    def show(self, text: str) -> str:
        new = minus(text, self.shown) if len(text) > len(self.shown) else ""
        self.shown += new
        return new


def stop_strings(tokenizer: Tokenizer | None, stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The texts that end an answer. Raises ValueError where they cannot be looked for."""
    if not isinstance(stop, str | Iterable | None):
        raise ValueError(f"stop must be a text or a list of texts, not {stop!r}")
    chosen = (stop,) if isinstance(stop, str) else tuple(stop or ())
    wrong = [each for each in chosen if not isinstance(each, str) or not each]
    if wrong:
        raise ValueError(f"stop must be a text or a list of texts, none of them empty, not {wrong[0]!r}")
    if chosen and tokenizer is None:
        raise ValueError(f"stop={chosen[0]!r} is text, and the model has no tokenizer; stop_tokens takes ids")
    return chosen


class StopStrings:
    """Asked about every token of a batch in turn, (row, token): whether the text of the row now holds a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, ids: Tensor, mask: Tensor | None, stop: str | Sequence[str] | None
    ) -> None:
        texts = stop_strings(tokenizer, stop)
        seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        self.rows = [TextStream(tokenizer, row[own].tolist(), texts) for row, own in zip(ids, seen, strict=True)]

    def __call__(self, row: int, token: int) -> bool:
        self.rows[row].add(token)
        return self.rows[row].ended
