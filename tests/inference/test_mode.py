"""What measures and what writes is inference, whatever mode the model comes in, and leaves it in that mode.

In training mode a pass of an inner-thinking model takes the top-k of a sequence, which looks at tokens that come later,
and a model with dropout of its own answers at random.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mull
from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.inference.generate import stream
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.routers import router_uses
from mull.inference.measure.tokens import token_uses
from mull.inference.mode import in_eval
from mull.inference.session import Session
from mull.models import LanguageModel
from mull.training.thresholds import calibrate

MakeModel = Callable[..., LanguageModel]
IDS = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(1))
PAIRS = [(IDS[:, :-1], IDS[:, 1:])]


def told(model: LanguageModel) -> list[Any]:
    """What an evaluation says, without its clock."""
    rows = [vars(result) for result in evaluate(model, {None: PAIRS}, [2, 3])]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def thresholds(model: LanguageModel) -> list[Tensor]:
    calibrate(model, [{"input_ids": IDS}])
    return [buffer.clone() for name, buffer in model.named_buffers() if "thresholds" in name]


CALLS: dict[str, tuple[str, Callable[[LanguageModel], Any]]] = {
    "evaluate": ("inner_thinking", told),
    "token_uses": ("inner_thinking", lambda model: token_uses(model, PAIRS, 3, capacity=0.5)),
    "router_uses": ("inner_thinking", lambda model: router_uses(model, PAIRS, 3, capacity=0.5)),
    "calibrate": ("inner_thinking", thresholds),
    "generate": ("inner_thinking", lambda model: mull.generate(model, IDS, 3, capacity=0.5, max_new_tokens=5).tokens),
    "stream": ("inner_thinking", lambda model: list(stream(model, IDS, 3, max_new_tokens=5))),
    "trace": ("inner_thinking", lambda model: mull.trace(model, IDS, 3, capacity=0.5).logits),
    "session": ("inner_thinking", lambda model: Session(model, 4, 20, 3).read(IDS).logits),
    "exit": ("recurrent", lambda model: think_until(model, IDS, 4, parse("latent:0.2")).logits),
    "evaluate with an exit": ("recurrent", lambda model: evaluate(model, {None: PAIRS}, [4], exit="kl:0.1")[0].loss),
    "speculation": ("recurrent", lambda model: mull.generate(model, IDS, 4, decode="speculate:2:3").tokens),
    "wavefront": ("recurrent", lambda model: mull.generate(model, IDS, 4, decode="wavefront:2:3").tokens),
    "adaptive": ("recurrent", lambda model: mull.generate(model, IDS, 4, exit="latent:0.2").tokens),
}


def drop(model: LanguageModel) -> LanguageModel:
    """The model with dropout behind its embedding, as a family of somebody's own may have it; made to look trained."""
    dropout = nn.Dropout(0.5)
    model.add_module("dropout", dropout)
    embed = model.embed
    model.embed = lambda *args, **kwargs: dropout(embed(*args, **kwargs))  # type: ignore[method-assign]
    return model


def plain(found: Any) -> Any:
    """Tensors as lists, so that anything can be compared."""
    if isinstance(found, Tensor):
        return found.tolist()
    return [plain(each) for each in found] if isinstance(found, list | tuple) else found


@pytest.mark.parametrize("name", CALLS)
def test_a_model_in_train_mode_is_measured_in_eval(make_model: MakeModel, name: str) -> None:
    """Guards against seeing the future, and against noise: the answer is that of eval, and the mode comes back."""
    family, call = CALLS[name]
    wanted = plain(call(make_model(family)))
    model = drop(make_model(family)).train()
    frozen = next(module for module in model.modules() if module is not model)
    frozen.eval()  # a part that its owner keeps in eval stays there
    before = [module.training for module in model.modules()]
    assert plain(call(model)) == wanted
    assert [module.training for module in model.modules()] == before and not all(before)


def test_top_k_in_train_mode_would_tell(make_model: MakeModel) -> None:
    """Guards the guard: the call itself does what is asked of it, and answers otherwise in train mode."""
    model = make_model("inner_thinking")
    with torch.no_grad():
        logits = model(IDS, 3, capacity=0.5).logits
        assert not torch.equal(model.train()(IDS, 3, capacity=0.5).logits, logits)


def test_between_steps_the_model_is_its_owners(make_model: MakeModel) -> None:
    """Guards training between two tokens of a stream, and a stream that is left before its end."""
    model = make_model("recurrent").train()
    tokens: Iterator[Any] = stream(model, IDS, 3, max_new_tokens=5)
    assert model.training
    next(tokens)
    assert model.training
    del tokens
    assert model.training


def test_a_failure_gives_the_mode_back(make_model: MakeModel) -> None:
    model = make_model("recurrent").train()
    with pytest.raises(ValueError, match="no scored token"):
        evaluate(model, {None: [(IDS, torch.full_like(IDS, -100))]}, [2])
    with pytest.raises(RuntimeError), in_eval(model):
        raise RuntimeError
    assert model.training and all(module.training for module in model.modules())
