"""HuggingFaceSolver: any causal language model of transformers writes (the extra `hf`).

Branches of one length are read and written together, without padding, which not every model takes alike. What a branch
has read is kept as its own keys and values, of every layer, so that it is forked and cut without reading again. Where
a model keeps something else (a recurrent state, a ring), or a trial shows that copies of what it keeps do not give what
the whole text gives, nothing is kept: then every token is read with the whole text before it, slow and right.

    flops = sum over tokens that were read:  2 P + 4 n A        n positions that it attends to
            + 2 H for every position whose logits were made

P counts the parameters but those of tables, in which tokens and positions are looked up, and of the head, H those of
the head, A the width of all heads of all layers. That is what dense models with full attention execute, and an upper
bound for mixtures of experts and for attention in windows; scores count for all n positions, as in mull's own costs.

Shapes: B rows that write together, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mull.inference.mode import in_eval
from mull.inference.strategies.meter import Meter, Shared
from mull.inference.strategies.ordinary import ORDINARY
from mull.inference.strategies.solver import (
    After,
    Before,
    Branch,
    Key,
    Line,
    Manner,
    Marks,
    Solver,
    Token,
    forked,
    seed_of,
)
from mull.inference.text import UNDECIDED, minus

Past = tuple[tuple[Tensor, Tensor], ...]  # keys and values (1, heads, T, width) of each layer
CONTEXT = 6  # tokens before a text that decide how its first one is spelt
TRIAL = 4  # tokens by which it is tried whether a cache can be copied
CLOSE = 0.02  # of the largest logit: rounding in half precision, and far below what a wrong cache does


@dataclass
class Memory:
    """What is kept of a branch.

    Attributes:
        ids: of the prompt and of what stands behind it.
        past: of the first of them; None where nothing is kept.
        logits: (V,), behind all of them; None where they are not at hand.
        meter: that is billed for what is read and written of it.
    """

    ids: tuple[int, ...]
    meter: Meter
    past: Past | None = None
    logits: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens whose keys and values are kept."""
        return 0 if self.past is None else self.past[0][0].shape[-2]


class Asked(NamedTuple):
    """How rows are written."""

    manner: Manner
    until: tuple[str, ...]
    before: Before | None
    after: After | None


@dataclass
class Row:
    """A line, how many tokens it may still get, its ids, and how far these are spelt out."""

    line: Line
    left: int
    ids: list[int] = field(default_factory=list)
    text: str = ""


