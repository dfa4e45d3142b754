"""Losses against slow, obvious twins in float64."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    ModelOutput,
    Reading,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
    Transformer,
    TransformerConfig,
)
from mull.models.labels import IGNORE
from mull.training.data import Parity, TaskData
from mull.training.iterations import Fixed, LogNormalPoisson, PoissonPerSequence, Progressive, Uniform
from mull.training.losses import (
    Consistency,
    ExpectedOverIterations,
    FixedPoint,
    HaltOnImprovement,
    LastIteration,
    SeveralIterations,
    exit_log_distribution,
)
from mull.training.module import TrainingModule
from mull.training.run import check_together

SHAPES = dict(
    batch=st.integers(1, 3), positions=st.integers(1, 5), vocabulary=st.integers(2, 6), seed=st.integers(0, 99)
)


def output_of(logits, exit_logits=None):
    """A model's output with a reading for each of R counts: logits (R, B, T, V), exit_logits (R, B, T) or None."""
    gates = [None] * len(logits) if exit_logits is None else exit_logits
    readings = {t: Reading(logits=x, exit_logit=g) for t, (x, g) in enumerate(zip(logits, gates, strict=True), start=1)}
    dummy = torch.zeros(logits.shape[1:3])
    return ModelOutput(
        logits=logits[-1], exit_logit=gates[-1], state=dummy[..., None], iterations=dummy, readings=readings
    )


def random_labels(generator, batch, positions, vocabulary):
    """Labels of which about a third are not scored, never all."""
    labels = torch.randint(vocabulary, (batch, positions), generator=generator)
    labels[torch.rand(batch, positions, generator=generator) < 0.3] = IGNORE
    labels[0, 0] = 1
    return labels


@pytest.mark.parametrize("loss", [LastIteration(), ExpectedOverIterations()], ids=["last", "expected"])
def test_nothing_scored_is_zero_without_gradient(loss):
    """Guards against 0 / 0, in both losses."""
    logits = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(output_of(logits, torch.zeros(2, 1, 3)), torch.full((1, 3), IGNORE))
    value.backward()
    assert value == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def nats(logits, label):
    """Cross entropy of one position by its definition."""
    values = [float(value) for value in logits]
    return math.log(sum(math.exp(value) for value in values)) - values[label]


def slow_expected(logits, exit_logits, labels, beta):
    """sum_t p(t) L_t - beta H(p), position by position, without logarithms of sigmoids."""
    total = count = 0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1]):
            if labels[b, t] == IGNORE:
                continue
            survived, p = 1.0, []
            for gate in exit_logits[:, b, t].tolist():
                leave = 1 / (1 + math.exp(-gate))
                p.append(survived * leave)
                survived *= 1 - leave
            p[-1] += survived  # the last takes the rest
            assert sum(p) == pytest.approx(1)
            entropy = -sum(q * math.log(q) for q in p if q > 0)
            total += sum(q * nats(x[b, t], labels[b, t]) for q, x in zip(p, logits, strict=True)) - beta * entropy
            count += 1
    return total / count


@given(**SHAPES)
def test_last_iteration_is_the_mean_over_scored_positions(batch, positions, vocabulary, seed):
    """Guards the mean: over scored positions only, of the last iteration only."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, positions, vocabulary, generator=generator)
    labels = random_labels(generator, batch, positions, vocabulary)
    places = [(b, t) for b in range(batch) for t in range(positions) if labels[b, t] != IGNORE]
    by_hand = sum(nats(logits[1, b, t], labels[b, t]) for b, t in places) / len(places)
    assert LastIteration()(output_of(logits), labels).item() == pytest.approx(by_hand, rel=1e-5)


@given(**SHAPES, iterations=st.integers(1, 6), beta=st.sampled_from([0.0, 0.1, 2.0]))
def test_expected_loss_equals_its_slow_twin(batch, positions, vocabulary, seed, iterations, beta):
    """Guards the exit distribution, the weighting, the entropy term and the mean, at every shape."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(iterations, batch, positions, vocabulary, generator=generator)
    exit_logits = 2 * torch.randn(iterations, batch, positions, generator=generator)
    labels = random_labels(generator, batch, positions, vocabulary)
    found = ExpectedOverIterations(beta)(output_of(logits, exit_logits), labels).item()
    assert found == pytest.approx(slow_expected(logits, exit_logits, labels, beta), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exit_distribution_sums_to_one(dtype):
    """Guards stability: extreme gates give no NaN, and half precision gates lose no probability."""
    gates = torch.tensor([[-60.0, 0.3, 60.0, -1.7], [0.0, -2.2, 60.0, -60.0], [5.0, 1.1, -60.0, -60.0]], dtype=dtype)
    p = exit_log_distribution(gates).exp()
    torch.testing.assert_close(p.sum(dim=0), torch.ones(4), rtol=1e-6, atol=1e-6)


def test_the_last_iterations_own_gate_does_not_matter():
    """Guards 'the last takes the rest'."""
    gates = torch.randn(3, 2)
    changed = torch.cat([gates[:-1], gates[-1:] + 5])
    torch.testing.assert_close(exit_log_distribution(gates), exit_log_distribution(changed))


def test_entropy_rewards_a_spread_out_exit():
    """Guards the sign: at equal losses L_t the uniform p costs less, by beta times the difference in entropy."""
    logits = torch.randn(1, 1, 1, 5).expand(2, -1, -1, -1)  # the same answer at both counts
    labels = torch.tensor([[3]])
    uniform, certain = torch.zeros(2, 1, 1), torch.full((2, 1, 1), 30.0)
    spread, peaked = (ExpectedOverIterations(0.5)(output_of(logits, gates), labels) for gates in (uniform, certain))
    assert (peaked - spread).item() == pytest.approx(0.5 * math.log(2), abs=1e-5)


def test_gradient_moves_the_gate_towards_the_better_iteration():
    """Guards the gate's learning signal: the first count answers better, so its exit logit must rise."""
    labels = torch.tensor([[0]])
    logits = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 3.0]]]])
    gates = torch.zeros(2, 1, 1, requires_grad=True)
    ExpectedOverIterations(0.0)(output_of(logits, gates), labels).backward()
    assert gates.grad[0].item() < 0


