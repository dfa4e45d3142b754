"""What the golden numbers are of: models, what is asked of them, and how an answer becomes a few numbers.

Only what is public is called: configurations, `model(ids, ...)`, `model.new_cache(...)`, `model.calibrate(ids)`,
`mull.generate`, `mull.load`, and the classes that a YAML of configs/ names. Weights come from a hash of their name in
the state dict, so they depend neither on how a model starts nor on the order in which its modules are built; the start
itself is a case of its own (`start/...`). Everything is computed in fp64.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import mull

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
Answer = dict[str, Tensor]

# ------------------------------------------------------------------------------------------------------- the models

FAMILIES: dict[str, tuple[type, type]] = {
    "recurrent": (mull.RecurrentDepthConfig, mull.RecurrentDepthTransformer),
    "inner": (mull.InnerThinkingConfig, mull.InnerThinkingTransformer),
    "transformer": (mull.TransformerConfig, mull.Transformer),
}
SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 40}  # width 4 a head
LAYERS: dict[str, dict[str, Any]] = {
    "recurrent": {"n_prelude": 1, "n_core": 3, "n_coda": 2, "mean_iterations": 4},
    "inner": {"n_layers": 3, "thinking_layers": (0, 2), "mean_iterations": 4},
    "transformer": {"n_layers": 3},
}
# Every value of every closed option, as {name of the case: fields}; the first of each is the family's defaults.
COMMON: dict[str, dict[str, Any]] = {
    "untied": {"tie_embeddings": False},
    "no-positions": {"positions": "none"},
    "rotary-half": {"rotary_layout": "half"},
    "qk-norm": {"qk_norm": True},
    "no-qk-bias": {"qk_bias": False},
    "value": {"value_head": True},
}
NEAR: dict[str, dict[str, Any]] = {  # what reaches a few tokens back
    "convolved": {"convolution": "mlp", "kernel": 3, "window": 4, "window_heads": 3},
    "convolved-before": {"convolution": "attention", "positions": "none", "residual_scale": 0.5},
}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "recurrent": {
        "plain": {},
        **COMMON,
        "pre-norm": {"wiring": "pre_norm"},
        "add": {"injection": "add"},
        "diagonal": {"injection": "diagonal"},
        "zero-state": {"initial_state": "zero"},
        "answer-feedback": {"answer_feedback": True},
        "gate": {"exit_gate": True},
        "only-core": {"n_prelude": 0, "n_core": 1, "n_coda": 0},
        "no-coda": {"n_prelude": 2, "n_core": 1, "n_coda": 0},
        "both-ways": {"causal": False},
        "board": {"causal": False, "board": True, "window": 2, "window_heads": 3},
        **NEAR,
    },
    "inner": {
        "answer": {},  # rules: what a pass makes of the tokens that take it, and of those that do not
        "update": {"rule": "update"},
        "literal": {"rule": "paper_literal"},
        "symmetric": {"rule": "paper_symmetric"},
        "replaced": {"rule": "loop"},
        "replaced-symmetric": {"rule": "loop_symmetric"},
        **COMMON,
        "sandwich": {"wiring": "sandwich"},
        "tanh": {"gate": "tanh"},
        "fixed-steps": {"step_encoding": False},
        "fixed-steps-update": {"step_encoding": False, "rule": "update"},
        "unrouted": {"routing": False},
        "loop": {"routing": False, "rule": "loop", "step_encoding": False},
        "detached": {"detached_auxiliary": True},
        "temperature": {"router_temperature": 3.0, "step_start": 0.2, "step_encoding": False},
        "three-passes": {"n_layers": 2, "thinking_layers": (0, 1), "mean_iterations": 3},
    },
    "transformer": {
        "plain": {},
        **COMMON,
        "pre-norm": {"wiring": "pre_norm"},
        "both-ways": {"causal": False},
        "board": {"causal": False, "board": True, "window": 2, "window_heads": 3},
        **NEAR,
    },
}
DECODING = {  # untied, so that greedy text is not one token for ever
    "recurrent/decoding": {"tie_embeddings": False, "exit_gate": True, "mean_iterations": 8},
    "inner/decoding": {"tie_embeddings": False, "rule": "update"},
    "transformer/decoding": {"tie_embeddings": False},
}
MODELS = {f"{family}/{name}": fields for family, named in OPTIONS.items() for name, fields in named.items()} | DECODING
JITTER = 0.0  # relative noise on all weights: `record.py` tells with it which numbers hang by a thread


def config_of(name: str, **fields: Any) -> Any:
    family = name.split("/")[0]
    return FAMILIES[family][0](**{**SHAPE, **LAYERS[family], **MODELS[name], **fields})


def make(name: str, **fields: Any) -> Any:
    """The model of a name in fp64 and eval mode, with weights that matter; `fields` change its configuration."""
    model = FAMILIES[name.split("/")[0]][1](config_of(name, **fields)).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weight(key, parameter.shape))
    return model


@cache
def build(name: str) -> Any:
    """The same, made once, with calibrated thresholds where there are some."""
    model = make(name)
    if hasattr(model, "calibrate"):
        model.calibrate(tokens(4, 32, seed=5))
    return model


def weight(key: str, shape: torch.Size) -> Tensor:
    """A parameter by its name: attention is strong, norms stand around 1, and nothing is where it starts.

    What is injected weighs more than the state, and embeddings are large: otherwise the loop of a random model forgets
    what it was told, and greedy text is one token for ever.
    """
    seed = int.from_bytes(hashlib.sha256(f"1:{key}".encode()).digest()[:7], "big")
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if JITTER:
        drawn = drawn * (1 + JITTER * torch.randn(shape, dtype=torch.float64))
    if len(shape) == 1 or key.endswith("qk_bias"):
        return ("norm" in key) + 0.15 * drawn
    if key.endswith("injection.write"):
        return torch.eye(len(drawn), dtype=torch.float64) + 0.1 * drawn
    if key.endswith("step_encoding"):
        return 0.5 + 0.2 * drawn
    if key.endswith("adapter.weight"):
        drawn[:, SHAPE["d_model"] :] *= 3
    gains = {"attention.qkv.weight": 1.5, "head.weight": 3.0, "embedding.weight": 2.0}
    return next((g for end, g in gains.items() if key.endswith(end)), 1.0) * drawn / math.sqrt(shape[1])


def tokens(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(SHAPE["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


IDS, LABELS = tokens(3, 9, seed=1), tokens(3, 9, seed=2)
MASK = torch.tensor([[1] * 9, [0] * 3 + [1] * 6, [1] * 7 + [0] * 2])
ROWS = torch.tensor([1, 5, 3])

# ------------------------------------------------------------------------------------------ one call: `model(ids, ...)`

PADDED = {"attention_mask": MASK}
FORWARD: dict[str, dict[str, dict[str, Any]]] = {
    "recurrent": {
        "eval": {},
        "rows": {"iterations": ROWS},
        "padded": PADDED,
        "padded-rows": {"iterations": ROWS, **PADDED},
        "readings": {"iterations": 5, "read_at": [1, 2, 4]},
        "drawn": {"iterations": 3, "generator": 7},
        "carried": {"iterations": 3, "state": 8},
    },
    "inner": {
        "eval": {},
        "deeper": {"iterations": 6},
        "rows": {"iterations": ROWS},
        "padded": PADDED,
        "padded-rows": {"iterations": ROWS, **PADDED},
        "readings": {"iterations": 5, "read_at": [1, 2, 4]},
        "capacities": {"iterations": 5, "capacity": (1.0, 0.25, 0.0, 0.6)},
        "top-k": {"selection": "top_k", "capacity": 0.4, **PADDED},
    },
    "transformer": {"eval": {}, "padded": PADDED},
}
WINDOW = {"iterations": 5, "backprop_iterations": 2}
TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "recurrent": {"train": WINDOW, "train-rows": {**WINDOW, "iterations": ROWS, "generator": 7, **PADDED}},
    "inner": {"train": {"iterations": 5}, "train-rows": {"iterations": ROWS, "capacity": 0.5, **PADDED}},
    "transformer": {"train": {}, "train-rows": PADDED},
}
WITHOUT_ROUTING = ("inner/unrouted", "inner/loop")  # these refuse a capacity


def called(name: str, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and the arguments with seeds turned into generators and states."""
    model, given = build(name), dict(asked)
    if name in WITHOUT_ROUTING:
        given.pop("capacity", None)
    if "generator" in given:
        given["generator"] = torch.Generator().manual_seed(given["generator"])
    if "state" in given:
        shape, source = (*IDS.shape, SHAPE["d_model"]), torch.Generator().manual_seed(given["state"])
        given["state"] = torch.randn(shape, generator=source, dtype=torch.float64)
    return model, given


