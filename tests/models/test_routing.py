"""Selecting, and gathering what was selected, on tensors alone; through models in test_inner_thinking.py."""

from statistics import NormalDist

import torch

from mull.models.routing import GRID, choose, over_threshold, top_k


def test_selection_is_the_threshold_between_grid_points():
    normal = NormalDist()
    thresholds = torch.tensor([3 + 2 * normal.inv_cdf(1 - share) for share in GRID], dtype=torch.float64)
    for capacity in (0.01, 0.1, 0.35, 0.7, 0.99):  # on the grid, between, and beyond its ends
        exact = 3 + 2 * normal.inv_cdf(1 - capacity)
        logits = torch.tensor([[exact - 1e-6, exact + 1e-6]], dtype=torch.float64)
        assert over_threshold(logits, None, capacity, thresholds).tolist() == [[False, True]]


def test_all_tokens_go_at_capacity_one_and_none_that_is_not_eligible():
    thresholds = torch.zeros(len(GRID), dtype=torch.float64)
    logits = torch.tensor([[-3.6, 3.4, -0.1, 0.1, -99.0]], dtype=torch.float64)
    assert over_threshold(logits, None, 1.0, thresholds).all()
    eligible = torch.tensor([[True, False, True, True, True]])
    assert over_threshold(logits, eligible, 0.35, thresholds).tolist() == [[False, False, False, True, False]]
    assert top_k(logits, eligible, 0.5, thresholds).tolist() == [[False, False, True, True, False]]
    assert top_k(torch.zeros(1, 4), None, 0.5, thresholds).tolist() == [
        [True, True, False, False]
    ]  # the earlier of equals


def test_all_tokens_selected_need_no_gathering():
    assert choose(torch.ones(2, 3, dtype=torch.bool)) is None
    chosen = choose(torch.tensor([[False, True, True], [False, False, True]]))
    assert chosen.tokens.tolist() == [1, 2, 5] and chosen.taken == 3
    assert choose(torch.ones(2, 3, dtype=torch.bool), block=8) is not None  # six would be summed as eight elsewhere
    x = torch.arange(6.0).view(2, 3)
    assert chosen.scatter(x, -torch.ones(1, 3)).tolist() == [[0, -1, -1], [3, 4, -1]]
