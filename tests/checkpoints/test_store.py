"""The checkpoint folder: what goes in comes out, an interrupted save changes nothing, damage is named in one line.

The options are read off the annotations of the configurations and the families off their registry, so that a new value
or family is tested without a new line here.
"""

import errno
import hashlib
import json
import os
import pickle
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer, models, pre_tokenizers

import mull
from mull.checkpoints import load_tokenizer, store
from mull.inference.tracing import write_page
from mull.models import LanguageModel, ModelConfig
from mull.models.families import FAMILIES
from mull.models.registry import Registry

SHAPE: dict[str, Any] = dict(
    vocab_size=11, d_model=24, n_heads=6, n_kv_heads=2, d_ff=20, max_length=16, norm_eps=1e-5, rope_base=77.0,
    n_layers=3, n_prelude=1, n_core=3, n_coda=2, mean_iterations=3, stop_tokens=(3, 10),
)  # fmt: skip
REGISTRIES = [
    thing
    for name, module in list(sys.modules.items())
    if name.startswith("mull.models.")
    for thing in vars(module).values()
    if isinstance(thing, Registry)
]
KNOWN = ", ".join(map(repr, FAMILIES))
DEPTH = {"command": "mull evaluate x", "rows": [{"iterations": 2, "accuracy": 0.5}]}
REMEDIES = re.compile(
    r"copy the folder again|save the model again|mull train|remove it|name another|give the|pass |save as saf"
)


def values_of(name: str, hint: Any) -> tuple[Any, ...]:
    """What a field may be where the choice is closed: a Literal, a bool, or a word of the registry that it names."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    words = tuple(word for registry in REGISTRIES if registry.kind == name and hint is str for word in registry)
    return (False, True) if hint is bool else words


def configurations() -> Iterator[tuple[str, ModelConfig]]:
    """One configuration of odd shape for every value of every closed option of every family."""
    for family, model_class in FAMILIES.items():
        config_class = model_class.config_class
        hints = {f.name: get_type_hints(config_class)[f.name] for f in fields(config_class)}
        shape = {name: value for name, value in SHAPE.items() if name in hints}
        for name, hint in hints.items():
            for value in values_of(name, hint):
                others = {"causal": False} if (name, value) == ("board", True) else {}
                yield f"{family}-{name}={value}", config_class(**shape | others | {name: value})


CONFIGS = dict(configurations())


def build(config: ModelConfig | None = None, seed: int = 0) -> LanguageModel:
    """A model whose every parameter is random, so that a lost or swapped tensor shows."""
    config = config or next(iter(CONFIGS.values()))
    torch.manual_seed(seed)
    model = FAMILIES[config.model_type](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    return model.eval()(torch.arange(10)[None] % model.config.vocab_size).logits


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, at any depth and hidden ones too; folders count, with nothing in them."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    one, two = model.state_dict(), other.state_dict()
    return list(one) == list(two) and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def word_tokenizer(*words: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint folder."""
    mull.save(build(), tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path, kind: type[Exception], **options: Any) -> str:
    """The message of a load that must fail: of just this kind, one line, with a remedy."""
    with pytest.raises(kind) as caught:
        mull.load(folder, **options)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message and REMEDIES.search(message), message
    return message


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another configuration, vouched for by its own checksum."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if "config_sha256" in config:
        config["config_sha256"] = store.fields_sum(config)
    (folder / "config.json").write_text(json.dumps(config))


def rewrite_weights(folder: Path, data: bytes) -> None:
    """Other weights, vouched for by the configuration: only their contents can give them away."""
    (folder / "model.safetensors").write_bytes(data)
    rewrite_config(folder, lambda config: config.update(weights_sha256=hashlib.sha256(data).hexdigest()))


# ---------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_is_bit_identical(tmp_path: Path, config: ModelConfig) -> None:
    """Guards every option of every family: same configuration, same bits, in eval mode and ready to be trained on."""
    model = build(config)
    mull.save(model, tmp_path / "a" / "b")  # parents are made
    loaded = mull.load(str(tmp_path / "a" / "b"))
    assert type(loaded) is type(model) and loaded.config == config and loaded.config.stop_tokens == (3, 10)
    assert same_weights(model, loaded)
    assert not any(module.training for module in loaded.modules())
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    assert torch.equal(logits(model), logits(loaded))


