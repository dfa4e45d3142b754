"""What the parser says of a wrong option, in the words of a person who has typed it.

The parser speaks of unions, subtypes and class paths. Here one line names the field, the value and what would be right;
a name that does not exist is told the nearest that does.
"""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from itertools import chain, islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentError

from mull.checkpoints.files import DEEPEST, safe_loader, shown

CLASS = re.compile(r"Problem with given class_path '([\w.]+)': ")
UNKNOWN = re.compile(r"Option '([\w.]+)' is not accepted|unrecognized arguments?: --([\w.-]+)\S*")
GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
MISSING = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
WANTED = r"Expected a (?:<class '(\w+)'>|typing\.Literal\[([^\]]*)\])(?:\. Got value: \S*)?"  # one type of several
FREE = re.compile(r"unrecognized arguments?: (.*)")
FREE_TEXT = {"mull train": "config", "mull generate": "prompt"}  # the option whose name is left out most easily
OPTION = re.compile(r"(--[\w.-]+|-c)(?:=(.*))?", re.DOTALL)  # with the value that may stand behind it
FORMAT = re.compile(r"[\w.]*:[^a-zA-Z]*[a-zA-Z%]")  # of a number in the name of a file, as in {epoch:02d}
NULL, TEXT, INTEGER = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "int"))  # what YAML takes a scalar for
LOADER = safe_loader()  # the parser's: its library takes tabs, as in JSON
LINKED = {  # fields that others fill in -> from where
    "data.init_args.seed": "that of the whole run: leave it out, and set seed_everything",
    "data.seed": "that of the whole run: leave it out, and set seed_everything",
    "model.seed": "that of the whole run: leave it out, and set seed_everything",
    "model.network.init_args.config.vocab_size": "that of the data: leave it out",
    "model.network.init_args.config.stop_tokens": "those of the data: leave it out",
    "model.network.config.vocab_size": "that of the data: leave it out",
    "model.network.config.stop_tokens": "those of the data: leave it out",
}
NOTHING = "''"  # an empty text
PLAIN = (bool, int, float, str, list, tuple, dict)
SECTIONS = ("trainer", "model", "data")
MERGE = "tag:yaml.org,2002:merge"  # the key <<
KINDS = {"int": "an integer", "float": "a number", "bool": "true, false", "str": "text"}


def in_words(error: ArgumentError, parser: ArgumentParser) -> ValueError:
    """The error of a parser as one that a person understands."""
    said = GROUP.sub(r"Option '\1.\2' is not accepted", " ".join((error.message or "").split()))
    unknown, free = UNKNOWN.search(said), FREE.match(said)
    if unknown and not CLASS.search(said):
        asked = unknown[1] or unknown[2]
        return ValueError(f"there is no option --{asked}; {instead(asked, parser)}")
    if free:
        return ValueError(f"{free[1]!r} belongs to no option; {written_out(free[1], parser)}")
    if unknown and CLASS.search(said):
        return ValueError(f"{place(said)} has no option {named(unknown)!r}; {takes(said, named(unknown))}")
    return ValueError(plain(said))


def check_mappings(args: Iterable[str]) -> None:
    """Check the mappings in values of options and in configurations for keys with nothing behind them, keys that stand
    there twice, and mappings that are too deep or inside themselves.

    So is {50:4}: without a blank behind its colon it is, for YAML, one key, the number 50 * 60 + 4. The parser stumbles
    over a single such key before it knows what the option takes; names may have null, as in {d_ff: null}. Where a
    mapping has a line for each key, 50:4 alone on a line is that number in its place.

    Args:
        args: those of `mull train`, with paths of configurations.

    Raises:
        ValueError: one of these is found, or a configuration is no YAML (the parser would say what is wrong, and not in
            which file); the message names the option, or the file and the line.
    """
    for option, value in given(args):
        for _, mistake in chain(too_deep(value), mistakes(value)):  # in turn: what is too deep ends the parser
            raise ValueError(f"{option}: {mistake}")
        if option in ("config", "c") or value.endswith(".yaml"):
            text = text_of(value)
            if option in ("config", "c") and Path(value).is_file() and not text.strip():
                raise ValueError(f"{value} holds no text: give fields and their values, as YAML in UTF-8")
            broken = unreadable(text) if option in ("config", "c") else ()
            empty = emptied(text) if option in ("config", "c") else ()
            for line, mistake in chain(too_deep(text), broken, empty, mistakes(text)):
                raise ValueError(f"{value}, line {line}: {mistake}")