def output(out: Any, mask: Tensor | None) -> Answer:
    """Everything that a ModelOutput says, with zeros where there is padding."""
    keep = torch.ones_like(IDS) if mask is None else mask
    names = ("logits", "state", "iterations", "exit_logit", "value", "selected", "router_logits")
    found = {name: getattr(out, name, None) for name in names}
    found |= {f"logits@{count}": reading.logits for count, reading in out.readings.items()}
    found |= {f"exit_logit@{count}": reading.exit_logit for count, reading in out.readings.items()}
    answers = {name: value.detach() for name, value in found.items() if value is not None}
    return {name: torch.where(keep.view(*keep.shape, *[1] * (v.dim() - 2)) == 1, v, 0) for name, v in answers.items()}


@torch.no_grad()
def forward(name: str, asked: dict[str, Any]) -> Answer:
    model, given = called(name, asked)
    return output(model(IDS, **given), given.get("attention_mask"))


def gradients(name: str, asked: dict[str, Any]) -> Answer:
    """One training step's forward and backward; a row of numbers for the gradient of every parameter, by name."""
    model, given = called(name, asked)
    try:
        out = model.train()(IDS, **given)
        loss = F.cross_entropy(out.logits.flatten(0, 1), LABELS.flatten())
        answers = output(out, given.get("attention_mask")) | {"loss": loss.detach()}
        if out.auxiliary_loss is not None:
            answers["auxiliary_loss"] = out.auxiliary_loss.detach()
            loss = loss + 0.1 * out.auxiliary_loss
        if out.exit_logit is not None:
            loss = loss + 0.1 * out.exit_logit.square().mean()
        if out.value is not None:
            loss = loss + 0.1 * out.value.square().mean()
        loss.backward()
        named = sorted(model.named_parameters())
        rows = [numbers(torch.zeros_like(p) if p.grad is None else p.grad) for _, p in named]
        return answers | {"gradients": torch.stack(rows)}
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


