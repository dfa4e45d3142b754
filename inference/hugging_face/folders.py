"""Where transformers' names of a model lead to: a folder on this machine, opened by mull's store.

A path is a folder. Any other name is one of the hub, whose files transformers fetches and keeps; its snapshot is then
such a folder too. Nothing but the files that mull reads is fetched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from mull.checkpoints import store

NEEDED, OPTIONAL = (store.CONFIG, store.WEIGHTS), (store.TOKENIZER, "generation_config.json")
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class FolderError(RuntimeError):
    """What is wrong with a folder, in mull's one line.

    No ValueError, as mull's own error is: AutoTokenizer takes a ValueError of a configuration for none being there, and
    would go on with a tokenizer of its own making.
    """


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn the store's errors about a folder into FolderError."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise FolderError(str(error)) from error


def folder_of(name: Any, subfolder: str = "", **hub: Any) -> Path:
    """The folder of a model or tokenizer.

    Args:
        name: a path, or a name on the hub.
        subfolder: where it lies in there.
        hub: how transformers is to fetch it (`HUB`).

    Raises:
        OSError: transformers cannot find the name.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser() / subfolder
    found = [cached_file(str(name), file, subfolder=subfolder, **hub) for file in NEEDED]
    for file in OPTIONAL:
        cached_file(str(name), file, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(str(found[0])).parent
