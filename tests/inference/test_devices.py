"""Everything that runs a model, with the model on a second device (tests/elsewhere.py): nothing is left on the CPU, and
what is said is what the CPU says. Decoders have a file of their own beside them."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from mull.inference import console, stream
from mull.inference.chat import Chat
from mull.inference.early_exit import think_until
from mull.inference.exits import EXITS, parse
from mull.inference.generate import generate
from mull.inference.harness.encoding import Encoder
from mull.inference.harness.scoring import Pair, Scorer
from mull.inference.harness.writing import write
from mull.inference.measure.calibrate import calibrate
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.routers import router_uses
from mull.inference.measure.tokens import token_uses
from mull.inference.prompts import read_prompts
from mull.inference.sampling import Draw
from mull.inference.session import Session
from mull.models import IteratedModel, LanguageModel
from mull.models.families import FAMILIES
from mull.training.data.tokenizer import byte_tokenizer

MakeModel = Callable[..., LanguageModel]

SOME = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
LABELS = torch.where(torch.arange(6) % 4 == 3, -100, SOME.roll(-1, dims=1))


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> LanguageModel:
    """A model of every family, with an exit gate where the family has one."""
    layers = {"n_core": 1, "n_coda": 1, "exit_gate": True} if request.param == "recurrent_depth" else {"n_layers": 2}
    return make_model(request.param, **layers)


def same(elsewhere: ModuleType, here: Any, there: Any, name: str = "answer") -> None:
    """Equal to rounding, and on the second device where the CPU's answer is a tensor."""
    if isinstance(here, Tensor):
        assert isinstance(there, elsewhere.Elsewhere), f"{name} is left on the CPU"
        torch.testing.assert_close(there.held, here, rtol=1e-9, atol=1e-9, msg=lambda m: f"{name}: {m}")
    elif isinstance(here, tuple | list):
        assert len(here) == len(there)
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            same(elsewhere, one, other, f"{name}, {number}")
    elif isinstance(here, float):
        assert there == pytest.approx(here, rel=1e-9, abs=1e-9, nan_ok=True), name
    elif hasattr(here, "__dict__"):
        for field, value in vars(here).items():
            if field != "seconds":
                same(elsewhere, value, getattr(there, field), f"{name}: {field}")
    else:
        assert there == here, name


def compare(elsewhere: ModuleType, model: LanguageModel, say: Callable[[LanguageModel], Any]) -> None:
    """Ask the model on the CPU, then its copy on the second device."""
    here = say(model)
    with elsewhere.second_device():
        there = say(elsewhere.moved(model))
    same(elsewhere, here, there)


def count_of(model: LanguageModel, count: int = 4) -> int | None:
    return count if model.config.default_iterations else None


def test_text_lists_and_arrays_are_written_on(model: LanguageModel, elsewhere: ModuleType) -> None:
    """Whatever prompts are, they come from the CPU; text goes back to it."""
    model.tokenizer = None
    compare(elsewhere, model, lambda m: generate(m, [[1, 2], [3], [4, 5, 6]], max_new_tokens=4))
    compare(elsewhere, model, lambda m: generate(m, SOME.numpy(), max_new_tokens=4))
    compare(elsewhere, model, lambda m: list(stream(m, SOME, max_new_tokens=4, attention_mask=MASK)))


def test_text_is_written_on_with_stop_strings(make_model: MakeModel, elsewhere: ModuleType) -> None:
    model = make_model("recurrent", n_core=1, n_coda=1, vocab_size=257)
    model.tokenizer = byte_tokenizer()
    compare(elsewhere, model, lambda m: generate(m, ["ab", "é"], max_new_tokens=6, stop=["x", "zz"]))


def test_a_session_reads_forks_and_cuts(model: LanguageModel, elsewhere: ModuleType) -> None:
    """Rows with padding and without, chosen by a list, a tensor of either device, or a range."""

    def say(m: LanguageModel) -> list[Any]:
        to = SOME.to(m.device)
        session = Session(m, 3, 16, count_of(m))
        said = [session.read(to, MASK.to(m.device)), session.read(to[:, :1])]
        for rows in ([2, 0], range(2), torch.tensor([1, 1]), torch.tensor([0, 2], device=m.device)):
            fork = session.fork(rows)
            said += [fork.read(to[:2, 2:4]), fork.lengths]
        session.cut([2, 5, 1])
        return [*said, session.read(to[:, 1:3]), session.think(to[:, :2])]

    compare(elsewhere, model, say)


@pytest.mark.parametrize("rule", [kind.example for kind in EXITS.values()])
def test_every_exit_rule_leaves_at_the_same_count(make_model: MakeModel, elsewhere: ModuleType, rule: str) -> None:
    """With a mask and without, with a cache of either kind and without, warm and cold. Which keys are kept is no
    matter of the rule, nor is where a thought begins: one rule meets all four."""
    model = make_model("recurrent", n_core=1, n_coda=1, exit_gate=True)
    ways = [("deepest", False), ("shared", True)]
    if rule == next(iter(EXITS.values())).example:
        ways += [("deepest", True), ("shared", False)]

    def say(m: LanguageModel) -> list[Any]:
        to, mask = SOME.to(m.device), MASK.to(m.device)
        found = [think_until(m, to, 6, Session(m, 3, 16, 6, rule).exit, given) for given in (None, mask)]
        for policy, warm in ways:
            session = Session(m, 3, 16, 6, rule, policy=policy, warm_start=warm)
            found += [session.think(to, mask), session.read(to[:, :1]), session.read(to[:, 1:3])]
        return found

    compare(elsewhere, model, say)


