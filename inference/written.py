"""Things written out as text: `name:value:value,option=value`.

    latent:0.03,minimum=2      an exit rule
    speculate:4:16             a decoder

The name stands in a registry, for a frozen dataclass with an `example` of how it is written and `from_text`. The values
behind colons are its first fields, in their order; every field can be given by name, or left out to have its default.
"""

import math
import sys
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mull.models.registry import Registry

T = TypeVar("T")


def parse(text: str, registry: Registry[Any]) -> Any:
    """The thing that is written out. Raises ValueError that names what is wrong and what is known."""
    name, _, rest = text.partition(":") if ":" in text.split(",")[0] else text.partition(",")
    if name not in registry:
        examples = ", ".join(kind.example for kind in registry.values())
        raise ValueError(
            f"{registry.kind} {name!r} is not known; known are {', '.join(registry)}, as in {examples}; "
            "one of your own is known with its module (--plugin)"
        )
    return registry[name].from_text(rest)


def described(registry: Registry[Any]) -> list[str]:
    """A line about each thing of a registry, for help: how it is written, what it is, and its options."""
    kinds = list(registry.values())
    wide = max(len(kind.example) for kind in kinds)
    shared = len({options(kind) for kind in kinds}) == 1
    lines = [f"{kind.example:<{wide}}  {summary(kind)}{'' if shared else options(kind)}" for kind in kinds]
    return [*lines, f"options of each:{options(kinds[0])}"] if shared else lines


def summary(kind: type) -> str:
    """The first sentence about a class: its own, or that of the file it is in where it says to see there."""
    own = kind.__doc__ or ""
    unsaid = (
        own.startswith(f"{kind.__name__}(") or "See the head of this file" in own
    )  # a dataclass writes the first itself
    text = (getattr(sys.modules[kind.__module__], "__doc__", "") or "") if unsaid else own
    return " ".join(text.split("\n\n")[0].split())


def options(kind: Any) -> str:
    """The options of a dataclass in brackets, with their defaults."""
    said = [f.name if f.default is MISSING else f"{f.name}={f.default}" for f in fields(kind)]
    return f" [{', '.join(said)}]" if said else ""


def filled(kind: type[T], what: str, text: str, example: str) -> T:
    """A dataclass with the values of `value:value,option=value` in its fields.

    Args:
        kind: the dataclass.
        what: its kind and name, for messages: `exit latent`.
        text: behind the name; may be empty.
        example: how it is written, for messages.
    """
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]  # it is a dataclass
    words = [word.strip() for word in text.split(",") if word.strip()]
    placed = words.pop(0).split(":") if words and "=" not in words[0] else []
    if len(placed) > len(known):
        raise ValueError(f"{what}: {text!r} has {len(placed)} values and takes {len(known)} at most; write {example}")
    given = list(zip(known, placed, strict=False))
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            options = ", ".join(f"{name}=" for name in known)
            raise ValueError(f"{what}: option {word!r} is not known; give {options} as in {example}")
        if name in dict(given):
            raise ValueError(f"{what}: {name} is given twice in {text!r}; write {example}")
        given.append((name, value))
    values = {name: number(known[name], f"{what}: {name}", value, example) for name, value in given}
    required = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{what} lacks {' and '.join(missing)}; write {example}")
    return kind(**values)


def check_value(hint: Any, what: str, value: Any, example: str) -> None:
    """Raise a ValueError for a value that is none of the annotated type: int, float, str or the words of a Literal."""
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise ValueError(f"{what} must be one of {', '.join(get_args(hint))}, not {value!r}; write {example}")
        return
    kinds = {int: (Integral, "an integer"), float: (Real, "a number"), str: (str, "a text")}
    kind, name = kinds.get(hint, (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and hint in (int, float)):
        raise ValueError(f"{what} {value!r} is not {name}; write {example}")


def check_values(thing: Any, what: str) -> None:
    """Raise a ValueError for a field of a dataclass that is none of its annotated type, as `parse` does of a text."""
    hints = get_type_hints(type(thing))
    for field in fields(thing):
        check_value(hints[field.name], f"{what}: {field.name}", getattr(thing, field.name), thing.example)


def written_out(thing: Any) -> str:
    """A thing as text, which `parse` reads again: its options by name, where they are not the usual ones."""
    values = {f.name: getattr(thing, f.name) for f in fields(thing) if getattr(thing, f.name) != f.default}
    said = ",".join(f"{name}={value}" for name, value in values.items())
    return f"{thing.name},{said}" if said else str(thing.name)


def number(hint: Any, what: str, text: str, example: str) -> Any:
    """The text as a value of the annotated type, int, float, str or one of the words of a Literal. A nan is no number:
    it compares with nothing, so that no limit would catch it; what is infinite is left to who has the field."""
    if get_origin(hint) is Literal:
        check_value(hint, what, text, example)
        return text
    kind = "an integer" if hint is int else "a number"
    refusal = ValueError(f"{what} {text!r} is not {kind}; write {example}")
    try:
        value = hint(text)
    except ValueError:
        raise refusal from None
    if hint is float and math.isnan(value):
        raise refusal
    return value
