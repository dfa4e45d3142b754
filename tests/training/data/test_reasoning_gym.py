"""Questions of reasoning_gym as training data: addressed, split and laid out as tasks of mull are, and judged by the
package's own verifier."""

import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("reasoning_gym", reason="the extra gym is not installed")

import mull
from mull.training import description
from mull.training.data import ReasoningGym
from mull.training.data.order import check_room
from mull.training.data.task import IGNORE

SUMS: dict[str, Any] = {"generator": "chain_sum", "options": {"max_digits": 2}}
LEVELS: dict[int, dict[str, Any]] = {2: {"min_terms": 2, "max_terms": 2}, 3: {"min_terms": 3, "max_terms": 3}}


def asked(data: ReasoningGym, split: Any, count: int, level: int | None = None, seed: int = 0) -> list[str]:
    return [item.question for item in data.items(split, seed, range(count), level)]


def test_splits_share_no_question_and_held_out_ones_differ() -> None:
    """Neighbouring seeds of the package give the same items: split by seed, a test would be of what was trained on."""
    data = ReasoningGym(**SUMS)
    train, validation, test = (asked(data, split, 200) for split in ("train", "validation", "test"))
    assert len(set(validation)) == len(set(test)) == 200
    assert not set(train) & set(test) and not set(train) & set(validation) and not set(test) & set(validation)


def test_questions_that_are_not_there_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards generators of few questions: each look for more takes thousands of draws, and every batch would look."""
    looked, real = [], ReasoningGym._draw

    def of_two(self: ReasoningGym, rng: Any, split: Any, level: int | None, known: set[str]) -> Any:
        looked.append(split)
        return None if len(known) == 2 else real(self, rng, split, level, known)

    monkeypatch.setattr(ReasoningGym, "_draw", of_two)
    data = ReasoningGym(**SUMS)
    assert [data.available("test", 0, wanted, None) for wanted in (5, 5, 9)] == [2, 2, 2]
    assert len(looked) == 3 and len(asked(data, "test", 2)) == 2


def test_an_item_is_a_function_of_its_address() -> None:
    """Another process, another order, more of them: the same items; another seed or level: others."""
    code = (
        "from mull.training.data import ReasoningGym; d = ReasoningGym('chain_sum', {'max_digits': 2});"
        "print([i.question for i in d.items('test', 3, range(5), None)] + [d.items('train', 3, [7], None)[0].question])"
    )
    data = ReasoningGym(**SUMS)
    here = [*asked(data, "test", 9, seed=3)[:5], data.items("train", 3, [7], None)[0].question]
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)
    assert asked(data, "test", 5, seed=4) != here[:5]
    leveled = ReasoningGym(**SUMS, levels=LEVELS)
    assert asked(leveled, "train", 5, 2) != asked(leveled, "train", 5, 3)


def test_only_the_answer_and_its_end_are_scored() -> None:
    """What is scored, read back as text, is the answer; rows are filled up behind it, unscored."""
    data = ReasoningGym(**SUMS, levels=LEVELS, batch_size=6)
    batch, items = data.training_batch(0), None
    for level in LEVELS:
        found = data.items("train", 0, range(6), level)
        items = found if torch.equal(data.lay_out(found)["input_ids"], batch["input_ids"]) else items
    assert items is not None
    end = data.stop_tokens[0]
    for row, item in enumerate(items):
        scored = batch["labels"][row] != IGNORE
        *answer, last = batch["labels"][row][scored].tolist()
        first = int(scored.nonzero()[0])
        assert data.tokenizer.decode(answer) == item.answer and last == end
        assert data.tokenizer.decode(batch["input_ids"][row, : first + 1].tolist()) == item.question + "\n"
        assert batch["input_ids"][row, first + 1 : first + 1 + len(answer)].tolist() == answer


def test_ranks_share_no_items_and_agree_on_the_difficulty() -> None:
    data = ReasoningGym(**SUMS, levels=LEVELS, batch_size=4)
    alone = [data.training_batch(3, rank, 2)["input_ids"] for rank in range(2)]
    texts = [{data.tokenizer.decode(row.tolist()).split("=")[0] for row in ids} for ids in alone]
    assert not texts[0] & texts[1]
    assert len({text.count("+") + text.count(" - ") for both in texts for text in both}) == 1


def test_the_verifier_takes_every_right_answer_and_no_other() -> None:
    """Countdown of the package has many right answers: another derivation than the stored one gets full marks."""
    data = ReasoningGym("countdown", {"min_numbers": 3, "max_numbers": 3}, length=1000)
    (prompt, right), *_ = data.questions(examples=4)[None]
    item = data.items("test", 0, [0], None)[0]
    assert prompt == item.question + "\n"
    assert right(item.answer) and right(f" ({item.answer}) ")  # another way to write it
    assert not right("1 + 1") and not right("") and not right("no idea")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"generator": "chain_sun"}, "reasoning_gym has no generator 'chain_sun'; near are chain_sum"),
        ({"generator": "chain_sum", "options": {"digits": 3}}, "chain_sum refuses the options {'digits': 3}"),
        ({"generator": "chain_sum", "options": {"min_terms": -1}}, "chain_sum refuses the options"),
        ({"generator": "chain_sum", "options": {"seed": 3}}, "seed of chain_sum is set by mull: leave it out"),
        ({"generator": "chain_sum", "levels": {}}, "levels is empty"),
        ({"generator": "graph_color"}, "graph_color gives no answer in words"),
        ({"generator": "chain_sum", "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        ReasoningGym(**arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("generator", ["acre", "gsm_symbolic", "list_functions", "word_ladder"])
def test_generators_that_make_something_of_each_place_have_fewer(generator: str) -> None:
    """Guards the memory of a machine: of 2^31 places they would fill it before the first item, or they refuse."""
    data = ReasoningGym(generator, length=10_000)
    (question, judge), *_ = data.questions(examples=2)[None]
    (item, *_) = data.items("test", 0, [0, 1], None)
    assert question.startswith(item.question) and judge(item.answer) and not judge("?")


def test_options_that_show_with_the_first_item_are_named() -> None:
    """Guards against the words of Python's own random numbers: a generator takes 2.5 terms until it draws some."""
    says = r"reasoning_gym's chain_sum refuses the options {'max_digits': 2, 'min_terms': 2.5}: "
    with pytest.raises(ValueError, match=says):
        ReasoningGym("chain_sum", {"max_digits": 2}, levels={1: {}, 2: {"min_terms": 2.5}})


