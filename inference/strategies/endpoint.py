"""EndpointSolver: a model behind an OpenAI-compatible server writes (the extra `openai`).

It is asked for completions, not for chats, since a completion goes on from any text: that is how a branch is forked,
rolled back and put words into. What a branch has written is text; its pieces are what single answers gave it, or words
where there is nothing finer. The server keeps what it may keep; here a branch is read anew whenever it is gone on with.

A mark ends a piece: servers leave out the stop that they met, so that the mark is put back behind what was written. A
server that does not say which stop it met, or whether the model ended by itself (`stop_reason`), is asked for the whole
text, and what stands behind the first mark is dropped; it is paid for, since the meter counts all that was written.
Of what a text leaves out, a stop or the token that ends an answer, servers may tell how likely it was: it counts as it
does in a folder.

Calls and tokens are metered. FLOPs are not: nobody outside knows them. Draws depend on the seed that goes along, as far
as the server keeps its word; seeds are keyed by branch, as everywhere.

What goes wrong is one line: a server that is down or busy is asked again, a bounded number of times; one that answers
nonsense is not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

from mull.checkpoints.files import shown
from mull.inference.exits import as_exit
from mull.inference.strategies.meter import Meter, Shared
from mull.inference.strategies.ordinary import ORDINARY
from mull.inference.strategies.pieces import Piece, pieces_of, up_to, words
from mull.inference.strategies.solver import (
    After,
    Before,
    Branch,
    Key,
    Manner,
    Marks,
    Solver,
    Token,
    forked,
    seed_of,
)
from mull.inference.written import written_out

MOST_AT_ONCE = 8  # requests in flight
MAX_SEED = 2**31 - 1  # some servers keep no more
MAX_STOPS = 4  # of a request, as OpenAI has it
ENDS = ("stop", "length", "content_filter")
DAY = 86_400.0  # seconds
MOST_OVER = 2  # times the tokens that were asked for: a proxy that counts its texts anew may come to a few more
LONGEST = 256  # characters of a token, on average over a text: far more than in any vocabulary
LIKELY = (-1e9, 0.01)  # where log-probabilities lie: that of a certain token may come out above 0 by rounding


class EndpointError(ValueError):
    """What an endpoint did wrong, in one line: it is down, too slow, refuses, or answers nonsense."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: that goes on from the prompt.
        pieces: the same in tokens, each with its log-probability, None where it is not told; see `pieces_of`.
        tokens: that were written, as the server counts.
        ended: whether the model ended it by itself.
        met: the stop at which the server ended it; None where it was none, or the server does not say.
        unclear: whether a stop or the model may have ended it, and the server does not say which.
    """

    text: str
    pieces: tuple[Piece, ...]
    tokens: int
    ended: bool
    met: str | None = None
    unclear: bool = False


class EndpointSolver(Solver, Shared):
    """See the head of this file.

    Args:
        address: of the server, with the path before /completions: http://127.0.0.1:8000/v1.
        model: its name there.
        marks: the texts that structure answers; see ordinary.py.
        timeout: seconds that the server may be silent; one that writes on, however slowly, is heard out.
        retries: how often the server is asked again when it is down, busy or too slow.
        key: that requests carry; by default that of the variable OPENAI_API_KEY.

    Raises:
        ValueError: the extra is missing, this is no address, or no header can hold the key, which is not shown.
    """

    gives_logits: ClassVar[bool] = False

    def __init__(
        self,
        address: str,
        model: str,
        marks: Marks = ORDINARY,
        *,
        timeout: float = 60.0,
        retries: int = 2,
        key: str | None = None,
    ) -> None:
        if not is_address(address):
            raise ValueError(f"{shown(address)} is no address of a server; write http://127.0.0.1:8000/v1")
        check_patience(timeout, retries)
        if find_spec("openai") is None:
            raise ValueError("an endpoint needs the package openai, which is not installed: pip install 'mull[openai]'")
        from openai import OpenAI

        self.address, self.model, self.marks, self.meter = address, model, marks, Meter()
        self.timeout, self.retries = timeout, retries
        secret = (key or os.environ.get("OPENAI_API_KEY") or "").strip() or "none"  # a file of it may end with a line
        if not secret.isascii() or not secret.isprintable():
            name = "the key" if key else "the variable OPENAI_API_KEY"
            raise ValueError(f"{name} holds characters that no header can; give letters, digits and signs of ASCII")
        self.client: Any = OpenAI(base_url=address, api_key=secret, timeout=timeout, max_retries=retries)
        self.tells_tokens = self.tells_stops = True  # until it shows that it does not

    def mean_iterations(self) -> int | None:
        """The count that the model was trained at, of which servers of mull tell; None of others. Raises EndpointError
        where nobody answers."""
        import openai

        try:
            said = self.client.models.retrieve(self.model)
        except (openai.APIConnectionError, openai.APITimeoutError) as error:
            why = error.__cause__ or error
            raise EndpointError(f"{self.address} cannot be reached ({why}); is the server up?") from None
        except (openai.OpenAIError, ValueError, TypeError):  # it lists no models
            return None
        own = (getattr(said, "model_extra", None) or {}).get("mull")
        count = own.get("iterations") if isinstance(own, dict) else None
        return count if isinstance(count, int) and count > 0 else None

    # Branches -----------------------------------------------------------------------------------------------------

    def begin(self, prompt: str, key: Key = ()) -> Branch:
        if not prompt:
            raise ValueError("the prompt is empty; give at least one symbol")
        return Branch(prompt, key, memory=self.meter)

    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        found = []
        for branch in branches:
            before = (branch.prompt + "".join(token.text for token in branch.tokens))[-1:]
            blank = "" if before.isspace() or text[:1].isspace() else " "  # words do not grow together
            put = tuple(Token(piece, drawn=False) for piece in words(blank + text))
            found.append(replace(branch, tokens=(*branch.tokens, *put), ended=False))
        return found

    def shortened(self, branch: Branch, tokens: int) -> Branch:
        return replace(branch, tokens=branch.tokens[:tokens], ended=False)

    def cut_text(self, branch: Branch, length: int) -> Branch:
        kept, start = list[Token](), 0
        for token in branch.tokens:  # texts are all that a server reads: a token may be parted anywhere
            kept.append(token._replace(text=token.text[: max(0, length - start)]))
            start += len(token.text)
        whole = length >= start
        return branch if whole else replace(branch, tokens=tuple(each for each in kept if each.text), ended=False)

    def room(self, branch: Branch) -> int:
        return 1 << 30  # nobody says

    # Writing ------------------------------------------------------------------------------------------------------

    def check(self, manner: Manner, marks: Sequence[str] = ()) -> None:
        manner.draw()
        as_exit(manner.exit)

    def write(
        self,
        branches: Sequence[Branch],
        manner: Manner,
        until: Sequence[str] = (),
        limit: int | None = None,
        before: Before | None = None,
        after: After | None = None,
    ) -> list[Branch]:
        if before is not None or after is not None:
            raise ValueError("a model behind an endpoint does not show its logits: use another strategy")
        self.check(manner)
        found, most = forked(branches), manner.limit if limit is None else limit
        places = [at for at, one in enumerate(found) if not one.ended and len(one.tokens) < most]
        with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            asked = [pool.submit(self.write_one, found[place], manner, tuple(until), most) for place in places]
            try:
                written = [each.result() for each in asked]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for place, (branch, tokens, calls) in zip(places, written, strict=True):
            branch.memory.add(tokens=tokens, calls=calls)
            found[place] = branch
        return found

    def write_one(self, branch: Branch, manner: Manner, until: tuple[str, ...], most: int) -> tuple[Branch, int, int]:
        """A branch that was gone on with, and the tokens and calls that it took."""
        stops = until if self.tells_stops and len(until) <= MAX_STOPS else ()
        reply, tokens, calls = self.ask(branch, manner, stops, most), 0, 1
        tokens += reply.tokens
        if reply.unclear:  # asked once more for the whole text, in which the marks are seen
            self.tells_stops = False
            reply, calls = self.ask(branch, manner, (), most), calls + 1
            tokens += reply.tokens
        pieces, ended = list(reply.pieces), reply.ended
        if reply.met is not None:
            if pieces and not pieces[-1][0].strip():  # what is told of the stop
                pieces[-1] = (pieces[-1][0] + reply.met, pieces[-1][1])
            else:  # nothing is: the others decide how likely all of it is
                pieces.append((reply.met, None))
        else:
            pieces, cut = up_to("".join(token.text for token in branch.tokens), pieces, until)
            ended = ended and not cut
        count = manner.iterations or 0
        new = tuple(Token(text, log_probability=chance, iterations=count) for text, chance in pieces)
        return replace(branch, tokens=(*branch.tokens, *new), ended=ended), tokens, calls

    # Asking -------------------------------------------------------------------------------------------------------

    def ask(self, branch: Branch, manner: Manner, stops: tuple[str, ...], most: int) -> Reply:
        """One answer. Raises EndpointError."""
        asked: dict[str, Any] = {
            "model": self.model,
            "prompt": branch.prompt + "".join(token.text for token in branch.tokens),
            "max_tokens": most - len(branch.tokens),
            "temperature": manner.temperature,
            "seed": seed_of(branch.key, len(branch.tokens)) % MAX_SEED,
        }
        rule = manner.exit if manner.exit is None or isinstance(manner.exit, str) else written_out(manner.exit)
        own = {"iterations": manner.iterations, "exit": rule, "top_k": manner.top_k, "min_p": manner.min_p}
        extra = {name: value for name, value in own.items() if value is not None}
        if stops:
            asked["stop"] = list(stops)
        if manner.top_p is not None:
            asked["top_p"] = manner.top_p
        if extra:
            asked["extra_body"] = extra
        if self.tells_tokens:
            try:
                return self.read(self.send({**asked, "logprobs": 0}), manner, asked)
            except Refusal:
                reply = self.read(self.send(asked), manner, asked)
                self.tells_tokens = False  # it answers as soon as it is not asked for probabilities
                return reply
        return self.read(self.send(asked), manner, asked)

    def send(self, asked: dict[str, Any]) -> Any:
        """What the server says to a request. Raises EndpointError."""
        import openai

        times = f"asked {1 + self.retries} times" if self.retries else "asked once"
        try:
            return self.client.completions.create(**asked)
        except openai.APITimeoutError:
            raise EndpointError(
                f"{self.address} gave no answer within {self.timeout:g} s, {times}; ask for less, or give it more time"
            ) from None
        except openai.APIConnectionError as error:
            why = error.__cause__ or error
            raise EndpointError(f"{self.address} cannot be reached ({why}), {times}; is the server up?") from None
        except openai.APIStatusError as error:
            kind = Refusal if error.status_code in (400, 422) else EndpointError
            said = shown(error.message, 160)
            raise kind(f"{self.address} refuses with status {error.status_code}: {said}") from None
        except (openai.OpenAIError, ValueError, TypeError) as error:  # no JSON, or not what JSON should hold
            raise self.nonsense(shown(str(error) or type(error).__name__)) from None

    def read(self, said: Any, manner: Manner, asked: dict[str, Any]) -> Reply:
        """An answer, checked. Raises EndpointError for nonsense, and for far more than was asked for."""
        choices = getattr(said, "choices", None)
        if not isinstance(choices, list) or len(choices) != 1:
            raise self.nonsense(f"it gives {shown(choices if choices is not None else said)} for one choice")
        choice = choices[0]
        text, reason = getattr(choice, "text", None), getattr(choice, "finish_reason", None)
        if not isinstance(text, str) or reason not in ENDS:
            raise self.nonsense(f"its text is {shown(text)}, and it ended by {shown(reason)}")
        if manner.iterations is not None or manner.exit is not None:
            own = (getattr(said, "model_extra", None) or {}).get("mull")
            if not isinstance(own, dict) or own.get("iterations") != (manner.iterations or own.get("iterations")):
                raise EndpointError(
                    f"{self.address} does not say that it thought as long as it was asked to: leave iterations and "
                    "exit rules to servers of mull"
                )
        told, usage, most = self.told(choice), getattr(said, "usage", None), asked["max_tokens"]
        counted = getattr(usage, "completion_tokens", None)
        if not isinstance(counted, int) or isinstance(counted, bool) or counted < 0:
            counted = None
        wrote = max(counted or 0, len(told))
        if wrote > MOST_OVER * most or len(text) > LONGEST * most:
            many = f"{wrote} tokens" if wrote else f"{len(text)} characters"
            raise EndpointError(
                f"{self.address} wrote {many} where {most} tokens were asked for: it does not keep to max_tokens; take "
                "a server that does"
            )
        pieces = pieces_of(told, text)
        tokens = len(pieces) if counted is None else counted
        extra = getattr(choice, "model_extra", None) or {}
        stops = asked.get("stop", [])
        stopped = reason == "stop" and bool(stops)
        met = extra.get("stop_reason") if stopped else None
        if met not in stops:
            met = None
        unclear = stopped and "stop_reason" not in extra
        return Reply(text, pieces, tokens, reason == "stop" and met is None, met, unclear)

    def told(self, choice: Any) -> list[tuple[str, float]]:
        """The tokens of an answer with their log-probabilities; none where it does not tell both of every token. Raises
        EndpointError for what is no log-probability."""
        said = getattr(choice, "logprobs", None)
        tokens, chances = getattr(said, "tokens", None), getattr(said, "token_logprobs", None)
        if not isinstance(tokens, list) or not isinstance(chances, list) or len(tokens) != len(chances):
            return []
        for chance in chances:
            if isinstance(chance, int | float) and not LIKELY[0] <= chance <= LIKELY[1]:
                raise self.nonsense(f"the log-probability of a token is {shown(chance, 40)}")
        if not all(isinstance(each, str) for each in tokens) or not all(isinstance(c, int | float) for c in chances):
            return []
        return [(token, min(float(chance), 0.0)) for token, chance in zip(tokens, chances, strict=True)]

    def nonsense(self, what: str) -> EndpointError:
        return EndpointError(f"{self.address} answers nonsense: {what}; is it an OpenAI-compatible server?")


def is_address(text: str) -> bool:
    """Whether this is the address of a server."""
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port of letters
        return False
    return known and text.isprintable() and " " not in text


def check_patience(timeout: float, retries: int) -> None:
    """Raise a ValueError for a wait that nobody can keep."""
    if not 0 < timeout <= DAY or retries < 0:
        raise ValueError(
            f"a timeout of {timeout} s and {retries} retries: give more than 0 s, a day at most, and 0 retries or more"
        )


class Refusal(EndpointError):
    """A request that the server does not take."""
