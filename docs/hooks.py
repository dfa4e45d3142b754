"""What the site needs beyond the pages as they stand: docs/ is written for whoever reads it in the repository.

    notebooks        become pages: their cells, what they printed, their pictures
    links out of it  (../configs/parity.yaml) lead to a page of the site that shows the file
    pages that the navigation of mkdocs.yml does not name are listed under "More"

Called by mkdocs; nothing of mull is imported.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}  # others are shown as plain text
PICTURES = (".png", ".svg")


def on_config(config: MkDocsConfig) -> None:
    """Add the pages that nobody has listed to the navigation."""
    listed = json.dumps(config.nav)
    names = sorted(page.name for page in DOCS.glob("*.md"))
    missing: list[Any] = [name for name in names if f'"{name}"' not in listed]
    config.nav = json.loads(listed.replace(".ipynb", ".md")) + ([{"More": missing}] if missing else [])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Put in place of notebooks the pages made of them, and add the files that pages link to."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for name, content in shown(DOCS / file.src_uri).items():
            files.append(File.generated(config, name, content=content))
    waiting = [(DOCS / file.src_uri, file.content_string) for file in files if file.is_documentation_page()]
    while waiting:
        origin, text = waiting.pop()
        for _, link, _ in LINK.findall(text):
            target = (origin.parent / link).resolve()
            name = place_of(target)
            if name is None or files.get_file_from_path(name):
                continue
            if target.suffix in PICTURES:
                files.append(File.generated(config, name, abs_src_path=str(target)))
            else:
                content = target.read_text()
                files.append(File.generated(config, name, content=source_page(target, content)))
                if target.suffix == ".md":
                    waiting.append((target, content))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let the links of a page lead to where things are on the site."""
    origin = origin_of(page.file.src_uri)

    def led(found: re.Match[str]) -> str:
        target = (origin.parent / found[2]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return found[0]
        name = place_of(target) or target.relative_to(DOCS).as_posix().replace(".ipynb", ".md")
        return found[1] + posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".") + found[3]

    return LINK.sub(led, markdown)


def place_of(target: Path) -> str | None:
    """Where a file of the repository stands on the site; None for what is in docs/ anyway, and for what is no file."""
    if not target.is_file() or not target.is_relative_to(ROOT) or target.is_relative_to(DOCS):
        return None
    if target == ROOT / "README.md":
        return "index.md"
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}" if target.suffix in (".md", *PICTURES) else f"source/{name}.md"


def origin_of(name: str) -> Path:
    """The file of the repository that a page is made of."""
    if not name.startswith("source/"):
        return DOCS / name
    path = ROOT / name.removeprefix("source/")
    return path if path.is_file() else path.with_suffix("")


def source_page(target: Path, content: str) -> str:
    """A file of the repository as a page."""
    if target.suffix == ".md":
        return content
    name = target.relative_to(ROOT).as_posix()
    wide = "---\nhide: [navigation, toc]\n---\n\n"
    return f"{wide}# {name}\n\n````{LANGUAGES.get(target.suffix, 'text')}\n{content}\n````\n"


def shown(notebook: Path) -> dict[str, str | bytes]:
    """A notebook as a page and its pictures, by their names on the site."""
    name = notebook.relative_to(DOCS).with_suffix("").as_posix()
    parts, files = list[str](), dict[str, str | bytes]()
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                picture = f"{name}-{len(files) + 1}.png"
                files[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![]({posixpath.basename(picture)})")
            elif data["text/plain"]:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    parts.append(f"The notebook itself: `docs/{notebook.relative_to(DOCS).as_posix()}`.")
    return {f"{name}.md": "\n\n".join(parts), **files}
