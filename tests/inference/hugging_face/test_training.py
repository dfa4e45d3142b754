"""transformers' Trainer and PEFT on mull's models: the loss falls, runs go on, merged is unmerged at every depth."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import mull
from mull.inference.hugging_face import CONFIGS

pytest.importorskip("accelerate")
IDS = torch.tensor([[2, 7, 3, 1, 4], [5, 3, 5, 8, 9]])


def trainer(model: Any, folder: Path, **others: Any) -> Trainer:
    """Twelve batches of counting rows, each with a depth of its own."""
    rows = [{"input_ids": (torch.arange(12) + n) % 8, "iterations": 1 + n % 3} for n in range(48)]
    options = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 6, "seed": 1}
    quiet = {"report_to": [], "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "save_only_model": False}
    labelled = [row | {"labels": row["input_ids"]} for row in rows]
    return Trainer(model, TrainingArguments(str(folder), **options, **quiet), train_dataset=labelled, **others)


def losses(run: Trainer) -> list[float]:
    return [float(entry["loss"]) for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("family", ["recurrent_depth", "inner_thinking"])
def test_trainer(family: str, tmp_path: Path) -> None:
    """Guards the Trainer: depth by row out of the data, a falling loss, checkpoints that mull opens, and a run that
    goes on from one bit for bit."""
    if family == "inner_thinking":
        config = CONFIGS[family](vocab_size=8, d_model=16, n_heads=2, n_layers=2, max_length=32)
    else:
        config = CONFIGS[family](vocab_size=8, d_model=16, n_heads=2, mean_iterations=3, max_length=32)
        config.backprop_iterations = 2
    torch.manual_seed(0)
    first = AutoModelForCausalLM.from_config(config)
    second = copy.deepcopy(first)
    rows = iterations_seen(first) if family == "recurrent_depth" else []
    run = trainer(first, tmp_path)
    run.train()
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    assert not rows or any(isinstance(n, torch.Tensor) and len(set(n.tolist())) > 1 for n in rows)
    reread = mull.load(tmp_path / "checkpoint-12")
    assert all(
        torch.equal(p, q) for p, q in zip(reread.state_dict().values(), first.state_dict().values(), strict=True)
    )
    if family == "recurrent_depth":
        trainer(second, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert all(torch.equal(p, q) for p, q in zip(second.parameters(), first.parameters(), strict=True))


@pytest.mark.parametrize("family", ["recurrent", "inner_thinking"])
def test_copies_for_several_devices(wrapped: Callable[..., Any], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards DataParallel, which the Trainer uses by itself where there are several devices: each copy computes with
    its own tensors, and its gradient reaches the model. torch copies to devices of CUDA; here it copies in memory."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    doubled = "_broadcast_coalesced_reshape"  # its name is of copies, which are told apart from the original here
    monkeypatch.setattr(module, doubled, lambda tensors, devices, *_, **__: [[2 * t for t in tensors] for _ in devices])
    model = wrapped(family).train()
    copies = module.replicate(model, ["one", "two"])
    twice = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter *= 2
    wanted = twice(IDS, labels=IDS, iterations=3)
    for each in copies:
        found = each(IDS, labels=IDS, iterations=3)
        assert torch.allclose(found.logits, wanted.logits)
    found.loss.backward()
    wanted.loss.backward()
    for parameter, other in zip(model.parameters(), twice.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.allclose(parameter.grad, 2 * other.grad)


def iterations_seen(model: Any) -> list[Any]:
    """What the network is asked for, in a list that fills while it runs."""
    seen: list[Any] = []
    forward = model.mull.forward
    model.mull.forward = lambda ids, n=None, **kw: [seen.append(n), forward(ids, n, **kw)][1]
    return seen


def adapted(model: Any, targets: list[str] | str, **others: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, **others))


EVERY = ["qkv", "out", "gate_up", "down", "embedding"]


@pytest.mark.parametrize(
    ("family", "targets", "changes"),
    [
        ("recurrent", [*EVERY, "injection.adapter", "head"], {}),
        ("recurrent", [*EVERY, "injection.adapter"], {"tie_embeddings": True}),
        ("inner_thinking", EVERY, {"tie_embeddings": True}),
        ("transformer", EVERY, {}),
    ],
)
def test_merged_is_unmerged(wrapped: Callable[..., Any], family: str, targets: list[str], changes: Any) -> None:
    """Guards every place where a part of a weight is read past its module: routed passes and their way of one token,
    the injection, the tied head; at three depths, whole and in cached decoding."""
    model = wrapped(family, **changes)
    plain = copy.deepcopy(model)
    tuned = adapted(model, targets, init_lora_weights=False).eval()
    depths = [{}] if family == "transformer" else [{"iterations": n} for n in (1, 3, 5)]
    written = [tuned.generate(input_ids=IDS, max_new_tokens=6, **depth) for depth in depths]
    alone = [tuned.generate(input_ids=IDS[:1], max_new_tokens=6, **depth) for depth in depths]
    logits = [tuned(IDS, **depth).logits for depth in depths]
    merged = tuned.merge_and_unload()
    for depth, unmerged, rows, row in zip(depths, logits, written, alone, strict=True):
        assert torch.allclose(merged(IDS, **depth).logits, unmerged, atol=1e-8)
        assert not torch.allclose(plain(IDS, **depth).logits, unmerged, atol=1e-2)
        assert torch.equal(merged.generate(IDS, max_new_tokens=6, **depth), rows)
        assert torch.equal(rows[:1], row) and torch.equal(
            mull.generate(merged.mull, IDS, max_new_tokens=6, **depth).tokens, rows
        )


@pytest.mark.parametrize("target", ["qkv", "out", "gate_up", "down", "injection.adapter", "embedding", "head"])
def test_no_adapter_is_passed_over(wrapped: Callable[..., Any], target: str) -> None:
    """Guards against an adapter that nobody hears: each alone changes the answers."""
    for family in ("recurrent", "inner_thinking"):
        if target == "injection.adapter" and family != "recurrent":
            continue
        model = wrapped(family)
        before = model(IDS, iterations=4).logits
        tuned = adapted(model, [target], init_lora_weights=False).eval()
        assert not torch.allclose(tuned(IDS, iterations=4).logits, before, atol=1e-3)


def test_an_adapter_learns_alone(tmp_path: Path) -> None:
    """Guards LoRA on the shared core: the loss falls, the base stays to the bit, what is merged makes a folder."""
    torch.manual_seed(0)
    config = CONFIGS["recurrent_depth"](vocab_size=8, d_model=16, n_heads=2, mean_iterations=3, max_length=32)
    base = AutoModelForCausalLM.from_config(config)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    tuned = adapted(base, r"core\.\d+\.(attention\.(qkv|out)|mlp\.(gate_up|down))")
    run = trainer(tuned, tmp_path)
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.05
    for name, tensor in base.state_dict().items():
        if "lora" not in name:
            assert torch.equal(tensor, before[name.replace(".base_layer", "")])
    with pytest.raises(ValueError, match="merge adapters first"):
        base.save_pretrained(tmp_path / "unmerged")
    logits = tuned(IDS % 8, iterations=5).logits
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert torch.allclose(mull.load(tmp_path / "merged")(IDS % 8, 5).logits, logits, atol=1e-4)