class HuggingFaceSolver(Solver, Shared):
    """See the head of this file.

    Args:
        model: a causal language model of transformers; left in the mode it is in.
        tokenizer: its tokenizer.
        marks: the texts that structure answers; see ordinary.py.
        chat: whether a prompt is a message of a chat, in the tokenizer's own template; None is yes where it has one.
        batch_size: rows that are written at once.
    """

    def __init__(
        self, model: Any, tokenizer: Any, marks: Marks = ORDINARY, chat: bool | None = None, batch_size: int = 16
    ) -> None:
        self.model, self.tokenizer, self.marks, self.meter = model, tokenizer, marks, Meter()
        self.batch_size = batch_size
        self.chat = bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat
        self.stops = frozenset(stops_of(model, tokenizer))
        self.special = frozenset(tokenizer.all_special_ids)
        self.max_length = max_length_of(model)
        taken = inspect.signature(model.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self.cache_name = "cache" if "cache" in taken else "past_key_values"  # as it was called before
        self.costs = Costs.of(model)
        self.keeps = self.copies_are_right()

    # Text ---------------------------------------------------------------------------------------------------------

    def encoded(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False).input_ids]

    def begin(self, prompt: str, key: Key = ()) -> Branch:
        if self.chat:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            ids = self.encoded(text)
        else:
            ids = [int(token) for token in self.tokenizer(prompt).input_ids]
            if ids and ids[-1] in self.stops:
                ids.pop()  # a template that closes texts: this one goes on
        if not ids:
            raise ValueError("the prompt is empty: the tokenizer keeps nothing of it; give at least one symbol")
        if len(ids) >= self.max_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, and the model has room for {self.max_length}, answer included: "
                "shorten it"
            )
        return Branch(prompt, key, memory=Memory(tuple(ids), self.meter))

    def room(self, branch: Branch) -> int:
        return self.max_length - len(branch.memory.ids)

    def piece(self, ids: Sequence[int], start: int, shown: str) -> str:
        """The text that the ids from `start` on add to what was shown of them; nothing of half a character."""
        first = max(0, start - CONTEXT)
        before, behind = self.decoded(ids[first:start]), self.decoded(ids[first:])
        if behind.endswith(UNDECIDED):
            return ""
        return minus(behind, before)[len(shown) :]

    def decoded(self, ids: Iterable[int]) -> str:
        """The text of ids; of control tokens only where marks are spelt by them."""
        kept = [token for token in ids if token not in self.special or self.is_mark(token)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def is_mark(self, token: int) -> bool:
        return self.tokenizer.decode([token]).strip() in (self.marks.end_of_thinking, self.marks.step)

    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        new = self.encoded(text)
        found = []
        for branch in branches:
            if len(new) > self.room(branch):
                raise ValueError(
                    f"{text!r} needs {len(new)} tokens and there is room for {self.room(branch)}: the model's limit is "
                    f"{self.max_length}, prompt and answer together"
                )
            ids, start, shown, tokens = list(branch.memory.ids), len(branch.memory.ids), "", list(branch.tokens)
            for token in new:
                ids.append(token)
                text_of_it = self.piece(ids, start, shown)
                shown += text_of_it
                tokens.append(Token(text_of_it, token, drawn=False))
            held = branch.memory
            memory = Memory(tuple(ids), held.meter, held.past, None if new else held.logits)
            found.append(replace(branch, tokens=tuple(tokens), ended=len(ids) >= self.max_length, memory=memory))
        return found

    def shortened(self, branch: Branch, tokens: int) -> Branch:
        memory: Memory = branch.memory
        length = len(memory.ids) - len(branch.tokens) + tokens
        kept = min(memory.length, length - 1)  # the last token is read again: its logits were not kept
        past = None
        if memory.past is not None and kept > 0:
            past = tuple((keys[..., :kept, :], values[..., :kept, :]) for keys, values in memory.past)
        return replace(
            branch, tokens=branch.tokens[:tokens], ended=False, memory=Memory(memory.ids[:length], memory.meter, past)
        )

    def first_tokens(self, text: str) -> list[int]:
        """Those that begin it behind a line, a blank or nothing."""
        spelt = [self.encoded(f"{before}{text}") for before in ("", " ")]
        return sorted({ids[0] for ids in spelt if ids})

    def random_text(self, key: Key) -> str:
        known = [token for token in range(len(self.tokenizer)) if token not in self.special]
        return self.decoded([known[seed_of(key, 0) % len(known)]])

    # Reading ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, past: list[Past] | None, meters: Sequence[Meter]
    ) -> tuple[Tensor, list[Past] | None]:
        """The logits (B, V) behind ids (B, T), which stand behind what is kept of each row; what is kept then, or None
        where nothing is. Each row is billed to its meter."""
        held = past[0][0][0].shape[-2] if past and past[0] else 0
        cache = None
        if past is not None:
            cache = new_cache()
            for layer in range(len(past[0]) if past and past[0] else 0):
                parts = [row[layer] for row in past]
                keys, values = (torch.cat([part[which] for part in parts]) for which in (0, 1))
                cache.update(keys, values, layer)
        ids = ids.to(self.model.device)
        kept: dict[str, Any] = {} if cache is None else {self.cache_name: cache}
        with in_eval(self.model):
            out = self.model(input_ids=ids, use_cache=cache is not None, **kept, **self.last_only)
        rows, new = ids.shape
        for meter in meters:
            meter.add(flops=self.costs.flops(new, held + new, out.logits.shape[1]), read=new)
        if cache is None:
            return out.logits[:, -1], None
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return out.logits[:, -1], [
            tuple((k[row : row + 1], v[row : row + 1]) for k, v in layers) for row in range(rows)
        ]

    def copies_are_right(self) -> bool:
        """Whether keys and values, copied into a batch of two, go on as the whole text does; not counted."""
        try:
            ids = torch.arange(TRIAL)[None] % min(TRIAL, self.model.config.get_text_config().vocab_size)
            whole, _ = self.forward(ids, None, [])
            _, past = self.forward(ids[:, :-1], [()], [])
            if not past or not past[0] or {keys.shape[-2] for keys, _ in past[0]} != {TRIAL - 1}:
                return False
            copied, _ = self.forward(ids[:, -1:].expand(2, -1), [past[0], past[0]], [])
            return bool(((copied - whole).abs() <= CLOSE * whole.abs().max()).all())
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False  # it keeps something that is no list of keys and values

    def read(self, memories: Iterable[Memory]) -> None:
        """Read what is not read yet, so that the logits behind all of them are at hand; one that several branches
        share is read once."""
        groups: dict[tuple[int, int], dict[int, Memory]] = {}
        for memory in memories:
            if memory.logits is None:
                groups.setdefault((len(memory.ids), memory.length), {})[id(memory)] = memory
        for (_, start), group in groups.items():
            for batch in batches(list(group.values()), self.batch_size):
                past = [memory.past or () for memory in batch] if self.keeps else None
                logits, kept = self.forward(
                    torch.tensor([memory.ids[start:] for memory in batch]), past, [memory.meter for memory in batch]
                )
                for row, memory in enumerate(batch):
                    memory.logits, memory.past = logits[row], None if kept is None else kept[row]

    # Writing ------------------------------------------------------------------------------------------------------

    def check(self, manner: Manner, marks: Sequence[str] = ()) -> None:
        if manner.iterations is not None or manner.exit is not None:
            asked = f"iterations {manner.iterations}" if manner.exit is None else f"the exit rule {manner.exit}"
            raise ValueError(f"a model of transformers has no loop that mull could turn: leave {asked} out")
        manner.draw()

    def write(
        self,
        branches: Sequence[Branch],
        manner: Manner,
        until: Sequence[str] = (),
        limit: int | None = None,
        before: Before | None = None,
        after: After | None = None,
    ) -> list[Branch]:
        self.check(manner)
        found, most = forked(branches), manner.limit if limit is None else limit
        groups: dict[int, list[tuple[int, Row]]] = {}
        for place, branch in enumerate(found):
            left = min(most - len(branch.tokens), self.room(branch))
            if left > 0 and not branch.ended:
                row = Row(Line(branch), left, list(branch.memory.ids))
                groups.setdefault(len(row.ids), []).append((place, row))
        self.read(row.line.branch.memory for group in groups.values() for _, row in group)
        for group in groups.values():
            for batch in batches(group, self.batch_size):
                written = self.write_rows([row for _, row in batch], Asked(manner, tuple(until), before, after))
                for (place, _), branch in zip(batch, written, strict=True):
                    found[place] = branch
            for _, row in group:
                row.line.branch.memory.meter.add(calls=1)
        return [branch if self.room(branch) else replace(branch, ended=True) for branch in found]

    def write_rows(self, rows: Sequence[Row], asked: Asked) -> list[Branch]:
        """Write on behind branches of one length that have been read."""
        memories = [row.line.branch.memory for row in rows]
        logits = torch.stack([memory.logits for memory in memories])
        past = [memory.past for memory in memories] if self.keeps else None
        writing, done = list(range(len(rows))), dict[int, Branch]()
        start = len(rows[0].ids)
        while True:
            tokens = self.draw([rows[place].line for place in writing], logits, asked.manner, asked.before, asked.after)
            log_p = logits.double().log_softmax(dim=-1)
            stays = []
            for at, (place, token) in enumerate(zip(writing, tokens, strict=True)):
                row, ended = rows[place], token in self.stops
                row.ids.append(token)
                text = "" if ended else self.piece(row.ids, start, row.text)
                row.text += text
                row.line.new.append(Token(text, token, float(log_p[at, token])))
                if ended or met(row.line, text, asked.until) or len(row.line.new) >= row.left:
                    memory = Memory(tuple(row.ids), memories[place].meter, past[at] if past is not None else None)
                    done[place] = replace(row.line.branch, tokens=tuple(row.line.tokens), ended=ended, memory=memory)
                else:
                    stays.append(at)
                memories[place].meter.add(tokens=1)
            if not stays:
                return [done[place] for place in range(len(rows))]
            writing = [writing[at] for at in stays]
            meters = [memories[place].meter for place in writing]
            if past is not None:
                last = torch.tensor([[rows[place].ids[-1]] for place in writing])
                logits, past = self.forward(last, [past[at] for at in stays], meters)
            else:
                logits, _ = self.forward(torch.tensor([rows[place].ids for place in writing]), None, meters)