def given(args: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The words of a command line, each with the option that it belongs to."""
    option = ""
    for word in args:
        named = OPTION.fullmatch(word)
        option, value = (named[1].lstrip("-"), named[2] or "") if named else (option, word)
        yield option, value


def check_linked(args: Iterable[str]) -> None:
    """Raise a ValueError for a field that others fill in: the parser would put their value there unsaid."""
    for option, value in given(args):
        place = "" if option in ("config", "c") else f"{option}."
        for field, whose in LINKED.items():
            if f"{field}." == place or (field.startswith(place) and holds(value, field.removeprefix(place))):
                raise ValueError(f"{field} is {whose}")


def holds(value: str, field: str) -> bool:
    """Whether a value of an option, YAML or a file of it, holds something at a field."""
    with suppress(yaml.YAMLError, RecursionError, ValueError, OverflowError):  # the parser tells
        found = yaml.load(text_of(value) or value, LOADER)
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found is not None
    return False


def check_nulls(held: Any, where: str = "") -> None:
    """Raise a ValueError for a null in an argument of a class that takes none: the parser would hand it on unsaid.

    Args:
        held: a configuration with all its fields, or a part of it.
        where: the field that the part stands in.
    """
    if isinstance(held, dict) and "class_path" in held:
        for name, value in (held.get("init_args") or {}).items():
            field = f"{where}.init_args.{name}"
            if value is None and field not in LINKED and not may_be_null(held["class_path"], name):
                raise ValueError(f"{field} is null: give a value, or leave it out for what it is by itself")
    if isinstance(held, dict | list):
        for name, value in held.items() if isinstance(held, dict) else enumerate(held):
            check_nulls(value, f"{where}.{name}".lstrip("."))


def may_be_null(class_path: str, argument: str) -> bool:
    """Whether an argument of a class may be None: unless its type is one of PLAIN, or a union of such."""
    with suppress(Exception):  # signatures of somebody's own may name what is not there, or be none
        given = signature(class_of(class_path), eval_str=True).parameters[argument]
        wanted = get_args(given.annotation) if isinstance(given.annotation, UnionType) else (given.annotation,)
        return given.default is None or not all((get_origin(each) or each) in PLAIN for each in wanted)
    return True


def too_deep(text: str) -> Iterator[tuple[int, str]]:
    """The line at which a YAML text goes deeper than `DEEPEST` or names something inside itself, and what to do."""
    around: list[str | None] = []  # the anchors of the mappings and lists that are open
    with suppress(yaml.YAMLError, ValueError, OverflowError):  # told by `unreadable`, or by the parser
        for event in yaml.parse(text, LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                around.append(event.anchor)
                if len(around) > DEEPEST:
                    yield event.start_mark.line + 1, f"this is more than {DEEPEST} mappings and lists deep: write fewer"
                    return
            elif isinstance(event, yaml.CollectionEndEvent):
                around.pop()
            elif isinstance(event, yaml.AliasEvent) and event.anchor in around:
                yield event.start_mark.line + 1, f"*{event.anchor} stands inside of what it names: write it out"
                return


def unreadable(text: str) -> Iterator[tuple[int, str]]:
    """The line at which a text stops being YAML, and why; nothing for one that is YAML."""
    try:
        yaml.compose(text, LOADER)
    except yaml.MarkedYAMLError as error:
        if error.problem_mark is not None:
            context = f"{error.context}, " if error.context else ""
            yield error.problem_mark.line + 1, f"this is no YAML: {context}{error.problem}"
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        return  # the parser tells


def emptied(text: str) -> Iterator[tuple[int, str]]:
    """The line of each section of a configuration that holds nothing, and what to do."""
    for mapping in islice(mappings(text), 1):  # the whole
        for key, held in mapping.value:
            if held.tag == NULL and getattr(key, "value", None) in SECTIONS:
                yield key.start_mark.line + 1, f"there is nothing for {key.value}: leave it out, or give its fields"


def mistakes(text: str) -> Iterator[tuple[int, str]]:
    """The line of each key of a YAML text that stands there twice, or has nothing behind it though something is meant,
    and what is wrong."""
    for mapping in mappings(text):
        keys = [key for key, _ in mapping.value if isinstance(key, yaml.ScalarNode)]
        times = Counter((key.tag, key.value) for key in keys)
        for key in keys:
            if times[key.tag, key.value] > 1 and key.tag != MERGE:  # several of those are merged one after the other
                yield key.start_mark.line + 1, f"{shown(key.value)} stands here twice: leave one of them out"
        for key, held in mapping.value:
            if not mapping.flow_style:
                below = held.start_mark.line > key.start_mark.line
                if below and held.tag == INTEGER and re.fullmatch(r"\d+:\d+", held.value):
                    yield held.start_mark.line + 1, unspaced(held.value)
                continue
            if held.tag != NULL or not isinstance(key, yaml.ScalarNode) or key.style:
                continue
            if not held.value and spaced(key.value) != key.value and not FORMAT.fullmatch(key.value):
                yield key.start_mark.line + 1, unspaced(key.value)
            elif key.tag != TEXT and len(mapping.value) == 1:
                yield key.start_mark.line + 1, f"there is nothing for {key.value}: write '{{{key.value}: VALUE}}'"


def spaced(key: str) -> str:
    """A key with blanks behind its colons, but for those of addresses."""
    return re.sub(r":(?=[^\s:/])", ": ", key)


def unspaced(key: str) -> str:
    """What is wrong with a key that has none."""
    return f"{shown(key)} lacks a blank behind its colon: write {shown(spaced(key))}"


def mappings(text: str) -> Iterator[yaml.MappingNode]:
    """The mappings of a YAML text, none of a text that is not YAML."""
    seen = set[int]()  # a node may stand inside itself

    def inside(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                yield node
            for part in node.value:
                for each in part if isinstance(part, tuple) else (part,):
                    yield from inside(each)

    with suppress(yaml.YAMLError, RecursionError, ValueError, OverflowError):  # the last two: "\\UFFFFFFFF"
        yield from inside(yaml.compose(text, LOADER))


def text_of(file: str) -> str:
    """What a file holds; nothing if it is no file or no text, which the parser tells."""
    with suppress(OSError, ValueError):
        return Path(file).read_text(encoding="utf-8")
    return ""


def instead(asked: str, parser: ArgumentParser) -> str:
    """The option that somebody may have meant."""
    known = [option[2:] for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    begun = [option for option in known if option.startswith(asked) or option.endswith(f".{asked}")]
    near = begun or get_close_matches(asked, known, 1)
    return f"do you mean --{near[0]}?" if near else f"`{parser.prog} --help` lists what there is"


def written_out(word: str, parser: ArgumentParser) -> str:
    """How a word is given that stands alone on the command line."""
    option = FREE_TEXT.get(parser.prog)
    if word == "help" or option is None:
        return f"`{parser.prog} --help` lists what there is"
    return f"do you mean --{option} {shlex.quote(word)}?"


def named(unknown: re.Match[str]) -> str:
    """The name that a class does not have."""
    return (unknown[1] or unknown[2]).removeprefix("config.")


def place(said: str) -> str:
    """The field and the innermost class that a message is about: `data: mull.training.data.Parity`."""
    key = re.match(r'Parser key "([\w.]+)": ', said)
    classes = CLASS.findall(said)
    return ": ".join([*([key[1]] if key else []), *classes[-1:]])


def takes(said: str, asked: str) -> str:
    """What the innermost class of a message has in place of an argument that it does not have."""
    known = list(arguments_of(CLASS.findall(said)[-1]))
    near = get_close_matches(asked, known, 1)
    return f"do you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"


def arguments_of(class_path: str) -> Iterable[str]:
    """The names of the arguments of a class that the parser has looked up; of a family, the fields of its config."""
    found = class_of(class_path)
    config = getattr(found, "config_class", None)
    return (f.name for f in fields(config)) if is_dataclass(config) else signature(found).parameters


def class_of(class_path: str) -> Any:
    """A class that the parser has looked up; it may be a function that makes one."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def plain(said: str) -> str:
    """A message without the parser's types: `model.warmup_steps: abc is not an integer`."""
    said = " ".join(said.split())
    given = re.search(r" Given value: (?:NestedArg\(key='[\w.]*', val='?([^']*?)'?\)|(.*?))(?: - Expected a |$)", said)
    value = shown((given[1] or given[2] or "''") if given else "", 60)
    for pattern in (
        r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ",
        r" Given value type: .*",
        r"[-\s]*Expected a <class 'NoneType'>",
        r"[-\s]*Expected a path but .*? either not accessible or invalid",
        r"[-\s]*Not a valid subclass of .*",
    ):
        said = re.sub(pattern, "", said)
    said = re.sub(r'Parser key "([\w.]+)"', r"\1", CLASS.sub(r"\1: ", said))
    said = re.sub(r"(^|: )(?:- )+", r"\1", said.strip())
    union = re.fullmatch(rf"(.*?): ((?:[-\s]*{WANTED})+)", said)  # of which no type fits
    if union is not None and value:
        found = re.findall(WANTED, union[2])
        words = ", ".join(listed for _, listed in found if listed)
        kinds = [*(kind(name) for name, _ in found if name), *([f"one of {words}"] if words else [])]
        return f"{union[1]}: {value} is not {' or '.join(kinds)}"
    said = re.sub(r"Expected a typing.Literal\[(.*?)\]\. Got value:\s*(.*)", r"\2 is not one of \1", said)
    said = re.sub(
        r"Expected a <class '(\w+)'>\. Got value:\s*(.*)", lambda it: f"{it[2] or NOTHING} is not {kind(it[1])}", said
    )
    return MISSING.sub(lambda it: f"{it[1]} has no {it[2]}; {nearest(it[1], it[2])}", said)


def nearest(module: str, asked: str) -> str:
    """The name of a module that somebody may have meant."""
    near = get_close_matches(asked, dir(import_module(module)), 1)
    return f"do you mean {near[0]}?" if near else "`mull train --help` lists what there is"


def kind(name: str) -> str:
    """A type of Python in words."""
    return KINDS.get(name, f"a {name}")
