"""Thinking until a rule says so, against its slow twin: one position at a time, the whole loop, no batch."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mull.inference.decoders.speculative import accept
from mull.inference.early_exit import think_until
from mull.inference.exits import EXITS, Exit, parse
from mull.inference.generate import generate
from mull.inference.measure.evaluate import evaluate
from mull.inference.sampling import Draw
from mull.models import LanguageModel, RecurrentDepthTransformer

MakeModel = Callable[..., LanguageModel]
LIMIT = 6
STATE_RULES = ["latent:0.3", "latent:0.2,minimum=2,every=3", "acceleration:0.4", "gate:0.2", "fixed:4"]
RULES_AT_WORK = [*STATE_RULES, "kl:0.05", "entropy:0.02", "argmax:-1", "confidence:0.7"]


def ids_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def gated(make_model: MakeModel, seed: int = 0, **changes: object) -> RecurrentDepthTransformer:
    model = make_model("recurrent", seed, exit_gate=True, **changes)
    assert isinstance(model, RecurrentDepthTransformer)
    return model


def one_by_one(model: LanguageModel, ids: Tensor, exit: Exit) -> tuple[Tensor, Tensor]:
    """The twin: every row alone, every position a call of its own, in which nothing can leave but itself."""
    logits, used = [], []
    for row in ids:
        cache = model.new_cache(1, len(row), "deepest")
        calls = [think_until(model, token.view(1, 1), LIMIT, exit, cache=cache) for token in row]
        logits.append(torch.cat([call.logits for call in calls], 1))
        used.append(torch.cat([call.iterations for call in calls], 1))
    return torch.cat(logits), torch.cat(used)


@pytest.mark.parametrize("text", STATE_RULES)
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 7), seed=st.integers(0, 9))
def test_a_batch_of_prompts_equals_one_position_at_a_time(
    make_model: MakeModel, text: str, rows: int, length: int, seed: int
) -> None:
    model, ids, rule = gated(make_model, seed), ids_of(rows, length, seed), parse(text)
    out = think_until(model, ids, LIMIT, rule)
    logits, used = one_by_one(model, ids, rule)
    assert torch.equal(out.iterations, used)
    torch.testing.assert_close(out.logits, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("text", RULES_AT_WORK)
def test_positions_leave_at_different_counts_and_padding_changes_nothing(make_model: MakeModel, text: str) -> None:
    """Left and right padding, for rules of either kind; and the rules do something here."""
    model, rule = gated(make_model), parse(text)
    ids, mask = ids_of(4, 9), torch.ones(4, 9, dtype=torch.int64)
    mask[0, :3] = mask[1, 7:] = mask[2, :1] = mask[2, 8:] = 0
    out = think_until(model, ids, LIMIT, rule, mask)
    assert out.iterations[mask == 0].eq(0).all()
    for row in range(4):
        real = mask[row].bool()
        alone = think_until(model, ids[row, real][None], LIMIT, rule)
        assert torch.equal(out.iterations[row, real], alone.iterations[0])
        torch.testing.assert_close(out.logits[row, real], alone.logits[0], rtol=1e-10, atol=1e-10)
    if not text.startswith("fixed"):
        assert len(out.iterations[mask == 1].unique()) > 1, "everything left at once, which shows nothing"


@pytest.mark.parametrize("text", RULES_AT_WORK)
def test_a_suffix_never_changes_the_prefix(make_model: MakeModel, text: str) -> None:
    """Nor its depth: whether a position leaves is settled by itself and what stands before it."""
    model, rule, one, other = gated(make_model), parse(text), ids_of(2, 8), ids_of(2, 8, seed=1)
    other[:, :5] = one[:, :5]
    a, b = think_until(model, one, LIMIT, rule), think_until(model, other, LIMIT, rule)
    assert torch.equal(a.iterations[:, :5], b.iterations[:, :5])
    torch.testing.assert_close(a.logits[:, :5], b.logits[:, :5], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(a.logits[:, 5:], b.logits[:, 5:])


@pytest.mark.parametrize("name", ["kl", "argmax"])
def test_a_rule_that_reads_answers_goes_by_its_last_check(make_model: MakeModel, name: str) -> None:
    """Guards `every` and `minimum`: an answer is compared with that of the check before, and not with that of an
    iteration in which nothing was read. The twin reads the answers of whole runs to 2, 4 and 6 iterations."""
    model, ids = gated(make_model), ids_of(1, 24)
    log_p = [model(ids, iterations=count).logits[0].log_softmax(-1) for count in (2, 4, 6)]
    if name == "kl":
        moved = [(new.exp() * (new - old)).sum(-1) for old, new in pairwise(log_p)]
        threshold = moved[0].median().item()
    else:
        moved = [-1.0 - (new.argmax(-1) == old.argmax(-1)).double() for old, new in pairwise(log_p)]
        threshold = -1.0
    used = think_until(model, ids, LIMIT, parse(f"{name}:{threshold},minimum=2,every=2")).iterations[0]
    assert torch.equal(used, torch.where(moved[0] < threshold, 4, 6)) and len({*used.tolist()}) == 2


@pytest.mark.parametrize("injection", ["concat", "add", "diagonal"])
def test_a_rule_that_never_leaves_is_the_plain_loop(make_model: MakeModel, injection: str) -> None:
    model, ids = gated(make_model, injection=injection), ids_of(3, 6)
    for rule in ("latent:-1", "fixed:99"):
        out, plain = think_until(model, ids, LIMIT, parse(rule)), model(ids, LIMIT)
        torch.testing.assert_close(out.logits, plain.logits, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.exit_logit, plain.exit_logit, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.state, plain.state, rtol=1e-10, atol=1e-10)
        assert torch.equal(out.iterations, plain.iterations)


def test_what_has_left_is_not_computed(make_model: MakeModel) -> None:
    """Saving is counted in rows of the core's matrices, not promised."""
    model, rows = gated(make_model), []
    model.core[0].mlp.register_forward_hook(lambda _module, inputs, _out: rows.append(inputs[0].shape[:-1].numel()))
    out = think_until(model, ids_of(4, 9), LIMIT, parse("latent:0.3"))
    assert rows == [int((out.iterations >= count).sum()) for count in range(1, int(out.iterations.max()) + 1)]
    assert sum(rows) < 4 * 9 * LIMIT


