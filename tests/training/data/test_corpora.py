"""Public text: fetched from a server on this machine, found where configurations look, refused when it is wrong."""

import re
import shutil
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
import yaml

from mull.cli import main
from mull.training.data import corpora
from mull.training.data.documents import find_files

ROOT = Path(__file__).parents[3]
TEXTS = {"one.txt": b"first\n", "two.txt": b"second\n"}
FILES = {f"plays-{name}": (name, sha256(text).hexdigest()) for name, text in TEXTS.items()}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server that is the home of the one source there is; the working directory is an empty one."""
    home, work = tmp_path / "home", tmp_path / "checkout" / "work"
    home.mkdir()
    work.mkdir(parents=True)
    for name, text in TEXTS.items():
        (home / name).write_bytes(text)
    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(home)))
    Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
    source = corpora.Source("two plays, public domain", f"http://127.0.0.1:{server.server_port}/", FILES)
    monkeypatch.setattr(corpora, "SOURCES", {"plays": source})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MULL_DATA", raising=False)
    monkeypatch.chdir(work)
    yield home
    server.shutdown()
    server.server_close()


def test_what_is_fetched_is_what_configurations_find(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not there, and the error names the command; the command; there, and the command fetches nothing again."""
    with pytest.raises(FileNotFoundError, match=r"no such file: data/plays-one.txt .* `mull data plays` fetches it"):
        find_files(["data/plays-one.txt"])
    assert main(["data"]) == 0 and "not here yet: mull data plays" in capsys.readouterr().out
    assert main(["data", "plays"]) == 0
    assert "data/plays-one.txt comes from http://127.0.0.1" in capsys.readouterr().out
    assert find_files(["data/plays-one.txt", "data/plays-two.txt"])[1].read_bytes() == TEXTS["two.txt"]
    assert main(["data"]) == 0 and "data/plays-one.txt, data/plays-two.txt" in capsys.readouterr().out
    (served / "one.txt").unlink()
    assert main(["data", "all"]) == 0 and "data/plays-one.txt is there" in capsys.readouterr().out


def test_the_folder_may_be_another(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MULL_DATA, for fetching and finding; ../shared/data too, under both names; a path that is there is that path."""
    monkeypatch.setenv("MULL_DATA", str(tmp_path / "elsewhere"))
    corpora.fetch("plays")
    assert corpora.find("data/plays-one.txt") == tmp_path / "elsewhere" / "plays-one.txt" and not Path("data").exists()
    monkeypatch.delenv("MULL_DATA")
    shutil.copytree(tmp_path / "elsewhere", "../shared/data")
    assert corpora.find("data/plays-one.txt") == Path("../shared/data/plays-one.txt")
    corpora.fetch("plays")
    shutil.rmtree("../shared")
    assert corpora.find("../shared/data/plays-one.txt") == Path("data/plays-one.txt")  # as older configurations say it
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: texts/plays-one.txt \(looked at"):
        corpora.find("texts/plays-one.txt")  # only a folder `data` stands for other folders
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: data/mine.txt"):
        corpora.find("data/mine.txt")
    assert (served / "one.txt").exists()


def test_wrong_and_missing_files_leave_nothing(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed file, a lost one, no server: one line each, exit status 2, and no file that could be taken for it."""
    (served / "one.txt").write_bytes(b"frist\n")
    for spoil, said in (
        (lambda: None, r"one.txt is not the file it was \(its SHA-256 is not"),
        (lambda: (served / "one.txt").unlink(), r"cannot fetch .*/one.txt: the server answers 404; without a network,"),
        (lambda: lose(corpora.SOURCES), r"cannot fetch .*: no connection; .* put the file at data/plays-one.txt"),
    ):
        spoil()
        assert main(["data", "plays"]) == 2
        error = capsys.readouterr().err
        assert re.search(said, error) and error.count("\n") == 1
        assert not Path("data").exists()


def lose(sources: dict[str, corpora.Source]) -> None:
    """Make the home of a source a port where nobody listens."""
    sources["plays"] = corpora.Source("", "http://127.0.0.1:9/", FILES)


def test_a_file_of_ones_own_is_not_written_over(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another file of that name stays, and the user is told."""
    Path("data").mkdir()
    Path("data/plays-one.txt").write_text("mine")
    assert main(["data", "plays"]) == 2 and "is another file than" in capsys.readouterr().err
    assert Path("data/plays-one.txt").read_text() == "mine" and served.exists()
    assert main(["data", "nothing"]) == 2
    assert "there is no corpus 'nothing'; the corpora are plays" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_that_a_configuration_names_can_be_fetched(config: Path) -> None:
    """A clone has no text: a configuration that names some is one that `mull data` serves, and its head says so."""
    text = config.read_text()
    named = (yaml.safe_load(text).get("data") or {}).get("init_args", {}).get("paths", [])
    homes = {file: name for name, source in corpora.SOURCES.items() for file in source.files}
    assert {str(Path(path).parent) for path in named} <= {"data"} and {Path(path).name for path in named} <= {*homes}
    wanted = list(dict.fromkeys(homes[Path(path).name] for path in named))
    assert (f"# Data: mull data {' '.join(wanted)}\n" in text) == bool(wanted)


def test_checksums_and_licences_are_stated() -> None:
    """Guards the table itself: whole checksums, each once, and a licence in words."""
    files = [each for source in corpora.SOURCES.values() for each in source.files.values()]
    assert len({checksum for _, checksum in files}) == len(files) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for _, checksum in files)
    assert all(re.search("licence|public domain|CC BY", source.about) for source in corpora.SOURCES.values())
    for path in (ROOT / "data", ROOT.parent / "shared" / "data"):  # where there are some, they are the ones described
        for source in corpora.SOURCES.values():
            for name, (_, checksum) in source.files.items():
                if (path / name).is_file():
                    assert sha256((path / name).read_bytes()).hexdigest() == checksum
