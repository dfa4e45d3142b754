"""Whose turn it is, counted in turns: by a clock of which every turn takes a second, whatever the machine."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mull
from mull.inference.exits import parse
from mull.inference.serve import lanes
from mull.inference.serve.lanes import Turn
from mull.inference.serve.limits import Limits
from mull.inference.serve.metrics import Metrics
from mull.inference.serve.refusals import Refused
from mull.inference.serve.rows import Ended, Failed, Piece, Row, Wish, likely
from mull.inference.serve.schedule import Schedule
from mull.inference.serve.served import Served
from mull.inference.serve.thinking import AtOnce, ByRule
from mull.models import (
    InnerThinkingConfig,
    InnerThinkingTransformer,
    RecurrentDepthConfig,
    RecurrentDepthTransformer,
)

LIMITS = Limits(max_iterations=128, max_tokens=64)


class Bench:
    """A schedule that is turned by hand, and the rows that it was given."""

    def __init__(self, served: Served, limits: Limits = LIMITS) -> None:
        ticks = itertools.count(step=0.5)  # two looks at the clock a turn
        self.served, self.said = served, dict[int, list[Any]]()
        self.schedule = Schedule(limits, Metrics(), clock=lambda: next(ticks))
        self.numbers = itertools.count()

    def row(self, depth: int, tokens: int, prompt: int = 4, exit: str | None = None, **wish: Any) -> Row:
        number = next(self.numbers)
        self.said[number] = []
        ids = torch.randint(97, 120, (prompt,), generator=torch.Generator().manual_seed(number)).tolist()
        sharing = self.served.sharing(depth, exit, None)
        row = Row(number, self.served, sharing, ids, Wish(depth, tokens, **wish), number, self.said[number].append)
        self.schedule.submit([row])
        return row

    def turn(self, turns: int = 1) -> None:
        with torch.inference_mode():
            for _ in range(turns):
                self.schedule.receive(busy=True)
                if self.schedule.stale:
                    self.schedule.admit()
                self.schedule.turn()

    def until_done(self, rows: list[Row]) -> int:
        """Turns until these rows have ended."""
        for turns in itertools.count():
            if all(row.done for row in rows):
                return turns
            self.turn()
        raise AssertionError

    def expected(self, row: Row) -> list[int]:
        found = mull.generate(
            self.served.model,
            torch.tensor([row.prompt]),
            row.wish.iterations,
            row.sharing.key[2] if row.sharing.key[1] == "rule" else None,
            max_new_tokens=row.wish.max_tokens,
        )
        assert row.spent == int(found.iterations.sum())
        return found.new_tokens[0].tolist()


@pytest.fixture(scope="module")
def served(make_model: Callable[..., Any]) -> Served:
    """A small model whose next token depends on all tokens and on how long it thinks."""
    model = make_model("recurrent", vocab_size=257, max_length=160)
    return Served("tiny", model, mull.load("text").tokenizer, {"medium": 3})


def test_a_shallow_row_does_not_wait_for_deep_ones(served: Served) -> None:
    """A row of depth 1 has its tokens within a fifth more turns than it would need alone, whatever else is written; and
    what is written beside it moves on."""
    alone = Bench(served)
    needs = alone.until_done([alone.row(1, 32)])
    bench = Bench(served)
    deep = [bench.row(depth, 64) for depth in (64, 63, 64)]
    bench.turn(300)
    assert all(row.tokens for row in deep)
    before = [len(row.tokens) for row in deep]
    shallow = bench.row(1, 32)
    turns = bench.until_done([shallow])
    assert turns <= needs * 1.2 + 2 and shallow.tokens == bench.expected(shallow)
    bench.turn(300)
    assert all(len(row.tokens) > count for row, count in zip(deep, before, strict=True))


def test_nobody_starves(served: Served) -> None:
    """A deep row goes on beside an endless row of shallow ones: it has its share of the turns."""
    bench = Bench(served)
    deep = bench.row(32, 2)
    shallow: list[Row] = []
    turns = 0
    while not deep.done and turns < 20_000:
        turns += 1
        if not shallow or shallow[-1].done:
            shallow.append(bench.row(1, 8))
        bench.turn()
    assert deep.done and deep.tokens == bench.expected(deep)
    own = 2 * 33  # its prompt and a token, 32 iterations and an answer each
    assert own < turns < 9 * own  # its weight is a sixth of theirs, and they have prompts besides


def test_rows_of_different_depths_share_a_batch(served: Served) -> None:
    """Counts of one power of two are one lane; a step takes as long as its deepest row, and each row has its answer."""
    bench = Bench(served)
    rows = [
        bench.row(depth, tokens, prompt) for depth, tokens, prompt in ((5, 9, 3), (8, 6, 70), (6, 12, 9), (8, 3, 5))
    ]
    bench.until_done(rows)
    assert [row.tokens for row in rows] == [bench.expected(row) for row in rows]
    assert bench.schedule.metrics.steps < 16
    assert len({row.sharing.key for row in rows}) == 1
    assert served.sharing(9, None, None).key != served.sharing(8, None, None).key == served.sharing(5, None, None).key
    bench.turn(3)
    assert bench.schedule.lanes == {} and bench.schedule.metrics.cache_bytes == 0


@pytest.mark.parametrize("rule", ["kl:0.05", "latent:0.3", "entropy:0.02,minimum=2"])
def test_prompts_are_read_in_pieces_where_that_is_the_same(
    served: Served, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that reads answers looks at a whole prompt at once, and gets it whole; the others, and counts, do not."""
    monkeypatch.setattr(lanes, "PIECE", 3)
    bench = Bench(served)
    rows = [bench.row(9, 6, prompt=length, exit=rule) for length in (20, 7, 13)] + [bench.row(9, 6, prompt=20)]
    bench.until_done(rows)
    assert [row.tokens for row in rows] == [bench.expected(row) for row in rows]
    assert len({tuple(row.tokens) for row in rows}) == 4