def test_round_trip_into_a_fresh_process(tmp_path: Path) -> None:
    """Guards against anything that lives in the process and not in the folder, such as a table or a random stream.
    Guards the time that it takes, too: to load and ask a model of any kind imports nothing of torch's compiler."""
    script = (
        "import json, sys, torch, mull\n"
        "torch.set_num_threads(1)\n"
        "for folder in sys.argv[1:]:\n"
        "    model = mull.load(folder)\n"
        "    with torch.no_grad():\n"
        "        found = model(torch.arange(10)[None] % model.config.vocab_size).logits\n"
        "    print(json.dumps(found.tolist()))\n"
        "print(json.dumps([name for name in ('torch._dynamo', 'sympy') if name in sys.modules]))\n"
    )
    expected = []
    for number, config in enumerate(CONFIGS.values()):
        model = build(config, seed=number)
        mull.save(model, tmp_path / str(number))
        expected.append(logits(model))
    folders = [str(tmp_path / str(number)) for number in range(len(CONFIGS))]
    run = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *lines, compiler = map(json.loads, run.stdout.splitlines())
    found = [torch.tensor(line) for line in lines]
    assert len(found) == len(expected) and compiler == []
    for one, other in zip(found, expected, strict=True):  # mapped weights are aligned otherwise
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    first = [logits[0, 0, :2] for logits in expected]
    assert all(not torch.allclose(first[0], other) for other in first[1:])  # they differ, so equality says something


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Guards the dtype argument: it converts every weight, and without it the stored type stays, whichever it is."""
    converted = build().to(dtype)
    assert same_weights(mull.load(folder, dtype=dtype), converted)
    mull.save(converted, folder)
    assert same_weights(mull.load(folder), converted)


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_stored_once(tmp_path: Path, tied: bool) -> None:
    """Guards the file's size: a tied head, or a core called R times, is one tensor; nothing else but thresholds is."""
    for family, model_class in FAMILIES.items():
        config_class = model_class.config_class
        names = {f.name for f in fields(config_class)}
        shape = {name: value for name, value in SHAPE.items() if name in names}
        model = build(config_class(**shape, tie_embeddings=tied))
        mull.save(model, tmp_path / family)
        thresholds = {name: b for name, b in model.named_buffers() if name.endswith(".thresholds")}
        tensors = dict(model.named_parameters()) | thresholds
        stored = tmp_path / family / "model.safetensors"
        header = 8 + int.from_bytes(stored.read_bytes()[:8], "little")
        assert stored.stat().st_size == header + 4 * sum(t.numel() for t in tensors.values())
        assert set(load_file(stored)) == set(tensors)
        assert ("head.weight" in load_file(stored)) is not tied


def test_load_leaves_the_random_stream_alone(folder: Path) -> None:
    """Guards reproducibility: building the model to be filled must not draw from torch's generator."""
    before = torch.get_rng_state()
    mull.load(folder)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_mapped_weights_hold_no_second_copy(folder: Path) -> None:
    """Guards memory where mapping is asked for: every weight lies in the mapped file itself, so none was copied."""
    model = mull.load(folder, mapped=True)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line[0].split("-") for line in lines if line[-1] == str(folder.resolve() / "model.safetensors")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in mapped]
    assert all(any(start <= p.data_ptr() < end for start, end in ranges) for p in model.parameters())


# ------------------------------------------------------------------------------------------- the files beside them


def test_companion_files(tmp_path: Path) -> None:
    """Guards what travels with the weights: tokenizer, training as text or mapping, depth table, and the six names."""
    tokenizer = word_tokenizer("<unk>", "0", "1", "ü")
    mull.save(build(), tmp_path, tokenizer, "seed_everything: 3  # ü\n")
    assert (tmp_path / "training.yaml").read_text(encoding="utf-8") == "seed_everything: 3  # ü\n"
    training = {"trainer": {"max_steps": 5, "callbacks": None}, "lr": [1e-3, True, "a: b"]}
    store.save(build(), tmp_path, tokenizer, training, DEPTH)
    assert yaml.safe_load((tmp_path / "training.yaml").read_text()) == training
    assert json.loads((tmp_path / "depth.json").read_text()) == DEPTH
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    assert load_tokenizer(tmp_path).encode("1 ü 0 x").ids == [2, 3, 1, 0]
    names = {"config.json", "model.safetensors", "tokenizer.json", "training.yaml", "depth.json", "README.md"}
    assert set(contents(tmp_path)) == names


