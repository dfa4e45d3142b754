"""A conversation with a model in a terminal, `mull chat`: what was said so far stays in a session.

Models here continue text and know of no roles. A turn is what the user types, and the model writes on; the next turn
begins on a new line behind the answer. Nothing is read twice, unless the iteration count changes, since keys of one
depth cannot stand in for those of another, or the text reaches the model's limit: then the oldest turns are forgotten.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer

from mull.inference.arguments import MAX_ASKED
from mull.inference.decoders import Request, check_decoder, choose_decoder
from mull.inference.generate import rounds_after, stop_ids
from mull.inference.rounds import in_lockstep
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
        call: iterations, exit, decode, max_new_tokens, stop, and the options of `Draw` and of `Session` by their names.

    Raises:
        ValueError: an option that the model cannot follow.
    """

    def __init__(self, model: LanguageModel, call: dict[str, Any]) -> None:
        self.model, self.call = model, call
        self.draw = Draw(**{name: call[name] for name in DRAW})
        self.decoder = choose_decoder(call.get("decode"), call["exit"])
        self.ends = stop_ids(model, None)
        self.most = check_count("max_new_tokens", call["max_new_tokens"])
        self.opening: list[int] = []  # what the tokenizer puts before a text: it stays when turns are forgotten
        self.turns: list[list[int]] = []  # token ids of each turn, its answer included
        self.iterations: int | None = call["iterations"]
        self.session = self.new_session()
        self.read = 0  # tokens of all that was said that the session has read, and will not read again

    def new_session(self) -> Session:
        """A session that has read nothing."""
        options: Any = {name: self.call[name] for name in SESSION}
        count = self.model.check_depth(self.iterations)
        options["policy"] = check_decoder(self.decoder, self.model, count, self.draw.generator, options)
        return Session(self.model, 1, self.model.config.max_length, count, self.decoder.exit, **options)

    def think(self, iterations: int) -> None:
        """Think so long from the next turn on.

        Raises:
            ValueError: a count that the model cannot have; the old one stays.
        """
        self.model.check_depth(iterations, 1)
        before, self.iterations = self.iterations, iterations
        try:
            self.session, self.read = self.new_session(), 0
        except ValueError:
            self.iterations = before
            raise

    def answer(self, text: str) -> Iterator[str]:
        """Take a turn; yield the answer as it comes. An answer that is left in the middle stays as far as it came.

        Raises:
            ValueError: text that the tokenizer cannot read, or a turn that is longer than the model's limit.
        """
        tokenizer = self.model.tokenizer
        self.opening, turn = read_turn(tokenizer, text, first=not self.turns)
        opened = [*self.opening, *turn]
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
            for token in self.tokens(most):
                turn.append(token)
                yield shown.add(token)
                if shown.ended:
                    break
        finally:
            rest = shown.rest()
        yield rest

    def tokens(self, most: int) -> Iterator[int]:
        """The next tokens after all that was said, without that which ends them; `most` of them or fewer."""
        self.forget_drafts()
        device = self.model.device
        unread, limits = self.said[self.read :], torch.tensor([most], device=device)
        prompt, request = torch.tensor([unread], device=device), Request(self.draw, limits)
        rounds = rounds_after(prompt, None, self.session, self.decoder, request)
        for new in in_lockstep(rounds, [most], torch.tensor(self.ends, dtype=torch.int64, device=device)):
            # what is said so far is what the session has read of it: rounds run ahead, and may be broken off
            self.read = min(self.session.lengths[0], len(self.said))
            token = int(new.tokens)
            if token in self.ends:
                return
            yield token

    def forget_drafts(self) -> None:
        """Let the session hold what was said and nothing else: an answer may have ended in the middle of a round."""
        if self.session.lengths[0] == self.read:
            return
        if self.session.warm_start:  # it keeps no states to go back to
            self.session, self.read = self.new_session(), 0
        else:
            self.session.cut([self.read])

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
            self.session, self.read = self.new_session(), 0


def read_turn(tokenizer: Tokenizer, text: str, first: bool) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and the tokens of a turn: all but the first begin on a new line."""
    line = text if first else "\n" + text
    turn, opened = encode(tokenizer, line, opening=False), encode(tokenizer, line)
    return opened[: len(opened) - len(turn)], turn


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
    """The count in a line such as `/iterations 8`. Raises ValueError where it has none, or one out of range."""
    words = line.split()
    said = words[1] if len(words) == 2 and words[1].isascii() else ""
    if not said.isdigit() or len(said) > len(str(MAX_ASKED)) or int(said) > MAX_ASKED:
        raise ValueError(f"{line.strip()[:40]!r} names no count from 1 to {MAX_ASKED:,}; write /iterations 8")
    return int(said)
