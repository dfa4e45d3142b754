"""The loop: counts, rows with counts of their own, the gradient window, readings. fp64, so that equality is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mull.models import LanguageModel, RecurrentDepthConfig, RecurrentDepthTransformer, iterate
from mull.models.loop import check_iterations, last_state

Build = Callable[..., LanguageModel]
Small = Callable[..., RecurrentDepthConfig]
Tokens = Callable[..., Tensor]

COUNTS = torch.tensor([3, 1, 6])


@pytest.fixture
def model(build: Build, small: Small) -> LanguageModel:
    return build(small())


@pytest.fixture
def ids(model: RecurrentDepthTransformer, tokens: Tokens) -> Tensor:
    return tokens(model.config, 3, 7)


def gradients(model: LanguageModel) -> dict[str, Tensor | None]:
    """Collect and clear: {name: gradient}."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- the function itself -------------------------------------------------------------------------------------------


def test_a_step_is_called_exactly_once_per_iteration_with_its_index() -> None:
    indices = list[int]()

    def step(state: Tensor, index: int) -> Tensor:
        indices.append(index)
        return state + 1

    yielded = [(count, state.item()) for count, state in iterate(step, torch.zeros(1, 1, 1), 5)]
    assert indices == [0, 1, 2, 3, 4]
    assert yielded == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]


def test_rows_hold_their_state_until_their_turn_and_all_end_together() -> None:
    start = (6 - COUNTS)[:, None, None]
    loop = iterate(lambda s, _: s + 1, torch.zeros(3, 1, 1), 6, begins=start)
    states = [state.flatten().tolist() for _, state in loop]
    assert states == [[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 0, 4], [2, 0, 5], [3, 1, 6]]


