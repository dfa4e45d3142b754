"""What can be asked of a wavefront: how it is written, and what is refused before the first token."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mull.inference.decoders import choose_decoder
from mull.inference.decoders.wavefront import Wavefront
from mull.inference.generate import stream
from mull.models import LanguageModel

MakeModel = Callable[..., LanguageModel]


def prompts(rows: int, length: int) -> torch.Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(0))


def test_text_options() -> None:
    assert choose_decoder("wavefront:4:32", None) == Wavefront(4, 32)
    text = "wavefront:2:8,threshold=0.5,headway=2,momentum=0,noise=0.25"
    assert choose_decoder(text, None) == Wavefront(2, 8, 0.5, 2, 0.0, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "wavefront:x"}, "decode wavefront: iterations 'x' is not an integer; write wavefront:4:32"),
        (
            {"decode": "wavefront:4:8,speed=2"},
            "decode wavefront: option 'speed=2' is not known; give iterations=, width=, threshold=, headway=",
        ),
        (
            {"decode": "wavefront:4:8,headway=1.5"},
            "decode wavefront: headway '1.5' is not an integer; write wavefront:4:32",
        ),
        ({"decode": "wavefront:0:8"}, "wavefront: iterations must be at least 1, not 0"),
        ({"decode": "wavefront:4:0"}, "wavefront: width must be at least 1, not 0"),
        ({"decode": "wavefront:4:8,headway=0"}, "wavefront: headway must be at least 1, not 0"),
        ({"decode": "wavefront:4:8,threshold=-1"}, "wavefront: threshold -1.0 is not a number of at least 0"),
        ({"decode": "wavefront:4:8,threshold=nan"}, "wavefront: threshold 'nan' is not a number"),
        ({"decode": "wavefront:4:8,momentum=1"}, "wavefront: momentum 1.0 lies outside 0 <= momentum < 1"),
        ({"decode": "wavefront:4:8,noise=2"}, "wavefront: noise 2.0 lies outside 0 <= noise <= 1"),
        ({"decode": "wavefront:4:8,noise=0.5"}, "noise 0.5 is drawn at random, which needs a generator"),
        (
            {"decode": "wavefront:4:8", "exit": "latent:0.1"},
            "a call has one decoder: exit='latent:0.1'",
        ),
        (
            {"decode": "wavefront:4:8", "warm_start": True},
            "decode 'wavefront' does not understand warm_start=True; leave it out",
        ),
        (
            {"decode": "wavefront:4:8", "policy": "full"},
            "decode 'wavefront' needs a cache of policy shared, not full; leave policy out",
        ),
        ({"decode": "wavefront:4:8", "ring": 2}, "decode 'wavefront' does not understand ring=2; leave it out"),
        ({"decode": "wavefront:4:8", "iterations": 0}, "iterations must be at least 1, not 0"),
        ({"decode": "wavefront:4:8", "iterations": torch.tensor([2, 3])}, "one count of iterations for all rows"),
        (
            {"decode": "wavefront:4:8", "capacity": 0.5},
            "decode 'wavefront' does not understand capacity=0.5; leave it out",
        ),
    ],
)
def test_bad_values_are_refused_in_one_line_before_the_first_token(
    make_model: MakeModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        stream(make_model("recurrent"), prompts(2, 4), **options)
    assert "\n" not in str(caught.value)


def test_a_transformer_has_no_wavefront(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="decode 'wavefront' needs a model of kind IteratedModel, not a Transformer"):
        stream(make_model("transformer"), prompts(1, 3), decode="wavefront:4:8")
