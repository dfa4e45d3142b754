"""Capacity as a knob: what is measured, generated and inspected at it, and who refuses it."""

import pytest
import torch

import mull
from mull import cli
from mull.checkpoints.quantities import si
from mull.inference import generate as generation
from mull.inference.arguments import shares
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.inspect import cost_lines
from mull.inference.measure.results import from_json, to_json
from mull.models import InnerThinkingConfig, InnerThinkingTransformer, TransformerConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = InnerThinkingConfig(vocab_size=11, d_model=24, n_heads=2, d_ff=20, n_layers=3, max_length=64)
    made = InnerThinkingTransformer(config).double().eval()
    made.calibrate(torch.randint(11, (20, 40)))
    return made


def batches():
    ids = torch.randint(11, (6, 17), generator=torch.Generator().manual_seed(1))
    return {None: [(ids[:4, :-1], ids[:4, 1:]), (ids[4:, :-1], ids[4:, 1:])]}


def test_a_row_says_what_ran(model):
    """Guards capacity and FLOPs of a row: those of the tokens that went, over all batches."""
    capacity = (0.9, 0.0, 0.4)
    (row,) = evaluate(model, batches(), [4], capacity=capacity)
    shares = torch.cat([model(ids, 4, capacity=capacity).selected for ids, _ in batches()[None]]).double().mean((0, 1))
    assert row.capacity == pytest.approx(shares.mean().item())
    assert row.capacity_asked == capacity and row.capacity_met == pytest.approx(shares.mean(0).tolist())
    assert row.flops_per_token == pytest.approx(model.config.flops_at_shares(shares.tolist(), 16))
    assert from_json(to_json([row])) == [row]
    assert evaluate(model, batches(), [4], capacity=1.0)[0].loss != row.loss
    assert evaluate(model, batches(), [4], capacity=1.0)[0].capacity == 1


def test_top_k_can_be_measured_beside_the_threshold(model):
    """Guards the gap between the selection of training and that of eval being measurable."""
    rows = [evaluate(model, batches(), [4], capacity=0.5, selection=how)[0] for how in ("top_k", "threshold")]
    assert rows[0].capacity == 0.5 and rows[0].loss != rows[1].loss


def test_a_single_pass_has_no_capacity(model):
    """Guards the sweep: counts of one list have capacities of their own length, and one pass has none."""
    one, two, four = evaluate(model, batches(), [1, 2, 4], capacity=(0.9, 0.0, 0.4))
    assert one.capacity is one.capacity_asked is one.capacity_met is None
    assert two.capacity_asked == (0.9,) and len(four.capacity_met) == 3 and four.capacity_met[1] == 0
    assert two.capacity > four.capacity > 0
    assert one.flops_per_token == model.config.once().flops(16)


def test_generation_is_what_the_whole_text_says(model):
    """Guards decoding at a capacity: greedy tokens are those of uncached runs."""
    prompt = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(2))
    result = mull.generate(model, prompt, iterations=4, capacity=(0.9, 0.0, 0.4), max_new_tokens=6)
    text = prompt
    for _ in range(6):
        logits = model(text, 4, capacity=(0.9, 0.0, 0.4)).logits[:, -1]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(result.tokens, text)
    assert result.iterations.min() >= 1 and result.iterations.max() <= 3  # of four passes, one is never taken


def test_who_routes_nothing_refuses_a_capacity():
    """Guards against a capacity that is taken and ignored."""
    plain = mull.Transformer(TransformerConfig(vocab_size=11, d_model=8, n_heads=2, n_layers=1)).eval()
    with pytest.raises(ValueError, match=r"Transformer has no routed passes: capacity=0\.5 is refused"):
        evaluate(plain, batches(), capacity=0.5)
    with pytest.raises(ValueError, match=r"no routed passes: capacity=0\.5 is refused"):
        mull.generate(plain, torch.zeros(1, 2, dtype=torch.int64), capacity=0.5)
    with pytest.raises(ValueError, match=r"no routed passes: capacity=0\.5 is refused"):
        cost_lines(plain.config, capacity=0.5)
    with pytest.raises(ValueError, match=r"has no loop: iterations=\[4\] is refused"):
        cost_lines(plain.config, [4])


def test_costs_are_shown_at_what_is_asked_for(model):
    """Guards `inspect`: one share for each routed pass says how many there are."""
    lines = cost_lines(model.config, capacity=(0.5, 0.5))
    assert "capacity (0.5, 0.5)" in lines[0] and len(lines) == 3 and lines[2].split()[0] == "3"
    flops = model.config.flops_per_token(3, 64, (0.5, 0.5))
    assert lines[2].split()[1:3] == si(flops).split()
    assert len(cost_lines(model.config)) == 2 + 5 and "capacity 0.7" in cost_lines(model.config)[0]


def test_capacities_are_read_from_the_command_line(capsys):
    """Guards the parser: a number, or one for each pass; a mistake is named."""
    assert shares("0.5") == 0.5 and shares("0.9,0,1") == (0.9, 0.0, 1.0)
    for wrong, message in (("1.2", r"1\.2 lies outside 0 \.\. 1"), ("half", "'half' is no number")):
        with pytest.raises(ValueError, match=message):
            shares(wrong)
        assert cli.main(["evaluate", "nowhere", "--capacity", wrong]) == 2
        told = capsys.readouterr().err
        assert "--capacity" in told and "from 0 to 1, as 0.5" in told and wrong in told


def test_rows_that_stop_leave_the_others_alone(model):
    """Each row writes what it writes alone, whichever stops first, also with passes of its own."""
    prompt = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(2))
    for iterations, capacity in ((4, None), (torch.tensor([2, 4, 3]), (0.9, 0.0, 0.4))):
        free = mull.generate(model, prompt, iterations, capacity=capacity, max_new_tokens=6, stop_tokens=())
        for stop in free.new_tokens[:, 1].tolist():
            out = mull.generate(model, prompt, iterations, capacity=capacity, max_new_tokens=6, stop_tokens=[stop])
            for row in range(3):
                n = int((out.iterations[row] > 0).sum())
                assert torch.equal(out.new_tokens[row, :n], free.new_tokens[row, :n])
                assert n == 6 or out.new_tokens[row, n - 1] == stop


def test_a_capacity_of_the_wrong_length_is_refused_before_anything_is_written(model):
    with pytest.raises(ValueError, match="capacity names 2 routed passes and there are 3"):
        generation.stream(model, torch.zeros(1, 3, dtype=torch.int64), 4, capacity=(0.5, 0.5))
