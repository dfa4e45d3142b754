"""Measuring and writing are inference, whatever mode a model comes in: here it is put in eval, and back afterwards.

In training a routed pass takes the top-k of a sequence, which looks at tokens that come later, and layers of your own
may drop some of their numbers: neither is what a model answers with.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn

from mull.models import LanguageModel

Args = ParamSpec("Args")
Found = TypeVar("Found")
Given = TypeVar("Given")
Taken = TypeVar("Taken")


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; every module of it comes back into the mode that it was in, whatever happens."""
    if not model.training:  # as nearly always: token by token, nothing shall be paid
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def evaluating(
    function: Callable[Concatenate[LanguageModel, Args], Found],
) -> Callable[Concatenate[LanguageModel, Args], Found]:
    """A decorator for a function whose first argument is a model, which runs with the model in eval mode."""

    @wraps(function)
    def wrapped(model: LanguageModel, *args: Args.args, **kwargs: Args.kwargs) -> Found:
        with in_eval(model):
            return function(model, *args, **kwargs)

    return wrapped


def each_in_eval(model: nn.Module, steps: Generator[Given, Taken | None, None]) -> Generator[Given, Taken | None, None]:
    """The same generator, whose every step runs in eval mode; between steps the model is its owner's."""
    taken: Taken | None = None
    try:
        while True:
            with in_eval(model):
                try:
                    given = steps.send(taken)
                except StopIteration:
                    return
            taken = yield given
    finally:
        steps.close()
