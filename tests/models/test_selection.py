"""Which tokens are selected, on tensors alone; through models in inner_thinking/."""

from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.models.selection import GRID, SELECTIONS, Select, auxiliary, over_threshold, top_k


def test_selection_is_the_threshold_between_grid_points() -> None:
    normal = NormalDist()
    thresholds = torch.tensor([3 + 2 * normal.inv_cdf(1 - share) for share in GRID], dtype=torch.float64)
    for capacity in (0.01, 0.1, 0.35, 0.7, 0.99):  # on the grid, between, and beyond its ends
        exact = 3 + 2 * normal.inv_cdf(1 - capacity)
        logits = torch.tensor([[exact - 1e-6, exact + 1e-6]], dtype=torch.float64)
        assert over_threshold(logits, None, capacity, thresholds).tolist() == [[False, True]]


def test_all_tokens_go_at_capacity_one_and_none_that_is_not_eligible() -> None:
    thresholds = torch.zeros(len(GRID), dtype=torch.float64)
    logits = torch.tensor([[-3.6, 3.4, -0.1, 0.1, -99.0]], dtype=torch.float64)
    assert over_threshold(logits, None, 1.0, thresholds).all()
    eligible = torch.tensor([[True, False, True, True, True]])
    assert over_threshold(logits, eligible, 0.35, thresholds).tolist() == [[False, False, False, True, False]]
    assert top_k(logits, eligible, 0.5, thresholds).tolist() == [[False, False, True, True, False]]
    earlier_of_equals = top_k(torch.zeros(1, 4), None, 0.5, thresholds)
    assert earlier_of_equals.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
@given(data=st.data(), rows=st.integers(1, 3), length=st.integers(1, 9))
def test_a_row_selects_as_it_would_alone(select: Select, data: st.DataObject, rows: int, length: int) -> None:
    """One that may go, and one that may not selects nothing; the loss is an average over the tokens that may."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    logits, thresholds = torch.randn(rows, length), torch.linspace(2, -2, len(GRID))
    goes = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    eligible = goes[:, None].expand(rows, length)
    for capacity in (0.2, 0.5, 1.0):
        selected = select(logits, eligible, capacity, thresholds)
        assert torch.equal(selected, select(logits, None, capacity, thresholds) & eligible)
        loss = auxiliary(logits, selected, eligible)
        alone = auxiliary(logits[goes], selected[goes], None) if goes.any() else torch.zeros(())
        torch.testing.assert_close(loss, alone)