@given(data=st.data(), shape=st.sampled_from([(1, 5, 1), (3, 5, 1), (3, 1, 1), (1, 1, 1), (3, 5, 4)]))
def test_every_state_takes_its_own_steps(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    """`start` by position, by row, or by both: what begins at index k takes the steps k .. R - 1 and no other, and the
    gradient of a window flows through the last of these alone. What cannot begin holds to the end."""
    total, window = data.draw(st.integers(1, 6)), data.draw(st.one_of(st.none(), st.integers(1, 7)))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    start = torch.randint(total + 1, shape)
    first = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def think(state: Tensor, index: int) -> Tensor:
        return torch.tanh(state * weight + index)

    fast = last_state(iterate(think, first, total, window, start))
    slow = torch.empty_like(first)
    for where in torch.cartesian_prod(*map(torch.arange, first.shape)).tolist():
        state, at = first[tuple(where)], tuple(where)
        for index in range(int(start.expand_as(first)[at]), total):
            state = torch.tanh(state * weight[at[2]] + index)
            if window is not None and index < total - window:
                state = state.detach()
        slow[at] = state
    assert_same(fast, slow)
    chosen = [weight] if window is not None and window < total else [weight, first]
    wanted = torch.autograd.grad(slow.sum(), chosen, allow_unused=True, materialize_grads=True)
    assert_same(torch.autograd.grad(fast.sum(), chosen, allow_unused=True, materialize_grads=True), wanted)


def test_leaving_the_loop_early_stops_the_work_and_leaves_gradients_on() -> None:
    calls = []
    for count, _ in iterate(lambda s, i: calls.append(i) or s, torch.zeros(1, 1, 1), 100, backprop_iterations=1):
        if count == 3:
            break
    assert calls == [0, 1, 2]
    assert torch.is_grad_enabled()


def test_the_reader_of_a_state_keeps_its_gradient_mode_between_iterations() -> None:
    weight = torch.ones((), requires_grad=True)
    modes = []
    for _ in iterate(lambda s, _: s * weight, torch.ones(1, 1, 1), 4, backprop_iterations=2):
        modes.append(torch.is_grad_enabled())
    assert modes == [True] * 4
    with torch.no_grad():
        assert not [s for _, s in iterate(lambda s, _: s * weight, torch.ones(1, 1, 1), 4) if s.requires_grad]


@pytest.mark.parametrize("window", [1, 2, 4, 9, None])
def test_states_before_the_window_carry_no_graph(window: int | None) -> None:
    weight = torch.ones((), requires_grad=True)
    carried = [s.requires_grad for _, s in iterate(lambda s, _: s * weight, torch.ones(1, 1, 1), 4, window)]
    first = 4 - min(4, window or 4)
    assert carried == [index >= first for index in range(4)]


# --- through a model -----------------------------------------------------------------------------------------------


def test_a_plus_b_iterations_are_a_then_b(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    start = torch.randn(3, 7, 24, dtype=torch.float64)
    for initial in (None, start):
        whole = model(ids, iterations=5, state=initial)
        rest = model(ids, iterations=3, state=model(ids, iterations=2, state=initial).state)
        assert_same(rest.state, whole.state, 0)
        assert_same(rest.logits, whole.logits, 0)


def test_a_given_state_is_used_and_not_changed(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    start = torch.randn(3, 7, 24, dtype=torch.float64)
    kept = start.clone()
    assert (model(ids, iterations=1, state=start).logits - model(ids, iterations=1).logits).abs().max() > 1e-3
    assert_same(start, kept, 0)


def test_readings_of_one_unroll_equal_separate_runs(build: Build, small: Small, tokens: Tokens) -> None:
    model = build(small(exit_gate=True))
    ids = tokens(model.config, 2, 6)
    out = model(ids, iterations=6, read_at=[1, 4, 6])
    assert sorted(out.readings) == [1, 4, 6]
    for count, reading in out.readings.items():
        alone = model(ids, iterations=count)
        assert_same(reading.logits, alone.logits, 0)
        assert_same(reading.exit_logit, alone.exit_logit, 0)
    assert_same(out.logits, out.readings[6].logits, 0)


def test_a_sweep_yields_the_answers_of_separate_runs_out_of_one_unroll(
    model: RecurrentDepthTransformer, ids: Tensor
) -> None:
    calls = []
    handle = model.core[0].register_forward_hook(lambda *_: calls.append(1))
    answers = dict(model.sweep(ids, [1, 4, 6]))
    handle.remove()
    assert len(calls) == 6
    assert list(answers) == [1, 4, 6]
    for count, answer in answers.items():
        assert_same(answer.logits, model(ids, count).logits, 0)


def test_readings_cost_no_iteration(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    calls = []
    model.core[0].register_forward_hook(lambda *_: calls.append(1))
    model(ids, iterations=6, read_at=range(1, 7))
    assert len(calls) == 6


@pytest.mark.parametrize("window", [None, 2, 4])
def test_rows_with_counts_of_their_own_equal_rows_alone(
    model: RecurrentDepthTransformer, ids: Tensor, window: int | None
) -> None:
    out = model(ids, iterations=COUNTS, backprop_iterations=window)
    out.logits.square().sum().backward()
    together = gradients(model)
    for row, count in enumerate(COUNTS.tolist()):
        alone = model(ids[row : row + 1], iterations=count, backprop_iterations=window)
        assert_same(out.logits[row], alone.logits[0])
        assert_same(out.state[row], alone.state[0])
        alone.logits.square().sum().backward()
    apart = gradients(model)
    for name, gradient in together.items():
        assert_same(gradient, apart[name], 1e-10)
    assert torch.equal(out.iterations, COUNTS[:, None].expand(3, 7))


@pytest.mark.parametrize("window", [1, 3, 5, 8])
def test_the_gradient_window_equals_detaching_the_state_by_hand(
    model: RecurrentDepthTransformer, ids: Tensor, window: int | None
) -> None:
    model(ids, iterations=5, backprop_iterations=window).logits.square().sum().backward()
    windowed = gradients(model)

    context = model.context(ids)
    injected = model.embed(ids)
    injected = model.prelude[0](injected, context, (0, 0))
    state = torch.zeros_like(injected)
    for index in range(5):
        state = state.detach() if index == 5 - window else state
        state = model.injection(state, model.injection.prepare(injected))
        for layer in model.core:
            state = layer(state, context, (0, 0))
    model.read(state, context).logits.square().sum().backward()
    by_hand = gradients(model)
    for name, gradient in windowed.items():
        assert_same(gradient, by_hand[name], 1e-11)
        assert gradient.abs().max() > 0  # the prelude too: the injected input keeps its graph


def test_a_window_as_long_as_the_loop_is_full_backpropagation_and_a_shorter_one_is_not(
    model: RecurrentDepthTransformer, ids: Tensor
) -> None:
    found = {}
    for window in (None, 5, 4):
        model(ids, iterations=5, backprop_iterations=window).logits.square().sum().backward()
        found[window] = gradients(model)["core.0.attention.qkv.weight"]
    assert_same(found[None], found[5], 0)
    assert (found[None] - found[4]).abs().max() > 1e-6


def test_a_caller_gets_the_gradient_of_its_own_state(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    start = torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    model(ids, iterations=3, state=start).logits.sum().backward()
    assert start.grad.abs().max() > 0
    start.grad = None
    model(ids, iterations=3, state=start, backprop_iterations=2).logits.sum().backward()
    assert start.grad is None


def test_memory_kept_for_the_backward_pass_depends_on_the_window_and_not_on_the_depth(
    model: RecurrentDepthTransformer, ids: Tensor
) -> None:
    def kept(iterations: int, window: int) -> int:
        sizes = []
        pack = lambda tensor: sizes.append(tensor.nbytes) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(ids, iterations=iterations, backprop_iterations=window)
        return sum(sizes)

    assert kept(64, 4) == kept(8, 4) > 0
    assert kept(8, 8) > kept(8, 4)


# --- what is not a count -------------------------------------------------------------------------------------------

NO_COUNTS = [
    0, -1, 1.5, True, "abc", [2, 2, 2],
    torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True] * 3), torch.tensor([1, 2]), torch.tensor([[1], [2], [3]]),
    torch.tensor([1, 0, 2]), torch.tensor(0), torch.tensor(2.5), torch.tensor(True),
]  # fmt: skip


@pytest.mark.parametrize("count", NO_COUNTS, ids=repr)
def test_what_is_not_a_count_is_refused_by_name(model: RecurrentDepthTransformer, ids: Tensor, count: Any) -> None:
    with pytest.raises(ValueError, match="iterations must be"):
        model(ids, iterations=count)


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "abc"], ids=repr)
def test_what_is_not_a_window_is_refused_by_name(
    model: RecurrentDepthTransformer, ids: Tensor, window: int | None
) -> None:
    with pytest.raises(ValueError, match="backprop_iterations must be"):
        model(ids, iterations=3, backprop_iterations=window)


def test_the_message_shows_the_value() -> None:
    with pytest.raises(ValueError, match="at least 1, not -3"):
        check_iterations(-3, batch_size=1)
    with pytest.raises(ValueError, match="'abc'"):
        check_iterations("abc", batch_size=1)
    with pytest.raises(ValueError, match=r"shape \(3,\); got shape \(2,\)"):
        check_iterations(torch.tensor([1, 2]), batch_size=3)


def test_a_tensor_without_dimensions_is_an_integer(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    assert_same(model(ids, iterations=torch.tensor(3)).logits, model(ids, iterations=3).logits, 0)


def test_without_a_count_the_mean_of_training_is_used(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    assert model(ids).iterations.unique().tolist() == [model.config.mean_iterations]


@pytest.mark.parametrize("counts", [[5], [1, 9]])
def test_readings_outside_the_loop_are_refused(model: RecurrentDepthTransformer, ids: Tensor, counts: Any) -> None:
    with pytest.raises(ValueError, match=r"lies outside 1 \.\. iterations=4"):
        model(ids, iterations=4, read_at=counts)
    with pytest.raises(ValueError, match="one iteration count for all rows"):
        model(ids, iterations=COUNTS, read_at=[1])


def test_a_state_of_another_shape_is_refused(model: RecurrentDepthTransformer, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 7, 24\), a tensor of floats, not torch.float32 of \(1, 7, 24\)"):
        model(ids, iterations=1, state=torch.zeros(1, 7, 24))
