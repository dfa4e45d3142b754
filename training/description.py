"""Objects rebuilt from their description in a checkpoint folder, without running the code of strangers.

A description is what a training leaves in its training.yaml: `{class_path: module.Class, init_args: {...}}`, where
arguments may hold further descriptions. The YAML file of `mull train` is the user's own word and may name any class; a
folder may come from anybody. So every class path in it is checked before anything is imported (see
`checkpoints/plugins.py`), a described object must be of the class that the parameter declares, and text is never taken
for the name of a class.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from mull.checkpoints.plugins import is_trusted

PLAIN = (int, float, str, bool, type(None), Path)  # with Enums, the types of parameters that take text and numbers


def build(description: dict[str, Any], expected: type) -> Any:
    """The object of a description.

    Args:
        description: `{class_path: ..., init_args: {...}}`.
        expected: the class that the object must be of.

    Raises:
        ValueError: a class is not trusted, does not exist or is of the wrong kind, or an argument does not fit.
    """
    for class_path in class_paths(description):
        check_trusted(str(class_path))
    return instantiate(description, (expected,))


def class_paths(node: Any) -> Iterator[Any]:
    """Every class path in a description, however deep."""
    if isinstance(node, dict):
        if "class_path" in node:
            yield node["class_path"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from class_paths(inner)


def check_trusted(class_path: str) -> None:
    """Raise a ValueError if the module of a class is neither mull's nor named by the user."""
    module = class_path.rpartition(".")[0]
    if not is_trusted(module):
        raise ValueError(
            f"it names the class {class_path}, which is not mull's; name its module with --plugin "
            f"{module or 'MODULE'} if you trust it"
        )


def instantiate(description: dict[str, Any], expected: tuple[type, ...]) -> Any:
    """The object of a description whose class paths have been checked."""
    class_path = str(description["class_path"])
    found = find_class(class_path)
    if not issubclass(found, expected):
        raise ValueError(f"the class {class_path} is no {' or '.join(one.__name__ for one in expected)}")
    hints, signature = declared(found), inspect.signature(found)
    given = description.get("init_args") or {}
    usual = {name: parameter.default for name, parameter in signature.parameters.items()}
    for name, value in given.items():
        if value is None and usual.get(name, ...) is not None and not takes_null(hints.get(name, Any)):
            raise ValueError(f"the argument {name} of {class_path} must not be null; leave it out, or give a value")
    arguments = {name: argument(name, value, hints.get(name, Any)) for name, value in given.items()}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"the class {class_path} does not take these arguments: {error}") from error
    return found(**arguments)


def find_class(class_path: str) -> type:
    """The class of a path; its defining module must be trusted too, whatever module hands it on."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the class {class_path} cannot be found: {error}") from error
    if not inspect.isclass(found):
        raise ValueError(f"{class_path} is no class")
    check_trusted(f"{found.__module__}.{found.__qualname__}")
    return found


def declared(found: type) -> dict[str, Any]:
    """The annotations of a class's arguments, those of its bases included, which it may pass on."""
    hints: dict[str, Any] = {}
    for base in reversed(found.__mro__[:-1]):
        try:
            hints |= get_type_hints(base.__init__)  # type: ignore[misc]
        except NameError:  # an annotation that only type checkers can see
            continue
    return hints


def argument(name: str, value: Any, hint: Any) -> Any:
    """The value of one argument: described objects built, text and numbers converted to what the annotation says."""
    value, kinds = keyed(name, value, hint), tuple(kinds_in(hint))
    plain = [kind for kind in kinds if is_plain(kind)]
    classes = tuple(k for k in kinds if inspect.isclass(k) and k not in (*plain, Any, object))
    if any(True for _ in class_paths(value)):
        if not classes:
            raise ValueError(f"the argument {name} declares no class, so no object is built for it; annotate it")
        return nested(value, classes)
    if classes and set(plain) <= {type(None)} and value is not None and not isinstance(value, classes):
        raise ValueError(f"the argument {name} needs a class_path, not {value!r}")
    if len(plain) < len(kinds):  # nothing says what it should be
        return value
    return converted(name, value, hint)


def converted(name: str, value: Any, hint: Any) -> Any:
    """A value converted to an annotation that is made of text and numbers only."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=hint)
    try:
        return parser.parse_object({name: value})[name]
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def keyed(name: str, value: Any, hint: Any) -> Any:
    """A value whose mappings, however deep, have keys of the type that the annotation names, whatever their values are:
    a folder may hold the integers of `dict[int, Any]` as text."""
    for each in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        origin, inner = get_origin(each), get_args(each)
        if isinstance(value, dict) and "class_path" not in value and len(inner) == 2 and is_kind(origin, Mapping):
            typed = is_plain(inner[0]) and inner[0] is not str
            keys = [converted(name, key, inner[0]) if typed else key for key in value]
            return {key: keyed(name, held, inner[1]) for key, held in zip(keys, value.values(), strict=True)}
        if isinstance(value, list) and inner and is_kind(origin, Sequence):
            return [keyed(name, held, inner[0]) for held in value]
    return value


def nested(value: Any, classes: tuple[type, ...]) -> Any:
    """Described objects, also in lists and mappings."""
    if isinstance(value, dict) and "class_path" in value:
        return instantiate(value, classes)
    if isinstance(value, dict):
        return {key: nested(inner, classes) for key, inner in value.items()}
    return [nested(inner, classes) for inner in value] if isinstance(value, list) else value


def is_kind(origin: Any, expected: type) -> bool:
    """Whether the origin of an annotation, dict of `dict[int, str]`, is a subclass of another class."""
    return inspect.isclass(origin) and issubclass(origin, expected)


def kinds_in(hint: Any) -> Iterator[Any]:
    """The types that an annotation is made of: int and str for `dict[int, str]`, and none for a Literal."""
    if get_origin(hint) is Literal:
        return
    if not get_args(hint):
        yield hint
    for inner in get_args(hint):
        yield from kinds_in(inner)


def takes_null(hint: Any) -> bool:
    """Whether an annotation allows None, or says nothing; parsers of text take null for anything."""
    if get_origin(hint) is Literal:
        return None in get_args(hint)
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return hint in (Any, object, None, type(None)) or any(map(takes_null, alternatives))


def is_plain(kind: Any) -> bool:
    """Whether a type takes text or numbers, and no class."""
    return kind in PLAIN or (inspect.isclass(kind) and issubclass(kind, Enum))
