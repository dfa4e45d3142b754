"""A trace says what the model itself says: forward, the exit rules as generation applies them, the routers."""

import importlib.util
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mull
from mull.inference.early_exit import think_until
from mull.inference.exits import EXITS, Latent, parse
from mull.inference.tracing import Patch
from mull.inference.tracing import answers as answers_module
from mull.inference.tracing.trace import Trace, trace
from mull.models import IteratedModel, LanguageModel
from mull.models.families import FAMILIES

ROOT = Path(__file__).parents[3]
Make = Callable[..., LanguageModel]
LOOPED = [name for name, family in FAMILIES.items() if family.config_class(vocab_size=3).default_iterations]


@pytest.fixture(params=LOOPED)
def model(request: pytest.FixtureRequest, make_model: Make) -> LanguageModel:
    """Every family with iterations."""
    return make_model(request.param)


def some_ids(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(3))


def equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(-9.0), other.nan_to_num(-9.0))


@torch.no_grad()
def test_answers_are_those_of_forward(model: LanguageModel) -> None:
    """Guards what is shown of an answer: the best tokens, the rank and probability of the truth, entropy and the
    divergence from the last answer, at every count, out of the logits that forward(read_at=...) gives."""
    ids, deep = some_ids(), 5
    found = mull.trace(model, ids, deep, top=4)
    out = model(ids, deep, read_at=range(1, deep + 1))
    assert torch.equal(found.logits, out.logits) and found.read_at == found.counts == (1, 2, 3, 4, 5)
    last = torch.distributions.Categorical(logits=out.logits)
    for at in found.counts:
        logits, own = out.readings[at].logits, found.answers["coda"]
        here = torch.distributions.Categorical(logits=logits)
        assert torch.equal(own.tokens[:, at - 1, :, 0], logits.argmax(-1))
        assert torch.equal(own.tokens[:, at - 1], logits.topk(4).indices)
        torch.testing.assert_close(own.probabilities[:, at - 1], logits.softmax(-1).topk(4).values)
        torch.testing.assert_close(own.entropy[:, at - 1], here.entropy())
        torch.testing.assert_close(own.kl[:, at - 1], torch.distributions.kl_divergence(last, here))
        truth = ids[:, 1:]
        torch.testing.assert_close(own.truth[:, at - 1, :-1], here.probs[:, :-1].gather(-1, truth[..., None])[..., 0])
        order = logits[:, :-1].argsort(-1, descending=True)
        assert torch.equal(own.rank[:, at - 1, :-1], (order == truth[..., None]).int().argmax(-1) + 1)
        assert own.truth[:, :, -1].isnan().all() and (own.rank[:, :, -1] == 0).all()


@torch.no_grad()
def test_states_are_those_of_forward(model: LanguageModel) -> None:
    """Guards residual and cosine: they are of the states that forward returns at each count, and the residual is that
    of a reading where a reading has one."""
    ids, deep = some_ids(), 4
    found = trace(model, ids, deep, keep_states=True)
    assert found.states is not None and found.states.shape == (2, deep, 7, model.config.d_model)
    states = [model(ids, at).state for at in found.counts]
    for at, state in zip(found.counts, states, strict=True):
        assert torch.equal(found.states[:, at - 1], state)
    steps = [states[at] - states[at - 1] for at in range(1, deep)]
    if isinstance(model, IteratedModel):  # the first step is from the initial state
        assert found.start is not None
        first = (states[0] - found.start).norm(dim=-1) / states[0].norm(dim=-1)
        torch.testing.assert_close(found.residual[:, 0].double(), first, rtol=1e-5, atol=1e-7)
        drawn = trace(model, ids, deep, generator=torch.Generator().manual_seed(0))
        assert not torch.equal(drawn.residual[:, 0], found.residual[:, 0])
    else:
        assert found.residual[:, 0].isnan().all() and found.start is None
    for at in range(2, deep + 1):
        expected = steps[at - 2].norm(dim=-1) / states[at - 1].norm(dim=-1)
        torch.testing.assert_close(found.residual[:, at - 1].double(), expected, rtol=1e-5, atol=1e-7)
        reading = model(ids, deep, read_at=[at]).readings[at]
        assert reading.residual is None or torch.equal(found.residual[:, at - 1], reading.residual)
    for at in range(3, deep + 1):
        cosine = torch.cosine_similarity(steps[at - 2], steps[at - 3], dim=-1)
        torch.testing.assert_close(found.cosine[:, at - 1].double(), cosine, rtol=1e-5, atol=1e-6)
    assert found.cosine[:, 0].isnan().all() and torch.equal(found.settled, found.residual[:, -1] < 0.03)


