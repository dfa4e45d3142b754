"""The meter adds up, and gives the scorer its part."""

from mull.inference.strategies import Cost, Meter


def test_costs_add_and_subtract_field_by_field() -> None:
    one, other = Cost(1.0, 2, 3, 4.0, 5, 6, 0.5), Cost(10.0, 20, 30, 40.0, 50, 60, 5.0)
    assert one + other == Cost(11.0, 22, 33, 44.0, 55, 66, 5.5) and one + other - one == other


def test_what_a_scorer_spends_is_in_the_sum_and_by_itself() -> None:
    """Guards scorers' bills, nested too: afterwards nothing more is theirs."""
    meter = Meter()
    meter.add(flops=1.0)
    with meter.scoring():
        meter.add(flops=2.0, calls=1)
        with meter.scoring():
            meter.add(flops=4.0)
        meter.add(flops=8.0)
    meter.add(flops=16.0, tokens=1, read=3, iterations=9)
    assert meter.spent == Cost(flops=31.0, tokens=1, calls=1, iterations=9, read=3, scorer_flops=14.0)