@pytest.mark.parametrize("home", ["cpu", "elsewhere"])
def test_tokens_are_drawn_by_a_generator_of_any_device(elsewhere: ModuleType, home: str) -> None:
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def say(given: Tensor) -> list[Any]:
        device = torch.device("cpu") if home == "cpu" else given.device
        draw = Draw(torch.Generator(device).manual_seed(4), 0.9, 5, 0.9, 0.05)
        p = draw.distribution(given)
        return [draw.choose(given), p, draw.token(p), draw.token_at(p, draw.uniform(3, 1).to(given.device)[:, 0])]

    here = say(logits)
    with elsewhere.second_device():
        same(elsewhere, here, say(elsewhere.Elsewhere(logits)))


def measures(model: LanguageModel) -> dict[str, dict[str, Any]]:
    """What a family can be measured with."""
    if model.config.routed_layers:
        return {"capacity": {"capacity": 0.5}, "top-k": {"selection": "top_k"}}
    return {"exit": {"exit": "latent:0.3"}, "gate": {"exit": "gate:0.5"}} if hasattr(model, "think") else {}


def test_what_measures_says_the_same(model: LanguageModel, elsewhere: ModuleType) -> None:
    """Batches come from the CPU, as data has them; or lie on the device already."""
    counts = [1, 2, 4] if model.config.default_iterations else None

    def say(m: LanguageModel) -> list[Any]:
        found: list[Any] = []
        for device in ("cpu", m.device):
            pairs = [(SOME.to(device), LABELS.to(device)), (SOME[:2, :4].to(device), LABELS[:2, :4].to(device))]
            found.append(evaluate(m, {None: pairs}, counts, bytes_per_token=2.0))
            found += [token_uses(m, pairs, 4, **options) for options in measures(m).values()]
            if m.config.routed_layers:
                found.append(router_uses(m, pairs, 4))
        found += [evaluate(m, {None: pairs}, counts, **options) for options in measures(m).values()]
        if hasattr(m, "think"):
            rule = Session(m, 1, 8, 4, "latent:1").exit
            measured = lambda exit: evaluate(m, {None: pairs}, [6], exit=exit)[0]  # noqa: E731
            found.append(calibrate(rule, measured, mean_iterations=3, rounds=1, grid=3))
        return found

    compare(elsewhere, model, say)


@pytest.mark.parametrize("drawn", [{"temperature": 0.0}, {"temperature": 1.2, "top_k": 50}], ids=["greedy", "drawn"])
def test_the_commands_that_write_say_the_same(
    make_model: MakeModel, elsewhere: ModuleType, tmp_path: Any, capsys: pytest.CaptureFixture[str], drawn: Any
) -> None:
    """A prompt, a file of prompts, and a conversation, with the generator of the command line on the model's device."""
    model = make_model("recurrent", n_core=1, n_coda=1, vocab_size=257, max_length=40)
    model.tokenizer = byte_tokenizer()
    file = tmp_path / "prompts.txt"
    file.write_text("abc\nde\nfghij\n")

    def say(m: LanguageModel) -> list[Any]:
        def call() -> dict[str, Any]:
            return {
                "iterations": 3, "exit": None, "max_new_tokens": 5, "top_k": None, "top_p": None, "min_p": None,
                "warm_start": False, "capacity": None, "stop": ["\n"], "cache_dtype": None,
                "generator": torch.Generator(m.device).manual_seed(3), **drawn,
            }  # fmt: skip

        console.write_answer(m, "abc", call())
        console.write_answers(m, read_prompts(str(file)), str(file), 2, call())
        chat = Chat(m, call())
        said = ["".join(chat.answer(text)) for text in ("hello", "you", "and you, how are you")]
        chat.think(2)
        lines = capsys.readouterr().out.splitlines()
        return [*said, "".join(chat.answer("?")), lines[0], *(json.loads(line) for line in lines[-3:])]

    compare(elsewhere, model, say)


def test_harness(model: LanguageModel, elsewhere: ModuleType) -> None:
    """Log-likelihoods come back as numbers, whether the counts share an unroll or a rule ends it; answers as text."""
    pairs = [Pair([1, 2, 3], [4]), Pair([5], [6, 7]), Pair([1, 2, 3], [8])]
    counts = [count_of(model, 1), count_of(model)] if model.config.default_iterations else [None]
    compare(elsewhere, model, lambda m: list(Scorer(m, counts, 2).score(pairs).values()))
    if isinstance(model, IteratedModel):
        rule = parse("latent:0.5")
        compare(elsewhere, model, lambda m: list(Scorer(m, counts, 2, rule).score(pairs).values()))
    options = {"until": [], "do_sample": False, "max_gen_toks": 3}
    asked = [("1 2", options), ("3", options), ("4 5 6", {**options, "do_sample": True})]
    model.tokenizer = words()
    compare(elsewhere, model, lambda m: write(Scorer(m, counts, 2), counts[-1], Encoder(m), asked, 0))


def words() -> Tokenizer:
    """A tokenizer whose words are the numbers of their tokens."""
    tokenizer = Tokenizer(WordLevel({str(number): number for number in range(11)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer
