"""p-hop induction against hopping by hand."""

from collections import Counter
from itertools import pairwise

import pytest

from mull.training.data import IGNORE, PHop


def hop_by_hand(letters: list[int], start: int, hops: int) -> int | None:
    """The letter at the end of the chain from `start`, looked for one position at a time; None if there is none."""
    place = start
    for _ in range(hops):
        for before in range(place - 1, -1, -1):
            if letters[before] == letters[place]:
                place = before + 1
                break
        else:
            return None
    return letters[place]


@pytest.mark.parametrize(("hops", "length", "alphabet"), [(1, 4, 3), (2, 20, 4), (4, 64, 4), (9, 40, 5)])
def test_labels_are_the_end_of_the_chain(hops: int, length: int, alphabet: int) -> None:
    """Every position: the letter where its chain ends, or not scored if the chain leaves the sequence."""
    task = PHop(hops, length, alphabet)
    for index in range(10):
        input_ids, labels = task.example("train", 0, index)
        letters = input_ids[1:].tolist()
        assert task.symbols[input_ids[0]] == f"hop{hops}" and labels[0] == IGNORE and len(letters) == length
        for t, label in enumerate(labels[1:].tolist()):
            expected = hop_by_hand(letters, t, hops)
            assert label == (IGNORE if expected is None else expected)
        assert labels[-1] != IGNORE and all(a != b for a, b in pairwise(letters))


@pytest.mark.parametrize(("hops", "length", "alphabet"), [(1, 10, 3), (3, 20, 4), (9, 40, 5)])
def test_marks_are_answered_hop_by_hop(hops: int, length: int, alphabet: int) -> None:
    """In training the j-th mark has the letter j hops from the last one, by hand; a test asks for all hops alone. The
    letters are those of the task that says the number, and no number of hops is beyond the vocabulary."""
    task, plain = PHop(hops, length, alphabet, max_hops=1, asked="marks"), PHop(hops, length, alphabet)
    for index in range(10):
        input_ids, labels = task.example("train", 0, index)
        letters = input_ids[:length].tolist()
        assert letters == plain.example("train", 0, index).input_ids[1:].tolist()
        assert [task.symbols[mark] for mark in input_ids[length:]] == ["hop"] * hops
        assert (labels[:length] == IGNORE).all()
        assert labels[length:].tolist() == [hop_by_hand(letters, length - 1, j) for j in range(1, hops + 1)]
        told = task.example("test", 0, index).labels
        assert (told[:-1] == IGNORE).all() and told[-1] != IGNORE
        prompt, answer = task.prompt("test", 0, index)
        assert task.check(prompt, answer)
        assert not any(task.check(prompt, other) for other in task.stop_symbols if other != answer)


@pytest.mark.parametrize("prompt", ["a b a", "hop a b a", "a b hop a", "hop", "a hop4", "a x a hop"])
def test_a_text_without_marks_behind_letters_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"not a p_hop prompt: .* then hop for each"):
        PHop(2, length=20, asked="marks").check(prompt, "a")


def test_the_documented_example() -> None:
    """From the last b: b stood at position 2 before, d came after it; d never stood before."""
    task = PHop(1, length=8)
    assert task.check("hop1 a c b d a b", "d")
    assert task.check("hop3 b a a", "a")  # between equal neighbours a hop stays on the spot, by the definition
    with pytest.raises(ValueError, match="the chain of 2 hops leaves the sequence"):
        task.check("hop2 a c b d a b", "d")


def test_guessing_is_worth_what_the_docstring_says() -> None:
    """2,000 items: without the sequence 1/4; from the last letter alone 0.33, 0.50, 0.34 at 1, 2, 4 hops, +- 0.05."""
    task = PHop()
    for hops, best in ((1, 0.33), (2, 0.50), (4, 0.34)):
        input_ids, labels = task.batch("train", 0, range(2000), difficulty=hops)
        answers = Counter(labels[:, -1].tolist())
        shifts = Counter(((labels[:, -1] - input_ids[:, -1]) % 4).tolist())
        assert max(answers.values()) / 2000 == pytest.approx(0.25, abs=0.05)
        assert max(shifts.values()) / 2000 == pytest.approx(best, abs=0.05)


def test_the_hardest_difficulty_still_draws() -> None:
    """The limit on hops keeps redrawing short: at the limit about half of the sequences hold the chain."""
    task = PHop(21, length=64, max_hops=21)
    assert len(task.batch("test", 0, range(4))[0]) == 4


def test_more_hops_leave_the_old_ids_alone() -> None:
    """A larger vocabulary only appends, so the same model body can be trained on."""
    assert PHop(max_hops=32).symbols[: len(PHop().symbols)] == PHop().symbols


def test_limits_name_their_remedy() -> None:
    """Too many hops for the vocabulary or for the length, and alphabets in which hopping is trivial or unnamed."""
    with pytest.raises(ValueError, match="17 hops are more than the 16 of the vocabulary: raise max_hops"):
        PHop().batch("train", 0, [0], difficulty=17)
    with pytest.raises(ValueError, match="16 hops over 4 letters need a length of 49, not 48"):
        PHop(16, length=48)
    with pytest.raises(ValueError, match="asked must be one of number, marks, not 'words'"):
        PHop(asked="words")  # type: ignore[arg-type]
    for alphabet in (2, 27):
        with pytest.raises(ValueError, match=f"alphabet is {alphabet}: it must be between 3 and 26"):
            PHop(alphabet=alphabet)
