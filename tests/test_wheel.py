"""The wheel is what a user without the repository has: code, configurations and shipped folders, and nothing beside."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree

import pytest

ROOT = Path(__file__).parents[1]
BESIDE = {
    "tests",
    "docs",
    "site",
    "benchmarks",
    "build",
    "dist",
    "wandb",
    "data",
}  # of the root: not needed for building
SHIPPED = re.findall(r"^\| `checkpoints/([\w-]+)` \|", (ROOT / "README.md").read_text(), re.M)
FILES = ("README.md", "config.json", "depth.json", "depth.png", "model.safetensors", "tokenizer.json", "training.yaml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of the tree in which somebody has also trained something."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        at_root = {name for name in names if name in BESIDE or name[0] == "."} if Path(folder) == ROOT else set()
        return at_root | {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}

    base = tmp_path_factory.mktemp("wheel")
    copytree(ROOT, base / "tree", ignore=left_out)
    copytree(base / "tree" / "checkpoints" / SHIPPED[0], base / "tree" / "checkpoints" / "mine")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", build, base], cwd=base / "tree", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return next(base.glob("*.whl"))


def test_the_wheel_holds_what_a_user_needs_and_nothing_else(wheel: Path) -> None:
    """Every module, configuration and shipped folder of the README is in it; no tests, docs or runs of a developer."""
    code = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.py")]
    code += [
        path.relative_to(ROOT).as_posix()
        for layer in ("models", "checkpoints", "inference", "training")
        for path in (ROOT / layer).rglob("*.py")
    ]
    pages = [path for path in (ROOT / "inference").rglob("page/*.*") if path.suffix not in (".py", ".pyc")]
    page = [path.relative_to(ROOT).as_posix() for path in pages]
    configs = [f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")]
    tasks = [f"configs/lm-eval/{path.name}" for path in (ROOT / "configs" / "lm-eval").iterdir()]
    shipped = [f"checkpoints/{name}/{file}" for name in SHIPPED for file in FILES]
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(configs) > 20 and len(SHIPPED) > 2
    assert held == {f"mull/{name}" for name in [*code, *page, *configs, *tasks, *shipped, "py.typed"]}
    with zipfile.ZipFile(wheel) as archive:
        points = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "[lm_eval.models]\nmull = mull.inference.harness.model:MullLM\n" in archive.read(points).decode()


def test_names_work_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Without the repository, `parity` names a configuration to train and a model to ask; red when data is missing."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()

    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
from mull.cli import main
assert main(["generate", "parity", "--prompt", "1 0 1 1 0", "--iterations", "32"]) == 0
sys.exit(main(["train", "--config", "parity", "--print_config"]))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer, _, printed = run.stdout.partition("\n")
    assert answer.split() == ["odd"]
    assert "length: 32" in printed and "mull.RecurrentDepthTransformer" in printed
    assert list(empty.iterdir()) == []