def test_config_says_everything(folder: Path) -> None:
    """Guards the contract of config.json: model_type, mull_version and every field, whose spelling programs rely on."""
    config, expected = json.loads((folder / "config.json").read_text()), asdict(build().config)
    assert config["config_sha256"] == store.fields_sum(config)
    assert config.pop("model_type") == build().config.model_type and config.pop("mull_version") == mull.__version__
    assert len(config.pop("config_sha256")) == 64
    assert config.pop("weights_sha256") == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert config.pop("tokenizer_sha256") is None  # there is none here
    assert config == json.loads(json.dumps(expected))  # tuples become lists
    assert config["stop_tokens"] == [3, 10]


def test_saving_over_a_folder(folder: Path) -> None:
    """Guards the second save: our files are replaced, what spoke of the old weights is gone, all others stay."""
    store.save(build(), folder, word_tokenizer("<unk>", "0"), {"seed": 1}, DEPTH)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "last.ckpt").write_bytes(b"state")
    (folder / "notes.txt").write_text("mine")
    before, other = contents(folder), build(list(CONFIGS.values())[-1], seed=1)
    mull.save(other, folder)
    after = contents(folder)
    assert same_weights(mull.load(folder), other) and mull.load(folder).config == other.config
    assert set(before) - set(after) == {"training.yaml", "depth.json"} and set(after) <= set(before)
    kept = ("tokenizer.json", "trainer", "trainer/last.ckpt", "notes.txt")
    assert all(before[name] == after[name] for name in kept)
    assert all(before[name] != after[name] for name in ("model.safetensors", "config.json", "README.md"))


def test_saving_over_the_file_that_the_weights_are_mapped_from(folder: Path) -> None:
    """Guards load, change, save in one place: the model still reads from the file that is being replaced."""
    model = mull.load(folder, mapped=True)
    with torch.no_grad():
        model.final_norm.weight.mul_(2)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mull.save(model, folder)
    loaded = mull.load(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


# ------------------------------------------------------------------------------------------------ interrupted saves


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> Iterator[None]:
    """The `call`-th call of os.`name` fails, all others work."""
    real, calls = getattr(os, name), count()

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, sometimes)
        yield


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_interrupted_save_is_all_or_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    """Guards atomicity at every single call that can fail: each file is as before, or after loading as saved."""
    old, new = build(), build(list(CONFIGS.values())[-1], seed=1)
    store.save(new, folder, word_tokenizer("<unk>", "a"), {"seed": 1})
    (folder / "trainer").mkdir()
    (folder / "trainer" / "last.ckpt").write_bytes(b"state")
    wanted = contents(folder)
    before, outcomes = {}, []
    for call in count():
        store.save(old, folder, word_tokenizer("<unk>"), None, DEPTH)
        before = contents(folder)
        try:
            with failing(monkeypatch, name, call, error):
                store.save(new, folder, word_tokenizer("<unk>", "a"), {"seed": 1})
            break
        except type(error):
            changed = contents(folder) != before
            assert same_weights(mull.load(folder), new if changed else old)
            assert contents(folder) == (wanted if changed else before), f"{name} call {call}"
            outcomes.append(changed)
    assert call >= 5 and outcomes == sorted(outcomes)  # one call for each of the five files at least; once new, new
    assert same_weights(mull.load(folder), new) and contents(folder) == wanted


