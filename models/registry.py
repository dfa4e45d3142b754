"""Registry: the things of one kind that can be chosen by a word.

    INJECTIONS: Registry[type[Injection]] = Registry("injection")

    @INJECTIONS.register("add")
    class AddInjection(Injection): ...

Whoever adds one writes a file with the decorator in it; nobody else has to be told.
"""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """Words and what they stand for, in the order of registration.

    Args:
        kind: what the things are, in the singular, for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates. Raises ValueError for a word that another thing has."""

        def remember(thing: T) -> T:
            if name in self and str(self[name]) != str(thing):  # a reloaded module defines the same class again
                raise ValueError(f"the {self.kind} {name!r} is there already, {self[name]}; choose another name")
            self[name] = thing
            return thing

        return remember

    def wrong(self, name: object) -> str | None:
        """What is wrong with a word that is not registered; None for one that is."""
        if isinstance(name, str) and name in self:
            return None
        return f"must be one of {', '.join(map(repr, self))}, not {name!r}"
