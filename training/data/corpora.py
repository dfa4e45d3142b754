"""Public text that configurations name: where it comes from, where it is looked for, and `mull data`, which fetches it.

A configuration names `data/gsm8k-train.jsonl`. A file of that name, in a folder `data` that lacks it, is looked for in

    $MULL_DATA    if this environment variable is set
    data/         of the working directory, where `mull data` puts files unless MULL_DATA names another folder
    ../shared/data/

Nothing is fetched by itself. Every file has a checksum, and its address names one commit, so it is always the same.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GITHUB = "https://raw.githubusercontent.com/"


@dataclass(frozen=True)
class Source:
    """A public corpus.

    Attributes:
        about: what it is, and its licence, for the list of `mull data`.
        home: address that the addresses of its files begin with.
        files: name here -> (address below `home`, SHA-256).
        manner: what a model that was trained on it writes like, for its card.
        prompt: a beginning that it can go on with.
        licence: of the text.
    """

    about: str
    home: str
    files: dict[str, tuple[str, str]]
    manner: str = "public text"
    prompt: str | None = None
    licence: str = "licence unknown"


SOURCES = {
    "gsm8k": Source(
        "8,792 grade-school problems with worked answers, 4.9 MB, MIT licence (arXiv 2110.14168)",
        GITHUB + "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/",
        {
            "gsm8k-train.jsonl": (
                "train.jsonl",
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            ),
            "gsm8k-test.jsonl": (
                "test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
        },
        manner="grade-school problems with worked answers",
        prompt="Natalia sold",
        licence="GSM8K (arXiv 2110.14168), MIT licence",
    ),
    "tinyshakespeare": Source(
        "plays of Shakespeare in one file, 1.1 MB, public domain",
        GITHUB + "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
        {
            "tinyshakespeare.txt": (
                "input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            )
        },
        manner="plays of Shakespeare",
        prompt="ROMEO:",
        licence="tinyshakespeare, public domain",
    ),
    "wikitext2": Source(
        "validation and test text of WikiText-2, Wikipedia articles, 2.4 MB, CC BY-SA 3.0 (arXiv 1609.07843)",
        GITHUB + "pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/",
        {
            "wikitext2-valid.txt": (
                "valid.txt",
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            ),
            "wikitext2-test.txt": (
                "test.txt",
                "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            ),
        },
        manner="articles of Wikipedia",
        prompt="The city of",
        licence="WikiText-2 (arXiv 1609.07843), CC BY-SA 3.0",
    ),
}


def data_folder() -> Path:
    """The folder that files are put into."""
    return Path(os.environ.get("MULL_DATA") or "data").expanduser()


def find(name: str) -> Path:
    """The path that `name` means: as it stands if it is there, else as the head of this file says.

    Raises FileNotFoundError for a path that is nowhere; for a public file it names the command that fetches it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    source = next((key for key, each in SOURCES.items() if path.name in each.files), None)
    if source is None or path.parent.name != "data":
        raise FileNotFoundError(f"no such file or folder: {name} (looked at {path.resolve()})")
    folders = dict.fromkeys([data_folder(), Path("data"), Path("../shared/data")])
    for folder in folders:
        if (folder / path.name).is_file():
            return folder / path.name
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"no such file: {name} (looked in {looked}); `mull data {source}` fetches it; MULL_DATA names another folder"
    )


def source_of(path: str) -> Source | None:
    """The public corpus that a file belongs to, by its name; None for a file of somebody's own."""
    return next((source for source in SOURCES.values() if Path(path).name in source.files), None)


def fetch(name: str) -> list[str]:
    """Fetch the files of a source into the data folder, but for those that are there; a line about each.

    Raises ValueError for an unknown source, or a file whose content is not the expected one; OSError for one that is
    not to be had. A file appears when it is whole and right, or not at all.
    """
    import pooch

    if name not in SOURCES:
        raise ValueError(f"there is no corpus {name!r}; the corpora are {', '.join(SOURCES)}")
    pooch.get_logger().setLevel("ERROR")
    folder, lines = data_folder(), []
    for file, (address, checksum) in SOURCES[name].files.items():
        place, url = folder / file, SOURCES[name].home + address
        if place.exists() and pooch.file_hash(str(place)) != checksum:
            raise ValueError(f"{place} is there and is another file than {url}: move it away, or set MULL_DATA")
        there = place.exists()
        if not there:
            download(url, checksum, place)
        lines.append(f"{place} {'is there' if there else f'comes from {url}'}")
    return lines


def download(url: str, checksum: str, place: Path) -> None:
    """Fetch one file; see `fetch`."""
    import pooch

    made = not place.parent.exists()
    loader = pooch.HTTPDownloader(timeout=30)
    try:
        pooch.retrieve(url, f"sha256:{checksum}", fname=place.name, path=place.parent, downloader=loader)
    except OSError as error:  # the disk's say what in `strerror`; the network's fill lines, and have an answer or none
        answer = getattr(error, "response", None)
        status = "no connection" if answer is None else f"the server answers {answer.status_code}"
        raise OSError(
            f"cannot fetch {url}: {error.strerror or status}; without a network, put the file at {place} yourself"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url} is not the file it was (its SHA-256 is not {checksum}); nothing was kept") from error
    finally:
        if made:
            with suppress(OSError):  # the file is in it
                place.parent.rmdir()


def listing() -> list[str]:
    """A line about each source: its name, what it is, and whether its files are to be found."""
    lines = []
    for name, source in SOURCES.items():
        try:
            where = ", ".join(str(find(f"data/{file}")) for file in source.files)
        except FileNotFoundError:
            where = f"not here yet: mull data {name}"
        lines.append(f"{name:<17}{source.about}\n{'':<17}{where}")
    return lines