class Costs(NamedTuple):
    """What a token costs: see the head of this file."""

    body: int
    head: int
    attention: int

    @classmethod
    def of(cls, model: Any) -> Costs:
        head = model.get_output_embeddings().weight
        own = {id(head), *(id(table.weight) for table in model.modules() if isinstance(table, torch.nn.Embedding))}
        body = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in own)
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads)
        return cls(body, head.numel(), heads * width * getattr(config, "num_hidden_layers", 0))

    def flops(self, new: int, attended: int, answers: int) -> float:
        """Of a row that reads so many tokens, attends to so many positions and makes logits at so many of them."""
        return float(new * (2 * self.body + 4 * attended * self.attention) + answers * 2 * self.head)


def new_cache() -> Any:
    """An empty cache of transformers, imported when the first one is needed."""
    from transformers import DynamicCache

    return DynamicCache()


def met(line: Line, text: str, until: Sequence[str]) -> bool:
    """Whether the last piece of a line completes one of the marks."""
    whole = "".join(token.text for token in line.tokens)
    before = whole[: len(whole) - len(text)]
    return any(whole.count(mark) > before.count(mark) for mark in until)


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end an answer."""
    found: list[int] = []
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
    return found


def max_length_of(model: Any) -> int:
    """Tokens that the model has positions for; as good as endless where it does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else 1 << 30


def batches(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """The rows in their order, `size` at a time; the last batch may have fewer."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
