"""The code blocks of the pages: found, run as they stand, and what they print written below them.

    python docs/blocks.py docs/first-hour.md       run a page in a new folder, and write what was printed into it
    python docs/blocks.py docs/notebooks/*.ipynb   the same with notebooks

A page is run from top to bottom in one folder, in which the shipped models lie in checkpoints/ and the pages in docs/,
as in the repository. A block whose first line is `# name.py` or `# name.yaml` is a file of that name; other python
blocks share one namespace; of bash blocks the lines that begin with `mull` or `cat` are run. A text block right behind
is what the block before it printed.

The tests run all pages too (tests/test_docs.py). A comment before a block says how, several parted by semicolons:

    <!-- test: names -->                        not run, it takes long or is not mull's; names and options must exist
    <!-- test: short -->                        each `mull train` of the block takes two steps
    <!-- test: (256, 64) => (32, 64) -->        one text in place of another
    <!-- test: words -->                        numbers are of this machine, or of weights: only words are compared,
                                                and the names of fields that `mull inspect` lists
    <!-- test: any answer -->                   what is printed is not compared
    <!-- test: mistakes -->                     the commands end with errors, which the page shows
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mull import cli
from mull.checkpoints.names import SHIPPED, shipped

FENCE = re.compile(
    r"(?:^<!-- test: (?P<how>[^\n]*) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    r"(?P<between>\n+```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\n")
SHELL = ("bash", "sh", "console", "")
SHORT = " --trainer.max_steps 2 --trainer.val_check_interval 2"
LITTLE = {False: " --data.init_args.validation_examples 4", True: " --data.init_args.length 32"}  # of tasks, of text


@dataclass(frozen=True)
class Block:
    """One block of a page: its language, its code, how it is tested, and the output shown below it, if any."""

    language: str
    code: str
    how: tuple[str, ...] = ()
    output: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is the text of a file."""
        return self.language in ("python", "yaml") and FILE.match(self.code) is not None

    @property
    def is_run(self) -> bool:
        """Whether there is something to run."""
        return "names" not in self.how and not self.is_file and (self.language == "python" or bool(self.lines))

    @property
    def commands(self) -> list[list[str]]:
        """The words of its `mull ...` lines."""
        return [shlex.split(line, comments=True)[1:] for line in self.lines if line.startswith("mull ")]

    @property
    def lines(self) -> list[str]:
        """Its lines that can be run, those that go on behind a backslash joined."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.language in SHELL else []
        return [line for line in lines if re.match(r"(mull|cat) ", line)]

    def shortened(self) -> Block:
        """What the tests run in its place."""
        code = self.code
        for word in self.how:
            if "=>" in word:
                old, new = word.split(" => ")
                if old not in code:
                    raise ValueError(f"{old} is not in the block that is to have {new} in its place")
                code = code.replace(old, new)
        if "short" in self.how:
            train = re.compile(r"^mull train (?:.*\\\n)*[^#\n]*", re.MULTILINE)
            code = train.sub(lambda line: line[0].rstrip() + SHORT + LITTLE["init_args.paths" in line[0]], code)
        return Block(self.language, code, self.how, self.output)

    def agrees(self, printed: str) -> bool:
        """Whether what was printed is what the page shows."""
        if self.output is None or "any answer" in self.how:
            return True
        if "words" in self.how:
            listed = not any(command[0] == "inspect" for command in self.commands) or (
                field_names(self.output) == field_names(printed)
            )
            return listed and words(self.output) <= words(printed)
        return tidy(self.output) == tidy(printed)


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, without the outputs, which are with their blocks."""
    found = []
    for match in FENCE.finditer(page.read_text()):
        how = tuple(word.strip() for word in (match["how"] or "").split(";") if word.strip())
        found.append(Block(match["language"], match["code"], how, match["output"]))
    return found


def words(text: str) -> set[str]:
    """Its words of at least three letters, of all lines but those of progress and warnings, which depend on the length
    of a run; numbers, their signs and what is ruled between them left out."""
    lines = [line for line in text.splitlines() if not re.match(r"step \d+ of|mull: warning", line)]
    return set(re.findall(r"[A-Za-z]{3,}", "\n".join(lines)))


