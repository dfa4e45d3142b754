"""Writing on: prompts in, tokens out, with the iteration count as the knob.

    check the arguments;  a session reads the prompt;  a decoder yields rounds (some new tokens of each row);
    rounds are cut into positions

`stream` hands on one position of all rows at a time, `generate` collects them. Prompts of different lengths come padded
on either side with an attention mask. A greedy row depends on nothing but itself, and so does a drawn one that has a
generator of its own; otherwise draws share one generator.

Shapes: B batch, P prompt positions with padding, N new positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from operator import index
from typing import Any, Concatenate, ParamSpec, Unpack

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mull.inference.checks import check_known, check_prompt
from mull.inference.decoders import Decoder, Request, check_decoder, choose_decoder
from mull.inference.exits import Exit
from mull.inference.mode import each_in_eval
from mull.inference.prompts import PromptLike, as_prompts
from mull.inference.rounds import NewTokens, Round, Rounds, in_lockstep
from mull.inference.sampling import Draw, Generators
from mull.inference.session import Session, SessionOptions
from mull.inference.text import StopStrings, continuation, stop_strings
from mull.models import LanguageModel
from mull.models.loop import Iterations, check_count

Args = ParamSpec("Args")


@dataclass(frozen=True)
class Generation:
    """Prompts and their answers.

    Attributes:
        tokens: (B, P + N) int64, the prompt as given (padding where it was), then the new tokens. A row that ended
            before the others is filled up with its last token.
        iterations: (B, N) int64, iterations spent on each new token; 0 where a row is only filled up, so
            `(iterations > 0).sum(dim=1)` is the length of each answer, the token that ended it included.
        text: the answers as text, without their prompts: one for a prompt that was one text, otherwise a list of B;
            None for a model without a tokenizer.
        residuals: (B, N), with `residuals=True`: the most that the last iteration moved a state from the prompt to the
            one behind each new token, all that the token depends on; NaN where a row is only filled up, and where
            nobody knows.
    """

    tokens: Tensor
    iterations: Tensor
    text: str | list[str] | None = None
    residuals: Tensor | None = None

    @property
    def new_tokens(self) -> Tensor:
        """(B, N), the answers without their prompts."""
        return self.tokens[:, -self.iterations.shape[1] :]


def collected(
    stream: Callable[Concatenate[LanguageModel, PromptLike, Args], Iterator[NewTokens]],
) -> Callable[Concatenate[LanguageModel, PromptLike, Args], Generation]:
    """A function with the arguments of `stream` that waits for the whole answer."""

    @wraps(stream)
    def generate(model: LanguageModel, prompt_ids: PromptLike, *args: Args.args, **kwargs: Args.kwargs) -> Generation:
        ids, mask = as_prompts(model, prompt_ids, kwargs.get("attention_mask"))
        asked: Any = {**kwargs, "attention_mask": mask}
        positions = list(stream(model, ids, *args, **asked))
        new_tokens = torch.stack([position.tokens for position in positions], dim=1)
        used = torch.stack([position.iterations for position in positions], dim=1)
        texts = None if model.tokenizer is None else answers(model.tokenizer, ids, mask, new_tokens, used, asked)
        return Generation(
            tokens=torch.cat([ids.to(new_tokens), new_tokens], dim=1),
            iterations=used,
            text=texts[0] if texts and isinstance(prompt_ids, str) else texts,
            residuals=columns([position.residuals for position in positions], used)
            if kwargs.get("residuals")
            else None,
        )

    generate.__name__ = generate.__qualname__ = "generate"
    return generate


def columns(found: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """What is known of each position side by side, (B, N), NaN where nothing is."""
    return torch.stack([torch.full(like.shape[:1], torch.nan) if each is None else each for each in found], dim=1)


def answers(
    tokenizer: Tokenizer, ids: Tensor, mask: Tensor | None, new_tokens: Tensor, used: Tensor, asked: dict[str, Any]
) -> list[str]:
    """The text of each row's answer, up to the first stop string."""
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    written, stop = used > 0, stop_strings(tokenizer, asked.get("stop"))
    return [
        continuation(tokenizer, ids[row][seen[row]].tolist(), new_tokens[row][written[row]].tolist(), stop)
        for row in range(len(ids))
    ]


