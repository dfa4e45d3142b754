"""Tiny random models of odd shape: whatever assumes square, even or power-of-two shapes fails on them.

At their usual start such models hardly look back and repeat one token, which would make any two texts equal. Here the
head is untied and attention is strong, so that the next token depends on all tokens and where they stand."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from mull.models import LanguageModel
from mull.models.families import FAMILIES

SHAPE = {
    "tie_embeddings": False,
    "vocab_size": 11,
    "d_model": 24,
    "n_heads": 3,
    "n_kv_heads": 1,
    "d_ff": 20,
    "max_length": 32,
    "n_layers": 3,
    "n_prelude": 1,
    "n_core": 3,
    "n_coda": 2,
    "mean_iterations": 3,
}
SHORT = {"recurrent": "recurrent_depth"}


def build(family: str, seed: int = 0, **changes: object) -> LanguageModel:
    model_class = FAMILIES[SHORT.get(family, family)]
    known = {field.name for field in fields(model_class.config_class)}
    shape = {name: value for name, value in SHAPE.items() if name in known}
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**shape | changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "attention.qkv.weight")):
                weight.mul_(4)
    model = model.double().eval()
    model.calibrate(torch.randint(11, (20, 24), generator=torch.Generator().manual_seed(seed)))
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    """make_model("recurrent" or any model_type, seed=0, **config fields) -> a model in fp64, eval mode."""
    return build


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """On small shared machines two threads are slower than one."""
    torch.set_num_threads(1)
