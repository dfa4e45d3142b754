"""The data modules under the trainer: batches are functions of their number, a resumed run sees the rest of them."""

from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

import mull
from mull.training.data import Addition, Maze, ModChain, Parity, ReachedAccuracy, Sudoku, TaskData, TextData
from mull.training.data.module import StreamData
from mull.training.data.order import check_order


@pytest.fixture
def text_data(tmp_path: Path) -> TextData:
    (tmp_path / "a.txt").write_text("".join(f"the square of {i} is {i * i}\n" for i in range(2000)))
    return TextData([str(tmp_path / "a.txt")], length=24, batch_size=3, validation_windows=10, held_out=0.3,
                    cache=str(tmp_path / "cache"))  # fmt: skip


@pytest.fixture(params=["task", "mixed", "text", "workers"])
def data(request: pytest.FixtureRequest, text_data: TextData) -> StreamData:
    mixed = TaskData(Parity(), difficulty=[8, 9, 12], batch_size=3, validation_examples=10)
    task = TaskData(Addition(), batch_size=3, validation_examples=10)
    ahead = TaskData(Parity(), difficulty=[8, 9, 12], batch_size=3, validation_examples=10, workers=2)
    return {"task": task, "mixed": mixed, "text": text_data, "workers": ahead}[request.param]


class Recorder(pl.LightningModule):
    """One weight, and the batches it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen.append(batch["input_ids"])
        return self.weight * batch["labels"].float().mean()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.validated.append(batch["input_ids"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data: StreamData, folder: Path, steps: int, resume: str | None = None, **options: Any) -> Recorder:
    """Trains for a number of optimizer steps and leaves last.ckpt in the folder."""
    module = Recorder()
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, **options)  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_the_network_needs_is_there_at_once(tmp_path: Path) -> None:
    """vocab_size and stop_tokens are linked into the network's config before any data is read."""
    task, text = TaskData(Parity()), TextData([str(tmp_path / "not there yet")])
    assert (task.vocab_size, task.stop_tokens, task.bytes_per_token) == (6, (2, 3), None)
    assert (text.vocab_size, text.stop_tokens) == (257, (256,))
    assert task.tokenizer.token_to_id("odd") == 3 and text.tokenizer.token_to_id("<end>") == 256


def test_batches_are_functions_of_their_number(data: StreamData) -> None:
    """The loader, a second pass over it, and a direct question agree; numbers and ranks differ."""
    loader = data.train_dataloader()
    for number, batch in enumerate(islice(loader, 4)):
        asked = data.training_batch(number)
        assert torch.equal(batch["input_ids"], asked["input_ids"]) and torch.equal(batch["labels"], asked["labels"])
        assert batch["input_ids"].shape == batch["labels"].shape and batch["labels"].dtype == torch.int64
    shown = [data.training_batch(number, rank, 2)["input_ids"] for number in range(3) for rank in range(2)]
    assert len({batch.numpy().tobytes() for batch in shown}) == 6


def test_ranks_share_what_one_device_would_see(text_data: TextData) -> None:
    """Two ranks of batch size 3 see the items of batches 2n and 2n + 1 of one: no item twice, none left out."""
    for single in (TaskData(Addition(), batch_size=3), text_data):
        for number in range(3):
            for rank in range(2):
                shared = single.training_batch(number, rank, world_size=2)
                assert torch.equal(shared["input_ids"], single.training_batch(2 * number + rank)["input_ids"])


