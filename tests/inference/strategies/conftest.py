"""Writers for strategies: tiny random models whose tokenizer has the marks, and one that knows the text by heart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from mull.inference.strategies import Branch, Manner, Marks, Meter, Solver, Token
from mull.inference.strategies.solver import forked
from mull.models import LanguageModel

MARKS = [text for name, text in vars(Marks()).items() if name != "between"]
WORDS = ["<start>", "<end>", *"0123456789+=", *MARKS, "<unk>"]


def tokenizer() -> Tokenizer:
    """Words between blanks; <start> and <end> are control tokens, as tasks have them."""
    ids = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    made.add_special_tokens(["<start>", "<end>"])
    made.post_processor = TemplateProcessing("<start> $A", special_tokens=[("<start>", 0)])
    return made


@pytest.fixture(scope="session")
def make_writer(make_model: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    """make_writer("recurrent", seed=0, **config fields) -> a model in fp64 with a tokenizer that has the marks;
    "convolved" is a recurrent one with convolutions, whose caches keep more than keys and values."""

    def build(family: str = "recurrent", seed: int = 0, **changes: Any) -> LanguageModel:
        usual: dict[str, Any] = {"vocab_size": len(WORDS), "max_length": 64, "stop_tokens": (1,)}
        if family == "convolved":
            family, usual["convolution"] = "recurrent", "attention"
        model = make_model(family, seed, **{**usual, **changes})
        model.tokenizer = tokenizer()
        return model

    return build


class Scripted(Solver):
    """A writer that knows by heart what follows a text: the i-th of its continuations is for the i-th copy.

    Args:
        tree: a text -> its continuations, words between blanks, with the log-probability of each. A text that is not
            there has ended.
    """

    def __init__(self, tree: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        self.tree, self.marks, self.meter = tree, Marks(), Meter()
        self.written: list[str] = []

    def begin(self, prompt: str, key: tuple[int, ...] = ()) -> Branch:
        return Branch(prompt, key)

    def write(
        self, branches: Sequence[Branch], manner: Manner, until: Sequence[str] = (), limit: int | None = None,
        before: Any = None, after: Any = None,
    ) -> list[Branch]:  # fmt: skip
        del before, after
        most = manner.limit if limit is None else limit
        copies = [sum(each is branch for each in branches[:place]) for place, branch in enumerate(branches)]
        return [self.grown(*each, most, until) for each in zip(forked(branches), copies, strict=True)]

    def grown(self, branch: Branch, copy: int, limit: int, until: Sequence[str]) -> Branch:
        while not branch.ended and len(branch.tokens) < limit:
            options = self.tree.get(branch.text, ())
            if not options:
                return replace(branch, ended=True)
            text, chance = options[copy % len(options)]
            words = text.split()
            new = [Token(f" {word}", log_probability=chance / len(words)) for word in words]
            branch = replace(
                branch, tokens=(*branch.tokens, *new), ended=f"{branch.text} {text}".strip() not in self.tree
            )
            self.written.append(branch.text)
            self.meter.add(tokens=len(words), calls=1)
            if any(branch.at(mark) for mark in until):
                break
        return branch

    def append(self, branches: Sequence[Branch], text: str) -> list[Branch]:
        new = tuple(Token(f" {word}", drawn=False) for word in text.split())
        return [replace(branch, tokens=(*branch.tokens, *new), ended=False) for branch in branches]

    def shortened(self, branch: Branch, tokens: int) -> Branch:
        return replace(branch, tokens=branch.tokens[:tokens], ended=False)

    def room(self, branch: Branch) -> int:
        return 1000 - len(branch.tokens)


@pytest.fixture
def scripted() -> type[Scripted]:
    """The class, to be given a tree."""
    return Scripted