def test_an_interrupted_first_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a new folder: after a failure there is nothing in it that could be taken for a checkpoint."""
    for name, call in (("fsync", 1), ("replace", 0)):
        with failing(monkeypatch, name, call, OSError("no")), pytest.raises(OSError, match="no"):
            mull.save(build(), tmp_path / "new")
        assert contents(tmp_path / "new") == {}


def test_a_full_disk_changes_nothing(folder: Path) -> None:
    """Guards the real thing: the system itself refuses to write more than 1,000 bytes into a file."""
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            mull.save(build(seed=1), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before


@pytest.mark.parametrize("argument", [{"depth": {"command": "x", "rows": [{"loss": {1}}]}}, {"training": {"a": {1}}}])
def test_an_argument_that_cannot_be_written_changes_nothing(folder: Path, argument: dict[str, Any]) -> None:
    """Guards the order: everything is turned into bytes before the first file is touched."""
    before = contents(folder)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(build(seed=1), folder, **argument)
    assert contents(folder) == before


def test_an_empty_path_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stood for the working directory, which got the files of the checkpoint; `.` says so, and is one."""
    monkeypatch.chdir(tmp_path)
    model = build()
    for call in (
        lambda: mull.save(model, ""),
        lambda: mull.load(""),
        lambda: load_tokenizer(""),
        lambda: write_page("", model, {}),
    ):
        with pytest.raises(ValueError, match=r"is empty; name a path, or \. for the working directory"):
            call()
    assert not list(tmp_path.iterdir())
    mull.save(model, ".")
    assert mull.load(Path()).config == model.config


@pytest.mark.parametrize("inside", ["", "below", "far/below"])
def test_saving_where_a_file_lies(tmp_path: Path, inside: str) -> None:
    """Guards a file in the way, at the place itself or above it: one line that names it, and it is untouched."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match=r"taken is a file; a checkpoint is a folder, name another path$"):
        mull.save(build(), tmp_path / "taken" / inside)
    assert contents(tmp_path) == {"taken": b"mine"}


def test_saving_what_is_no_family(tmp_path: Path) -> None:
    """Guards against a folder that nothing could load: a subclass may differ in ways that no field tells."""

    class Other(type(build())):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="Other cannot be saved as a folder.*" + ", ".join(FAMILIES)):
        mull.save(Other(build().config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------------------------------------------- damage


def test_missing_folder_and_files(folder: Path, tmp_path: Path) -> None:
    """Guards what is not there: a folder, each of the two files that a model needs, or a file named as the folder."""
    assert "no checkpoint folder" in refusal(tmp_path / "nowhere", FileNotFoundError)
    assert f"{folder / 'config.json'} is a file" in refusal(folder / "config.json", ValueError)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        assert f"{folder} is no checkpoint folder: {name} is missing" in refusal(folder, FileNotFoundError)


def test_truncated_weights(folder: Path) -> None:
    """Guards half a download, also where the checksum was made from the half: never a crash, never a short model."""
    data = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for size in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:size])
        assert "model.safetensors is damaged" in refusal(folder, ValueError)
        rewrite_weights(folder, data[:size])
        assert "model.safetensors is no safetensors file" in refusal(folder, ValueError)
        rewrite_weights(folder, data)
    assert same_weights(mull.load(folder), build())


def test_longer_weights(folder: Path) -> None:
    """Guards a file with something behind its end, with and without a fitting checksum."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data + b"\0")
    assert "model.safetensors is damaged" in refusal(folder, ValueError)
    rewrite_weights(folder, data + b"\0")
    assert "model.safetensors is no safetensors file" in refusal(folder, ValueError)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True), part=st.sampled_from(["length", "header", "data"]), bit=st.integers(0, 7)
)
def test_any_flipped_bit_of_the_weights_is_seen(folder: Path, where: float, part: str, bit: int) -> None:
    """Guards the checksum: safetensors itself takes a flipped bit in the data for a weight."""
    path = folder / "model.safetensors"
    sound = path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    start, end = {"length": (0, 8), "header": (8, header), "data": (header, len(sound))}[part]
    damaged = bytearray(sound)
    damaged[start + int(where * (end - start))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        assert "model.safetensors is damaged" in refusal(folder, ValueError)
    finally:
        path.write_bytes(sound)


def test_a_damaged_header_with_a_fitting_checksum(folder: Path) -> None:
    """Guards the second line of defence: a broken header is refused in words, whatever the parser makes of it."""
    sound, draw, refused = (folder / "model.safetensors").read_bytes(), random.Random(0), 0
    header = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(80):
        damaged = bytearray(sound)
        damaged[draw.randrange(header)] ^= 1 << draw.randrange(8)
        rewrite_weights(folder, bytes(damaged))
        try:
            mull.load(folder)  # a flipped bit in the free-form metadata is none of the weights' concern
        except ValueError as error:
            assert "model.safetensors" in str(error) and "\n" not in str(error) and REMEDIES.search(str(error))
            refused += 1
    assert refused > 60


CONFIG_DAMAGE: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("unknown field", lambda c: c.update(n_experts=3), "has unknown n_experts"),
    ("misspelt field", lambda c: c.update(dmodel=c.pop("d_model")), "lacks d_model"),
    (
        "unknown model_type",
        lambda c: c.update(model_type="mamba"),
        f"model_type must be one of {KNOWN}, not 'mamba'",
    ),
    (
        "model_type of a wrong type",
        lambda c: c.update(model_type=["x"]),
        f"model_type must be one of {KNOWN}, not ['x']",
    ),
    (
        "a model_type of somebody else",
        lambda c: c.update(model_type="own"),
        "author that registers it first (--plugin)",
    ),
    ("a rule of somebody else", lambda c: c.update(rule="own"), "author that registers it first (--plugin)"),
    ("no model_type", lambda c: c.pop("model_type"), f"model_type must be one of {KNOWN}, not None"),
    ("no checksum", lambda c: c.pop("weights_sha256"), "lacks weights_sha256"),
    ("checksum of a wrong type", lambda c: c.update(weights_sha256=7), "weights_sha256"),
    ("text for a number", lambda c: c.update(d_model="24"), "d_model must be int, not '24'"),
    ("fraction for a count", lambda c: c.update(n_heads=6.0), "n_heads must be int, not 6.0"),
    ("truth for a number", lambda c: c.update(max_length=True), "max_length must be int, not True"),
    ("number for truth", lambda c: c.update(qk_norm=1), "qk_norm must be bool, not 1"),
    ("null for a number", lambda c: c.update(vocab_size=None), "vocab_size must be int, not None"),
    ("list for a choice", lambda c: c.update(wiring=["sandwich"]), "wiring must be one of 'sandwich', 'pre_norm'"),
    ("unknown choice", lambda c: c.update(positions="alibi"), "positions must be one of 'rotary', 'none', not 'alibi'"),
    ("negative size", lambda c: c.update(d_ff=-1), "d_ff must be positive, not -1"),
    ("zero", lambda c: c.update(vocab_size=0), "vocab_size must be positive, not 0"),
    ("no number", lambda c: c.update(norm_eps=float("nan")), "norm_eps"),
    ("endless", lambda c: c.update(rope_base=float("inf")), "rope_base"),
    ("heads that do not divide", lambda c: c.update(n_heads=5), "d_model 24 is not divisible by n_heads 5"),
    ("stop token outside", lambda c: c.update(stop_tokens=[11]), "stop_tokens [11] lie outside the vocabulary of 11"),
    ("stop tokens no list", lambda c: c.update(stop_tokens=5), "stop_tokens must be"),
    ("stop tokens null", lambda c: c.update(stop_tokens=None), "stop_tokens must be"),
    ("stop tokens as text", lambda c: c.update(stop_tokens="12"), "stop_tokens must be"),
    ("stop tokens of text", lambda c: c.update(stop_tokens=["1"]), "stop_tokens must be"),
    (
        "another shape",
        lambda c: c.update(vocab_size=12),
        "embedding.weight has shape (11, 24) and (12, 24) is expected",
    ),
    ("an impossible shape", lambda c: c.update(vocab_size=10**18), "config.json describes no possible model"),
]


