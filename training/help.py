"""What --help prints: a page for each command, and of the many fields of a run those that are asked for.

mull train --help              mull's own options, and the words that a configuration may use
mull train --help trainer      the fields of one part of the configuration: trainer, model or data
mull train --help all          everything
"""

from __future__ import annotations

import re
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Iterable

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mull.inference.decoders import DECODERS
from mull.inference.exits import EXITS
from mull.inference.strategies import STRATEGIES
from mull.inference.strategies.scorers import SCORERS
from mull.inference.written import described
from mull.models.families import FAMILIES
from mull.models.injection import INJECTIONS
from mull.models.rules import RULES
from mull.training.shipped import names

PARTS = {  # of a configuration -> what they say
    "trainer": "how long, on what, validated how often: Lightning's Trainer",
    "model": "the network, how deep it thinks in training, loss, optimizer, schedule",
    "data": "the task or the text",
}
HELP = {  # in place of what the parser says of its own options
    "help": "this page; mull train --help trainer, model, data or all for the fields of a run",
    "config": "YAML file, or the name of one of those below, unless a file has it; repeatable, later ones override",
    "print_config": "print all fields with their values, and train nothing",
    "data": "class of the data; its arguments are fields: --data.help mull.training.data.TaskData, or TextData",
    "seed_everything": "seed of everything that is drawn: weights, items, iteration counts",
}
LIBRARIES = (
    "torch.",
    "torchmetrics.",
    "lightning.",
    "mull.models.",
    "mull.training.module.",
)  # whose classes are no networks to choose


class Page(DefaultHelpFormatter):
    """Help as sentences: defaults where they say something, no Python types, and lines of a list as they stand."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        unset = any(action.default is nothing for nothing in (None, False, SUPPRESS))
        silent = not action.option_strings or unset or "default" in text
        return text if silent else f"{text} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(folded(indent + line, width) for line in text.splitlines())


class Fields(DefaultHelpFormatter):
    """The fields of a run with their types. Of the classes that a network may be, those of other libraries are left
    out: there are hundreds, and none takes token ids."""

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if action.dest != "model.network":
            return text
        return re.sub(r"(known subclasses: )([^)]*)", lambda found: found[1] + networks(found[2]), text)


def networks(listed: str) -> str:
    """Of a list of class paths those that are families, or somebody's own."""
    families = [kind.__name__ for kind in FAMILIES.values()]
    every = listed.split(", ")
    return ", ".join(each for each in every if each.removeprefix("mull.") in families or not each.startswith(LIBRARIES))


def folded(line: str, width: int) -> str:
    """A line of a list, its later lines under the first one's last column."""
    column = re.match(r"\s*(\S.*?\s{2,})?", line)
    return textwrap.fill(line, width, subsequent_indent=" " * (column.end() if column else 0))


def listed(options: Iterable[str]) -> str:
    """What stands in the registries of some options, for the end of a page; what plugins add is among it.

    Args:
        options: of `exit`, `decode`, `strategy` and `scorer`, which is an option of strategies.
    """
    registries = {each.kind: each for each in (EXITS, DECODERS, STRATEGIES, SCORERS)}
    written = {"scorer": "scorer="}
    said = [(written.get(name, f"--{name}"), described(registries[name])) for name in options]
    return "\n\n".join(listing(f"{name} takes one of", lines) for name, lines in said)


def listing(title: str, lines: Iterable[str]) -> str:
    """A title and lines below it, each indented by two blanks."""
    return "\n".join([title, *(f"  {line}" for line in lines)])


def page_of_train(parser: ArgumentParser, topic: str) -> str:
    """The help of `mull train`.

    Args:
        parser: of all fields of a run.
        topic: one of `PARTS`, `all`, or empty for the first page.

    Raises:
        ValueError: there is no such topic.
    """
    if topic not in ("", "all", *PARTS):
        raise ValueError(f"there is no help on {topic!r}; there is mull train --help {', '.join(PARTS)} or all")
    for group in parser._action_groups:
        group._group_actions = [action for action in group._group_actions if belongs(action, topic)]
    links = [] if topic == "all" else ["Linked arguments"]
    groups = [group for group in parser._action_groups if group._group_actions and group.title not in links]
    for group in groups:
        group.title = group.title if topic in ("", "all") else f"fields of {topic}"
    parser._action_groups = groups
    for action in parser._actions:
        action.help = HELP.get(action.dest, action.help)
    parser.formatter_class = Fields if topic else Page
    parser.usage = "mull train --config CONFIG [--config CONFIG ...] [--any.field VALUE ...]"  # not all 60 of them
    parser.description = None if topic else "Train a model. A run is a YAML file, or several: a later one overrides."
    parser.epilog = None if topic else first_page()
    return parser.format_help()


def belongs(action: Action, topic: str) -> bool:
    """Whether an option stands on the page of a topic."""
    part = action.dest.partition(".")[0]
    if topic in ("", *PARTS) and part not in PARTS:  # mull's own
        return topic == ""
    return topic in (part, "all")


def first_page() -> str:
    """What stands below mull's own options: where the fields are, and the words that are no classes."""
    parts = [f"mull train --help {part:<9}{about}" for part, about in PARTS.items()]
    classes = [
        "mull train --model.network.help mull.RecurrentDepthTransformer",
        "mull train --data.help mull.training.data.TaskData",
    ]
    about: dict[str, Iterable[str]] = {"families": FAMILIES, "injections": INJECTIONS, "rules of inner thinking": RULES}
    return "\n\n".join(
        [
            listing("all other fields can be options too, as --trainer.max_steps 200:", parts),
            listing("the arguments of a class:", classes),
            listing("words for a configuration:", [f"{kind:<25}{', '.join(known)}" for kind, known in about.items()]),
            listing("configurations by name:", textwrap.wrap(", ".join(names()), 76)),
        ]
    )
