"""Evaluation against its slow twin, one separate run of the model for each count and example."""

import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.intervals import clustered_mean, clustered_share, paired_share, wilson
from mull.inference.measure.results import Result
from mull.inference.measure.settling import settling
from mull.models import LanguageModel, RecurrentDepthTransformer

MakeModel = Callable[..., LanguageModel]
Batch = tuple[Tensor, Tensor]


def examples(n: int, length: int, seed: int = 0) -> Batch:
    """Inputs and labels (n, length); about a third of the labels are not scored, the first of each row always is."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (n, length), generator=generator)
    labels = torch.randint(11, (n, length), generator=generator)
    hidden = torch.rand(n, length, generator=generator) < 0.3
    hidden[:, 0] = False
    return ids, labels.masked_fill(hidden, -100)


def learnable(model: LanguageModel, n: int, length: int, iterations: int | None) -> Batch:
    """As `examples`, with the model's own answers for labels in half of the rows, so that some exact matches exist."""
    ids, labels = examples(n, length)
    with torch.no_grad():
        answers = model(ids, iterations).logits.argmax(dim=-1)
    own = (torch.arange(n) % 2 == 0)[:, None] & (labels != -100)
    return ids, torch.where(own, answers, labels)


def slow(model: LanguageModel, batch: Batch, iterations: int | None) -> dict[str, Any]:
    """The same numbers, one example and one full run at a time, by the definitions."""
    right, nats, sizes = [], [], []
    for ids, labels in zip(*batch, strict=True):
        with torch.no_grad():
            logits = model(ids[None], iterations).logits[0]
        scored = labels != -100
        right.append(int((logits.argmax(dim=-1) == labels)[scored].sum()))
        nats.append(float(F.cross_entropy(logits[scored], labels[scored], reduction="sum")))
        sizes.append(int(scored.sum()))
    exact = sum(r == s for r, s in zip(right, sizes, strict=True))
    accuracy, exact_match, loss = clustered_share(right, sizes), wilson(exact, len(right)), clustered_mean(nats, sizes)
    assert loss is not None
    return {
        "accuracy": sum(right) / sum(sizes), "accuracy_low": accuracy.low, "accuracy_high": accuracy.high,
        "exact_match": exact / len(right), "exact_match_low": exact_match.low, "exact_match_high": exact_match.high,
        "loss": sum(nats) / sum(sizes), "loss_low": loss.low, "loss_high": loss.high, "examples": len(right),
    }  # fmt: skip


def measured(result: Result) -> dict[str, Any]:
    """What a result says, without its clock and the columns that do not apply."""
    return {name: value for name, value in vars(result).items() if name != "seconds" and value is not None}


def test_one_sweep_equals_separate_runs(make_model: MakeModel) -> None:
    model = make_model("recurrent")
    batch = learnable(model, 10, 7, 4)
    results = evaluate(model, {7: [batch]}, [4, 1, 6, 4])
    assert [result.iterations for result in results] == [1, 4, 6]
    assert results[1].exact_match == 0.5 > results[0].exact_match  # type: ignore[operator]
    for result in results:
        assert result.difficulty == 7
        for name, value in slow(model, batch, result.iterations).items():
            assert getattr(result, name) == pytest.approx(value, rel=1e-9), name
        assert result.flops_per_token == model.config.flops_per_token(result.iterations, 7)
        assert result.bits_per_byte is None


def test_a_transformer_has_one_result(make_model: MakeModel) -> None:
    model = make_model("transformer")
    batch = learnable(model, 6, 5, None)
    (result,) = evaluate(model, {None: [batch]})
    assert result.iterations is None
    for name, value in slow(model, batch, None).items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-9), name
    assert result.flops_per_token == model.config.flops_per_token(None, 5)


def test_exactly_one_unroll_and_one_readout_a_count(make_model: MakeModel) -> None:
    model = make_model("recurrent")
    calls = {"core": 0, "coda": 0}
    for name in calls:
        layer = getattr(model, name)[0]
        layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    evaluate(model, {None: [examples(3, 5), examples(3, 5, seed=1)]}, [1, 2, 8])
    assert calls == {"core": 2 * 8, "coda": 2 * 3}