@torch.no_grad()
def test_a_trace_that_keeps_and_reads_less_says_the_same(model: LanguageModel) -> None:
    """Guards the cheap way: fewer readings, no states, the same numbers where both speak."""
    ids = some_ids()
    whole, part = trace(model, ids, 5, keep_states=True), trace(model, ids, 5, read_at=[2])
    least = trace(model, ids, 5, read_at=())
    assert part.read_at == (2, 5) and least.read_at == (5,) and part.states is None and part.start is None
    for short in (part, least):
        assert torch.equal(short.logits, whole.logits) and equal(short.residual, whole.residual)
        assert equal(short.cosine, whole.cosine)
        for name, value in vars(short.answers["coda"]).items():
            full = getattr(whole.answers["coda"], name)
            assert equal(value, full[:, [at - 1 for at in short.read_at]]), name


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in EXITS if name != "gate"])
def test_exits_are_those_of_generation(make_model: Make, name: str) -> None:
    """Guards the exit marks, rule by rule: where a position of a prompt with its answer leaves in a trace is where
    `mull.generate(exit=...)` let it leave. Rules that read answers out look at whole prompts together, so for them
    only the prompt is compared."""
    model = make_model("recurrent")
    thresholds = {"argmax": -3, "fixed": 3, "confidence": 0.75, "kl": 0.01, "entropy": 0.01}
    rule = f"{name}:{thresholds.get(name, 0.12)}"
    prompt = torch.randint(11, (1, 10), generator=torch.Generator().manual_seed(3))
    wrote = mull.generate(model, prompt, 9, exit=rule, max_new_tokens=5, stop_tokens=())
    found = trace(model, wrote.tokens[:, :-1], 9, exits=[rule], read_at=()).exits[rule]
    first = trace(model, prompt, 9, exits=[rule]).exits[rule]
    assert torch.equal(first[:, -1:], wrote.iterations[:, :1])
    if not EXITS[name].reads_logits:
        assert torch.equal(found[:, 9:], wrote.iterations) and torch.equal(found[:, :10], first)
    assert name == "fixed" or len(set(found.flatten().tolist())) > 1, "this rule tells no position from another"


@torch.no_grad()
def test_the_gate_is_followed_too(make_model: Make) -> None:
    """Guards the learned exit, and rules that are given as objects beside written ones."""
    model = make_model("recurrent", exit_gate=True)
    prompt = some_ids(1, 6)
    wrote = mull.generate(model, prompt, 9, exit="gate:0.3", max_new_tokens=3, stop_tokens=())
    found = trace(model, wrote.tokens[:, :-1], 9, exits=["gate:0.3", Latent(0.1)]).exits
    assert torch.equal(found["gate:0.3"][:, 5:], wrote.iterations)
    assert list(found) == ["gate:0.3", repr(Latent(0.1))]
    assert torch.equal(
        found[repr(Latent(0.1))], trace(model, wrote.tokens[:, :-1], 9, exits=["latent:0.1"]).exits["latent:0.1"]
    )


