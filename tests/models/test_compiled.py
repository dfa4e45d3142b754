"""Decoding with compiled blocks against decoding without. A compilation takes seconds, so this file asks for little."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import mull
from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    LanguageModel,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
)
from mull.models.families import FAMILIES

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]

SHAPE = {"vocab_size": 11, "d_model": 24, "n_heads": 6, "n_kv_heads": 2, "d_ff": 20, "max_length": 12}


NEAR = {"convolution": "mlp", "window": 3, "window_heads": 3}  # and half of the heads still see all
GENERATED = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    ("options", "generated"), [({}, False), pytest.param(NEAR, True, marks=GENERATED)], ids=["far", "near"]
)
def test_compiled_decoding_equals_eager_decoding_and_depths_and_lengths_share_a_compilation(
    build: Build, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], generated: bool
) -> None:
    """Prefill stays eager; the last column of the cache is reached, at two depths. Code is generated for
    the model with both kinds of heads; of the other the blocks are only traced, and run eagerly."""
    if not generated:
        compile_ = torch.compile

        def traced(block: Callable[..., Any], options: dict[str, Any], **others: Any) -> Any:
            kept = {"guard_filter_fn": options["guard_filter_fn"]}  # the one option that is not the generator's
            return compile_(block, backend="aot_eager", options=kept, **others)

        monkeypatch.setattr(torch, "compile", traced)
    torch.compiler.reset()
    counters.clear()
    model = build(RecurrentDepthConfig(n_prelude=1, n_core=1, n_coda=1, **SHAPE, **options))
    model.compile_decoding()
    ids, compiled = tokens(model.config, 1, 12), model.compiled
    for depth in (2, 5):
        caches = [model.new_cache(1, 12) for _ in range(2)]
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=depth == 5):
            for start, end in ((0, 4), *((at, at + 1) for at in range(4, 12))):
                fast = model(ids[:, start:end], depth, cache=caches[0])
                model.compiled = None
                slow = model(ids[:, start:end], depth, cache=caches[1])
                model.compiled = compiled
                torch.testing.assert_close(fast.logits, slow.logits, rtol=1e-10, atol=1e-10)
    assert counters["stats"]["unique_graphs"] == 2  # one for the core, which takes what is injected, one for the others


def test_models_never_find_each_others_code(build: Build) -> None:
    """Compiled code does not look at modules again, and is found by its code object."""
    models = [build(RecurrentDepthConfig(wiring=wiring, **SHAPE)) for wiring in ("sandwich", "pre_norm")]
    for model in models:
        model.compile_decoding()
    one, other = (model.compiled._torchdynamo_orig_callable.__code__ for model in models)
    assert one is not other and one.co_code == other.co_code


def test_training_and_uncached_calls_stay_eager(build: Build, tokens: Tokens) -> None:
    model = build(RecurrentDepthConfig(**SHAPE))
    model.compiled = None
    before = model(tokens(model.config, 2, 3), 2).logits

    def never(*_: Any) -> None:
        raise AssertionError("compiled code was called")

    model.compiled = never
    assert torch.equal(model(tokens(model.config, 2, 3), 2).logits, before)
    cache = model.new_cache(2, 4)
    with torch.no_grad():
        for _ in range(2):  # lengths 0 and 1 would be compiled for each by itself
            model(tokens(model.config, 2, 1), 2, cache=cache)
        with pytest.raises(AssertionError, match="compiled"):
            model(tokens(model.config, 2, 1), 2, cache=cache)


def test_inner_thinking_refuses() -> None:
    with pytest.raises(ValueError, match="cannot be compiled"):
        InnerThinkingTransformer(InnerThinkingConfig(**SHAPE)).compile_decoding()


@pytest.mark.parametrize("family", [word for word in FAMILIES if word != "inner_thinking"])
def test_a_compiled_model_can_be_copied_pickled_and_saved(
    build: Build, tokens: Tokens, family: str, tmp_path: Path
) -> None:
    """A copy is a model of its own that says the same. It must not share compiled code, which never looks at modules
    again; it can have its own."""
    model = build(FAMILIES[family].config_class(**SHAPE))
    ids = tokens(model.config, 2, 5)
    expected = model(ids).logits
    model.compile_decoding()
    mull.save(model, tmp_path / "folder")
    torch.save(model, tmp_path / "whole.pt")
    copies = {
        "copy": copy.copy(model),
        "deep copy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(tmp_path / "whole.pt", weights_only=False),
        "mull.save": mull.load(tmp_path / "folder"),
    }
    for way, found in copies.items():
        assert type(found) is type(model) and found.compiled is None, way
        assert torch.equal(found(ids).logits, expected), way
        found.compile_decoding()
        assert found.compiled is not None and found.compiled is not model.compiled, way


def test_inner_thinking_is_copied_and_pickled_too(build: Build, tokens: Tokens) -> None:
    """It holds functions and a rule, and decides as before."""
    model = build(InnerThinkingConfig(**SHAPE))
    ids = tokens(model.config, 2, 5)
    model.calibrate(ids)
    for found in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(found(ids).logits, model(ids).logits)


def test_compiling_leaves_what_is_saved_alone() -> None:
    model = RecurrentDepthTransformer(RecurrentDepthConfig(**SHAPE))
    names = set(model.state_dict())
    model.compile_decoding()
    assert set(model.state_dict()) == names


def test_a_wrapper_in_c_is_made_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch, elsewhere: ModuleType) -> None:
    """Elsewhere it would need headers that a machine with a driver need not have."""
    asked: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda _, options, **__: asked.append(options["cpp_wrapper"]))
    model = RecurrentDepthTransformer(RecurrentDepthConfig(**SHAPE))
    model.compile_decoding()
    with elsewhere.second_device():
        elsewhere.moved(model).compile_decoding()
    assert asked == [True, False]
