"""mull as a model of lm-evaluation-harness: depth reaches every kind of request, and the numbers are mull's own."""

from __future__ import annotations

import math
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import mull
from mull.checkpoints import load_tokenizer
from mull.inference.measure.evaluate import evaluate
from mull.inference.text import encode
from mull.models import IteratedModel
from mull.models.labels import IGNORE
from mull.training.data import Parity

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.registry import Registry, get_model

from mull.inference.harness.model import MullLM

ROOT = Path(__file__).parents[3]
TEXT = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.\n"
    "How many clips did Natalia sell altogether in April and May? — 72, says the answer.\n"
)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, number, ("task", number, 1)) for number, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def text() -> MullLM:
    """The shipped text model at three depths out of one unroll."""
    return MullLM("text", 4, also=[1, 2], batch_size=8)


def test_the_entry_point_is_the_class() -> None:
    """Guards `--model mull`: the declared entry point loads the class, lm-eval's registry takes it as a placeholder,
    and importing it registers it in the released lm-eval, which reads no entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    point = EntryPoint(name, value, "lm_eval.models")
    later: Registry[type[LM]] = Registry("model", base_cls=LM)
    later.register(name, target=point)
    assert name == "mull" and point.load() is MullLM is get_model("mull") is later.get("mull")


def test_arguments_of_a_command_line() -> None:
    """Guards `--model_args`: text becomes counts, rules and types, and batch size and device come beside it."""
    lm = MullLM.create_from_arg_string(
        "pretrained=parity,iterations=8,exit=latent:0.03,dtype=float64", {"batch_size": "4", "device": None}
    )
    assert lm.iterations == 8 and lm.scorer.batch_size == 4 and lm.model.dtype == torch.float64
    assert lm.scorer.exit is not None and lm.scorer.exit.threshold == 0.03
    said = lm.get_model_info()
    assert said["model_args"] == "pretrained=parity,iterations=8,exit=latent:0.03,dtype=float64"
    assert MullLM("parity").iterations == 16 and MullLM("inner-thinking", 3, capacity=0.5).scorer.capacity == 0.5


@torch.no_grad()
def test_likelihoods_are_sums_of_log_softmax(text: MullLM) -> None:
    """Guards loglikelihood at every depth against the plain sum over the bytes of the text, and the greedy flag against
    what mull itself would write."""
    asked = [("Natalia sold", " clips"), ("Natalia sold ", "the"), ("", TEXT), ("q", "q" * 9)]
    greedy = mull.generate(text.model, "The number of", 4, max_new_tokens=6).text
    found = {count: text.at(count).loglikelihood(requests("loglikelihood", *asked)) for count in (1, 2, 4)}
    for count in (1, 2, 4):
        for (context, continuation), (value, _) in zip(asked, found[count], strict=True):
            ids = [256, *(context + continuation).encode()]
            start = 1 + len(context.rstrip().encode())
            ids, start = (ids, start) if start == 1 else (ids[1:], start - 1)
            logits = text.model(torch.tensor([ids]), count).logits[0]
            expected = sum(float(logits[at - 1].log_softmax(-1)[ids[at]]) for at in range(start, len(ids)))
            assert value == pytest.approx(expected, abs=2e-3 if len(ids) > 100 else 1e-4)
    pairs = requests("loglikelihood", ("The number of", greedy), ("The number of", f"{greedy[:-1]}#"))
    assert [flag for _, flag in text.loglikelihood(pairs)] == [True, False]


def test_the_other_depths_are_answered_from_what_is_kept(text: MullLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the price of a sweep: the first depth runs the deepest count once, the others run nothing."""
    counted, model = [0], text.model
    assert isinstance(model, IteratedModel)
    think = model.think

    def counting(*args: Any) -> Any:
        counted[0] += 1
        return think(*args)

    monkeypatch.setattr(model, "think", counting)
    asked = requests("loglikelihood", ("To be", " or not"), ("To be", " or no"), ("To be", " or not"))
    first = text.at(1).loglikelihood(asked)
    assert counted == [4] and first[0] == first[2] != first[1]
    assert text.at(4).loglikelihood(asked) != text.at(2).loglikelihood(asked) != first and counted == [4]
    assert text.loglikelihood_rolling(requests("loglikelihood_rolling", ("To be",))) and counted == [8]
    with pytest.raises(ValueError, match="iterations=3 is none of"):
        text.at(3)


def test_bits_per_byte_are_those_of_evaluate(text: MullLM) -> None:
    """Guards rolling likelihoods against mull's own evaluation of the same text, one text longer than max_length."""
    texts = [TEXT, TEXT * 7]
    assert len(texts[1].encode()) > text.max_length
    limit, size = text.max_length, sum(len(each.encode()) for each in texts)
    batches = []
    for each in texts:
        ids = torch.tensor([256, *each.encode()])
        places = range(0, len(ids) - 1, limit)  # the last window is filled up with what stands before it
        windows = [max(0, min(at, len(ids) - 1 - limit)) for at in places]
        for at, start in zip(places, windows, strict=True):
            read, told = ids[start : start + limit], ids[start + 1 : start + limit + 1].clone()
            told[: at - start] = IGNORE
            batches.append((read[None, : len(told)], told[None]))
    results = evaluate(text.model, {None: batches}, [1, 4], bytes_per_token=1.0)
    for result, count in zip(results, (1, 4), strict=True):
        sums = text.at(count).loglikelihood_rolling(requests("loglikelihood_rolling", *((each,) for each in texts)))
        assert -sum(sums) / math.log(2) / size == pytest.approx(result.bits_per_byte, rel=1e-6)


