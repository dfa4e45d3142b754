"""Running parity against a slow recount."""

import pytest

from mull.training.data import IGNORE, Parity


@pytest.mark.parametrize("length", [5, 8, 33])
def test_labels_are_the_running_parity(length: int) -> None:
    """Each position, counted bit by bit; the difficulty is the length."""
    task = Parity()
    for index in range(10):
        (start, *bits), (unscored, *labels) = task.example("train", 0, index, difficulty=length)
        assert task.symbols[start] == "<start>" and unscored == IGNORE and len(bits) == len(labels) == length
        for t in range(length):
            ones = sum(int(bit) for bit in bits[: t + 1])
            assert task.symbols[labels[t]] == ("odd" if ones % 2 else "even")


def test_the_readme_prompt() -> None:
    """1 0 1 1 has three ones."""
    assert Parity().check("1 0 1 1", "odd") and not Parity().check("1 0 1 1", "even")


def test_nobody_types_the_start_symbol() -> None:
    """The tokenizer puts it before the bits, for `encode` and for a reader of tokenizer.json; decoding drops it."""
    task = Parity()
    prompt, _ = task.prompt("test", 0, 0)
    assert "<start>" not in prompt and len(prompt.split()) == 32
    ids = task.tokenizer.encode(prompt).ids
    assert ids == task.encode(prompt).tolist() == task.example("test", 0, 0).input_ids.tolist()
    assert task.tokenizer.decode(ids) == prompt


def test_bits_are_fair() -> None:
    """64,000 bits: the mean is within 5 standard deviations (0.01) of a half."""
    assert abs(Parity(64).batch("train", 0, range(1000))[0][:, 1:].mean() - 0.5) < 0.01