@pytest.mark.parametrize(("change", "words"), [d[1:] for d in CONFIG_DAMAGE], ids=[d[0] for d in CONFIG_DAMAGE])
def test_damaged_config(folder: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    """Guards each way in which a configuration can be wrong: the line names the file, the field and the value."""
    rewrite_config(folder, change)
    with pytest.raises(ValueError) as caught:
        mull.load(folder)
    message = str(caught.value)
    assert words in message and str(folder) in message and "config.json" in message and "\n" not in message


@pytest.mark.parametrize("config", list(CONFIGS.values())[:: len(CONFIGS) - 1], ids=lambda c: c.model_type)
def test_every_missing_field_is_named(tmp_path: Path, config: ModelConfig) -> None:
    """Guards against defaults that fill in silently: what a later version's default means is not what was trained."""
    mull.save(build(config), tmp_path)
    complete = (tmp_path / "config.json").read_text()
    for field in fields(config):
        if field.name in ("causal", "board", "value_head"):  # which came alone: folders that do not say are from before
            continue
        rewrite_config(tmp_path, lambda c, name=field.name: c.pop(name))
        assert f"config.json lacks {field.name} (a {config.model_type}" in refusal(tmp_path, ValueError)
        (tmp_path / "config.json").write_text(complete)
    assert same_weights(mull.load(tmp_path), build(config))


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"[" * 100_000, b"[1]", b"null", b'"x"', b"3"])
def test_config_that_is_no_json_object(folder: Path, data: bytes) -> None:
    """Guards a config.json of another kind altogether: cut short, in another encoding, or not an object."""
    (folder / "config.json").write_bytes(data)
    message = refusal(folder, ValueError)
    assert "config.json cannot be read as JSON" in message or "config.json must hold one JSON object" in message


