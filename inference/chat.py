"""A conversation with a model in a terminal, `mull chat`: what was said so far stays in a session.

Models here continue text and know of no roles. A turn is what the user types, and the model writes on; the next turn
begins on a new line behind the answer. Nothing is read twice, unless the iteration count changes, since keys of one
depth cannot stand in for those of another, or the text reaches the model's limit: then the oldest turns are forgotten.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mull.inference.generate import stop_ids
from mull.inference.sampling import Draw
from mull.inference.session import Session
from mull.inference.text import TextStream, encode
from mull.models import LanguageModel
from mull.models.loop import check_count

DRAW = ("generator", "temperature", "top_k", "top_p", "min_p")
SESSION = ("warm_start", "cache_dtype", "capacity")
HELP = "/iterations N thinks otherwise from here on, /quit ends, Ctrl-C stops an answer"


class Chat:
    """What was said, and the session that has read it.

    Args:
        model: any family, with a tokenizer.
        call: iterations, exit, max_new_tokens, stop, and the options of `Draw` and of `Session` by their names.

    Raises:
        ValueError: an option that the model cannot follow.
    """

    def __init__(self, model: LanguageModel, call: dict[str, Any]) -> None:
        self.model, self.call = model, call
        self.draw = Draw(**{name: call[name] for name in DRAW})
        self.ends = set(stop_ids(model, None))
        self.most = check_count("max_new_tokens", call["max_new_tokens"])
        self.opening: list[int] = []  # what the tokenizer puts before a text: it stays when turns are forgotten
        self.turns: list[list[int]] = []  # token ids of each turn, its answer included
        self.iterations: int | None = call["iterations"]
        self.session = self.new_session()

    def new_session(self) -> Session:
        """A session that has read nothing."""
        options = {name: self.call[name] for name in SESSION}
        limit = self.model.config.max_length
        return Session(self.model, 1, limit, self.iterations, self.call["exit"], **options)

    def think(self, iterations: int) -> None:
        """Think so long from the next turn on.

        Raises:
            ValueError: a count that the model cannot have; the old one stays.
        """
        self.model.check_depth(iterations, 1)
        before, self.iterations = self.iterations, iterations
        try:
            self.session = self.new_session()
        except ValueError:
            self.iterations = before
            raise

    def answer(self, text: str) -> Iterator[str]:
        """Take a turn; yield the answer as it comes. An answer that is left in the middle stays as far as it came.

        Raises:
            ValueError: text that the tokenizer cannot read, or a turn that is longer than the model's limit.
        """
        tokenizer, line = self.model.tokenizer, "\n" + text if self.turns else text
        turn, opened = encode(tokenizer, line, opening=False), encode(tokenizer, line)
        self.opening = opened[: len(opened) - len(turn)]
        limit = self.model.config.max_length
        if len(opened) >= limit:
            raise ValueError(
                f"the turn has {len(opened)} positions, and the model's max_length is {limit}, answer included; "
                f"shorten it by {len(opened) - limit + 1} or more"
            )
        most = min(self.most, limit - len(opened))
        self.make_room(len(opened) + most)
        self.turns.append(turn)
        shown = TextStream(tokenizer, self.said, self.call["stop"])
        try:
            for _ in range(most):
                token = self.next_token()
                if token in self.ends:
                    break
                turn.append(token)
                yield shown.add(token)
                if shown.ended:
                    break
        finally:
            rest = shown.rest()
        yield rest

    @property
    def said(self) -> list[int]:
        """The token ids of all that is remembered."""
        return [*self.opening, *(token for turn in self.turns for token in turn)]

    def make_room(self, needed: int) -> None:
        """Forget the oldest turns until so many tokens fit; what stays has to be read again, from its own start."""
        limit, held = self.model.config.max_length, len(self.turns)
        while self.turns and sum(map(len, self.turns)) + needed > limit:
            del self.turns[0]
        if len(self.turns) < held:
            self.session = self.new_session()

    def next_token(self) -> int:
        """The model's next token after all that was said, of which the session reads what it has not read yet."""
        unread = torch.tensor([self.said[self.session.lengths[0] :]], device=self.model.device)
        return int(self.draw.choose(self.session.read(unread).logits))


def converse(model: LanguageModel, call: dict[str, Any]) -> None:
    """Talk until /quit or the end of input. Prompts are printed in a terminal only, so that a pipe gets answers."""
    chat, terminal = Chat(model, call), sys.stdin.isatty()
    reconfigure: Callable[..., None] | None = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 are reported with the turn they stand in
    if terminal:
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> " if terminal else "")
            if line.strip() == "/quit":
                return
            if line.split()[:1] == ["/iterations"]:
                chat.think(count_of(line))
            elif line.startswith("/"):
                raise ValueError(f"there is no command {line.split()[0]!r}: {HELP}")
            elif line.strip():
                for part in chat.answer(line.removeprefix("\ufeff")):
                    print(part, end="", flush=True)
                print(flush=True)
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n[stopped; /quit ends]", file=sys.stderr, flush=True)
        except ValueError as error:
            print("mull: error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)


def count_of(line: str) -> int:
    words = line.split()
    if len(words) != 2 or not words[1].isascii() or not words[1].isdigit():
        raise ValueError(f"{line.strip()!r} names no count; write /iterations 8")
    return int(words[1])
