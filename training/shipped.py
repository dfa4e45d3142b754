"""Configurations by name: `mull train --config parity` takes the parity.yaml that comes with mull.

What is there as a file is that file. A bare word that is none is the name of one of mull's own.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mull.checkpoints.names import NAME

FOLDER = Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """The names of the configurations that come with mull."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def with_paths(args: list[str]) -> list[str]:
    """The arguments of `mull train`, with the file of each configuration in place of its name.

    Raises:
        FileNotFoundError: a configuration is neither a file nor a name; the message lists the names.
    """
    return list(each_with_path(args))


def each_with_path(args: list[str]) -> Iterator[str]:
    """The arguments of a command line, with the file of each configuration that `--config` or `-c` names in its
    place."""
    expected = False  # whether this argument is the value of the one before
    for argument in args:
        option, equals, value = argument.partition("=")
        if expected:
            yield path_of(argument)
        elif option in ("--config", "-c") and equals:
            yield f"{option}={path_of(value)}"
        else:
            yield argument
        expected = not expected and argument in ("--config", "-c")


def path_of(value: str) -> str:
    """The file that the value of --config means; text that is no path is left to the parser, which reads it as YAML."""
    path = Path(value).expanduser()
    try:
        there = path.is_file()
    except OSError:  # text that is too long for a path
        return value
    if there:
        return str(path)
    if NAME.fullmatch(value) and (FOLDER / f"{value}.yaml").is_file():
        return str(FOLDER / f"{value}.yaml")
    if not NAME.fullmatch(value) and path.suffix not in (".yaml", ".yml", ".json"):
        return value
    if path.stem in names():
        raise FileNotFoundError(
            f"there is no configuration {value}; the one that comes with mull is called {path.stem}: "
            f"--config {path.stem}"
        )
    close = get_close_matches(path.stem, names(), n=1)
    instead = f"; do you mean {close[0]}?" if close else f", and mull brings {', '.join(names())}"
    raise FileNotFoundError(f"there is no configuration {value}{instead}")