# --------------------------------------------------------------------------------------------------------- the cache

POLICIES: dict[str, dict[str, Any]] = {
    "deepest": {"policy": "deepest"},
    "shared": {"policy": "shared", "ring": 1},
    "shared-2": {"policy": "shared", "ring": 2},
    "shared-3": {"policy": "shared", "ring": 3},
}
POLICY_MODELS = ("recurrent/plain", "recurrent/diagonal", "recurrent/no-coda")


@torch.no_grad()
def cached(name: str, policy: dict[str, Any], depths: list[Any], mask: Tensor | None = None, **given: Any) -> Answer:
    """A prompt of 5 positions, then one position after another, at these iteration counts call by call."""
    model = build(name)
    held = model.new_cache(len(IDS), IDS.shape[1], **policy)
    logits, start = [], 0
    for call, depth in enumerate(depths):
        end = 5 if call == 0 else start + 1
        padding = {} if mask is None or call else {"attention_mask": mask[:, :5]}
        out = model(
            IDS[:, start:end], **({} if depth is None else {"iterations": depth}), **padding, **given, cache=held
        )
        logits.append(out.logits if not padding else out.logits * mask[:, :5, None])
        start = end
    return {"logits": torch.cat(logits, dim=1)}


def cache_cases() -> Iterator[tuple[str, Callable[[], Answer]]]:
    left = torch.tensor([[1] * 5, [0] * 3 + [1] * 2, [0] + [1] * 4])
    for name in MODELS:
        if name.endswith(("/both-ways", "/board")):  # its keys are not kept
            continue
        depth = None if name.startswith("transformer") else 4
        yield f"{name}/cached", partial(cached, name, {}, [depth] * 5)
        yield f"{name}/cached-padded", partial(cached, name, {}, [depth] * 5, left)
        if depth is not None:
            yield f"{name}/cached-rows", partial(cached, name, {}, [ROWS] * 5)
    for name in POLICY_MODELS:
        for policy, fields in POLICIES.items():
            yield f"{name}/cached-{policy}", partial(cached, name, fields, [5, 2, 6, 1, 4])
            yield f"{name}/cached-{policy}-padded", partial(cached, name, fields, [5, 2, 6, 1, 4], left)
    yield "inner/update/cached-capacities", partial(cached, "inner/update", {}, [4] * 5, capacity=(0.9, 0.5, 0.0))