def test_a_network_has_room_for_every_row_before_the_first_is_drawn() -> None:
    """Guards a long training against an item that is longer than all before it; one as long as can be fits."""
    data = ReasoningGym(**SUMS, length=90, batch_size=64)
    config = {"vocab_size": data.vocab_size, "d_model": 16, "n_heads": 2}
    with pytest.raises(ValueError, match=r"training rows have up to 90 tokens, and the network takes 89: raise .*max_"):
        check_room(mull.Transformer(mull.TransformerConfig(**config, max_length=89)), data)
    check_room(mull.Transformer(mull.TransformerConfig(**config, max_length=90)), data)
    assert data.training_batch(0)["input_ids"].shape[1] <= data.longest_row()


def test_questions_that_are_all_too_long_are_said_to_be() -> None:
    with pytest.raises(ValueError, match="no train item of at most 10 tokens among 2048 draws: raise length"):
        ReasoningGym(**SUMS, length=10).training_batch(0)
    with pytest.raises(ValueError, match="chain_sum has no difficulty 9 here; there are 2, 3"):
        ReasoningGym(**SUMS, levels=LEVELS).evaluation_batches([9])


def test_levels_of_a_folder_are_those_of_its_training() -> None:
    """Guards the difficulties of `mull evaluate`: training.yaml holds the keys of a mapping as text."""
    said = {**SUMS, "levels": {str(level): options for level, options in LEVELS.items()}}
    data = description.build({"class_path": "mull.training.data.ReasoningGym", "init_args": said}, ReasoningGym)
    assert data.levels == LEVELS and list(data.evaluation_batches([3])) == [3]
    with pytest.raises(ValueError, match="levels"):
        said["levels"] = {"easy": {}}
        description.build({"class_path": "mull.training.data.ReasoningGym", "init_args": said}, ReasoningGym)