class Theirs(TemplateLM):
    """A model of the harness that reads text as mull's parity model does, and can do nothing else."""

    eot_token_id = 0
    loglikelihood_rolling = generate_until = _loglikelihood_tokens = TemplateLM.loglikelihood

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return encode(load_tokenizer("parity"), string)


def test_pairs_are_split_as_in_the_harness() -> None:
    """Guards the convention where nothing merges: the split is that of the harness's own models."""
    lm = MullLM("parity", 4)
    for context, continuation in [("1 0 1", " odd"), ("1 0 1 ", "odd"), ("1\n", "1 even")]:
        assert tuple(map(list, lm.encoder.pair(context, continuation))) == Theirs()._encode_pair(context, continuation)


def test_answers_are_those_of_generate(text: MullLM) -> None:
    """Guards generate_until: depth, stop strings, the most tokens and batches, against mull.generate row by row."""
    prompts = ["Natalia", "To be, or not", "How many clips did Natalia sell", "The"]
    options = {"until": [" t", ""], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    for count in (1, 4):
        lm = text.at(count)
        found = lm.generate_until(requests("generate_until", *((prompt, options) for prompt in prompts)))
        alone = [mull.generate(lm.model, each, count, max_new_tokens=12, stop=" t").text for each in prompts]
        assert found == alone and all(" t" not in each for each in found)
        assert any(len(each) < 12 for each in found)
    assert (
        text.at(1).generate_until(requests("generate_until", ("Natalia", {"max_new_tokens": 3})))[0]
        == mull.generate(text.model, "Natalia", 1, max_new_tokens=3).text
    )


def test_draws_do_not_depend_on_what_is_beside_them(text: MullLM) -> None:
    """Guards sampling: the seed and the prompt decide, a prompt that is asked twice is drawn twice, and do_sample
    without a temperature draws at 1."""
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "top_k": 50}
    both = requests("generate_until", ("Natalia", options), ("To be", options), ("Natalia", options))
    lm = text.at(2)
    found = lm.generate_until(both)
    assert found[0] != found[2] and found[:2] == [lm.generate_until([each])[0] for each in both[:2]]
    other = MullLM(text.model, 2, seed=1)
    assert other.generate_until(both[:1]) != found[:1]
    greedy = requests("generate_until", ("Natalia", {**options, "do_sample": False, "temperature": 0.7}))
    assert lm.generate_until(greedy)[0] == mull.generate(text.model, "Natalia", 2, max_new_tokens=8).text
    with pytest.raises(ValueError, match="generation_kwargs num_beams=4 means nothing to mull"):
        lm.generate_until(requests("generate_until", ("Natalia", {**options, "num_beams": 4})))


def test_a_context_that_is_too_long_is_cut_once_for_all(text: MullLM) -> None:
    """Guards truncation in requests: one warning, and the score is that of the last max_length tokens."""
    long, cut = "x" * 2000, "x" * (text.max_length - 2)
    with pytest.warns(UserWarning, match="1 of 2 requests are longer than the model's max_length of 1024") as said:
        found = text.loglikelihood(requests("loglikelihood", (long, " y."), ("x", " y.")))
    assert len(said) == 1 and found[0] == text.loglikelihood(requests("loglikelihood", (cut, " y.")))[0]
    with pytest.warns(UserWarning, match="with 4 new ones"):
        written = text.at(1).generate_until(requests("generate_until", (long, {"max_gen_toks": 4, "until": []})))
    assert len(written[0]) <= 4


def test_what_is_no_model_for_it_is_refused(tmp_path: Path) -> None:
    """Guards the mistakes of arguments: each is one ValueError that names the value."""
    task, config = Parity(8), mull.RecurrentDepthConfig(vocab_size=6, d_model=8, n_heads=2, max_length=8)
    bare = mull.RecurrentDepthTransformer(config)
    mull.save(bare, tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        MullLM(tmp_path / "bare")
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        MullLM(bare)
    with pytest.raises(ValueError, match="causal: false"):
        MullLM("sudoku")
    bare.tokenizer = task.tokenizer
    for arguments, says in [
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"iterations": 2.5}, r"iterations must be an integer of at least 1, not 2\.5"),
        ({"batch_size": "auto"}, "batch_size: 'auto' is no integer"),
        ({"dtype": "float8"}, "dtype 'float8' is none of"),
        ({"exit": "boredom:1"}, "boredom"),
        ({"capacity": 0.5}, "no routed passes"),
    ]:
        with pytest.raises(ValueError, match=says):
            MullLM(bare, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chat templates are refused"):
        _ = MullLM(bare).tokenizer_name  # which the harness asks for where it is to apply one
    with pytest.raises(ValueError, match="unknown symbol 'two'"):
        MullLM(bare).loglikelihood(requests("loglikelihood", ("1 two", " odd")))


def test_a_model_without_a_loop_has_one_depth() -> None:
    """Guards the untied baseline: it is scored as it is, and refuses a count."""
    task = Parity(8)
    config = mull.TransformerConfig(vocab_size=6, d_model=8, n_heads=2, n_layers=1, max_length=8)
    model = mull.Transformer(config).eval()
    model.tokenizer = task.tokenizer
    lm = MullLM(model)
    ((value, _),) = lm.loglikelihood(requests("loglikelihood", ("1 0", " odd")))
    with torch.no_grad():
        expected = model(torch.tensor([[4, 1, 0]])).logits[0, -1].log_softmax(-1)[3]
    assert lm.iterations is None and value == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="has no loop: iterations=4 is refused"):
        MullLM(model, 4)