# ------------------------------------------------------------------------------------------------------- writing on

PROMPTS = tokens(3, 6, seed=3)
PROMPT_MASK = torch.tensor([[1] * 6, [0] * 2 + [1] * 4, [1] * 5 + [0]])
PADDED_PROMPTS = {"attention_mask": PROMPT_MASK, "stop_tokens": (4,)}
STOP_TOKENS = {"inner/decoding": (7,), "transformer/decoding": (5,)}  # tokens that some rows meet and others do not
SAMPLED = {"temperature": 0.8, "generator": 11}
EXITS = (
    "latent:0.3",
    "latent:0.3,minimum=2,every=3",
    "acceleration:0.5",
    "kl:0.05",
    "entropy:0.02",
    "argmax:-2",
    "confidence:0.3",
    "gate:0.2",
    "fixed:3",
)
DECODERS = (
    "speculate:2:3",
    "speculate:4:5",
    "wavefront:2:4",
    "wavefront:3:5,threshold=0.3",
    "wavefront:2:6,threshold=0.5,headway=2",
    "wavefront:2:5,threshold=0.4,momentum=0.5",
    "wavefront:2:4,threshold=0.4,noise=0.3",
)
PLAIN: dict[str, dict[str, dict[str, Any]]] = {
    "recurrent/decoding": {
        "plain": {"iterations": 5},
        "rows": {"iterations": ROWS},
        "filters": {"iterations": 5, "top_k": 5, "top_p": 0.9, "min_p": 0.05, **SAMPLED},
        "warm-start": {"iterations": 3, "warm_start": True},
        "deepest": {"iterations": 5, "policy": "deepest"},
        "shared": {"iterations": 5, "policy": "shared", "ring": 2},
        "to-the-limit": {"iterations": 2, "max_new_tokens": 99},
    },
    "inner/decoding": {"plain": {}, "rows": {"iterations": ROWS}, "capacity": {"capacity": (0.9, 0.5, 0.2)}},
    "transformer/decoding": {"plain": {}},
}


def decode(model: Any, prompt: Tensor, decoder: str | None = None, **options: Any) -> Any:
    """`mull.generate` by a decoder written as `speculate:4:16`: the one place that knows how a decoder is asked for."""
    return mull.generate(model, prompt, decode=decoder, **options)


def written(name: str, **options: Any) -> Answer:
    """Texts from three prompts, and the iterations of every token."""
    # where tokens may end a row, it is seen to go on until most rows have met one
    given: dict[str, Any] = {"max_new_tokens": 14 if "stop_tokens" in options else 10, **options}
    if "stop_tokens" in given:
        given["stop_tokens"] = STOP_TOKENS.get(name, given["stop_tokens"])
    if "generator" in given:
        given["generator"] = torch.Generator().manual_seed(given["generator"])
    result = decode(build(name), PROMPTS, **given)
    return {"tokens": result.tokens, "iterations": result.iterations}


def decoding_cases() -> Iterator[tuple[str, Callable[[], Answer]]]:
    ways = {"": {}, "-padded": PADDED_PROMPTS, "-sampled": SAMPLED, "-sampled-padded": {**SAMPLED, **PADDED_PROMPTS}}
    for name, asked in PLAIN.items():
        for what, options in asked.items():
            for way, more in ways.items():
                yield f"{name}/{what}{way}", partial(written, name, **{**options, **more})
    deep = partial(partial, written, "recurrent/decoding", iterations=8)
    for rule in EXITS:
        for way, more in ways.items():
            yield f"exits/{rule}{way}", deep(exit=rule, **more)
        yield f"exits/{rule}-warm", deep(exit=rule, warm_start=True, **PADDED_PROMPTS)
        yield f"exits/{rule}-shared", deep(exit=rule, policy="shared", ring=2, **PADDED_PROMPTS)
    for decoder in DECODERS:
        for way, more in ways.items():
            if "noise" not in decoder or "generator" in more:
                yield f"decoders/{decoder}{way}", deep(decoder=decoder, **more)
    yield "decoders/wavefront:2:4,threshold=0.4,noise=0.3-greedy", deep(decoder=DECODERS[-1], generator=11)


# --------------------------------------------------------------------------------- how models start, and how they train

STARTS = (
    "recurrent/plain",
    "recurrent/diagonal",
    "recurrent/decoding",
    "inner/answer",
    "inner/update",
    "inner/replaced",
    "inner/loop",
    "transformer/untied",
)


def start(name: str) -> Answer:
    """The weights that a seed gives, in numbers by tensor."""
    torch.manual_seed(3)
    model = FAMILIES[name.split("/")[0]][1](config_of(name))
    return {"weights": torch.stack([numbers(value) for _, value in sorted(model.state_dict().items())])}


def shipped(folder: str, **asked: Any) -> Answer:
    """A shipped checkpoint's answers in fp64."""
    model = mull.load(CHECKPOINTS / folder, dtype=torch.float64)
    ids = torch.randint(model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return {"logits": model(ids, **asked).logits}


def made(path: str, **arguments: Any) -> dict[str, Any]:
    """An object of training/ as a YAML of configs/ names it."""
    return {"class_path": f"mull.training.{path}", "init_args": arguments}


def instantiate(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = {key: instantiate(argument) for key, argument in value["init_args"].items()}
        return getattr(import_module(module), name)(**arguments)
    return value


PARITY = made("data.TaskData", task=made("data.Parity", length=8), batch_size=4, curriculum={3: 4})
ADDITION = made("data.TaskData", task=made("data.Addition"), batch_size=4)
P_HOP = made("data.TaskData", task=made("data.PHop", hops=2, length=12), difficulty=[1, 2], batch_size=4)
TEXT = made("data.TextData", length=12, batch_size=4, validation_windows=2, held_out=0.3)
SHORT = made("iterations.LogNormalPoisson", mean=4, maximum=9)
ADAMW = made("optimizers.AdamW", lr=0.003, weight_decay=1.0)  # so much that a parameter in the wrong group is seen
# the number type is named, since `auto` goes by the machine; the record was made in this one
MUON = made("optimizers.MuonAdamW", matrix_lr=0.003, lr=0.003, weight_decay=1.0, orthogonalize_in="bfloat16")
INNER = {"iterations": made("iterations.Fixed", mean=4), "optimizer": MUON}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # model, data, arguments of TrainingModule
    "recurrent-adamw": (
        "recurrent/plain",
        PARITY,
        {"iterations": SHORT, "backprop_iterations": 2, "optimizer": ADAMW, "decay_share": 0.5},
    ),
    "recurrent-muon": (
        "recurrent/diagonal",
        PARITY,
        {"iterations": SHORT, "backprop_iterations": 3, "optimizer": MUON},
    ),
    "per-sequence": (
        "recurrent/plain",
        P_HOP,
        {"iterations": made("iterations.PoissonPerSequence", mean=4), "backprop_iterations": 2, "optimizer": ADAMW},
    ),
    "curriculum": (
        "recurrent/untied",
        ADDITION,
        {"iterations": made("iterations.LinearCurriculum", mean=4, batches=8), "optimizer": MUON},
    ),
    "expected-loss": (
        "recurrent/gate",
        PARITY,
        {"iterations": made("iterations.Fixed", mean=3), "loss": made("losses.ExpectedOverIterations")},
    ),
    "inner-answer": ("inner/answer", P_HOP, {**INNER, "auxiliary_weight": 0.1}),
    "inner-update": ("inner/update", P_HOP, {**INNER, "capacity": made("capacities.Uniform"), "optimizer": ADAMW}),
    "inner-warm-up": (
        "inner/sandwich",
        PARITY,
        {**INNER, "capacity": made("capacities.WarmUp", capacity=0.4, batches=6)},
    ),
    "inner-loop": ("inner/loop", PARITY, INNER),
    "transformer": ("transformer/plain", ADDITION, {"optimizer": MUON}),
    "text": ("recurrent/plain", TEXT, {"iterations": SHORT, "backprop_iterations": 2, "optimizer": MUON}),
}


def trained(name: str, source: dict[str, Any], arguments: dict[str, Any]) -> Answer:
    """The losses of ten steps in the trainer, and what the weights are then."""
    import lightning.pytorch as pl

    losses: list[Tensor] = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            losses.append(outputs["loss"].detach().double())

    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source is TEXT:
            text = Path(folder, "some.txt")
            text.write_text("".join(f"Line {i} of a text about the number {i * i}.\n" for i in range(200)))
            source = {**TEXT, "init_args": {**TEXT["init_args"], "paths": [str(text)], "cache": folder}}
        data = instantiate(source)
        data.prepare_data()
        network = make(name, vocab_size=data.vocab_size, max_length=64).train()
        given = {"warmup_steps": 2, **{key: instantiate(value) for key, value in arguments.items()}}
        module = instantiate(made("module.TrainingModule", network=network, **given))
        trainer = pl.Trainer(
            max_steps=10,
            accelerator="cpu",
            gradient_clip_val=1.0,
            limit_val_batches=0,
            callbacks=[Losses()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
    weights = torch.cat([p.detach().flatten() for _, p in sorted(network.named_parameters())])
    return {"losses": torch.stack(losses), "weights after": numbers(weights)}


# --------------------------------------------------------------------------------------------------- all of the cases


class Case(NamedTuple):
    """How to compute the answers of a case, and how far its floats may be from the record."""

    compute: Callable[[], Answer]
    rtol: float = 1e-9
    atol: float = 1e-11


SINGLE = {"rtol": 1e-6, "atol": 1e-6}  # what is drawn in fp32 differs in the last digit from one processor to the next
FITTED = {"rtol": 1e-4, "atol": 1e-4}  # the trainer's loss is taken in fp32
ORTHOGONAL = {"rtol": 3e-3, "atol": 3e-3}  # Muon works in bf16, where a last digit becomes a third one


def every_case() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name in MODELS:
        family = name.split("/")[0]
        for what, asked in FORWARD[family].items():
            cases[f"{name}/{what}"] = Case(partial(forward, name, asked), **(SINGLE if "generator" in asked else {}))
        for what, asked in TRAINING[family].items():
            cases[f"{name}/{what}"] = Case(partial(gradients, name, asked), **(SINGLE if "generator" in asked else {}))
    cases |= {name: Case(compute) for name, compute in cache_cases()}
    cases |= {name: Case(compute) for name, compute in decoding_cases()}
    cases |= {f"start/{name}": Case(partial(start, name), **SINGLE) for name in STARTS}
    for name, (model, data, arguments) in RUNS.items():
        tolerance = ORTHOGONAL if arguments.get("optimizer") is MUON else FITTED
        cases[f"training/{name}"] = Case(partial(trained, model, data, arguments), **tolerance)
    cases["shipped/parity"] = Case(partial(shipped, "parity", iterations=16))
    cases["shipped/state_tracking"] = Case(partial(shipped, "state_tracking", iterations=16))
    cases["shipped/maze"] = Case(partial(shipped, "maze", iterations=16))
    cases["shipped/sudoku"] = Case(partial(shipped, "sudoku", iterations=16))
    cases["shipped/sudoku_9x9"] = Case(partial(shipped, "sudoku_9x9", iterations=16))
    cases["shipped/reasoner"] = Case(partial(shipped, "reasoner", iterations=4))
    cases["shipped/reasoner_values"] = Case(partial(shipped, "reasoner_values", iterations=8))
    cases["shipped/text"] = Case(partial(shipped, "text", iterations=8))
    cases["shipped/inner-thinking"] = Case(partial(shipped, "inner-thinking", capacity=0.5))
    return cases


def numbers(x: Tensor) -> Tensor:
    """(4,) float64 of a tensor: sum, sum of squares, and products with two fixed vectors."""
    flat = x.detach().double().flatten().nan_to_num(nan=math.nan, neginf=-1e3, posinf=1e3)
    angles = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return torch.stack([flat.sum(), flat @ flat, flat @ (1.7 * angles).cos(), flat @ (0.6 * angles).sin()])


def condensed(answers: Answer) -> dict[str, list[Any]]:
    """What is recorded: integers whole, floats as they are where they are few, otherwise `numbers` of them.

    Of a matrix of numbers, a row for each gradient, the products are enough.
    """
    kept: dict[str, list[Any]] = {}
    for name, value in answers.items():
        if name in ("gradients", "weights"):
            kept[name] = value[:, 2:].flatten().tolist()
        elif value.is_floating_point():
            kept[name] = (value if value.numel() <= 12 else numbers(value)).flatten().tolist()
        else:
            kept[name] = value.long().flatten().tolist()
    return kept


def differences(found: dict[str, list[Any]], wanted: dict[str, list[Any]], case: Case) -> list[str]:
    """Where an answer departs from its record: integers at all, floats beyond the tolerance of the case."""
    problems = [f"{name} is {'not ' if name in wanted else ''}answered" for name in {*found} ^ {*wanted}]
    for name in sorted({*found} & {*wanted}):
        pairs = list(zip(found[name], wanted[name], strict=False))
        wrong = [i for i, (a, b) in enumerate(pairs) if not close(a, b, case)]
        if len(found[name]) != len(wanted[name]):
            problems.append(f"{name} has {len(found[name])} numbers, recorded are {len(wanted[name])}")
        elif wrong:
            a, b = pairs[wrong[0]]
            problems.append(
                f"{name}: {len(wrong)} of {len(pairs)} numbers differ, [{wrong[0]}] is {a}, recorded is {b}"
            )
    return problems


def close(found: Any, wanted: Any, case: Case) -> bool:
    if isinstance(wanted, int):
        return isinstance(found, int) and found == wanted
    return isinstance(found, float) and abs(found - wanted) <= case.atol + case.rtol * abs(wanted)
