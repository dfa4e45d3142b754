"""How a quantity is written for people: here and nowhere else, so that tables, cards and `mull inspect` agree.

    share           97.9              percent, one digit
    bits per byte   1.669             three digits
    loss            0.1000            nats, four digits
    count of work   1.23 M            three digits with a metric prefix
    interval        97.9 ±0.9         where both sides are equal but for the last digit
                    100.0 +0.0 -6.8   otherwise, as where it ends at a border that the value lies on
    difference      -2.1 ±0.3         points, or bits per byte, with its sign

A *row* is one result of an evaluation as plain values, with the names that JSON and depth.json have; what it lacks, or
has as null, is an empty cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
SETTLED = 0.03  # the relative movement below which a state has settled
ABOUT_SETTLING = f"residual: largest relative movement of an example; settled: below {SETTLED}; AUC: of right and wrong"


class Unit(NamedTuple):
    """How numbers of one kind are scaled and cut."""

    scale: float
    digits: int


PERCENT, BITS, NATS, MEAN = Unit(100.0, 1), Unit(1.0, 3), Unit(1.0, 4), Unit(1.0, 2)


def number(value: float | None, unit: Unit) -> str:
    """A number of this unit; empty for None."""
    return "" if value is None else f"{unit.scale * value:.{unit.digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None, unit: Unit, signed: bool = False) -> str:
    """A number and its 95 % interval, as the head of this file says; without bounds the number alone."""
    if value is None or value != value:
        return "" if value is None else "nan"
    text = f"{unit.scale * value:{'+' if signed else ''}.{unit.digits}f}"
    if signed and not float(text):
        text = text[1:]  # a zero has no sign
    if low is None or high is None or not low <= high:  # nobody knows, or NaN
        return text
    above, below = (f"{max(0.0, unit.scale * side):.{unit.digits}f}" for side in (high - value, value - low))
    if abs(float(above) - float(below)) < 1.5 * 10**-unit.digits:
        return f"{text} ±{max(above, below, key=float)}"
    return f"{text} +{above} -{below}"


def si(value: float | None) -> str:
    """A number of at least 0 with three digits and a metric prefix: 1234567 -> `1.23 M`; empty for None."""
    if value is None:
        return ""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g} {prefix}" if value < 999.5 * limit else f"{value / limit:.0f} {prefix}"
    return f"{value:.3g}"


def shares(values: Sequence[float] | None, digits: int = PERCENT.digits) -> str:
    """Shares of the routed passes in percent, `90.0/90.0/10.0`; one alone where all are equal."""
    texts = [f"{100 * value:.{digits}f}" for value in values or []]
    return "/".join(texts) if len(set(texts)) > 1 else "".join(texts[:1])


def is_text(rows: Sequence[Row]) -> bool:
    """Whether results are of text, shown by bits per byte, rather than of a task, shown by accuracy."""
    return any(row.get("bits_per_byte") is not None for row in rows)


def bounds_of_bits(row: Row) -> tuple[float | None, float | None]:
    """The interval of bits per byte, which is that of the loss in another unit."""
    bits, loss, low, high = (row.get(name) for name in ("bits_per_byte", "loss", "loss_low", "loss_high"))
    if bits is None or not loss or low is None or high is None:
        return None, None
    return low * bits / loss, high * bits / loss


def written_headline(row: Row, text: bool) -> str:
    """The one number that a result is shown by, with its interval: bits per byte, or accuracy in percent."""
    if text:
        return with_interval(row.get("bits_per_byte"), *bounds_of_bits(row), BITS)
    return interval_of(row, "accuracy", PERCENT)


def difference(row: Row, text: bool) -> str:
    """The headline less that at the reference count, on the same examples."""
    return interval_of(row, "difference", BITS if text else PERCENT, signed=True)


def interval_of(row: Row, name: str, unit: Unit, signed: bool = False) -> str:
    """A quantity of a row with its interval."""
    return with_interval(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), unit, signed)


def cells(row: Row, text: bool, reference: int | None) -> dict[str, str]:
    """A result by the names of its columns, empty where a column does not apply.

    exact is the share of examples that are right throughout, verified that of written answers that a verifier takes;
    asked and met are shares of the tokens, by routed pass.

    Args:
        row: the result.
        text: whether it is shown by bits per byte.
        reference: the count that differences are to; None where there are none.
    """
    met = row.get("capacity_met") or ([row["capacity"]] if row.get("capacity") is not None else None)
    asked = row.get("capacity_asked") or []
    count = row.get("iterations")
    return {
        "iterations": "-" if count is None else f"{count:,}",
        "bits per byte" if text else "accuracy %": written_headline(row, text),
        difference_name(reference): difference(row, text),
        "exact %": interval_of(row, "exact_match", PERCENT),
        "verified %": interval_of(row, "verified", PERCENT),
        "loss": with_interval(row.get("loss"), None, None, NATS),
        "asked %": shares(asked, 0 if all(round(100 * share, 6).is_integer() for share in asked) else 1),
        "met %": shares(met),
        "mean iterations": number(row.get("mean_iterations"), MEAN),
        "FLOPs/token": si(row.get("flops_per_token")),
    }


def settling_cells(row: Row, first: bool) -> dict[str, str]:
    """Whether the model had finished thinking, by the names of the columns; none where a result does not say.

    Args:
        row: the result.
        first: the first of its difficulty, which says what is of all counts.
    """
    if row.get("residual") is None:
        return {}
    return {
        "residual": number(row["residual"], NATS),
        "settled %": interval_of(row, "settled", PERCENT),
        "AUC": interval_of(row, "auc", MEAN),
        "AUC, all counts": interval_of(row, "auc_of_all", BITS) if first else "",
    }


def examples_of(rows: Sequence[Row]) -> str:
    """`512 examples`, or `11, 22, 44 examples` where difficulties differ."""
    counts = {row.get("difficulty"): row.get("examples") for row in rows}
    texts = [f"{count:,}" for count in counts.values() if count is not None]
    return f"{texts[0] if len(set(texts)) == 1 else ', '.join(texts)} examples" if texts else ""


def difference_name(reference: int | None) -> str:
    """The name of the column of differences."""
    return "difference" if reference is None else f"vs {reference}"


def reference_of(rows: Sequence[Row]) -> int | None:
    """The count that the differences of these results are to."""
    return next((row["reference"] for row in rows if row.get("reference") is not None), None)