def test_gradient_reaches_the_exit_gate_and_every_other_weight_of_a_model():
    """Guards the path from the loss through the readings to the gate's own weights."""
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(
        RecurrentDepthConfig(vocab_size=7, d_model=16, n_heads=2, d_ff=16, max_length=8, exit_gate=True)
    )
    loss = ExpectedOverIterations()
    ids = torch.randint(7, (2, 5))
    loss(model(ids, iterations=3, backprop_iterations=2, read_at=loss.read_at(3)), ids).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_read_at_asks_for_every_count():
    """Guards the sum over t = 1 .. R; the plain loss asks for nothing but the last."""
    assert list(ExpectedOverIterations().read_at(4)) == [1, 2, 3, 4]
    assert list(LastIteration().read_at(4)) == []


@pytest.mark.parametrize("counts", [torch.tensor([1, 2]), None])
def test_expected_loss_refuses_counts_per_sequence_and_no_loop(counts):
    """Guards a clear refusal where one distribution over counts does not exist."""
    with pytest.raises(ValueError, match="one iteration count for the whole batch"):
        ExpectedOverIterations().read_at(counts)


def test_a_loss_and_a_sampler_that_do_not_go_together_are_told_before_a_run():
    """Guards the check that a run makes before it writes: the first batch would end it."""
    for loss in (Consistency(), SeveralIterations({1: 1}), ExpectedOverIterations()):
        for sampler in (PoissonPerSequence(2), Uniform(1, 3, per_sequence=True), None):
            with pytest.raises(ValueError, match="one iteration count for the whole batch"):
                loss.check(sampler)
        loss.check(Uniform(1, 3))
    LastIteration().check(PoissonPerSequence(2))


class Paired(LastIteration):
    """A loss of one's own that needs an even number of iterations."""

    def check(self, sampler):
        super().check(sampler)
        if sampler.mean % 2:
            raise ValueError(f"Paired needs an even count, not {sampler.mean}")


def test_a_loss_of_ones_own_is_asked_before_a_run():
    """Guards the place where a loss says what it needs: a run asks it, whatever its class."""

    def run_of(count):
        network = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=5, d_model=16, n_heads=2))
        module = TrainingModule(network, Fixed(count), loss=Paired())
        return SimpleNamespace(
            model=module, datamodule=TaskData(Parity(4)), trainer=SimpleNamespace(world_size=1), start=None
        )

    check_together(run_of(2))
    with pytest.raises(ValueError, match="Paired needs an even count, not 3"):
        check_together(run_of(3))


def test_a_gate_that_has_no_next_iteration_is_refused_before_training():
    """Guards against a run to the end that teaches nothing; losses that read an answer of one iteration learn from it,
    as controls of greater depth do."""
    for one in (Fixed(1), Uniform(1, 1), Progressive(1), LogNormalPoisson(4, maximum=1)):
        with pytest.raises(ValueError, match=rf"compares each .*, and {type(one).__name__} draws 1 at most: let it"):
            HaltOnImprovement().check(one)
        for loss in (ExpectedOverIterations(), Consistency(), FixedPoint(), SeveralIterations({0.5: 1})):
            loss.check(one)
    for more in (Fixed(2), Uniform(1, 2), LogNormalPoisson(1)):
        HaltOnImprovement().check(more)


