"""p-hop induction: from the last symbol, jump p times to "what came after this symbol the last time".

Sanford et al., arXiv 2402.09268; Saunshi et al., arXiv 2502.17416, table 2: floor(log2 p) + 2 loops suffice, and a
shallow model without loops does not. One hop is the induction head. In "a c b d a b", the last symbol b occurs before
at position 2, so one hop leads to the d after it; d does not occur before, so there is no second hop.
"""

from typing import ClassVar, Literal, get_args

import numpy as np

from mull.training.data.task import IGNORE, MAX_DIFFICULTY, Task

Asked = Literal["number", "marks"]
MARK = "hop"  # one hop, where a mark stands for each


class PHop(Task):
    """A first symbol such as "hop4" announces the number of hops, then `length` letters follow; T = length + 1.

    The answer is the letter where the chain of hops from the last position ends. The same question can be asked at
    every position, so all positions whose chain stays inside the sequence are scored in training, not only the last.

    Sequences are drawn uniformly from those without equal neighbours (a hop between equal neighbours would not move) in
    which the chain of the last position exists. A guess that ignores the sequence is right 1/alphabet of the time. With
    4 letters, the best guess from the last letter alone is right 0.33, 0.50, 0.34, 0.27, 0.26 of the time at 1, 2, 4,
    8, 16 hops.

    With `asked: marks` the number is no symbol of its own, which a model that was not trained with it cannot know: the
    letters come first, and behind them a mark for each hop, "hop hop hop"; T = length + hops. In training the j-th mark
    is answered with the letter where the chain of j hops ends, in a test the last alone.

    Difficulty is the number of hops. The first 8 letters decide the split of a sequence, whatever number of hops is
    asked for, and in validation and test positions from the 8th letter on are scored: no training sequence begins with
    the letters up to there. (Of shorter sequences, the last position is.)

    Args:
        hops: Default difficulty.
        length: Letters in a sequence.
        alphabet: Number of letters, 3 to 26.
        max_hops: Largest difficulty where it is said by a number. It fixes the vocabulary, so that one model serves
            every number up to it.
        asked: How the number of hops is said: "number" before the letters, or "marks" behind them.
    """

    name: ClassVar[str] = "p_hop"
    purpose: ClassVar[str] = (
        "Follows a chain of jumps through a row of letters, each to what came after the letter the last time (p-hop "
        "induction), and says where it ends: for seeing how many iterations a chain of steps takes."
    )
    difficulty_name: ClassVar[str] = "hops"
    decided_by: ClassVar[int] = 8
    room = "length"

    def __init__(
        self, hops: int = 4, length: int = 64, alphabet: int = 4, max_hops: int = 16, asked: Asked = "number"
    ) -> None:
        if asked not in get_args(Asked):
            raise ValueError(f"asked must be one of {', '.join(get_args(Asked))}, not {asked!r}")
        if not 3 <= alphabet <= 26:
            raise ValueError(f"alphabet is {alphabet}: it must be between 3 and 26 letters")
        if not max(length, max_hops) <= MAX_DIFFICULTY:
            raise ValueError(f"length {length} and max_hops {max_hops} must be at most {MAX_DIFFICULTY:,}")
        self.length, self.alphabet, self.max_hops, self.asked = length, alphabet, max_hops, asked
        self.default_difficulty, self.every = hops, asked == "marks"
        self.resolve(hops)

    @property
    def symbols(self) -> tuple[str, ...]:
        numbers = [f"hop{p}" for p in range(1, self.max_hops + 1)]
        return (*self.stop_symbols, *(numbers if self.asked == "number" else [MARK]))

    @property
    def stop_symbols(self) -> tuple[str, ...]:
        return tuple("abcdefghijklmnopqrstuvwxyz"[: self.alphabet])  # the answer to a prompt is one letter

    def options(self) -> tuple[object, ...]:
        return (self.length, self.alphabet)

    def resolve(self, difficulty: int | None) -> int:
        hops = super().resolve(difficulty)
        if hops > self.max_hops and self.asked == "number":
            raise ValueError(f"{hops} hops are more than the {self.max_hops} of the vocabulary: raise max_hops")
        needed = hops * (self.alphabet - 1) + 1  # a hop covers alphabet - 1 positions on average
        if self.length < needed:
            raise ValueError(f"{hops} hops over {self.alphabet} letters need a length of {needed}, not {self.length}")
        return hops

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        while True:  # about every second draw ends this at the largest difficulty that `resolve` lets pass
            moves = rng.integers(1, self.alphabet, self.length)  # never 0, so neighbours differ
            moves[0] = rng.integers(self.alphabet)
            letters = (moves.cumsum() % self.alphabet).astype(np.uint8)
            if follow(letters.tobytes(), difficulty) is not None:
                return letters

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(items))[:, None]
        landing, letters = hop_from(items, self.alphabet), items.astype(np.int64)
        place, ends = np.broadcast_to(np.arange(self.length), items.shape), []
        for _ in range(difficulty):
            place = np.where(place < 0, -1, landing[rows, place])
            ends.append(place[:, -1:])  # a chain of the last letter stays inside
        if self.asked == "marks":
            marks = np.full((len(items), difficulty), self.symbols.index(MARK))
            unscored = np.full_like(letters, IGNORE)
            return (
                np.concatenate([letters, marks], axis=1),
                np.concatenate([unscored, letters[rows, np.concatenate(ends, axis=1)]], axis=1),
            )
        announced = np.full((len(items), 1), self.symbols.index(f"hop{difficulty}"))
        labels = np.where(place < 0, IGNORE, letters[rows, place])
        return (
            np.concatenate([announced, letters], axis=1),
            np.concatenate([np.full_like(announced, IGNORE), labels], axis=1),
        )

    def check(self, prompt: str, answer: str) -> bool:
        words = prompt.split()
        if self.asked == "marks":
            hops, form = words.count(MARK), f"letters, then {MARK} for each"
            letters, marks = words[: len(words) - hops], words[len(words) - hops :]
            known = set(marks) == {MARK}
        else:
            letters, form = words[1:], f"hop1 to hop{self.max_hops}, then letters"
            known = bool(words) and words[0] in self.symbols[self.alphabet :]
            hops = int(words[0].removeprefix("hop")) if known else 0
        if not known or not letters or not set(letters) <= set(self.stop_symbols):
            raise ValueError(
                f"not a p_hop prompt: {prompt!r} (expected {form}, letters from "
                f"{self.stop_symbols[0]} to {self.stop_symbols[-1]}, with blanks between all)"
            )
        place = follow("".join(letters).encode(), hops)
        if place is None:
            raise ValueError(f"the chain of {hops} hops leaves the sequence, so the prompt has no answer: {prompt!r}")
        return answer.split() == [letters[place]]


def follow(letters: bytes, hops: int) -> int | None:
    """The position where the chain of hops from the last letter ends; None if it leaves the sequence."""
    place = len(letters) - 1
    for _ in range(hops):
        before = letters.rfind(letters[place], 0, place)
        if before < 0:
            return None
        place = before + 1
    return place


def hop_from(items: np.ndarray, alphabet: int) -> np.ndarray:
    """One hop from every position: items (B, L) to positions (B, L), or -1 if the letter does not occur before."""
    places = np.arange(items.shape[1])
    landing = np.full(items.shape, -1)
    for letter in range(alphabet):
        here = items == letter
        latest = np.maximum.accumulate(np.where(here, places, -1), axis=1)  # up to and with each position
        before = np.concatenate([np.full((len(items), 1), -1), latest[:, :-1]], axis=1)
        landing = np.where(here & (before >= 0), before + 1, landing)
    return landing