OTHERWISE: list[dict[str, Any]] = [{"policy": "shared"}, {"policy": "shared", "ring": 2}, {"warm_start": True}]


@pytest.mark.parametrize(
    ("text", "how"), [(text, {}) for text in RULES_AT_WORK] + [("acceleration:0.4", how) for how in OTHERWISE], ids=str
)
def test_generation_does_not_depend_on_the_batch(make_model: MakeModel, text: str, how: dict[str, Any]) -> None:
    """Rows of other lengths, padding and stop tokens around a row change neither its text nor its depths."""
    model = gated(make_model)
    ids, mask = ids_of(4, 6), torch.ones(4, 6, dtype=torch.int64)
    mask[1, :2] = mask[2, 4:] = 0
    together = generate(model, ids, LIMIT, text, 8, attention_mask=mask, stop_tokens=[3, 5], **how)
    for row in range(4):
        alone = generate(model, ids[row, mask[row].bool()][None], LIMIT, text, 8, stop_tokens=[3, 5], **how)
        n = alone.new_tokens.shape[1]
        assert torch.equal(together.new_tokens[row, :n], alone.new_tokens[0])
        assert torch.equal(together.iterations[row, :n], alone.iterations[0])
        assert together.iterations[row, n:].eq(0).all()


def test_calibration_is_told_of_scored_positions(make_model: MakeModel) -> None:
    model, ids = gated(make_model), ids_of(2, 5)
    out = think_until(model, ids, LIMIT, parse("latent:0.3"))
    labels = out.logits.argmax(-1)
    labels[0, :2], labels[1, 0] = -100, (labels[1, 0] + 1) % 11
    (measured,) = evaluate(model, {None: [(ids, labels)]}, [LIMIT], exit="latent:0.3")
    assert measured.mean_iterations == pytest.approx(out.iterations.double().mean().item())
    assert measured.accuracy == pytest.approx(7 / 8)