def test_rows_join_and_leave_between_tokens(served: Served) -> None:
    """A row that comes while others write, and one that is cancelled in the middle of a token, change nothing for the
    others; and who is gone has no place any more."""
    bench = Bench(served)
    first, second = bench.row(8, 30), bench.row(7, 30)
    bench.turn(40)
    gone, last = bench.row(8, 30), bench.row(5, 10)
    bench.turn(60)
    assert gone.tokens and not gone.ended and first.tokens
    gone.cancelled = True
    bench.until_done([first, second, last])
    assert [row.tokens for row in (first, second, last)] == [bench.expected(row) for row in (first, second, last)]
    assert len(gone.tokens) < 30 and not any(isinstance(event, Ended) for event in bench.said[2])
    only = bench.row(64, 30)
    bench.turn(100)
    only.cancelled = True
    bench.turn(2)
    assert not bench.schedule.busy and bench.schedule.metrics.writing == 0  # not at the end of its 64 iterations


def test_small_requests_pass_those_that_wait(served: Served) -> None:
    """A prompt that does not fit holds up those behind it in its lane only, and they keep their order."""
    each = served.bytes_per_position(64) * 71
    bench = Bench(served, Limits(max_iterations=128, cache_bytes=4 + each * 2 * 4 // 3))
    deep = [bench.row(64, 64, prompt=6) for _ in range(4)]
    shallow = bench.row(1, 4)
    bench.until_done([shallow])
    assert bench.schedule.metrics.waiting == 2 and not any(row.done for row in deep)
    deep[0].cancelled = True
    bench.turn(70)
    assert bench.schedule.metrics.waiting == 1 and deep[3] in bench.schedule.waiting[0]


def test_what_breaks_ends_its_own_batch_only(served: Served, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """A model that fails, or says what is no number, costs the rows of that batch, and is told."""
    bench = Bench(served)
    fine, broken = bench.row(1, 4), bench.row(8, 4)
    think = type(served.model).think

    def fails(self: Any, state: Any, prepared: Any, context: Any, iteration: int) -> Any:
        if iteration == 5:
            raise RuntimeError("no memory")
        return think(self, state, prepared, context, iteration)

    monkeypatch.setattr(type(served.model), "think", fails)
    bench.until_done([fine, broken])
    assert fine.tokens == bench.expected(fine)
    (failed,) = bench.said[1]
    assert isinstance(failed, Failed) and failed.refusal.status == 500 and "no memory" in str(failed.refusal)
    assert "no memory" in capfd.readouterr().err
    monkeypatch.setattr(type(served.model), "think", lambda *_: think(*_) * torch.nan)
    nan = bench.row(8, 4)
    bench.until_done([nan])
    assert "NaN" in str(bench.said[2][0].refusal)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_row_without_a_next_token_ends_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: Any, value: float
) -> None:
    """One of three rows of a lane, all of whose logits are no numbers from its third token on."""
    bench = Bench(served)
    rows = [bench.row(8, 6, temperature=1.0), bench.row(8, 6), bench.row(8, 6, temperature=1.0)]
    logits = type(served.model).logits

    def broken(self: Any, x: torch.Tensor) -> torch.Tensor:
        found = logits(self, x)
        if len(rows[0].tokens) == 2 and len(found) == 3:
            found[0] = value
        return found

    monkeypatch.setattr(type(served.model), "logits", broken)
    bench.until_done(rows)
    said = bench.said[0][-1]
    assert isinstance(said, Failed) and said.refusal.status == 500
    assert str(said.refusal).startswith("the model's logits are NaN or infinite: no token can be chosen")
    assert rows[1].tokens == bench.expected(rows[1]) and [len(row.tokens) for row in rows] == [2, 6, 6]
    assert all(isinstance(bench.said[number][-1], Ended) for number in (1, 2)) and not capfd.readouterr().err


def test_what_is_told_of_a_token_that_cannot_come_is_a_number() -> None:
    """-inf in an answer would be no JSON."""
    told = likely(1, torch.tensor([-torch.inf, 0.0, -torch.inf]), 3, 0)
    assert [log_p for _, log_p in told.top] == [0.0, -9999.0, -9999.0] and told.log_p == 0.0
    assert json.loads(json.dumps(told, allow_nan=False))


def test_the_end_is_told_to_everybody(served: Served) -> None:
    """Rows that write, that wait and whose prompt is read are all ended, each with one line."""
    bench = Bench(served, Limits(max_iterations=128, max_rows=1))
    rows = [bench.row(8, 30), bench.row(8, 30), bench.row(1, 30)]
    bench.turn(30)
    bench.schedule.end(Refused("over", status=503))
    assert all(row.done for row in rows)
    assert [
        [event.refusal.status for event in said if not isinstance(event, Piece)] for said in bench.said.values()
    ] == [[503]] * 3


def test_turns_are_shared_by_weight() -> None:
    """Three parts to one: a lane of four times the weight has four times the turns."""

    class Counted(Turn):
        busy, rests, count = True, True, 0

        def advance(self) -> None:
            self.count += 1

        def give_up(self, refusal: Refused) -> None:
            raise NotImplementedError

    ticks = itertools.count(step=0.5)
    schedule = Schedule(LIMITS, Metrics(), clock=lambda: next(ticks))
    light, heavy = Counted(0.25), Counted(1.0)
    schedule.lanes = {("x",): type("Lane", (), {"turns": (light, heavy)})()}
    for _ in range(100):
        schedule.turn()
    assert (light.count, heavy.count) == (20, 80)
    heavy.busy = False
    for _ in range(100):
        schedule.turn()
    heavy.busy, heavy.count, light.count = True, 0, 0
    for _ in range(100):
        schedule.turn()
    assert heavy.count <= 81 and light.count >= 19  # idleness saves nothing up


@pytest.mark.parametrize("family", ["looped", "routed"])
def test_a_turn_is_billed_what_runs_behind_a_window(family: str) -> None:
    """Guards each way to call a model against torch's counter, one token behind a long cache, answers looked at on the
    way included: a coda of layers attends, too."""
    shape: Any = dict(vocab_size=7, d_model=24, n_heads=4, window=4)
    model: Any
    ways: list[Any]
    if family == "looped":
        model = RecurrentDepthTransformer(RecurrentDepthConfig(**shape, n_coda=2, mean_iterations=3))
        ways = [ByRule(parse("kl:1e-9")), ByRule(parse("latent:1e-9")), AtOnce(3, None)]
    else:  # of which all tokens take every pass, since routed tokens are gathered in blocks
        model = InnerThinkingTransformer(InnerThinkingConfig(**shape, n_layers=2, routing=False, rule="loop"))
        ways = [AtOnce(3, None)]
    for way in ways:
        cache = model.eval().new_cache(1, 300)
        with torch.no_grad():
            model(torch.zeros(1, 200, dtype=torch.int64), 3, cache=cache)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                steps = way.call(model, torch.zeros(1, 1, dtype=torch.int64), cache, [3])
                try:
                    while True:
                        next(steps)
                except StopIteration as ended:
                    said = ended.value
        assert said.flops[0] == pytest.approx(counter.get_total_flops(), rel=0.01), way