def field_names(text: str) -> list[str]:
    """The names of fields in what `mull inspect` prints, in their order: those of the configuration, on the line that
    begins with `  vocab_size`, and those that have a line of their own, as `  steps: 400`."""
    found = []
    for line in text.splitlines():
        found += re.findall(r"(?:^ +|, )(\w+) ", line) if line.startswith("  vocab_size ") else []
        found += re.findall(r"^  (\w+): ", line)
    return found


def tidy(text: str) -> list[str]:
    """Its lines, without blanks at their ends and empty lines around them."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n").splitlines()


def run(asked: Sequence[Block], folder: Path, namespace: dict[str, Any] | None = None) -> Iterator[tuple[Block, str]]:
    """Run blocks in a folder, one after the other; each comes back with what it printed.

    Args:
        asked: the blocks.
        folder: where they find shipped models and pages, and leave what they write.
        namespace: of the python blocks; what they define is there afterwards.

    Raises:
        RuntimeError: a command failed, or one that the page shows to fail did not.
    """
    linked = {Path("checkpoints", name): SHIPPED / name for name in shipped()}
    linked |= {Path("docs", page.name): page for page in Path(__file__).parent.glob("*.md")}
    for name, target in linked.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    names = {} if namespace is None else namespace
    sys.path.insert(0, str(folder))
    try:
        for block in asked:
            with contextlib.chdir(folder):
                printed = ran(block, names)
            yield block, printed
    finally:
        sys.path.remove(str(folder))


def ran(block: Block, namespace: dict[str, Any]) -> str:
    """Run one block here; return what it printed, errors and warnings of commands included."""
    file = FILE.match(block.code)
    if file and block.is_file:
        Path(file[1]).write_text(block.code)
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if block.language == "python" and block.is_run:
            exec(compile(block.code, "a block of the page", "exec"), namespace)
        for line in block.lines if block.is_run else []:
            if line.startswith("cat "):
                print(subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout, end="")
            elif (cli.main(shlex.split(line, comments=True)[1:]) != 0) != ("mistakes" in block.how):
                raise RuntimeError(f"{line} ended otherwise than the page says:\n{printed.getvalue()}")
    return printed.getvalue()


def checked(page: Path, folder: Path, namespace: dict[str, Any] | None = None) -> list[str]:
    """What is printed otherwise than a page says, when its blocks are run as the tests run them; see `run`."""
    short = [block.shortened() for block in blocks(page)]
    return [
        f"{block.code}\nprints\n{printed}\nand the page says\n{block.output}"
        for block, printed in run(short, folder, namespace)
        if block.is_run and not block.agrees(printed)
    ]


def record(page: Path) -> None:
    """Run a page as it stands, and write what its blocks print below those that show it."""
    with tempfile.TemporaryDirectory() as folder:
        printed = iter([output for _, output in run(blocks(page), Path(folder))])

    def renewed(match: re.Match[str]) -> str:
        lines = "\n".join(tidy(next(printed)))
        if match["output"] is None or not lines:
            return match[0]
        return match[0][: match.start("between") - match.start()] + f"\n\n```text\n{lines}\n```"

    page.write_text(FENCE.sub(renewed, page.read_text()))


def executed(notebook: Path, kernel: Any = None) -> Any:
    """A notebook with what its cells give now; warnings that went to standard error are left out.

    Args:
        notebook: the file.
        kernel: a jupyter_client.AsyncKernelManager whose process has executed other notebooks, so that torch is not
            imported again. It forgets their names, and each notebook seeds its random numbers itself. None: one of its
            own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed, as its `assert` lines do where the text is not true.
    """
    import nbformat
    from nbclient import NotebookClient

    found = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        if kernel is not None:
            found.cells.insert(0, nbformat.v4.new_code_cell(f"%cd -q {folder}\n%reset -f"))
        NotebookClient(found, km=kernel, timeout=600, kernel_name="python3", record_timing=False).execute(cwd=folder)
    if kernel is not None:
        del found.cells[0]
    for cell in found.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name.endswith(".ipynb"):
            import nbformat

            nbformat.write(executed(Path(name)), name)
        else:
            record(Path(name))