def test_a_fixed_point_needs_a_loop():
    """Guards against a term that is never there, and a refusal in the first batch: only a loop has a last iteration. A
    network of one's own may have one."""
    small = {"vocab_size": 5, "d_model": 8, "n_heads": 2}
    others = (Transformer(TransformerConfig(**small)), InnerThinkingTransformer(InnerThinkingConfig(**small)))
    for other in others:
        with pytest.raises(ValueError, match="a fixed point is one of a recurrent-depth model: take another loss"):
            TrainingModule(other, Fixed(2), loss=FixedPoint())
    for fine in (RecurrentDepthTransformer(RecurrentDepthConfig(**small)), torch.nn.Linear(2, 2)):
        assert FixedPoint().trained(fine) is None


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_expected_loss_refuses_a_weight_that_is_none(weight):
    """Guards the entropy term's sign: below 0 it would draw the gate to one count."""
    with pytest.raises(ValueError, match=f"entropy_weight must be a number of at least 0, not {weight}"):
        ExpectedOverIterations(weight)


@pytest.mark.parametrize("readings", [True, False])
def test_expected_loss_needs_gate_and_readings(readings):
    """Guards the message for a model without exit gate, and for a run without a sampler."""
    output = output_of(torch.randn(2, 1, 3, 4), None if readings else torch.randn(2, 1, 3))
    if not readings:
        output.readings.clear()
    with pytest.raises(ValueError, match="exit_gate: true"):
        ExpectedOverIterations()(output, torch.zeros(1, 3, dtype=torch.int64))


@given(**SHAPES)
def test_several_iterations_is_a_weighted_mean_of_cross_entropies(batch, positions, vocabulary, seed):
    """Guards shares, rounding and weights: of 5 counts, a quarter is the 2nd, a half the 3rd, all the 5th."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, batch, positions, vocabulary, generator=generator, dtype=torch.float64)
    labels = random_labels(generator, batch, positions, vocabulary)
    loss = SeveralIterations({0.25: 1, 0.5: 3, 1.0: 4})
    assert loss.read_at(5) == [2, 3, 5] and loss.read_at(1) == [1] and loss.read_at(8) == [2, 4, 8]
    output = output_of(logits)
    output = dataclasses.replace(output, iterations=torch.full((batch, positions), 5))
    twin = [float(LastIteration()(output_of(logits[:count]), labels)) for count in (2, 3, 5)]
    assert float(loss(output, labels)) == pytest.approx((twin[0] + 3 * twin[1] + 4 * twin[2]) / 8, rel=1e-5)


@given(**SHAPES, share=st.sampled_from([0.2, 0.5, 0.9]))
def test_consistency_is_the_divergence_of_an_earlier_answer_from_the_last(batch, positions, vocabulary, seed, share):
    """Guards the direction of KL, which answers are compared, the weight, and that only scored positions count."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, batch, positions, vocabulary, generator=generator, dtype=torch.float64)
    labels = random_labels(generator, batch, positions, vocabulary)
    loss, count = Consistency(0.7, share), {0.2: 1, 0.5: 3, 0.9: 5}[share]
    assert loss.read_at(5) == [count]
    output = dataclasses.replace(output_of(logits), iterations=torch.full((batch, positions), 5))
    apart = []
    for b, t in [(b, t) for b in range(batch) for t in range(positions) if labels[b, t] != IGNORE]:
        p, q = (torch.softmax(x[b, t], dim=-1).tolist() for x in (logits[4], logits[count - 1]))
        apart.append(sum(one * math.log(one / other) for one, other in zip(p, q, strict=True)))
    twin = float(LastIteration()(output, labels)) + 0.7 * sum(apart) / len(apart)
    assert float(loss(output, labels)) == pytest.approx(twin, rel=1e-5)


def test_consistency_teaches_the_earlier_answer_and_not_the_last():
    """Guards the stop-gradient: with nothing to learn from labels but a pull, the last answer gets that of its cross
    entropy alone, and the earlier one moves towards the last; at a single iteration they are one, and nothing pulls."""
    torch.manual_seed(0)
    logits = torch.randn(4, 1, 2, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[3, IGNORE]])
    output = dataclasses.replace(output_of(logits), iterations=torch.full((1, 2), 4))
    (pulled,) = torch.autograd.grad(Consistency(2.0)(output, labels), logits, retain_graph=True)
    (alone,) = torch.autograd.grad(LastIteration()(output, labels), logits)
    torch.testing.assert_close(pulled[3], alone[3], rtol=1e-6, atol=1e-9)
    p, q = (torch.softmax(logits[at, 0, 0], dim=-1) for at in (3, 1))
    torch.testing.assert_close(pulled[1, 0, 0], 2 * (q - p), rtol=1e-6, atol=1e-9)  # the gradient of KL(p || softmax)
    assert not pulled[0].any() and not pulled[2].any() and not pulled[1, 0, 1].any()
    once = dataclasses.replace(output_of(logits[:1]), iterations=torch.ones(1, 2, dtype=torch.int64))
    (single,) = torch.autograd.grad(Consistency(2.0)(once, labels), logits)
    (plain,) = torch.autograd.grad(LastIteration()(output_of(logits[:1]), labels), logits)
    torch.testing.assert_close(single, plain, rtol=1e-6, atol=1e-9)
    for wrong in ({"weight": -1.0}, {"share": 0.0}, {"share": 1.0}, {"weight": math.nan}):
        with pytest.raises(ValueError, match="weight must be at least 0 and share between 0 and 1"):
            Consistency(**wrong)
    with pytest.raises(ValueError, match="one iteration count for the whole batch"):
        Consistency().read_at(torch.tensor([2, 3]))


