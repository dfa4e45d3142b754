"""What every synthetic task promises: addressed items, disjoint splits, aligned labels, an exact checker."""

import itertools
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.training.data import IGNORE, Addition, Parity, PHop, Split, Task
from mull.training.data.task import START, UNKNOWN

TASKS = [Parity(7), Addition(3, digits=2), PHop(2, length=20, alphabet=3, max_hops=5)]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@every_task
def test_an_item_does_not_depend_on_its_batch(task: Task) -> None:
    """Row i of any batch is item i: what a run sees may not depend on batch size, order or earlier draws."""
    input_ids, labels = task.batch("train", 3, [5, 0, 5, 2**40])
    for row, index in enumerate([5, 0, 5, 2**40]):
        alone = task.example("train", 3, index)
        assert np.array_equal(input_ids[row], alone.input_ids) and np.array_equal(labels[row], alone.labels)
    assert input_ids.dtype == labels.dtype == np.int64


@every_task
def test_streams_differ(task: Task) -> None:
    """Another seed, split or index is another stream: nothing of the address is forgotten."""
    addresses = itertools.product(SPLITS[:2], (0, 1), (0, 1), (None, task.default_difficulty + 1))
    # Several items per address: two single items of a small task may well be equal by chance.
    seen = [task.batch(s, seed, range(20 * i, 20 * i + 20), d)[0].tobytes() for s, seed, i, d in addresses]
    assert len(set(seen)) == len(seen) == 16


GOLDEN = {"parity": "839a429e12d9", "addition": "53444a9a50a6", "p_hop": "c14fb256b319"}


@every_task
def test_the_generator_is_the_one_that_trained_published_models(task: Task) -> None:
    """A golden hash: a changed generator (ours or numpy's) moves items between splits of models already trained."""
    digest = blake2b(digest_size=6)
    for split in SPLITS:
        for array in task.batch(split, 0, range(8)):
            digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest() == GOLDEN[task.name]


@every_task
def test_no_item_is_in_two_splits(task: Task) -> None:
    """Whatever the seeds, an item met in one split is never met in another."""
    met: dict[str, set[bytes]] = {split: set() for split in SPLITS}
    for split, seed in itertools.product(SPLITS, (0, 1)):
        met[split] |= {row.tobytes() for row in task.batch(split, seed, range(100))[0]}
    assert all(len(items) >= 5 for items in met.values())
    assert not met["train"] & met["validation"] and not met["train"] & met["test"]
    assert not met["validation"] & met["test"]


def test_splits_share_out_the_whole_space() -> None:
    """Exhaustively for 256 items: each is drawn in the split that owns it, and only there; none is out of reach."""
    task = Parity(8)
    owned: dict[str, set[bytes]] = {split: set() for split in SPLITS}
    for bits in itertools.product((0, 1), repeat=8):
        owned[task.split_of(np.array(bits))].add(np.array(bits).tobytes())
    # Collecting n coupons takes about n ln n draws: 1200 for the 224 of train, 45 for 16. These miss one in 1000 seeds.
    for split in SPLITS:
        draws = 3000 if split == "train" else 200
        assert {row[1:].tobytes() for row in task.batch(split, 0, range(draws))[0]} == owned[split]


@every_task
def test_the_checker_accepts_the_answer_and_nothing_else(task: Task) -> None:
    """Every one-symbol change, deletion and insertion of a right answer is wrong."""
    for index in range(20):
        prompt, answer = task.prompt("test", 0, index)
        words = answer.split()
        assert task.check(prompt, answer)
        for place, symbol in itertools.product(range(len(words)), task.symbols):
            changed = [*words[:place], symbol, *words[place + 1 :]]
            assert task.check(prompt, " ".join(changed)) == (changed == words)
            assert not task.check(prompt, " ".join([*words[:place], symbol, *words[place:]]))
        for place in range(len(words)):
            assert not task.check(prompt, " ".join(words[:place] + words[place + 1 :]))
        assert not task.check(prompt, "nonsense")


@every_task
def test_the_labels_after_a_prompt_spell_the_answer(task: Task) -> None:
    """What a model learns from labels is what `prompt` and the checker call the answer, closed by a stop token."""
    for index in range(20):
        prompt, answer = task.prompt("train", 1, index)
        input_ids, labels = task.example("train", 1, index)
        asked = task.encode(prompt)
        assert np.array_equal(asked, input_ids[: len(asked)])
        assert labels[-1] in task.stop_tokens and IGNORE not in labels[len(asked) - 1 :]
        told = [task.symbols[i] for i in labels[len(asked) - 1 :] if task.symbols[i] != "<end>"]
        assert " ".join(told) == answer


@every_task
def test_tokenizer_and_task_agree(task: Task) -> None:
    """A reader of tokenizer.json gets the same ids as `encode`, back and forth, and <unk> for an unknown symbol."""
    text = " ".join(task.symbols)
    opening = [task.symbols.index(START)] if START in task.symbols else []  # put there by both, typed by nobody
    assert task.tokenizer.encode(text).ids == task.encode(text).tolist() == [*opening, *range(len(task.symbols))]
    assert task.tokenizer.decode(list(range(len(task.symbols))), skip_special_tokens=False) == text
    assert (
        task.tokenizer.encode("1-zebra", add_special_tokens=False).ids
        == [task.tokenizer.token_to_id(UNKNOWN)]
        == [len(task.symbols)]
    )


@every_task
def test_unknown_symbols_and_strange_prompts_are_refused(task: Task) -> None:
    """A wrong symbol is named with its place, and the checker says what a prompt looks like."""
    with pytest.raises(ValueError, match=r"unknown symbol 'zebra' at position 1: the \w+ task knows"):
        task.encode(f"{task.symbols[0]} zebra")
    for prompt in ("", "zebra", "= =", task.symbols[-1]):
        with pytest.raises(ValueError, match=f"not an? {task.name} prompt"):
            task.check(prompt, "1")


@every_task
def test_bad_addresses_are_refused(task: Task) -> None:
    """Difficulty below the least and unknown splits end in a sentence, not in an empty array."""
    with pytest.raises(ValueError, match=f"{task.difficulty_name} 0 is too small .* use {task.min_difficulty} or more"):
        task.batch("train", 0, [0], difficulty=0)
    with pytest.raises(ValueError, match="unknown split 'dev': use one of train, validation, test"):
        task.batch("dev", 0, [0])  # type: ignore[arg-type]


def test_a_space_too_small_for_splits_says_so() -> None:
    """Two items cannot fill three splits: an error that names the remedy, not an endless search."""
    owners = {Parity().split_of(np.array([bit])) for bit in (0, 1)}
    missing = next(split for split in SPLITS if split not in owners)
    with pytest.raises(ValueError, match=f"too few items of length 1 .* belongs to {missing}.: use a larger length"):
        Parity().batch(missing, 0, [0], difficulty=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 80), st.integers(0, 2**63), st.integers(0, 2**63))
def test_any_seed_and_index_is_an_address(length: int, seed: int, index: int) -> None:
    """Addresses are 64 bits wide and need no neighbours."""
    input_ids, labels = Parity().example("train", seed, index, length)
    assert input_ids.shape == labels.shape == (length + 1,)  # the start symbol and the bits