def test_readings_are_let_go_one_by_one_and_keep_no_graph(make_model: MakeModel) -> None:
    """When a count is read, at most the logits of the one before still live: memory is flat in the number of counts."""
    model, alive = make_model("recurrent"), list[weakref.ref[Tensor]]()
    assert isinstance(model, RecurrentDepthTransformer)
    read = model.read

    def watched(*args: Any) -> Any:
        assert sum(ref() is not None for ref in alive) <= 1  # the loop variable still names the previous one
        reading = read(*args)
        assert not reading.logits.requires_grad
        alive.append(weakref.ref(reading.logits))
        return reading

    model.read = watched  # type: ignore[assignment]
    evaluate(model, {None: [examples(3, 5)]}, [1, 2, 3, 4, 5, 6])
    assert len(alive) == 6


def test_batching_changes_nothing(make_model: MakeModel) -> None:
    """Guards sums against means of batch means; examples without a scored token do not count, wherever they stand."""
    model, (ids, labels) = make_model("recurrent"), examples(7, 6)
    labels[3] = -100

    def split(size: int) -> Iterator[Batch]:
        return ((ids[i : i + size], labels[i : i + size]) for i in range(0, 7, size))

    whole = evaluate(model, {6: split(7)}, [1, 3])
    assert whole[0].examples == 6
    for size in (1, 2, 5):
        for one, other in zip(whole, evaluate(model, {6: split(size)}, [1, 3]), strict=True):
            assert measured(one) == pytest.approx(measured(other), rel=1e-9)


def test_right_padding_changes_nothing(make_model: MakeModel) -> None:
    model, (ids, labels) = make_model("recurrent"), examples(4, 6)
    padded = F.pad(ids, (0, 3)), F.pad(labels, (0, 3), value=-100)
    one, other = (evaluate(model, {None: [batch]}, [3])[0] for batch in ((ids, labels), padded))
    assert one.loss == pytest.approx(other.loss, rel=1e-12)
    assert one.accuracy == other.accuracy


def test_counts_are_compared_example_by_example(make_model: MakeModel) -> None:
    """Against separate runs: every count less the default one (3), right tokens of each example subtracted first; the
    order of examples decides the interval, so pairs that were mixed up would show."""
    model = make_model("recurrent")
    ids, labels = learnable(model, 12, 7, 3)
    results = evaluate(model, {7: [(ids[:5], labels[:5]), (ids[5:], labels[5:])]}, [1, 3, 6])
    sizes = (labels != -100).sum(1).tolist()
    with torch.no_grad():
        answers = {count: model(ids, count).logits.argmax(-1) for count in (1, 3, 6)}
    right = {count: ((found == labels) & (labels != -100)).sum(1) for count, found in answers.items()}
    for result in results:
        if result.iterations == 3:
            assert (result.reference, result.difference, result.difference_low) == (None, None, None)
            continue
        differences = (right[result.iterations or 0] - right[3]).tolist()
        assert result.reference == 3 and result.difference == pytest.approx(sum(differences) / sum(sizes))
        assert (result.difference_low, result.difference_high) == pytest.approx(paired_share(differences, sizes))
        assert result.difference == pytest.approx(result.accuracy - results[1].accuracy)
    assert results[0].difference != 0
    deepest = evaluate(model, {7: [(ids, labels)]}, [1, 6])  # the default count is not among them
    assert [result.reference for result in deepest] == [6, None]
    assert evaluate(model, {7: [(ids, labels)]}, [6])[0].reference is None