def test_evaluation_under_a_rule(make_model: MakeModel) -> None:
    """Counts are limits; what is reported is what positions used, in iterations and in FLOPs."""
    model, ids = gated(make_model), ids_of(4, 6)
    plain = evaluate(model, {None: [(ids, ids)]}, [2, LIMIT])
    never = evaluate(model, {None: [(ids, ids)]}, [2, LIMIT], exit="latent:-1")
    for row, other in zip(plain, never, strict=True):
        assert (row.accuracy, row.flops_per_token) == (other.accuracy, pytest.approx(other.flops_per_token))
        assert row.loss == pytest.approx(other.loss) and row.mean_iterations is None
        assert other.mean_iterations == other.iterations
    soon = evaluate(model, {None: [(ids, ids)]}, [LIMIT], exit="latent:0.3")[0]
    out = think_until(model, ids, LIMIT, parse("latent:0.3"))
    assert soon.mean_iterations == pytest.approx(out.iterations.double().mean().item())
    low, high = (row.flops_per_token for row in plain)
    per_iteration = (high - low) / (LIMIT - 2)
    assert soon.flops_per_token == pytest.approx(low + per_iteration * (soon.mean_iterations - 2))


def test_ids_and_masks_are_taken_as_the_model_takes_them(make_model: MakeModel) -> None:
    """Lists, small integers, padding beyond the model's limit: as in a plain call."""
    model, ids = make_model("recurrent", max_length=8), ids_of(2, 10)
    mask = torch.tensor([[0] * 4 + [1] * 6, [1] * 3 + [0] * 7])
    found = think_until(model, ids, LIMIT, parse("latent:0.3"), mask)
    for row, there in enumerate(mask.bool()):
        alone = think_until(model, ids[row : row + 1, there], LIMIT, parse("latent:0.3"))
        torch.testing.assert_close(found.logits[row : row + 1, there], alone.logits, rtol=1e-10, atol=1e-10)
    for asked, where in ((ids.tolist(), mask.tolist()), (ids.to(torch.uint8), mask.bool())):
        again = think_until(model, asked, LIMIT, parse("latent:0.3"), where)  # type: ignore[arg-type]
        assert torch.equal(again.logits, found.logits) and torch.equal(again.iterations, found.iterations)


def test_models_that_cannot_follow_a_rule_say_so(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="needs a model with a core that is iterated, not a Transformer"):
        generate(make_model("transformer"), ids_of(1, 3), exit="latent:0.1")
    with pytest.raises(ValueError, match="needs a model with an exit gate"):
        generate(make_model("recurrent"), ids_of(1, 3), exit="gate:0.1")
    with pytest.raises(
        ValueError, match="decode 'adaptive' takes one count of iterations for all rows, not one per row"
    ):
        generate(make_model("recurrent"), ids_of(2, 3), torch.tensor([1, 2]), exit="latent:0.1")


def test_every_rule_is_at_work_here() -> None:
    assert {text.partition(":")[0] for text in RULES_AT_WORK} == set(EXITS)


@pytest.mark.parametrize("rule", ["latent:-1", "kl:-1", "kl:-1,every=4", "confidence:-1,minimum=3"])
def test_flops_count_the_answers_that_a_rule_reads(make_model: MakeModel, rule: str) -> None:
    """What an exit rule reads on the way is paid for: coda and head, as torch's own counter has them. Nobody leaves."""
    model = make_model("recurrent", n_kv_heads=3).float()
    ids = torch.arange(10)[None].repeat(2, 1)
    out = think_until(model, ids, 8, parse(rule))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its own kernel is not counted
        think_until(model, ids, 8, parse(rule))
    assert counter.get_total_flops() / ids.numel() == pytest.approx(model.executed_flops_per_token(out), rel=0.01)


def test_drafts_are_accepted_where_they_are() -> None:
    """The uniform draws of a greedy run come from the CPU; tokens and probabilities are on the model's device."""

    def somewhere(*shape: int, **kind: Any) -> Tensor:
        return torch.zeros(*shape, device="meta", **kind)

    draw = Draw()
    accepted, then = accept(
        somewhere(1, 2, dtype=torch.long), somewhere(1, 2, 5), somewhere(1, 3, 5), draw.token, draw.uniform
    )
    assert accepted.device.type == then.device.type == "meta"
