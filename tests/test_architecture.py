"""The house rules, read off the syntax trees: who imports whom, what an import costs, sizes, packaging, idle tests."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import mull
from mull.checkpoints import store
from mull.models.families import FAMILIES
from mull.training.data import TaskData

ROOT = Path(__file__).parents[1]
ORDER = ["models", "checkpoints", "inference", "training", "cli"]  # each may import those before it
PACKAGE = sorted([*ROOT.glob("*.py"), *(path for layer in ORDER[:4] for path in (ROOT / layer).rglob("*.py"))])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULE_OF = {  # distributions that are imported under another name
    "pyyaml": "yaml",
    "tensorboardx": "tensorboardX",
    "lm-eval": "lm_eval",
    "reasoning-gym": "reasoning_gym",
}
# folders that may import what extras bring
EXTRAS = {
    "training": ("tensorboard", "gym", "sweep"),
    "inference/harness": ("eval",),
    "inference/hugging_face": ("hf",),
    "inference/serve": ("serve",),
    "inference/strategies/endpoint.py": ("openai",),
    "inference/strategies/hugging_face.py": ("hf",),
    "inference/strategies/loading.py": ("hf",),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILE, MAX_FUNCTION = 400, 70


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path) -> str:
    """`models/loop.py:`, for messages."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = ["mull", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The layer of a module of ours: `mull.models.loop` -> models, `mull` itself -> face, `mull.__main__` -> cli."""
    return [*module.split("."), "face"][1].replace("__main__", "cli")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything a file imports, in functions too; `from a import b` gives a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                keep = len(package) - node.level + (path.name == "__init__.py")
                base = ".".join([*package[:keep], *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def named(requirement: str) -> str:
    """The normalised distribution name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement.strip())[0]).lower()


def imported_as(requirements: list[str]) -> set[str]:
    """The names that requirements are imported under."""
    return {MODULE_OF.get(named(requirement), named(requirement)) for requirement in requirements}


def brought(path: Path) -> set[str]:
    """What the extras of the folders that a file is in bring."""
    extras = PROJECT["project"]["optional-dependencies"]
    inside = [extra for folder, brings in EXTRAS.items() if path.is_relative_to(ROOT / folder) for extra in brings]
    return {name for extra in inside for name in imported_as(extras[extra])}


# --------------------------------------------------------------------------------------------------------- imports


def upward(path: Path) -> list[str]:
    """The imports of a file that go up, or through the face, which stands above everything."""
    own = layer_of(module_name(path))
    allowed = [*ORDER, "face"][: [*ORDER, "face"].index(own) + 1] + (["face"] if own == "cli" else [])
    ours = [(line, name) for line, name in imports(path) if name.split(".")[0] == "mull"]
    found = [(line, name, layer_of(name) if layer_of(name) in ORDER else "face") for line, name in ours]
    return [f"{place(path)}:{line}: {own} imports {name}" for line, name, layer in found if layer not in allowed]


def test_import_order() -> None:
    """Guards cli > training > inference > checkpoints > models, in functions and for type checkers too."""
    assert {layer_of(module_name(path)) for path in PACKAGE} >= {*ORDER, "face"}
    assert [wrong for path in PACKAGE for wrong in upward(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import mull.training",
        "from mull.cli import main",
        "from mull import generate",
        "import mull",
        "from ..inference import measure",
        "from .. import training",
        "def f():\n    from mull.inference import measure",
        "import_module('mull.training.run')",
    ],
)
def test_import_order_sees_every_way_up(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Guards the guard: each spelling of an upward import in checkpoints/store.py is found."""
    monkeypatch.setattr(sys.modules[__name__], "tree", lambda _: ast.parse(line))
    assert len(upward(ROOT / "checkpoints" / "store.py")) == 1


@cache
def inner_order() -> dict[str, list[list[str]]]:
    """Package -> groups of its files and folders, from the block under "Who may import whom" of docs/architecture.md:
    each may import those of the groups before its own."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"## Who may import whom.*?```text\n(.*?)```", page, re.DOTALL)
    assert block
    said = re.findall(r"^(\w+):((?:.*\n)(?: .*\n)*)", block[1], re.MULTILINE)
    return {package: [re.findall(r"\w+", group) for group in groups.split("<")] for package, groups in said}


def within(path: Path, package: str) -> list[str]:
    """The imports of a file from its own package that the order there does not allow: from a later group or its own,
    and from the package as a whole, which only the last group may look at."""
    groups = inner_order()[package]
    rank = {name: number for number, group in enumerate(groups) for name in group}
    own = path.relative_to(ROOT / package).with_suffix("").parts[0]
    wrong = []
    for line, name in imports(path):
        if f"{name}.".startswith(f"mull.{package}."):
            unit = [*name.split("."), ""][2]
            late = rank.get(unit, len(groups) - 2) >= rank[own]
            wrong += [f"{place(path)}:{line}: {own} imports {name}"] if unit != own and late else []
    return wrong


@pytest.mark.parametrize("package", ["models", "inference"])
def test_import_order_inside_a_package(package: str) -> None:
    """Guards the order of the files of a package: the page names each of them once, and none imports against it."""
    named_there = [name for group in inner_order()[package] for name in group]
    paths = [path for path in PACKAGE if path.is_relative_to(ROOT / package) and path != ROOT / package / "__init__.py"]
    assert sorted(named_there) == sorted({path.relative_to(ROOT / package).with_suffix("").parts[0] for path in paths})
    assert [wrong for path in paths for wrong in within(path, package)] == []


@pytest.mark.parametrize(
    "line",
    [
        "from mull.models.layers import Layer",
        "def f():\n    import mull.models.positions",
        "from mull.models import precision",  # of its own group
        "from mull.models import Cache",
        "from . import families",
        "import mull.models",
    ],
)
def test_import_order_inside_a_package_sees_every_way_up(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Guards the guard: each spelling of an import against the order in models/loop.py is found."""
    monkeypatch.setattr(sys.modules[__name__], "tree", lambda _: ast.parse(line))
    assert len(within(ROOT / "models" / "loop.py", "models")) == 1


def test_third_party_imports() -> None:
    """Guards the layers' weight, and that everything imported is a declared dependency."""
    declared = imported_as(PROJECT["project"]["dependencies"])
    heavy = {"lightning", "wandb", "jsonargparse"}
    allowed = {
        "models": {"torch", "einops"},
        "checkpoints": {"torch", "safetensors", "tokenizers", "yaml"},
        "inference": declared - heavy,
        "training": declared,
        "cli": declared,
        "face": set(),
    }
    wrong = [
        f"{place(path)}:{line}: {name}"
        for path in PACKAGE
        for line, name in imports(path)
        if (root := name.split(".")[0]) not in {"mull", *sys.stdlib_module_names}
        and root not in allowed[layer_of(module_name(path))] | brought(path)
    ]
    assert wrong == []


def test_rooms_that_need_an_extra_are_imported_by_the_command_line_alone() -> None:
    """Guards the rooms of inference against each other: who lacks an extra misses its room, and nothing else."""
    rooms = [folder for folder in EXTRAS if folder.startswith("inference/")]
    found = [
        (room, layer_of(module_name(path)))
        for path in PACKAGE
        for _, name in imports(path)
        for room in rooms
        if f"{name}.".startswith(f"mull.{room.replace('/', '.')}.") and not path.is_relative_to(ROOT / room)
    ]
    assert {layer for _, layer in found} == {"cli"} and {room for room, _ in found} >= {"inference/serve"}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process sees: the modules after `import mull`, after `mull.load` and so on, step by step, and torch
    after every module. There is one for all tests: most of its time goes into the imports."""
    folder = tmp_path_factory.mktemp("tiny")
    mull.save(mull.Transformer(mull.TransformerConfig(vocab_size=3, d_model=8, n_heads=2, n_layers=1)), folder)
    script = """
import contextlib, importlib, io, json, sys
import mull
report = {"import": sorted(sys.modules)}
import torch
def state():
    return [torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
            str(torch.get_default_device()), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.cuda.is_initialized(), hash(bytes(torch.get_rng_state()))]
def status(args):
    try:
        return cli.main(args)
    except SystemExit as end:
        return end.code
changed, before = {}, state()
model = mull.load(sys.argv[1])
report["load"] = sorted(sys.modules)
mull.generate(model, [[0, 1]], max_new_tokens=2)
report["generate"] = sorted(sys.modules)
import mull.inference.measure.plots, mull.inference.measure.evaluate
report["measure"] = sorted(sys.modules)
import mull.training.data
mull.training.data.Parity()
report["tasks"] = sorted(sys.modules)
if state() != before:
    changed["mull.load"], before = [before, state()], state()
from mull import cli
asked = [command for command in cli.COMMANDS if command != "train"]
with contextlib.redirect_stdout(io.StringIO()) as said:
    report["refused"] = [command for command in asked if status([command, "--help"])]
report["help"] = sorted(sys.modules)
if state() != before:
    changed["help"], before = [before, state()], state()
for name in sys.argv[2:]:
    importlib.import_module(name)
    if state() != before:
        changed[name], before = [before, state()], state()
report["changed"] = changed
print(json.dumps(report))
"""
    names = [module_name(path) for path in PACKAGE if all(map(find_spec, brought(path)))]
    run = subprocess.run([sys.executable, "-c", script, str(folder), *names], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_import_mull_is_cheap(fresh: dict[str, Any]) -> None:
    """Guards `import mull`: nothing but the face is loaded, and above all not torch."""
    heavy = {"torch", "numpy", "lightning", "wandb", "lm_eval", "transformers", "starlette", "uvicorn"}
    assert "mull" in fresh["import"] and not heavy & set(fresh["import"])
    assert [name for name in fresh["import"] if name.startswith("mull.")] == []


def test_load_needs_no_trainer(fresh: dict[str, Any]) -> None:
    """Guards who only runs a model: no trainer, logger, plots or argument parser, and not torch's compiler (2 s)."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"torch", "mull.checkpoints.store"} <= set(fresh["load"])
    unwanted = {"lightning", "pytorch_lightning", "wandb", "matplotlib", "jsonargparse", "rich"}
    unwanted |= {"torch._dynamo", "sympy"}  # of torch's compiler
    unwanted |= {name for brings in EXTRAS.values() for extra in brings for name in imported_as(extras[extra])}
    assert not unwanted & set(fresh["load"])
    assert not {"mull.inference", "mull.training"} & set(fresh["load"])


def test_generate_needs_no_transformers(fresh: dict[str, Any]) -> None:
    """Guards who only writes: what stands behind an extra is loaded by nobody but those who import it."""
    assert "mull.inference.generate" in fresh["generate"]
    assert not {"transformers", "peft", "lightning", "mull.inference.hugging_face"} & set(fresh["generate"])


def test_measuring_and_drawing_need_no_trainer(fresh: dict[str, Any]) -> None:
    """Guards who only measures: matplotlib and rich are loaded by who draws and prints; and the functions do not hide
    the modules of their names."""
    assert {"mull.inference.measure.plots", "mull.inference.measure.evaluate"} <= set(fresh["measure"])
    assert not {"matplotlib", "rich", "lightning", "wandb"} & set(fresh["measure"])
    hidden = ("mull.inference.generate", "mull.inference.measure.evaluate")
    for name in hidden:
        importlib.import_module(name)
        assert isinstance(attrgetter(name.removeprefix("mull."))(mull), ModuleType), name
    assert callable(mull.generate)


def test_tasks_need_no_trainer(fresh: dict[str, Any]) -> None:
    """Guards who only evaluates: tasks come without Lightning; the data modules are loaded on first use."""
    assert "mull.training.data.parity" in fresh["tasks"] and "lightning" not in fresh["tasks"]
    assert TaskData.__module__ == "mull.training.data.module"


def test_help_needs_no_trainer(fresh: dict[str, Any]) -> None:
    """Guards who asks for a page of help, or mistypes an option: Lightning takes seconds to import, and has a use only
    when something is trained, gathered, or measured on a run's own data."""
    assert fresh["refused"] == []
    assert {"mull.training.measuring", "mull.training.comparing.command", "mull.training.sweep"} <= set(fresh["help"])
    assert not {"lightning", "wandb", "transformers", "torch._dynamo", "sympy"} & set(fresh["help"])


def test_imports_leave_torch_as_it_was(fresh: dict[str, Any]) -> None:
    """Guards against work at import time: threads, default dtype and device, gradients, precision, random stream."""
    assert fresh["changed"] == {}


# ------------------------------------------------------------------------------------------------------ the face


def test_every_public_name_resolves() -> None:
    """Guards `__all__` of every package, and of the face the three lists that must agree."""
    for package in ("mull", *(f"mull.{layer}" for layer in ORDER[:4])):
        module = importlib.import_module(package)
        names = getattr(module, "__all__", [])
        assert all(getattr(module, name) is not None for name in names) and len(set(names)) == len(names)
    named_in_face = [name for _, name in imports(ROOT / "__init__.py") if name.startswith("mull.")]
    lazy = [name.rpartition(".") for name in named_in_face if name != "mull.models.families"]
    typed = {name: home for home, _, name in lazy}
    assert set(mull.__all__) == set(mull.HOMES) == set(typed)
    assert all(getattr(importlib.import_module(home), name) is getattr(mull, name) for name, home in typed.items())
    with pytest.raises(AttributeError, match="module 'mull' has no attribute 'lode'"):
        mull.lode  # noqa: B018


def test_versions_agree() -> None:
    """Guards the version that checkpoints carry: the package, the project and the store say the same."""
    assert mull.__version__ == PROJECT["project"]["version"] == store.VERSION


# ----------------------------------------------------------------------------------------------------- packaging


def test_packages_are_the_folders() -> None:
    """Guards the wheel: a new folder that pyproject does not list would be missing from it."""
    found = {module_name(path) for path in PACKAGE if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found
    assert {path.parent / "__init__.py" for path in PACKAGE} <= set(PACKAGE)  # no code in a folder that is no package


def test_typed_marker_is_shipped() -> None:
    """Guards type checking by users: the marker is there and in the wheel."""
    assert (ROOT / "py.typed").is_file() and "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["mull"]


def test_constraints_pin_every_dependency() -> None:
    """Guards reproducible installs: one exact version of each dependency, and the torch of the results."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.+!]+", line) for line in lines)
    pins = {named(line) for line in lines}
    extras = [r for group in PROJECT["project"]["optional-dependencies"].values() for r in group]
    needed = {named(r) for r in PROJECT["project"]["dependencies"] + extras} - {"mull"}  # which takes its own extras
    assert needed <= pins and len(pins) == len(lines)
    assert "torch==2.13.0" in lines


# ----------------------------------------------------------------------------------------------- size and manners


def test_sizes() -> None:
    """Guards against the god file and the god method."""
    long = [f"{place(path)}: {n} lines" for path in PACKAGE if (n := len(path.read_text().splitlines())) > MAX_FILE]
    for path in PACKAGE:
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)]
        spans = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
        long += [f"{place(path)}: {name} has {n} lines" for name, n in spans if n > MAX_FUNCTION]
    assert long == []


def test_every_function_of_a_module_says_what_it_is() -> None:
    """Guards the reader who meets a function before its callers: each has a sentence, unless it is inside another."""
    silent = [
        f"{place(path)}:{node.lineno}: {node.name}"
        for path in PACKAGE
        for node in tree(path).body
        if isinstance(node, FUNCTIONS) and not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_error_is_swallowed() -> None:
    """Guards against `except:` and `except Exception:` that do not raise again."""
    broad = {"Exception", "BaseException"}
    wrong = [
        f"{place(path)}:{node.lineno}"
        for path in PACKAGE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or broad & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)})
        and (node.type is None or not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)))
    ]
    assert wrong == []


def test_closed_options_are_literals() -> None:
    """Guards options: a choice of words is a Literal, so that parser, type checker and tests know them all."""
    openly = {"path", "cache", "difficulty_name"}  # free text: paths and names
    openly |= {"scorer"}  # words of a registry: strategies
    openly |= {field for model in FAMILIES.values() for field in model.config_class.choices}  # words of a registry
    wrong = []
    for path in PACKAGE:
        for node in ast.walk(tree(path)):
            pairs: list[tuple[str, ast.expr | None, ast.expr | None]] = []
            if isinstance(node, FUNCTIONS):
                a = node.args
                positional = [*a.posonlyargs, *a.args]
                defaults = [*[None] * (len(positional) - len(a.defaults)), *a.defaults, *a.kw_defaults]
                pairs = [(g.arg, g.annotation, d) for g, d in zip([*positional, *a.kwonlyargs], defaults, strict=True)]
            elif isinstance(node, ast.AnnAssign):
                pairs = [(ast.unparse(node.target), node.annotation, node.value)]
            wrong += [
                f"{place(path)}:{node.lineno}: {name}"
                for name, annotation, default in pairs
                if isinstance(default, ast.Constant) and isinstance(default.value, str) and name not in openly
                and annotation is not None and re.fullmatch(r"str( \| None)?", ast.unparse(annotation))
                and re.fullmatch(r"\w+", default.value) and name != "device"
            ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_refuse_what_is_no_choice(family: str) -> None:
    """Guards closed options of the models: no free text among the fields, and a wrong word is told the right ones."""
    config_class = FAMILIES[family].config_class
    hints = {f.name: get_type_hints(config_class)[f.name] for f in fields(config_class)}
    assert {name for name, hint in hints.items() if str in (hint, *get_args(hint))} == {*config_class.choices}
    closed = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    closed |= {name: tuple(registry) for name, registry in config_class.choices.items()}
    for name, choices in closed.items():
        with pytest.raises(ValueError, match=f"{name} must be one of {', '.join(map(repr, choices))}, not 'other'"):
            config_class(vocab_size=3, **{name: "other"})  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- the tests


def asserts(node: ast.AST, helpers: set[str]) -> bool:
    """Whether a statement can fail a test: assert, pytest.raises and the like, or a helper that asserts."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name.startswith(("pytest.raises", "pytest.warns", "pytest.fail", "np.testing.", "numpy.testing.")) or (
        name.split(".")[-1].startswith("assert_") or name in helpers
    )


def idle_tests(module: ast.Module) -> list[str]:
    """The tests of a file that cannot fail but by a crash."""
    functions = [node for node in ast.walk(module) if isinstance(node, FUNCTIONS)]
    helpers: set[str] = set()
    for _ in range(3):  # helpers that call helpers
        helpers |= {f.name for f in functions if any(asserts(node, helpers) for node in ast.walk(f))}
    return [f.name for f in functions if f.name.startswith("test") and f.name not in helpers]


def test_every_test_asserts() -> None:
    """Guards against tests that cannot fail."""
    idle = {place(path): found for path in TESTS if (found := idle_tests(tree(path)))}
    assert idle == {}
    assert len([path for path in TESTS if path.name.startswith("test_")]) > 10
    example = "def test_a():\n    f()\ndef test_b():\n    assert f()\ndef f():\n    pass"
    assert idle_tests(ast.parse(example)) == ["test_a"]


def test_no_private_place_in_the_text() -> None:
    """Guards against paths of somebody's machine and the hosts of package indexes, in any file that is tracked."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    hosts = ["py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org"]
    places = [rf"(?<![\w.~}}-])/{name}/" for name in ("work", "tmp", "home", "root", "Users")]
    forbidden = re.compile("|".join([*map(re.escape, hosts), *places]).encode())
    binary = (".safetensors", ".png", ".bin")
    files = [ROOT / name for name in names if name and not name.endswith(binary) and (ROOT / name).is_file()]
    found = {place(path): match.group().decode() for path in files if (match := forbidden.search(path.read_bytes()))}
    assert len(files) > 30 and found == {}
