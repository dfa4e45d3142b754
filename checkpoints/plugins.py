"""Modules of the user's own, imported by an explicit word: `--plugin my_module`, or `plugins=["my_module"]`.

Nothing is imported because a checkpoint folder names it. A class that a folder names is looked up only where its module
is one of mull's own (`OWN`), or inside a module that was named here (`is_trusted`). In Python, registering your own
classes needs no plugin: import their module.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

OWN = ("mull.models", "mull.inference", "mull.training")  # not mull.checkpoints: folders of others lie in there
NAMED: set[str] = set()  # the modules that the user has named in this process


def named_in(args: Sequence[str]) -> list[str]:
    """The modules that --plugin names on a command line."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    return list(parser.parse_known_args(args)[0].plugin)


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that the user names, and trust the classes inside them from now on.

    Args:
        names: module names that can be imported from the working directory, or paths of .py files.

    Raises:
        ValueError: a module cannot be imported.
    """
    for name in names:
        NAMED.add(import_plugin(name))


def import_plugin(name: str) -> str:
    """Import one module; return the name under which its classes are found."""
    file = Path(name).expanduser().resolve() if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(f"plugin {name} is no file; give the path of a .py file, or the name of a module")
    folder, module = (Path.cwd(), name) if file is None else (file.parent, file.stem)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found = import_module(module)
    except Exception as error:  # whatever a stranger's module raises
        raise ValueError(
            f"plugin {name} cannot be imported ({type(error).__name__}: {error}); give the name of a module that can "
            "be imported from the working directory, or the path of a .py file"
        ) from error
    if file is not None and Path(str(found.__file__)).resolve() != file:
        raise ValueError(f"plugin {name} has the name of another module, {found.__file__}; rename the file")
    return module


def is_trusted(module: str) -> bool:
    """Whether a module is one of mull's own, or inside one that the user has named."""
    return module == "mull" or any(module == name or module.startswith(f"{name}.") for name in (*OWN, *NAMED))