def stream(
    model: LanguageModel,
    prompt_ids: PromptLike,
    iterations: Iterations | None = None,
    exit: str | Exit | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: Generators | None = None,
    decode: str | Decoder | None = None,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop_tokens: Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    **options: Unpack[SessionOptions],
) -> Iterator[NewTokens]:
    """Continue prompts until every row has met a stop token, or for `max_new_tokens`, or to the model's max_length.

    `mull.generate` returns the whole as a `Generation`; `mull.inference.stream` yields the tokens and iterations of
    each new position as they come. Errors are raised before the first token, except those of the model itself.

    Args:
        model: any family; left in the mode it is in.
        prompt_ids: a text, a list of texts, or (B, P) integer token ids as tensor, array or lists. Text is read by
            `model.tokenizer`; rows of different lengths are padded and masked.
        iterations: how long to think at every position, one count or (B,) with one per row; None is the config's (a
            Transformer has no loop and takes nothing but None). With an exit rule, the most that any position gets.
        exit: rule that ends thinking early, `latent:0.03` or of mull.inference.exits; short for decode="adaptive:...".
        max_new_tokens: most new tokens of a row; a row also ends at the model's max_length, padding not counted.
        temperature: 0 takes the likeliest token; more than 0 draws. See `sampling.Draw` for this and the next four.
        generator: source of the draws. With a list of B generators, one a row, a drawn row depends on nothing but
            itself too.
        top_k: draw among so many of the likeliest tokens.
        top_p: draw among the likeliest tokens that make up this mass.
        min_p: draw among tokens at least so many times as likely as the likeliest.
        decode: the way of writing (mull/inference/decoders), one a call; None is `plain`, one token after another.
            `speculate:4:16` drafts 16 tokens at 4 iterations and verifies them together: the same text, sooner.
            `wavefront:4:32` thinks about up to 32 positions at once, 4 iterations a round, the later ones on guesses:
            sooner still, and lossy.
        attention_mask: (B, P), 0 at padding (left or right); every row needs a token.
        stop_tokens: ids that end a row; None takes those of the model's config, () none.
        stop: texts that end a row, however they are spelled in tokens; its `text` ends before them.
        options: of the session, such as warm_start, policy, ring, cache_dtype, residuals; see `SessionOptions`.

    Raises:
        ValueError: a bad value, an empty prompt, ids outside the vocabulary, a prompt that leaves no room.
    """
    draw = Draw(generator, temperature, top_k, top_p, min_p)
    ids, given = as_prompts(model, prompt_ids, attention_mask)
    held = check_prompt(model, ids, given)
    draw.check_rows(len(ids))
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    iterations = model.check_depth(iterations, len(ids))
    decoder = choose_decoder(decode, exit)
    options["policy"] = check_decoder(decoder, model, iterations, generator, options)
    stops = torch.tensor(stop_ids(model, stop_tokens), dtype=torch.int64, device=model.device)
    check_known(model, "stop token", stops)
    ended = StopStrings(model.tokenizer, ids, given, stop) if stop else None
    mask = None if given is None else given.to(model.device)
    prompt = ids.to(model.device)
    limits = [min(max_new_tokens, model.config.max_length - length) for length in held]
    room = max(length + limit for length, limit in zip(held, limits, strict=True))
    session = Session(model, len(prompt), room, iterations, decoder.exit, **options)
    request = Request(draw, torch.tensor(limits, device=model.device))
    rounds = each_in_eval(model, rounds_after(prompt, mask, session, decoder, request))
    return in_lockstep(rounds, limits, stops, ended)


def stop_ids(model: LanguageModel, stop_tokens: Sequence[int] | None) -> list[int]:
    """The stop tokens to use, the config's by default. Raises ValueError for what is no list of ids."""
    try:
        return [index(token) for token in (model.config.stop_tokens if stop_tokens is None else stop_tokens)]
    except TypeError:
        raise ValueError(f"stop_tokens must be a list of token ids, not {stop_tokens!r}; text is for stop=") from None


@torch.inference_mode()
def rounds_after(prompt: Tensor, mask: Tensor | None, session: Session, decoder: Decoder, request: Request) -> Rounds:
    """The token after the prompt (B, P), which every row has at once, then the rounds of the decoder."""
    answer = session.read(prompt, mask)
    last = request.draw.choose(answer.logits)
    # what comes back says which rows go on: their indices, or None for all
    keep = yield Round(last[:, None], torch.ones_like(last), answer.iterations[:, None], session.last_residuals)
    left = request.limits - 1
    if keep is not None:
        session, last, left = session.fork(keep), last[keep], left[keep]
        request = replace(request, draw=request.draw.rows(keep))
    yield from decoder.rounds(session, last, replace(request, limits=left))


generate = collected(stream)
"""The whole answers at once: the arguments of `stream`, and a `Generation` in place of an iterator."""
