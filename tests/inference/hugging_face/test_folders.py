"""Folders through transformers: opened as they stand and as strictly as by mull, and written for mull."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import mull
from mull.inference.hugging_face import FolderError
from mull.inference.hugging_face.folders import folder_of

TEXT = Path(__file__).parents[3] / "checkpoints" / "text"
EVERYTHING = {AutoConfig, AutoModelForCausalLM, AutoTokenizer}


@pytest.mark.parametrize(
    ("file", "change", "who", "words"),
    [
        ("model.safetensors", lambda data: data[:-1] + b"\0", {AutoModelForCausalLM}, "model.safetensors is damaged"),
        ("tokenizer.json", lambda data: data + b" ", EVERYTHING - {AutoConfig}, "tokenizer.json is damaged"),
        ("config.json", lambda data: data.replace(b"10000.0", b"10001.0"), EVERYTHING, "its fields do not have the"),
        ("config.json", lambda data: data.replace(b'"wiring"', b'"wirings"'), EVERYTHING, "lacks wiring"),
    ],
)  # fmt: skip
def test_damage(tmp_path: Path, file: str, change: Callable[[bytes], bytes], who: set[Any], words: str) -> None:
    """Guards the store's strictness behind every Auto class: one line, and no class of transformers' in its place."""
    folder = tmp_path / "copy"
    shutil.copytree(TEXT, folder)
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    for auto in who:
        with pytest.raises(FolderError, match=words) as caught:
            auto.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_types_and_devices(opened: Callable[[str], Any]) -> None:
    """Guards dtype under both names, and device_map on one device; what cannot be followed is refused."""
    load = AutoModelForCausalLM.from_pretrained
    for options in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16", "device_map": "cpu"}):
        model = load(TEXT, **options)
        assert model.dtype == model.config.dtype == torch.bfloat16 and model.device.type == "cpu"
    narrow = mull.load(TEXT, dtype=torch.bfloat16)
    assert torch.equal(model(torch.tensor([[84, 111]])).logits, narrow(torch.tensor([[84, 111]])).logits)
    assert load(TEXT, dtype="auto", device_map={"": "cpu"}).dtype == torch.float32
    for options, words in (
        ({"device_map": {"a": 0, "b": "cpu"}}, "device_map names 2 devices"),
        ({"dtype": "bfloat61"}, "dtype must be a type of torch or its name"),
        ({"attn_implementation": "eager"}, "attn_implementation 'eager' is refused"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is refused"),
    ):
        with pytest.raises(ValueError, match=words):
            load(TEXT, **options)
    kind = type(opened("inner-thinking")[0])
    with pytest.raises(ValueError, match="holds a recurrent_depth; open it with AutoModelForCausalLM"):
        kind.from_pretrained(TEXT)
    _, report = load(TEXT, output_loading_info=True)
    assert not any(report.values())


def test_a_config_alone(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """Guards config.save_pretrained: there and back in a folder of its own, and never over that of a model."""
    config = opened("text")[0].config
    config.save_pretrained(tmp_path / "alone")
    again = AutoConfig.from_pretrained(tmp_path / "alone")
    assert type(again) is type(config) and again.architecture() == config.architecture()
    shutil.copytree(TEXT, tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model"):
        config.save_pretrained(tmp_path / "model")
    mull.load(tmp_path / "model")


def test_a_config_that_differs() -> None:
    """Guards fields that are changed on the way: followed where the weights fit, and told where they do not."""
    model = AutoModelForCausalLM.from_pretrained(TEXT, mean_iterations=2, max_length=64)
    assert model.mull.config.mean_iterations == 2 and model.mull.config.max_length == 64
    ids = torch.tensor([[84, 111]])
    assert torch.equal(model(ids).logits, mull.load(TEXT)(ids, 2).logits)
    with pytest.raises(ValueError, match="the weights do not fit the config"):
        AutoModelForCausalLM.from_pretrained(TEXT, config=AutoConfig.from_pretrained(TEXT, d_ff=24))


def test_written_folders_are_mull_folders(opened: Callable[[str], Any], tmp_path: Path) -> None:
    """Guards save_pretrained: mull opens what it writes, with tokenizer, training and depth; writing the tokenizer
    after it, as a Trainer does, leaves the checksums right; and what was set for generate is found again."""
    _, tokenizer = opened("text")
    model = AutoModelForCausalLM.from_pretrained(TEXT)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)  # leaves traces in the backend
    model.generation_config = GenerationConfig(iterations=2, exit="latent:0.1", eos_token_id=256)
    model.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    again = mull.load(tmp_path / "a")
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))
    assert again.tokenizer.encode("Tom").ids == [84, 111, 109] and again.tokenizer.padding is None
    for file in ("training.yaml", "depth.json"):
        assert (tmp_path / "a" / file).read_text() == (TEXT / file).read_text()
    read = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert type(read) is type(tokenizer) and read("a <end>")["input_ids"] == tokenizer("a <end>")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").generation_config.iterations == 2
    with torch.no_grad():
        model.mull.final_norm.weight += 1
    model.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "depth.json").exists() and not (tmp_path / "b" / "training.yaml").exists()
    model.save_pretrained(tmp_path / "b", safe_serialization=True, max_shard_size="1GB")
    for options, words in (
        ({"push_to_hub": True}, "push_to_hub is refused"),
        ({"variant": "fp16"}, "variant is refused"),
        ({"safe_serialization": False}, "safe_serialization=False is refused"),
    ):
        with pytest.raises(ValueError, match=words):
            model.save_pretrained(tmp_path / "c", **options)
    model.generation_config = GenerationConfig(temperature=0.5)  # which needs do_sample
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_name_of_the_hub_is_its_snapshot(tmp_path: Path) -> None:
    """Guards names: a snapshot that transformers has fetched is a folder like any other."""
    snapshot = tmp_path / "models--me--text" / "snapshots" / ("0" * 40)
    shutil.copytree(TEXT, snapshot)
    (tmp_path / "models--me--text" / "refs").mkdir()
    (tmp_path / "models--me--text" / "refs" / "main").write_text("0" * 40)
    assert folder_of("me/text", cache_dir=tmp_path, local_files_only=True) == snapshot
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        folder_of("me/other", cache_dir=tmp_path, local_files_only=True)


def test_nothing_of_a_folder_runs(tmp_path: Path) -> None:
    """Guards against code in a folder: files that transformers would import are left alone, also where it is told to
    trust them; and what names them in the configuration is refused."""
    folder = tmp_path / "copy"
    shutil.copytree(TEXT, folder)
    for name in ("modeling_mine.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('ran')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": [None, "modeling_mine.X"]}})
    )
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert model(torch.tensor([[1]])).logits.shape == (1, 1, 257)
    assert len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)) == 257
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.X"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FolderError, match="unknown auto_map"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