# The trainer cannot know that the loader goes by the optimizer step, and warns of epochs resumed in the middle.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 4}], ids=str)
def test_a_resumed_run_sees_the_rest(data: StreamData, tmp_path: Path, options: dict[str, Any]) -> None:
    """3 optimizer steps, then 4 more from the checkpoint: together the batches of 7 in one go, in order, none twice."""
    whole = fit(data, tmp_path, 7, **options)
    start = fit(data, tmp_path, 3, **options)
    rest = fit(data, tmp_path, 7, resume=str(tmp_path / "last.ckpt"), **options)
    assert equal(start.seen + rest.seen, whole.seen)
    assert equal(whole.seen, [data.training_batch(number)["input_ids"] for number in range(len(whole.seen))])
    assert len(whole.seen) == 7 * options.get("accumulate_grad_batches", 1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")  # as above
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")  # as a run does
def test_the_first_batches_come_over_and_over(data: StreamData, tmp_path: Path) -> None:
    """Guards trainer.overfit_batches, resumed in the midst of a round too, and with several batches to a step."""
    first = [data.training_batch(i)["input_ids"] for i in range(3)]
    options: dict[str, Any] = {"overfit_batches": 3, "val_check_interval": 1.0}
    assert equal(fit(data, tmp_path, 5, **options).seen, [first[i % 3] for i in range(5)])
    assert equal(fit(data, tmp_path, 8, str(tmp_path / "last.ckpt"), **options).seen, [first[2], *first[:2]])
    every = fit(data, tmp_path, 4, accumulate_grad_batches=2, **options).seen
    assert equal(every, [*first, *first[1:], first[0]])  # a round ends a step, and the next begins where it would


def test_validation_is_fixed_and_held_out(data: StreamData, tmp_path: Path) -> None:
    """The same batches at every validation, of the size asked for, none of them training data."""
    module = fit(data, tmp_path, 2, val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    half = len(module.validated) // 2
    assert half and equal(module.validated[:half], module.validated[half:])
    assert equal(module.validated[:half], [batch["input_ids"] for batch in data.validation_batches()])
    rows = sum(len(batch) for batch in module.validated[:half])
    assert rows == (12 if len(getattr(data, "difficulties", [0])) == 3 else 10)  # 10 over 3 difficulties: 4 each
    held_out = {row.numpy().tobytes() for batch in module.validated for row in batch}
    trained = {row.numpy().tobytes() for number in range(50) for row in data.training_batch(number)["input_ids"]}
    assert not held_out & trained


def test_a_list_of_difficulties_mixes_by_batch() -> None:
    """Each batch has one length, the same on every rank; all of them come up about equally often."""
    data = TaskData(Parity(), difficulty=[8, 9, 12], batch_size=2, validation_examples=6)
    lengths = [data.training_batch(number)["input_ids"].shape[1] for number in range(300)]
    assert all(60 < lengths.count(length + 1) < 140 for length in (8, 9, 12))  # 100 each, five deviations are 41
    assert [data.training_batch(n, 1, 4)["input_ids"].shape[1] for n in range(300)] == lengths
    assert [batch["input_ids"].shape for batch in data.validation_batches()] == [(2, 9), (2, 10), (2, 13)]


def test_a_curriculum_goes_by_batch_number() -> None:
    """Each stage ends before its batch, whatever the order in the file, and then `difficulty` holds, mixed or not."""
    data = TaskData(Parity(), difficulty=[9, 12], curriculum={5: 6, 2: 4}, batch_size=2)
    assert [data.training_difficulty(number) for number in range(5)] == [4, 4, 6, 6, 6]
    assert {data.training_difficulty(number) for number in range(5, 60)} == {9, 12}
    assert data.training_batch(1)["input_ids"].shape == (2, 5) and data.training_batch(2)["input_ids"].shape == (2, 7)
    with pytest.raises(ValueError, match="length 0 is too small for the parity task"):
        TaskData(Parity(), curriculum={5: 0})


def test_tasks_are_evaluated_on_the_test_split() -> None:
    """By difficulty, as many examples as asked for, the last batch being what is left; never training or validation."""
    data = TaskData(Parity(), difficulty=[8, 9])
    assert list(data.evaluation_batches(examples=1)) == [8, 9]
    chosen = data.evaluation_batches([12, 20], examples=10, batch_size=4, seed=3)
    for difficulty, batches in chosen.items():
        rows = [row for input_ids, _ in batches for row in input_ids]
        assert difficulty is not None and len(rows) == 10
        assert {data.task.split_of(row[1:].numpy()) for row in rows} == {"test"}
        expected = data.task.batch("test", 3, range(10), difficulty)[0]
        assert torch.equal(torch.stack(rows), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="length 0 is too small"):
        data.evaluation_batches([0])


def test_an_evaluation_uses_what_there_is_and_says_so() -> None:
    """Length 8 has 11 test items: 512 rows of them would be repeats that pass for evidence."""
    data = TaskData(Parity(), difficulty=[8, 9], validation_examples=100)
    with pytest.warns(UserWarning, match="parity has 11 different test items of length 8: .* not on 64"):
        batches = data.evaluation_batches([8], examples=64, batch_size=4)[8]
        rows = [row for input_ids, _ in batches for row in input_ids]
    assert len(rows) == 11 == len({row.numpy().tobytes() for row in rows})
    validated = [row.numpy().tobytes() for batch in data.validation_batches() for row in batch["input_ids"]]
    assert len(validated) == len({*validated}) < 100


def test_what_was_seen_is_no_test() -> None:
    """Rows of 4 bits are beginnings of the rows of 8 that were trained on: asked for, they are refused."""
    for data in (TaskData(Parity(), difficulty=[4, 8]), TaskData(Parity(8), curriculum={3: 4})):
        assert list(data.evaluation_batches()) == [8]
        with pytest.raises(
            ValueError, match=r"items of length 4 are beginnings of items of length 8, .* use 8 or more"
        ):
            data.evaluation_batches([4])
    with pytest.raises(ValueError, match="items of length 4 are beginnings of items of length 16"):
        TaskData(Parity(4), curriculum={3: 16}).evaluation_batches()
    assert list(TaskData(Parity(4)).evaluation_batches()) == [4]


def test_text_is_evaluated_on_the_held_out_split(text_data: TextData) -> None:
    """The validation windows under another name; a difficulty is refused, not ignored."""
    ((difficulty, batches),) = text_data.evaluation_batches(examples=10, batch_size=3).items()
    shown = list(batches)
    with pytest.warns(UserWarning, match=r"the held-out text has \d+ windows of \d+: measured on these, not on 9999"):
        assert list(text_data.evaluation_batches(examples=9999)[None])
    assert difficulty is None and len(shown) == 4
    assert equal([input_ids for input_ids, _ in shown], [b["input_ids"] for b in text_data.validation_batches()])
    assert equal([labels for _, labels in shown], [b["labels"] for b in text_data.validation_batches()])
    with pytest.raises(ValueError, match=r"text has no difficulty: leave \[8\] out"):
        text_data.evaluation_batches([8])
    with pytest.raises(ValueError, match="not drawn: leave the seed 3 out"):
        text_data.evaluation_batches(seed=3)


def test_everything_can_be_held_out(text_data: TextData, tmp_path: Path) -> None:
    """A foreign text that is only measured: all of it is validation, and training on it is refused."""
    data = TextData([str(tmp_path / "a.txt")], length=24, held_out=1.0, cache=str(tmp_path / "cache"))
    assert data.corpus.tokens("train") == 0
    assert data.corpus.bytes("validation") == sum(text_data.corpus.bytes(split) for split in ("train", "validation"))
    assert len(data.validation_batches()) == 2
    with pytest.raises(ValueError, match="the train split has 0 tokens"):
        data.training_batch(0)


def test_text_labels_are_the_next_tokens(text_data: TextData) -> None:
    """Position t predicts token t + 1: labels are aligned with positions, nobody shifts them later."""
    for batch in (text_data.training_batch(0), *text_data.validation_batches()):
        assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
        assert batch["input_ids"].shape[1] == 24
    corpus = text_data.corpus
    assert text_data.bytes_per_token == corpus.bytes("validation") / corpus.tokens("validation")


def test_validation_windows_are_spread_over_the_split(text_data: TextData) -> None:
    """With several files, the first windows alone would measure the first file only."""
    windows = text_data.corpus.windows("validation", 24)
    last = text_data.validation_batches()[-1]["input_ids"][-1]
    assert windows > 20
    assert torch.equal(last, torch.from_numpy(text_data.corpus.window("validation", 9 * windows // 10, 24)[:-1]))


def test_mistakes_are_named(tmp_path: Path) -> None:
    """Sizes below one, difficulties that the task refuses, a corpus too short for the length."""
    with pytest.raises(ValueError, match="batch_size is 0: it must be 1 or more"):
        TaskData(Parity(), batch_size=0)
    with pytest.raises(ValueError, match="validation_examples is -1: it must be 1 or more"):
        TaskData(Parity(), validation_examples=-1)
    with pytest.raises(ValueError, match="difficulty is an empty list"):
        TaskData(Parity(), difficulty=[])
    with pytest.raises(ValueError, match="length 0 is too small for the parity task"):
        TaskData(Parity(), difficulty=[8, 0])
    with pytest.raises(ValueError, match="workers is -1: it must be 0, for none, or more"):
        TaskData(Parity(), workers=-1)
    with pytest.raises(ValueError, match="workers is 2, and none of them would know"):
        TaskData(Parity(), difficulty=[8, 9], advance=ReachedAccuracy(), workers=2)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match=r"the \w+ split has \d tokens, fewer than one window of 257"):
        TextData([str(tmp_path / "a.txt")], cache=str(tmp_path / "cache")).training_batch(0)


def test_a_network_that_sees_ahead_is_not_given_what_it_is_to_predict(text_data: TextData) -> None:
    """Its loss would fall to nothing and mean nothing; while data that is answered in place needs such a network."""
    size = {"vocab_size": 300, "d_model": 8, "n_heads": 2, "n_layers": 1}
    one_way, both_ways = (mull.Transformer(mull.TransformerConfig(**size, causal=causal)) for causal in (True, False))
    for data in (text_data, TaskData(Addition(2, digits=1))):
        with pytest.raises(ValueError, match=r"causal: false does not go with .* set model.* to true"):
            check_order(both_ways, data)
        check_order(one_way, data)
    with pytest.warns(UserWarning, match="the network is causal and does not see what comes later: set .* to false"):
        check_order(one_way, TaskData(Sudoku(4, side=4)))
    with pytest.warns(UserWarning, match="the network is causal and does not see what comes later: set .* to false"):
        check_order(one_way, TaskData(ModChain(2, every=True)))
    check_order(one_way, TaskData(ModChain(2)))  # asked for behind all of it
    for fits in (Sudoku(4, side=4), Maze(7), Parity(9)):  # what parity asks for is nowhere in its rows
        check_order(both_ways, TaskData(fits))
    check_order(torch.nn.Linear(1, 1), text_data)  # of networks of one's own nothing is known


@pytest.mark.parametrize("difficulty", [[16, 32], [8, 16, 32, 32], [32] * 4])
def test_a_difficulty_that_is_named_twice_takes_no_validation_examples_away(difficulty: list[int]) -> None:
    """Guards the number that is asked for: it is shared among the difficulties that differ. The first eight bits decide
    the split of a row, so that there are few rows of eight."""
    batches = TaskData(Parity(), difficulty=difficulty, validation_examples=96).validation_batches()
    fewest = 96 if 8 not in difficulty else 64
    assert fewest <= sum(len(batch["input_ids"]) for batch in batches) <= 98
