"""mull in transformers, on tiny models and the shipped folders; nothing is asked of the hub."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mull.models import LanguageModel

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
SHIPPED = Path(__file__).parents[3] / "checkpoints"


def pytest_pycollect_makemodule() -> None:
    """Skip each file of this folder where the extra is missing: said here, since this file may be read too early."""
    pytest.importorskip("transformers", minversion="5.24")


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """Nothing that transformers has to say besides errors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def opened() -> Callable[[str], tuple[Any, Any]]:
    """opened("text") -> model and tokenizer of a shipped folder, by the Auto classes; opened once, and to be left as
    they are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mull.inference.hugging_face  # noqa: F401  # registers the families

    known: dict[str, tuple[Any, Any]] = {}

    def open_once(name: str) -> tuple[Any, Any]:
        if name not in known:
            folder = SHIPPED / name
            known[name] = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        return known[name]

    return open_once


@pytest.fixture
def wrapped(make_model: Callable[..., LanguageModel]) -> Callable[..., Any]:
    """wrapped("recurrent", **config fields) -> a tiny model in fp64 as transformers has it."""
    import mull.inference.hugging_face as hugging_face

    def wrap(family: str, **changes: Any) -> Any:
        network = make_model(family, **changes)
        kind = hugging_face.MULL_MODELS[network.config.model_type]
        return kind(kind.config_class.of(network.config), network=network).eval()

    return wrap