def test_settling_of_all_counts_takes_an_example_as_one(make_model: MakeModel) -> None:
    """Against separate runs: the residuals of all counts together, each with the example that it is of, in two batches;
    the count without a residual has no part in it."""
    model = make_model("recurrent")
    ids, labels = learnable(model, 12, 7, 3)
    keep = (labels != -100).cumsum(dim=1) == 1  # the first scored position of each row, so that some are right by luck
    labels, counts = labels.masked_fill(~keep, -100), (1, 2, 3, 4)
    results = evaluate(model, {7: [(ids[:5], labels[:5]), (ids[5:], labels[5:])]}, counts)
    residuals, right, example = [], [], []
    for count in counts[1:]:
        with torch.no_grad():
            out = model(ids, count)
        last = (labels != -100).int().argmax(dim=1).tolist()
        residuals += [moved[: end + 1].max().item() for moved, end in zip(out.residual, last, strict=True)]
        right += ((out.logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist()
        example += range(12)
    expected, alone = settling(residuals, right, example), settling(residuals, right)
    assert expected.auc_low != pytest.approx(alone.auc_low, rel=1e-3)
    assert results[0].auc_of_all is None
    for result in results[1:]:
        found = (result.auc_of_all, result.auc_of_all_low, result.auc_of_all_high)
        assert found == pytest.approx((expected.auc, expected.auc_low, expected.auc_high), rel=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_what_an_answer_depends_on_must_rest(make_model: MakeModel, causal: bool) -> None:
    """In a causal model all up to the last scored position, and nothing behind it; on a board all of it."""
    model = make_model("recurrent", causal=causal)
    ids = torch.randint(model.config.vocab_size, (6, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.full((6, 9), -100)
    labels[:, 4] = labels[:, 6] = 1
    moved = model(ids, 3).residual
    assert moved is not None
    found = evaluate(model, {9: [(ids, labels)]}, [3])[0].residual
    assert found == pytest.approx(moved[:, : 7 if causal else 9].amax(dim=1).mean().item())
    for other in (slice(0, 9 if causal else 7), slice(4, 7, 2)):
        assert found != pytest.approx(moved[:, other].amax(dim=1).mean().item())


def test_text_is_compared_in_bits_per_byte(make_model: MakeModel) -> None:
    """Guards the unit, and pairs: the interval of a difference is that of differences of sums, not of two sums."""
    model, batch = make_model("recurrent"), examples(9, 6)
    one, three = evaluate(model, {None: [batch]}, [1, 3], bytes_per_token=2.0)
    assert one.bits_per_byte is not None and three.bits_per_byte is not None and one.difference is not None
    assert one.difference == pytest.approx(one.bits_per_byte - three.bits_per_byte)
    nats = {}
    for count in (1, 3):
        with torch.no_grad():
            logits = model(batch[0], count).logits
        nats[count] = F.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").sum(1)
    bounds = clustered_mean((nats[1] - nats[3]).tolist(), (batch[1] != -100).sum(1).tolist())
    assert bounds is not None
    scale = 1 / 2.0 / 0.6931471805599453
    assert (one.difference_low, one.difference_high) == pytest.approx((scale * bounds.low, scale * bounds.high))
    alone = evaluate(model, {None: [examples(1, 6)]}, [1, 3], bytes_per_token=2.0)[0]
    assert alone.difference is not None and alone.difference_low is None  # one example has no spread


def test_what_guessing_reaches_is_measured_on_the_same_answers(make_model: MakeModel) -> None:
    """The most frequent label of 1, 1, 1, 4 is right three times of four; as text that is 0.811 bits a token."""
    model, ids = make_model("recurrent"), torch.ones(2, 3).long()
    labels = torch.tensor([[1, 1, -100], [1, 4, -100]])
    assert evaluate(model, {None: [(ids[:1], labels[:1]), (ids[1:], labels[1:])]}, [1, 2])[1].guess == 0.75
    (text,) = evaluate(model, {None: [(ids, labels)]}, [1], bytes_per_token=2.0)
    assert text.guess == pytest.approx(0.8112781244591328 / 2)


def test_difficulties_stay_apart_and_in_order(make_model: MakeModel) -> None:
    model = make_model("recurrent")
    results = evaluate(model, {8: [examples(3, 8)], 4: [examples(5, 4)]}, [2, 1])
    assert [(result.difficulty, result.iterations, result.examples) for result in results] == [
        (8, 1, 3),
        (8, 2, 3),
        (4, 1, 5),
        (4, 2, 5),
    ]
    alone = evaluate(model, {4: [examples(5, 4)]}, [1, 2])
    assert [measured(result) for result in results[2:]] == [measured(result) for result in alone]


def test_text_is_measured_in_bits_per_byte(make_model: MakeModel) -> None:
    (result,) = evaluate(make_model("recurrent"), {None: [examples(4, 6)]}, [2], bytes_per_token=2.5)
    assert result.bits_per_byte == pytest.approx(result.loss / 0.6931471805599453 / 2.5, rel=1e-12)
    assert (result.exact_match, result.exact_match_low, result.exact_match_high) == (None, None, None)


def test_defaults_and_what_is_left_alone(make_model: MakeModel) -> None:
    model = make_model("recurrent").train()
    results = evaluate(model, {None: [examples(1, 6)]})
    assert [result.iterations for result in results] == [3]  # the config's mean_iterations
    assert results[0].loss_low is None  # one example has no spread
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_seconds_grow_with_the_count_and_cover_all_batches(make_model: MakeModel) -> None:
    results = evaluate(make_model("recurrent"), {None: [examples(4, 6)] * 3}, [1, 2, 30])
    assert 0 < results[0].seconds < results[1].seconds < results[2].seconds


def test_a_position_without_a_number_is_not_right(make_model: MakeModel) -> None:
    """argmax of NaN is token 0: a diverged model would be right wherever the answer is 0."""
    model = make_model("recurrent")
    torch.nn.init.constant_(model.coda[0].mlp.down.weight, float("nan"))  # type: ignore[index, union-attr]
    ids = examples(4, 6)[0]
    (result,) = evaluate(model, {None: [(ids, torch.zeros_like(ids))]}, [2])
    assert result.accuracy == result.exact_match == 0
    assert result.loss != result.loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": [2, 0]}, "iterations must be at least 1, not 0"),
        ({"iterations": ["abc"]}, "iterations must be an integer of at least 1, not 'abc'"),
        ({"iterations": []}, "iterations is empty"),
        ({"bytes_per_token": 0.0}, "bytes_per_token must be more than 0, not 0.0"),
        ({"batches": {16: []}}, "difficulty 16 has no scored token"),
        (
            {"batches": {None: [(torch.ones(2, 3).long(), torch.full((2, 3), -100))]}},
            "the batches have no scored token",
        ),
        ({"batches": {None: [(torch.ones(2, 3).long(), torch.ones(2, 4).long())]}}, "(2, 3) and labels (2, 4)"),
        ({"batches": {None: [(torch.full((2, 3), 11), torch.ones(2, 3).long())]}}, "input_ids: token id 11 lies"),
        ({"batches": {None: [(torch.ones(2, 3).long(), torch.full((2, 3), 12))]}}, "labels: token id 12 lies"),
    ],
)
def test_bad_values_are_refused_in_one_line(make_model: MakeModel, options: dict[str, Any], message: str) -> None:
    arguments = {"batches": {None: [examples(2, 3)]}, "iterations": [1], **options}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        evaluate(make_model("recurrent"), **arguments)
    assert "\n" not in str(caught.value)


def test_an_exit_rule_is_refused_where_positions_see_later_ones(make_model: MakeModel) -> None:
    """Guards the remedy: an evaluation takes whole rows, but for an exit rule, which is what is to be left out."""
    model = make_model("recurrent", causal=False)
    with pytest.raises(ValueError, match=r"exit 'latent' lets positions go one by one, .*\(causal: false\).*leave the"):
        evaluate(model, {6: [examples(2, 6)]}, [2], exit="latent:0.1")


def test_counts_for_a_transformer_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="a Transformer has no loop"):
        evaluate(make_model("transformer"), {None: [examples(2, 3)]}, [1, 2])