def test_weights_that_do_not_fit(folder: Path) -> None:
    """Guards strictness behind a fitting checksum: a tensor of another shape or kind, one too few, one too many."""
    sound = dict(build().state_dict())
    name, tensor = "final_norm.weight", sound["final_norm.weight"]
    for changed, words in (
        ({**sound, name: tensor[:7].clone()}, f"{name} has shape (7,) and (24,) is expected (1 of {len(sound)}"),
        ({k: v for k, v in sound.items() if k != name}, f"{name} has shape none and (24,) is expected"),
        ({**sound, "a.extra": tensor.clone()}, "a.extra has shape (24,) and none is expected"),
        ({**sound, name: tensor.to(torch.int32)}, f"{name} is of torch.int32, not floating-point"),
        ({}, f"({len(sound)} of {len(sound)} tensors differ)"),
    ):
        rewrite_weights(folder, to_safetensors(changed))
        message = refusal(folder, ValueError)
        assert words in message and str(folder / "model.safetensors") in message


def test_a_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    """Guards against code in weights: under any name, even vouched for by the checksum, a pickle is not opened."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = pickle.dumps(Trap())
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"):
        (folder / name).write_bytes(trap)
    assert same_weights(mull.load(folder), build())
    rewrite_weights(folder, trap)
    assert "model.safetensors is no safetensors file" in refusal(folder, ValueError)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder, FileNotFoundError)
    assert "model.pt is a file" in refusal(folder / "model.pt", ValueError)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap does work


def test_wrong_device_or_dtype(folder: Path) -> None:
    """Guards the two arguments that torch itself answers with a RuntimeError."""
    assert "device 'gpu' cannot be used here" in refusal(folder, ValueError, device="gpu")
    assert "device 'cuda:99' cannot be used here" in refusal(folder, ValueError, device="cuda:99")
    for dtype in (torch.int64, torch.complex64, torch.float8_e5m2, "float32"):
        with pytest.raises(ValueError, match=f"dtype must be a floating-point type .* not '?{dtype}"):
            mull.load(folder, dtype=dtype)


def test_missing_and_damaged_tokenizer(folder: Path) -> None:
    """Guards generation from a folder without a sound tokenizer.json: one line that names it."""
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing; save the model again"):
        load_tokenizer(folder)
    store.save(build(), folder, word_tokenizer("<unk>", "a"))
    sound = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()  # config.json vouches for it: the folder is not whole, for nobody
    for read in (load_tokenizer, store.load, store.verify):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
            read(folder)
    whole = (folder / "config.json").read_text()
    rewrite_config(folder, lambda c: [c.pop(name) for name in ("tokenizer_sha256", "config_sha256")])  # the remedy
    assert store.load(folder).tokenizer is None
    (folder / "config.json").write_text(whole)
    for damaged in (b"", sound[: len(sound) // 2], b"{}", b"\xff"):
        (folder / "tokenizer.json").write_bytes(damaged)
        rewrite_config(folder, lambda c: c.update(tokenizer_sha256=None))
        with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer: .*copy the folder again") as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)


def test_file_order_vouches_for_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a hard stop between two renames: config.json comes last, so a mixture is refused and never loaded."""
    moved: list[Path] = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b)), real(a, b))[1])
    mull.save(build(seed=1), folder)
    placed = [path.name for path in moved if path.parent == folder]
    assert placed[-1] == "config.json" and "model.safetensors" in placed
    assert all(one != other for one, other in pairwise(placed))
