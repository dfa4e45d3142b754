"""Every way of writing, read from the registry, and the families that it goes with; with the decoder of one's own."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from mull.inference.decoders import DECODERS, Decoder, choose_decoder
from mull.inference.generate import stream
from mull.models import LanguageModel
from mull.models.families import FAMILIES

LIMIT = 6  # iterations; more than any draft here has
OWN = Path(__file__).with_name("contrast.py")
MORE = (  # examples are written for long texts and large models: these are at work on tiny ones too
    "adaptive:latent:0.3",
    "adaptive:acceleration:0.4,minimum=2",
    "speculate:1:3",
    "speculate:5:2",
    "wavefront:2:5,threshold=0.3,headway=2",
    "wavefront:3:1,threshold=0",
)


def load_own() -> type[Decoder]:
    """The class in contrast.py, as importing the file registers it; taken out again, since other tests read the
    registry."""
    spec = spec_from_file_location("contrast", OWN)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    return DECODERS.pop("contrast")


CONTRAST = load_own()
WAYS = {text: choose_decoder(text, None) for text in (*(kind.example for kind in DECODERS.values()), *MORE)}
WAYS |= {text: CONTRAST.from_text(text.partition(":")[2]) for text in (CONTRAST.example,)}


def goes_with(way: Decoder, family: str) -> bool:
    model_class = FAMILIES[family]
    model = model_class(model_class.config_class(vocab_size=2, d_model=2, n_heads=1))
    count = LIMIT if model.config.default_iterations else None
    try:
        stream(model, torch.zeros(1, 1, dtype=torch.int64), count, decode=way)  # checks; nothing is computed yet
    except ValueError:
        return False
    return True


PAIRS = [(text, family) for text in WAYS for family in FAMILIES if goes_with(WAYS[text], family)]
REFUSED = [(text, family) for text in WAYS for family in FAMILIES if (text, family) not in PAIRS]
NEAR: dict[str, object] = {"convolution": "mlp", "kernel": 3, "window": 4}  # what reaches a few tokens back
MADE = [(*pair, "far") for pair in PAIRS] + [
    (*pair, "near") for pair in PAIRS if pair[1] == "recurrent_depth" and pair[0] in ("plain", *MORE)
]


@pytest.fixture(params=MADE, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """Every way of writing with every family that it goes with; of the family with all of them, and in short texts,
    also layers that reach a few tokens back, and find those tokens in the cache, each at its own depth."""
    return request.param


@pytest.fixture(params=PAIRS, ids="-".join)
def far(request: pytest.FixtureRequest) -> tuple[Decoder, str]:
    """Every way of writing with every family that it goes with, once."""
    return WAYS[request.param[0]], request.param[1]


@pytest.fixture
def way(pair: tuple[str, str, str]) -> Decoder:
    return WAYS[pair[0]]


def few_layers(family: str) -> dict[str, object]:
    """With an exit gate, where the family has one, and two layers where it has more: enough that the keys of one can be
    taken for those of another."""
    return {"exit_gate": True} if family == "recurrent_depth" else {"n_layers": 2}


@pytest.fixture
def model(pair: tuple[str, str, str], make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model(pair[1], **few_layers(pair[1]), **NEAR if pair[2] == "near" else {})


@pytest.fixture
def far_way(far: tuple[Decoder, str]) -> Decoder:
    """For what layers that reach a few tokens back cannot change."""
    return far[0]


@pytest.fixture
def far_model(far: tuple[Decoder, str], make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model(far[1], **few_layers(far[1]))


@pytest.fixture(params=REFUSED, ids="-".join)
def refused(request: pytest.FixtureRequest, make_model: Callable[..., LanguageModel]) -> tuple[Decoder, LanguageModel]:
    """Every way of writing with every family that it does not go with."""
    return WAYS[request.param[0]], make_model(request.param[1])


@pytest.fixture
def contrast(monkeypatch: pytest.MonkeyPatch) -> type[Decoder]:
    """The decoder of one's own, registered for one test."""
    monkeypatch.setitem(DECODERS, "contrast", CONTRAST)
    return CONTRAST
