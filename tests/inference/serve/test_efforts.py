"""How long efforts think: by rule, by the folder's own table, and what such a table may hold."""

import json
from pathlib import Path

import pytest

import mull
from mull.checkpoints.efforts import EFFORTS, read_efforts
from mull.inference.measure.inspect import inspection
from mull.inference.serve.efforts import efforts_of
from mull.inference.serve.limits import Limits
from mull.inference.serve.served import Served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mull.save(mull.load("parity"), tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("mean", "limit", "counts"),
    [(8, 1000, (1, 2, 4, 8, 16, 32, 64)), (8, 20, (1, 2, 4, 8, 16, 20, 20)), (1, 64, (1, 2, 1, 1, 2, 4, 8))],
)
def test_by_rule(mean: int, limit: int, counts: tuple[int, ...]) -> None:
    """At least one iteration, cut at the server's limit."""
    assert efforts_of(mean, None, limit) == dict(zip(EFFORTS, counts, strict=True))


def test_a_folder_has_its_own(folder: Path) -> None:
    """The table is that of the folder, which loads, is saved over and inspected with it as without."""
    assert read_efforts(folder) is None and "by effort" not in inspection(folder)
    (folder / "efforts.json").write_text(json.dumps({"low": 3, "high": 50}))
    served = Served.of(folder, Limits(max_iterations=40))
    assert list(served.efforts.values()) == [3, 3, 3, 3, 40, 40, 40]
    assert "iterations by effort (efforts.json): low 3, high 50" in inspection(folder)
    mull.save(mull.load(folder), folder)
    assert read_efforts(folder) == {"low": 3, "high": 50}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"lots": 3}', "names the effort lots; there are none, minimal"), ('{"low": 0}', "gives low 0 iterations"),
        ('{"low": 1.5}', "gives low 1.5"), ('{"low": true}', "gives low True"), ('{"low": 10001}', "gives low 10001"),
        ('{"low": 9, "high": 8}', "gives low 9 iterations and high only 8"), ("[]", "must hold one JSON object"),
        ('{"low": NaN}', "no finite number"), ('{"low": 1, "low": 2}', "is there twice"),
        ("{", "cannot be read as JSON"),
    ],
)  # fmt: skip
def test_what_a_table_may_hold(folder: Path, text: str, said: str) -> None:
    """Anything else is refused in one line by those who ask for it, and by nobody else."""
    (folder / "efforts.json").write_text(text)
    mull.load(folder)
    for asks in (lambda: Served.of(folder, Limits()), lambda: inspection(folder)):
        with pytest.raises(ValueError, match="efforts") as caught:
            asks()
        assert said in str(caught.value) and "\n" not in str(caught.value)