@torch.no_grad()
@pytest.mark.parametrize("capacity", [0.4, (0.9, 0.0, 0.5)])
def test_router_choices_are_those_of_forward(make_model: Make, capacity: Any) -> None:
    """Guards the map of routed passes, by layer, pass and position, at any capacity; a prefix of the capacities is for
    a run of fewer passes."""
    model, ids = make_model("inner_thinking", thinking_layers=(0, 2), mean_iterations=3), some_ids()
    found, out = trace(model, ids, 4, capacity=capacity), model(ids, 4, capacity=capacity)
    assert found.selected is not None and found.router_logits is not None
    assert found.selected.shape == (2, 7, 2, 3) and 0 < found.selected.sum() < found.selected.numel()
    assert torch.equal(found.selected, out.selected) and equal(found.router_logits, out.router_logits)
    shorter = capacity[:1] if isinstance(capacity, tuple) else capacity
    assert torch.equal(found.answers["coda"].tokens[:, 1, :, 0], model(ids, 2, capacity=shorter).logits.argmax(-1))
    assert isinstance(capacity, float) or trace(model, ids, capacity=capacity).iterations == 4


@torch.no_grad()
def test_the_logit_lens_is_the_head_without_the_coda(model: LanguageModel) -> None:
    """Guards the second lens: final norm and head of the state; its divergence is from the model's own answer."""
    ids = some_ids()
    found = trace(model, ids, 3, lenses=("logit", "coda"), keep_states=True)
    assert found.states is not None and list(found.answers) == ["logit", "coda"]
    own = model.final_norm(found.states[:, 1]) @ (model.embedding if model.head is None else model.head).weight.T
    lens = found.answers["logit"]
    assert torch.equal(lens.tokens[:, 1, :, 0], own.argmax(-1))
    expected = (found.logits.softmax(-1) * (found.logits.log_softmax(-1) - own.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(lens.kl[:, 1], expected)
    assert isinstance(model, IteratedModel) != torch.equal(lens.tokens, found.answers["coda"].tokens)
    assert (found.answers["coda"].kl[:, -1] == 0).all()


@torch.no_grad()
def test_a_row_is_the_same_alone_and_padded(model: LanguageModel) -> None:
    """Guards padding: rows of different lengths, as lists, say what each says alone."""
    long, short = [1, 5, 2, 8, 3, 7, 4], [9, 0, 6, 2]
    rules = ["latent:0.2"] if isinstance(model, IteratedModel) else []
    both = trace(model, [long, short], 4, exits=rules)
    alone = trace(model, [short], 4, exits=rules)
    for rule in rules:
        assert both.exits[rule][1].tolist() == [0, 0, 0, *alone.exits[rule][0].tolist()]
    assert both.mask is not None and both.mask[1].tolist() == [False] * 3 + [True] * 4
    for name in ("residual", "cosine", "settled"):
        one, other = getattr(both, name)[1:, ..., 3:], getattr(alone, name)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
    for name, value in vars(alone.answers["coda"]).items():
        torch.testing.assert_close(getattr(both.answers["coda"], name)[1:, :, 3:], value, equal_nan=True)
    assert both.labels.tolist() == [[*long[1:], -100], [-100, -100, -100, *short[1:], -100]]


@torch.no_grad()
def test_pieces_do_not_show(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the bound on memory: logits that are reduced one position at a time give the same numbers."""
    model, ids = make_model("recurrent"), some_ids()
    whole = trace(model, ids, 3).answers["coda"]
    monkeypatch.setattr(answers_module, "PIECE", 1)
    for name, value in vars(trace(model, ids, 3).answers["coda"]).items():
        assert equal(value, getattr(whole, name)), name


@torch.no_grad()
def test_labels_and_starts_of_the_callers_own(make_model: Make) -> None:
    """Guards labels that are no next tokens, initial states, and drawn ones, for the exits too."""
    model, ids = make_model("recurrent"), some_ids(1)
    labels = [[-100, 3, -100, 10, 0, -1, 2]]
    found = trace(model, ids, 3, labels=labels).answers["coda"]
    assert ((found.rank == 0) == torch.tensor(labels).lt(0)[:, None]).all()
    assert found.rank[0, -1, 3] == 1 + (model(ids, 3).logits[0, 3].argsort(descending=True) == 10).int().argmax()
    draw = torch.Generator().manual_seed(5)
    drawn = trace(model, ids, 4, generator=draw, exits=["latent:0.6"], keep_states=True)
    expected = model(ids, 4, generator=torch.Generator().manual_seed(5))
    given = trace(model, ids, 4, state=drawn.start, exits=["latent:0.6"])
    assert torch.equal(drawn.logits, expected.logits) and torch.equal(given.logits, expected.logits)
    assert drawn.start is not None and torch.equal(drawn.exits["latent:0.6"], given.exits["latent:0.6"])
    left = think_until(model, ids, 4, Latent(0.6), state=drawn.start).iterations
    assert torch.equal(drawn.exits["latent:0.6"], left)
    assert not torch.equal(left, trace(model, ids, 4, exits=["latent:0.6"]).exits["latent:0.6"])
    assert not torch.equal(drawn.logits, trace(model, ids, 4).logits)


@torch.no_grad()
def test_a_family_from_outside_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards families that mull does not know: a looped stack whose norm is inside the loop, which starts at the
    embedding and has a gate (tests/examples/ouro.py)."""
    spec = importlib.util.spec_from_file_location("ouro_traced", ROOT / "tests/examples/ouro.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    del FAMILIES["ouro"]  # other tests go through all families
    torch.manual_seed(0)
    model = module.OuroTransformer(module.OuroConfig(vocab_size=11, d_model=24, n_heads=3)).eval()
    ids = some_ids()
    found, out = trace(model, ids, 5, exits=["gate:0.3"], keep_states=True), model(ids, 5, read_at=[2])
    assert torch.equal(found.logits, out.logits)
    assert torch.equal(found.answers["coda"].tokens[:, 1, :, 0], out.readings[2].logits.argmax(-1))
    assert torch.equal(found.exits["gate:0.3"], think_until(model, ids, 5, parse("gate:0.3")).iterations)
    other = trace(model, some_ids() * 0, 5, keep_states=True)
    patched = trace(model, ids, 5, patch=Patch.of(other, iteration=3))
    assert other.states is not None
    assert torch.equal(patched.logits, model(ids, 2, state=other.states[:, 2]).logits)


def test_public_folders_can_be_traced() -> None:
    """Guards folders of the public recurrent-depth layout, whose final norm and coda differ from the lens."""
    model = mull.load(ROOT / "tests/fixtures/huginn-1-2-1")
    ids = torch.randint(model.config.vocab_size, (1, 6), generator=torch.Generator().manual_seed(0))
    found = mull.trace(model, ids, 6, lenses=("coda", "logit"), exits=["latent:0.03", "kl:0.001"])
    with torch.no_grad():
        assert torch.equal(found.logits, model(ids, 6).logits)
    assert set(found.exits) == {"latent:0.03", "kl:0.001"} and not found.logits.requires_grad


def test_text_is_read_by_the_models_tokenizer() -> None:
    """Guards `mull.trace(model, "...")`: the ids of a prompt, with what the tokenizer puts before them."""
    model = mull.load(ROOT / "checkpoints/parity")
    found = mull.trace(model, "1 0 1", 8)
    assert found.input_ids.tolist() == [[4, 1, 0, 1]]
    assert (
        isinstance(found, Trace)
        and model.tokenizer.id_to_token(int(found.answers["coda"].tokens[0, -1, -1, 0])) == "even"
    )


REFUSED: Sequence[tuple[str, dict[str, Any], str]] = [
    ("recurrent", {"input_ids": torch.tensor([1, 2])}, r"shape \(batch, positions >= 1\), not \(2,\)"),
    ("recurrent", {"input_ids": torch.zeros(1, 0).long()}, r"shape \(batch, positions >= 1\), not \(1, 0\)"),
    ("recurrent", {"input_ids": [[1, 11]]}, "token id 11 lies outside the vocabulary of 11"),
    ("recurrent", {"input_ids": "1 0"}, "the model has no tokenizer"),
    ("inner_thinking", {"attention_mask": torch.ones(2, 3)}, r"attention_mask has shape \(2, 3\), input_ids \(2, 7\)"),
    ("transformer", {}, "has no loop, so there is nothing to trace"),
    ("recurrent", {"iterations": 0}, "iterations must be at least 1, not 0"),
    ("recurrent", {"iterations": torch.tensor([1, 2])}, "one iteration count for all rows|shape"),
    ("recurrent", {"iterations": 3, "read_at": [2, 4]}, r"read_at \[4\] lies outside 1 .. iterations=3"),
    ("recurrent", {"lenses": ("tuned",)}, "lenses must be of coda, logit"),
    ("recurrent", {"lenses": ()}, "lenses must be of coda, logit"),
    ("recurrent", {"top": 0}, "top must be at least 1"),
    ("recurrent", {"labels": [[1, 2]]}, r"labels must be integers of shape \(2, 7\)"),
    ("recurrent", {"labels": torch.full((2, 7), 11)}, "label 11 lies outside the vocabulary of 11"),
    ("recurrent", {"labels": "odd even"}, r"labels must be integers of shape \(2, 7\), not this str"),
    ("recurrent", {"labels": [[1, 2], [3]]}, r"labels must be integers of shape \(2, 7\), not this list"),
    ("recurrent", {"exits": 0.03}, "exits must be a list of rules such as latent:0.03, not 0.03"),
    ("recurrent", {"read_at": 2}, r"read_at must be a list of counts, not 2; write one count as \[8\]"),
    ("recurrent", {"read_at": [True]}, "read_at must be an integer of at least 1, not True"),
    ("recurrent", {"state": np.zeros((2, 7, 24))}, "state must have shape .* a tensor of floats, not ndarray"),
    ("recurrent", {"exits": ["later:1"]}, "exit 'later' is not known"),
    ("recurrent", {"capacity": 0.5}, "has no routed passes"),
    ("recurrent", {"state": torch.zeros(1, 1, 1)}, r"state must have shape \(2, 7, 24\)"),
    ("recurrent", {"state": torch.zeros(2, 7, 24), "generator": torch.Generator()}, "give one of them"),
    ("inner_thinking", {"state": torch.zeros(2, 7, 24)}, "state needs a model with a core"),
    ("inner_thinking", {"exits": ["latent:0.1"]}, "needs a model with a core"),
    ("inner_thinking", {"iterations": 2, "capacity": (0.5, 0.5)}, "names 2 routed passes and there are 1"),
]


@pytest.mark.parametrize(
    ("family", "options", "message"), REFUSED, ids=[f"{f}-{list(o)}-{m[:12]}" for f, o, m in REFUSED]
)
def test_refusals_name_what_is_wrong(make_model: Make, family: str, options: dict[str, Any], message: str) -> None:
    """Guards one clear line for each mistake, before anything is computed."""
    with pytest.raises(ValueError, match=message):
        trace(make_model(family), **{"input_ids": some_ids(), **options})


def test_one_rule_may_stand_by_itself(make_model: Make) -> None:
    """A text was read letter by letter."""
    model, rule = make_model("recurrent"), "latent:0.5"
    [(word, left)] = trace(model, some_ids(), 4, exits=rule).exits.items()
    assert word == rule and torch.equal(left, trace(model, some_ids(), 4, exits=[rule]).exits[rule])
    assert torch.equal(left, *trace(model, some_ids(), 4, exits=parse(rule)).exits.values())


def test_few_logits_are_alive_at_once(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory, which must not grow with vocabulary x iterations x positions: when an answer is read, only that of
    the end is still there."""
    model = make_model("recurrent")
    assert isinstance(model, IteratedModel)
    alive: list[weakref.ref[Tensor]] = []
    read = model.read

    def watched(*arguments: Any) -> Any:
        assert sum(each() is not None for each in alive) <= 2  # the last answer, and the one before this
        reading = read(*arguments)
        alive.append(weakref.ref(reading.logits))
        return reading

    monkeypatch.setattr(model, "read", watched)
    trace(model, some_ids(), 8)
    assert len(alive) == 8
