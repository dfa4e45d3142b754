"""Checkpoint folders by name: `mull.load("parity")` from anywhere, as `mull evaluate parity` on the command line.

What is there as a path is a path. A bare word that is none is a name, and means

    checkpoints/NAME    of the working directory, where `mull train` leaves the run of a configuration of this name
    the folder NAME that ships with mull

A run of yours that has not come to its end still has its name: no other folder is opened in its place.
"""

import re
from pathlib import Path

from mull.checkpoints.files import path_of

RUNS = Path("checkpoints")  # of the working directory
SHIPPED = Path(__file__).parent
NAME = re.compile(r"[\w-][\w.-]*")  # no path: neither a separator, nor a home, nor a folder that is hidden


def folder_of(path: str | Path) -> Path:
    """The folder that a path or a name means.

    Raises:
        FileNotFoundError: nothing is there; the message lists the names.
        ValueError: the path is empty.
    """
    asked = path_of(path, "the path of the checkpoint folder")
    places = [asked]
    if NAME.fullmatch(str(path)):
        places += [RUNS / asked, SHIPPED / asked]
    for place in places:
        if place.exists() and (place.parent != SHIPPED or is_checkpoint(place)):
            return place
    raise FileNotFoundError(
        f"there is no checkpoint folder {asked}; `mull train` makes one, and {shipped_instead(asked)}"
    )


def called(folder: str | Path) -> str:
    """What a folder is called in a title: one that ships with mull by its name, any other by its path."""
    place = Path(folder)
    return place.name if place.parent == SHIPPED else str(folder)


def shipped_instead(asked: Path) -> str:
    """What there is in place of a folder that is missing, for messages."""
    names = shipped()
    if asked.name in names:
        return f"the one that ships with mull is called {asked.name}, without a path"
    return f"{', '.join(names)} ship with mull" if names else "none ship with this mull"


def shipped() -> list[str]:
    """The names of the folders that ship with mull."""
    return sorted(place.name for place in SHIPPED.iterdir() if is_checkpoint(place))


def is_checkpoint(place: Path) -> bool:
    """Whether a folder beside this file is a checkpoint, and no part of the code."""
    return (place / "config.json").is_file()
