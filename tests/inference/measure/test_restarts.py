"""Restarts against single runs, and settling as an evaluation reports it."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.restarts import Choose, alike, restarted
from mull.inference.measure.settling import settling
from mull.models import LanguageModel
from mull.models.iterated import IteratedModel
from mull.models.labels import IGNORE

Make = Callable[..., LanguageModel]


def batch(rows: int = 5, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(11, (rows, length), generator=generator)
    labels[:, :2] = labels[:, -1] = IGNORE
    return torch.randint(11, (rows, length), generator=generator), labels


def test_each_row_has_the_answer_of_its_calmest_run(make_model: Make) -> None:
    """Every run alone from its own state, by hand: the one that moved least up to the asked position answers."""
    model, (ids, _) = make_model("recurrent"), batch()
    asked = torch.zeros(5, 6, dtype=torch.bool)
    asked[:, 3] = True
    assert isinstance(model, IteratedModel)
    found = dict(restarted(model, ids, [1, 3], 4, torch.Generator().manual_seed(9), asked))
    shape = torch.empty(20, 6, 24, dtype=torch.float64)
    starts = model.start(shape, torch.Generator().manual_seed(9)).view(5, 4, 6, 24)
    different, elsewhere = set(), 0
    for row in range(5):
        runs = [model(ids[row : row + 1], 3, state=starts[row, n][None]) for n in range(4)]
        worst = [run.residual[0, :4].max().item() for run in runs]
        best = worst.index(min(worst))
        different.add(best)
        elsewhere += best != min(range(4), key=lambda n: runs[n].residual[0, 3].item())
        torch.testing.assert_close(found[3].logits[row], runs[best].logits[0])
        torch.testing.assert_close(found[3].last_two[0][row], runs[best].state[0])
        first = model(ids[row : row + 1], 1, state=starts[row, 0][None])
        torch.testing.assert_close(found[1].logits[row], first.logits[0])
    assert len(different) > 1 and elsewhere  # the choice is one, and not that of the answer alone


@pytest.mark.parametrize("count", [1, 3])
def test_the_majority_answers_with_its_calmest_run(make_model: Make, count: int) -> None:
    """Runs with the same tokens at all scored positions agree; among those that most agree on, the calmest answers
    (the first, where one iteration tells nothing of calm). By hand, from every run alone."""
    model, (ids, labels) = make_model("recurrent"), batch(rows=9)
    assert isinstance(model, IteratedModel)
    found = dict(restarted(model, ids, [count], 6, torch.Generator().manual_seed(2), labels != IGNORE, "majority"))
    calm = dict(restarted(model, ids, [count], 6, torch.Generator().manual_seed(2), labels != IGNORE))
    starts = model.start(torch.empty(54, 6, 24, dtype=torch.float64), torch.Generator().manual_seed(2))
    against = 0
    for row in range(9):
        runs = [model(ids[row, None], count, state=start[None]) for start in starts.view(9, 6, 6, 24)[row]]
        answers = [tuple(run.logits[0, 2:-1].argmax(-1).tolist()) for run in runs]
        most = max(map(answers.count, answers))
        among = [n for n in range(6) if answers.count(answers[n]) == most]
        best = among[0] if count == 1 else min(among, key=lambda n: runs[n].residual[0, :-1].max().item())
        torch.testing.assert_close(found[count].logits[row], runs[best].logits[0])
        against += most > 1 and not torch.equal(found[count].logits[row], calm[count].logits[row])
    assert against  # the vote is not the residual's choice


def test_an_evaluation_scores_the_chosen_runs(make_model: Make) -> None:
    """Guards the choice on its way from the argument to the answers: what the majority says is what is scored."""
    model, (ids, labels) = make_model("recurrent"), batch(rows=9)
    assert isinstance(model, IteratedModel)
    losses: dict[Choose, float] = {}
    for choose in ("calmest", "majority"):
        draws = torch.Generator().manual_seed(2)
        ((_, reading),) = restarted(model, ids, [3], 6, torch.Generator().manual_seed(2), labels != IGNORE, choose)
        (found,) = evaluate(model, {None: [(ids, labels)]}, [3], restarts=6, choose=choose, generator=draws)
        losses[choose] = found.loss
        assert found.loss == pytest.approx(F.cross_entropy(reading.logits.flatten(0, 1), labels.flatten()).item())
    assert losses["calmest"] != losses["majority"]


@pytest.mark.parametrize("choose", ["calmest", "majority"])
def test_many_runs_go_group_by_group(make_model: Make, monkeypatch: pytest.MonkeyPatch, choose: Choose) -> None:
    """Guards the memory of many restarts: no call has more runs than fit, and each row has the answer of its own."""
    model, (ids, labels) = make_model("recurrent"), batch()
    assert isinstance(model, IteratedModel)
    monkeypatch.setattr("mull.inference.measure.restarts.AT_ONCE", 9)
    widths: list[int] = []
    real = type(model).sweep
    monkeypatch.setattr(
        type(model), "sweep", lambda self, ids, *more, **how: widths.append(len(ids)) or real(self, ids, *more, **how)
    )
    found = dict(restarted(model, ids, [1, 3], 4, torch.Generator().manual_seed(9), labels != IGNORE, choose))
    assert widths == [8, 8, 4] and list(found) == [1, 3] and found[1].last_two is None
    generator = torch.Generator().manual_seed(9)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        alone = dict(restarted(model, ids[rows], [1, 3], 4, generator, labels[rows] != IGNORE, choose))
        for count in (1, 3):
            assert torch.equal(found[count].logits[rows], alone[count].logits)
        assert torch.equal(found[3].last_two[0][rows], alone[3].last_two[0])
        assert torch.equal(found[3].last_two[1][rows], alone[3].last_two[1])


def test_an_evaluation_tells_how_far_states_moved_and_charges_every_run(make_model: Make) -> None:
    """The residual is that of forward, the largest up to the last scored position; N runs cost N times; one run is no
    restart."""
    model, (ids, labels) = make_model("recurrent"), batch()
    one = evaluate(model, {None: [(ids, labels)]}, [1, 3])
    residual = model(ids, 3).residual[:, :-1].amax(dim=1)
    right = (model(ids, 3).logits.argmax(-1) == labels)[:, 2:-1].all(dim=1)
    told = settling(residual.tolist(), right.tolist())
    assert (one[0].residual, one[0].auc_of_all) == (None, None)
    assert one[1].residual == pytest.approx(told.residual) and one[1].settled == told.settled
    assert one[1].auc == told.auc
    several = evaluate(model, {None: [(ids, labels)]}, [1, 3], restarts=4)
    assert [result.flops_per_token for result in several] == [4 * result.flops_per_token for result in one]
    assert several[1].residual < one[1].residual
    again = evaluate(model, {8: [(ids, labels)], 9: [(ids, labels)]}, [1, 3], restarts=4)  # none draws for another
    assert [result.loss for result in again] == 2 * [result.loss for result in several]
    draws = torch.Generator().manual_seed(0)
    one, other = (evaluate(model, {8: [(ids, labels)]}, [3], restarts=4, generator=draws)[0] for _ in range(2))
    assert one.loss == several[1].loss != other.loss  # whoever measures again draws others


def test_runs_that_are_lost_have_no_vote() -> None:
    """Two lost runs agree with one that is well: it stands alone, against two others that agree."""
    answers = torch.tensor([[[0, 0], [0, 0], [0, 0], [5, 1], [5, 1]]])
    assert alike(answers, torch.tensor([[1, 0, 0, 1, 1]])).tolist() == [[1, 1, 1, 2, 2]]


def test_what_cannot_be_restarted_is_refused(make_model: Make) -> None:
    """Each with the value and the remedy."""
    ids, labels = batch()
    for wrong in (0, 4097):
        with pytest.raises(ValueError, match=f"restarts must lie between 1 and 4,096, not {wrong}"):
            evaluate(make_model("recurrent"), {None: [(ids, labels)]}, restarts=wrong)
    for model in (
        make_model("transformer"),
        make_model("inner_thinking"),
        make_model("recurrent", initial_state="zero"),
    ):
        with pytest.raises(ValueError, match="restarts=2 needs a model that begins at a random state"):
            evaluate(model, {None: [(ids, labels)]}, restarts=2)
    with pytest.raises(ValueError, match="choose must be one of calmest, majority, not best"):
        evaluate(make_model("recurrent"), {None: [(ids, labels)]}, restarts=2, choose="best")
    with pytest.raises(ValueError, match="choose=majority chooses among starts, and there is one"):
        evaluate(make_model("recurrent"), {None: [(ids, labels)]}, choose="majority")
    with pytest.raises(ValueError, match="leave one out"):
        evaluate(make_model("recurrent"), {None: [(ids, labels)]}, restarts=2, exit="latent:0.03")


@pytest.mark.parametrize("choose", ["calmest", "majority"])
def test_a_run_that_has_left_the_numbers_answers_for_nobody(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, choose: Choose
) -> None:
    """NaN is the smallest number to argmin, and runs that are lost agree with each other."""
    model, (ids, labels) = make_model("recurrent"), batch()
    assert isinstance(model, IteratedModel)

    def start(injected: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        states = torch.randn(injected.shape, dtype=injected.dtype, generator=generator)
        lost = torch.ones(len(states), dtype=torch.bool)
        lost[1::4] = False
        lost[2::4] = choose == "majority"  # three of four agree on nothing
        states[lost] = torch.nan
        return states

    monkeypatch.setattr(model, "start", start)
    found = dict(restarted(model, ids, [1, 3], 4, torch.Generator().manual_seed(9), labels != IGNORE, choose))
    assert found[1].logits.isfinite().all() and found[3].logits.isfinite().all()