@given(**SHAPES)
def test_the_fixed_point_term_by_its_formula(batch, positions, vocabulary, seed):
    """Guards the square, the norms and that only scored positions count."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, batch, positions, vocabulary, generator=generator, dtype=torch.float64)
    labels = random_labels(generator, batch, positions, vocabulary)
    state, previous = torch.randn(2, batch, positions, 3, generator=generator).double()
    output = dataclasses.replace(
        output_of(logits), last_two=(state, previous), iterations=torch.full((batch, positions), 2)
    )
    terms = [
        sum((x - y) ** 2 for x, y in zip(s, p, strict=True)) / sum(x * x for x in s)
        for s, p, label in zip(
            state.flatten(0, 1).tolist(), previous.flatten(0, 1).tolist(), labels.flatten(), strict=True
        )
        if label != IGNORE
    ]
    twin = float(LastIteration()(output, labels)) + 0.3 * sum(terms) / len(terms)
    assert float(FixedPoint(0.3)(output, labels)) == pytest.approx(twin, rel=1e-4)
    once = dataclasses.replace(output, iterations=torch.full((batch, positions), 1), last_two=None)
    assert FixedPoint(0.3)(once, labels) == LastIteration()(once, labels)


def test_the_residual_is_what_one_more_iteration_moves():
    """Guards `step` against being off by one, in forward, in its readings and in the sweep."""
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=7, d_model=8, n_heads=2)).double().eval()
    ids = torch.randint(7, (2, 5))
    states = {count: model(ids, iterations=count).state for count in (2, 3, 4)}
    expected = {n: (states[n] - states[n - 1]).norm(dim=-1) / states[n].norm(dim=-1) for n in (3, 4)}
    output = model(ids, iterations=4, read_at=[1, 3])
    swept = dict(model.sweep(ids, [1, 3, 4]))
    assert output.readings[1].residual is None and swept[1].residual is None
    for found, count in ((output, 4), (output.readings[3], 3), (swept[3], 3), (swept[4], 4)):
        torch.testing.assert_close(found.residual.double(), expected[count], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", [{}, {0.0: 1}, {1.5: 1}, {1: -1}, {0.5: 0}, {1: math.nan}, {1: math.inf}])
def test_wrong_weights_are_refused(weights):
    """Guards shares outside of the depth, and a division by nothing."""
    with pytest.raises(ValueError, match="weights must"):
        SeveralIterations(weights)


def test_losses_over_iterations_know_what_a_family_means_by_them():
    """Guards rows of one iteration, whose state before is where they began; few passes that tokens happened to take,
    where R is what was asked; and a loss that would do nothing."""
    torch.manual_seed(0)
    model = RecurrentDepthTransformer(RecurrentDepthConfig(vocab_size=7, d_model=8, n_heads=2)).double()
    ids = torch.randint(7, (2, 5))
    output = model(ids, iterations=torch.tensor([1, 3]))
    alone = FixedPoint(1.0)(model(ids[1:], iterations=3), ids[1:]) - LastIteration()(
        model(ids[1:], iterations=3), ids[1:]
    )
    both = FixedPoint(1.0)(output, ids) - LastIteration()(output, ids)
    torch.testing.assert_close(both, alone / 2)
    inner = InnerThinkingTransformer(InnerThinkingConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=2)).eval()
    several = SeveralIterations({0.5: 1, 1.0: 1})
    output = inner(ids, iterations=4, capacity=(0.0, 0.0, 0.0), read_at=several.read_at(4))
    assert int(output.iterations.max()) == 1
    twin = [LastIteration()(inner(ids, iterations=count, capacity=0.0), ids) for count in (2, 4)]
    torch.testing.assert_close(several(output, ids), sum(twin) / 2)
    with pytest.raises(ValueError, match="recurrent-depth model"):
        FixedPoint()(inner(ids, iterations=4, capacity=1.0), ids)
